"""FastAPI: `Usage` as a parameter of a handler, and the application's own routes as templates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends

from usagekeeper import starlette
from usagekeeper.asgi import UsageMiddleware
from usagekeeper.routes import Converter, Template, segments_of
from usagekeeper.usage import Usage as HandlerUsage
from usagekeeper.usage import current_usage

__all__ = ["Usage", "UsageMiddleware", "templates"]


async def _current() -> HandlerUsage:
    """`current_usage`, as a coroutine: FastAPI calls plain functions in a thread."""
    return current_usage()


Usage = Annotated[HandlerUsage, Depends(_current)]
"""A handler's view of its request: ``async def item(usage: Usage): usage.charge(5)``."""


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
