"""FastAPI: `Usage` as a parameter of a handler, limits in the OpenAPI document, the routes as templates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

try:
    from fastapi import Depends, FastAPI
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('this needs FastAPI: pip install "usagekeeper[fastapi]"', name=error.name) from error

from usagekeeper import starlette
from usagekeeper.asgi import UsageMiddleware
from usagekeeper.errors import ConfigurationError
from usagekeeper.keeper import UsageKeeper, keeper_of
from usagekeeper.openapi import describe
from usagekeeper.routes import Converter, Template, segments_of
from usagekeeper.usage import Usage as HandlerUsage
from usagekeeper.usage import current_usage

__all__ = ["Usage", "UsageMiddleware", "document", "templates"]


async def _current() -> HandlerUsage:
    """`current_usage`, as a coroutine: FastAPI calls plain functions in a thread."""
    return current_usage()


Usage = Annotated[HandlerUsage, Depends(_current)]
"""A handler's view of its request: ``async def item(usage: Usage): usage.charge(5)``."""


def document(app: FastAPI, keeper: UsageKeeper | None = None) -> None:
    """Tell readers of *app*'s OpenAPI document what its limits answer: 429, 401 and 503, and the headers.

    Call it last, after ``add_middleware``; the rules are those of *keeper*, or else of the middlewares in the
    application. Operations that no policy covers are left alone, and so is what the document says of these responses
    already. Calling it again replaces the rules. `ConfigurationError` without a FastAPI application or a keeper.
    """
    if not isinstance(app, FastAPI):
        raise ConfigurationError(f"document() takes a FastAPI application, not {app!r}: write document(app, keeper)")
    keepers = _keepers_in(app) if keeper is None else [keeper_of(keeper, {})]
    if not keepers:
        raise ConfigurationError(
            "document(app) finds no UsageMiddleware in the application: call it after"
            " app.add_middleware(UsageMiddleware, ...), or write document(app, keeper)"
        )
    given = app.openapi.given if isinstance(app.openapi, _Documented) else app.openapi
    app.openapi = _Documented(app, given, keepers)  # type: ignore[method-assign]


def _keepers_in(app: FastAPI) -> list[UsageKeeper]:
    added = [one for one in app.user_middleware if isinstance(one.cls, type) and issubclass(one.cls, UsageMiddleware)]
    options: list[Any] = [dict(one.kwargs) for one in added]
    return [keeper_of(given.pop("keeper", None), given) for given in options]


class _Documented:
    """Stands for `app.openapi`: the document that it gives, with the limits."""

    def __init__(self, app: FastAPI, given: Callable[[], dict[str, Any]], keepers: list[UsageKeeper]) -> None:
        self._app = app
        self.given = given
        self._rules = [(keeper, keeper.engine()) for keeper in keepers]

    def __call__(self) -> dict[str, Any]:
        document = self.given()
        for keeper, engine in self._rules:
            if keeper.enabled:
                document = describe(document, engine, root=self._app.root_path, problems=not keeper.custom_refusals)
        return document


def templates(app: Any) -> list[Template]:
    """The routes of *app* with the prefixes of their routers, and of what is mounted in it, in the order of trial."""
    return [*starlette.templates(app), *_frontends(app)]


def _frontends(app: Any) -> Iterator[Template]:
    """Folders of static files (`app.frontend`), asked when nothing else matched, the longest path first."""
    router = getattr(app, "router", app)
    groups: list[Any] = list(getattr(router, "_iter_low_priority_routes", list)())
    paths = [
        (getattr(group, "frontend_prefix", "") + route.path).rstrip("/")
        for group in groups
        for route in getattr(getattr(group, "original_route", group), "routes", ())
    ]
    for path in sorted(paths, key=len, reverse=True):
        pieces = (path, "/", Converter("path", ".*", spans=True))
        yield Template(f"{path}/{{path}}", frozenset({"GET", "HEAD"}), segments_of(pieces))
