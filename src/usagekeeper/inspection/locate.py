"""Which middleware an application has, by a name such as ``shop.main:app``: what the command line speaks about.

Nothing is served and no file is opened; the application's module is imported, and a factory called.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Literal

from usagekeeper import asgi, wsgi
from usagekeeper.discovery import discover
from usagekeeper.engine import Engine
from usagekeeper.errors import ConfigurationError, UsageError
from usagekeeper.keeper import UsageKeeper
from usagekeeper.routes import Template

EXTRAS: Final = {
    "fastapi": "fastapi", "starlette": "fastapi", "flask": "flask", "httpx": "http", "jwt": "jwt", "redis": "redis",
    "psycopg": "postgres", "pymongo": "mongo", "motor": "motor", "ua_parser": "ua", "pyarrow": "parquet",
}  # fmt: skip
"""Modules, and the extra of this package that brings each."""

Kind = Literal["asgi", "wsgi"]
_SPEC = re.compile(r"(\w[\w.]*):([^\W\d][\w.]*)(\(\))?")
_DEEPEST: Final = 32


class NotFound(UsageError):
    """There is nothing usable under a name; the sentence says which, and what to write."""


class Missing(NotFound):
    """The application needs a package that is not installed."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One callable around an application."""

    name: str
    keeper: UsageKeeper | None = None
    """Where the layer is a middleware of this package."""
    engine: Engine | None = None
    kind: Kind | None = None
    below: str = ""
    """The path under which the application is mounted that the layer stands around."""


@dataclass(frozen=True, slots=True)
class Installation:
    """An application and the keeper that watches it."""

    name: str
    framework: str
    kind: Kind
    keeper: UsageKeeper
    engine: Engine
    templates: Sequence[Template]
    """The framework's own routes; empty where no framework is known."""
    layers: tuple[Layer, ...]
    """What stands around the application, from outside in; ours among them."""

    @property
    def ours(self) -> tuple[Layer, ...]:
        """The middlewares of this package, the outermost first."""
        return tuple(layer for layer in self.layers if layer.keeper is not None)

    @property
    def place(self) -> int:
        """Where the outermost of ours stands in `layers`."""
        return next((at for at, layer in enumerate(self.layers) if layer.keeper is not None), 0)


def locate(name: str) -> Installation:
    """The installation called ``module:attribute``, or ``module:factory()``; the current folder is searched first.

    Raises `NotFound` where nothing usable is there, and `ConfigurationError` where an option of the middleware is
    wrong.
    """
    with redirect_stdout(sys.stderr):  # what an application prints while it is made is no answer of ours
        given = _resolved(name)
    layers = tuple(_walk(given, ""))
    if isinstance(given, UsageKeeper):
        return Installation(name, "", "asgi", given, given.engine(), (), ())
    if type(given).__module__ == "usagekeeper.flask":
        raise NotFound(f"{name!r} is the UsageMiddleware and no application: name the Flask application")
    first = next((layer for layer in layers if layer.keeper is not None and not layer.below), None)
    if first is None or first.keeper is None or first.engine is None or first.kind is None:
        raise NotFound(_without(name, given, layers))
    templates = discover((given,))
    first.engine.install(templates)
    return Installation(name, _framework(given), first.kind, first.keeper, first.engine, templates, layers)


# -- from a name to an object ------------------------------------------------------------------------------------------


def _resolved(name: str) -> Any:
    found = _SPEC.fullmatch(name)
    if found is None:
        raise NotFound(f'--app {name!r} is no name of an application: write "module:app" or "module:create_app()"')
    module, attributes, called = found.groups()
    value: Any = _imported(module)
    for attribute in attributes.split("."):
        if not hasattr(value, attribute):
            raise NotFound(_absent(module, value, attribute))
        value = getattr(value, attribute)
    if called:
        return _called(name, value)
    if _is_factory(value):
        raise NotFound(f'{name!r} is a function that makes an application: write --app "{name}()"')
    return value


def _imported(module: str) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        absent = error.name or module
        if module == absent or module.startswith(f"{absent}."):
            raise NotFound(
                f"there is no module {module!r} in {folder} or on the path of Python: run this where it lies"
            ) from error
        raise Missing(f"{module!r} needs {absent!r}, which is not installed: {_install(absent)}") from error
    except Exception as error:  # an application may raise anything while it is imported
        raise NotFound(f"{module!r} cannot be imported: {type(error).__name__}: {error}") from error


def _install(module: str) -> str:
    top = module.partition(".")[0]
    return f'pip install "usagekeeper[{EXTRAS[top]}]"' if top in EXTRAS else "install what it comes with"


def _absent(module: str, value: object, attribute: str) -> str:
    near = difflib.get_close_matches(attribute, dir(value), n=1)
    callers = [name for name in ("app", "application", "create_app", "make_app") if hasattr(value, name)]
    hint = f"did you mean {(near or callers)[0]!r}?" if near or callers else "name the application"
    return f"{module!r} has no {attribute!r}: {hint}"


def _called(name: str, value: Any) -> Any:
    if not callable(value):
        raise NotFound(f"{name!r} calls what is no function but a {type(value).__name__}: write it without ()")
    try:
        return value()
    except ConfigurationError:
        raise
    except Exception as error:  # a factory may raise anything
        raise NotFound(f"{name!r} made no application: {type(error).__name__}: {error}") from error


def _is_factory(value: Any) -> bool:
    """Whether it is a function that can be called without arguments: an application takes two or three."""
    if not inspect.isfunction(value):
        return False
    parameters = inspect.signature(value).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return not needed


# -- from an application to what stands around it ----------------------------------------------------------------------


def _walk(application: Any, below: str) -> Iterator[Layer]:
    """Every layer from outside in, then those around mounted applications."""
    seen: set[int] = set()
    for _ in range(_DEEPEST):
        if application is None or id(application) in seen:
            return
        seen.add(id(application))
        if isinstance(application, asgi.UsageMiddleware | wsgi.UsageMiddleware):
            yield _ours(application, below)
        elif hasattr(application, "user_middleware"):
            yield from _stacked(application, below)
            return
        elif not hasattr(application, "url_map") and not inspect.ismethod(application):
            yield Layer(type(application).__name__, below=below)
        inner = getattr(application, "wsgi_app", None) or getattr(application, "app", None)
        application = inner if inner is not None else getattr(application, "__self__", None)


def _stacked(application: Any, below: str) -> Iterator[Layer]:
    """Starlette keeps classes and arguments, and builds its stack with the first request."""
    for entry in application.user_middleware:
        if isinstance(entry.cls, asgi.UsageMiddleware):
            raise ConfigurationError(f"add_middleware was given a UsageMiddleware that is already built: write {_ADD}")
        if _is_ours(entry.cls):  # one of WSGI objects to it here
            yield _ours(entry.cls(application.router, *entry.args, **entry.kwargs), below)
        else:
            yield Layer(getattr(entry.cls, "__name__", type(entry.cls).__name__), below=below)
    for route in application.routes:
        inner, path = getattr(route, "app", None), getattr(route, "path", "")
        if inner is not None and hasattr(route, "routes") and len(below) < _LONGEST:
            yield from (layer for layer in _walk(inner, below + path) if layer.keeper is not None)


_LONGEST: Final = 512


def _is_ours(layer: Any) -> bool:
    return isinstance(layer, type) and any(base.__module__.startswith("usagekeeper.") for base in layer.__mro__)


def _ours(middleware: asgi.UsageMiddleware | wsgi.UsageMiddleware, below: str) -> Layer:
    keeper = middleware.keeper
    if keeper is None:
        raise ConfigurationError(str(getattr(middleware, "_error", None) or "the UsageMiddleware has no keeper"))
    kind: Kind = "asgi" if isinstance(middleware, asgi.UsageMiddleware) else "wsgi"
    return Layer("UsageMiddleware", keeper, middleware.engine, kind, below)


def _framework(application: Any) -> str:
    """ "FastAPI", "Flask", or the class of an application that is of no framework we know."""
    seen: set[int] = set()
    while application is not None and id(application) not in seen:
        seen.add(id(application))
        if hasattr(application, "routes") or hasattr(application, "url_map"):
            return type(application).__name__
        bound = getattr(application, "__self__", None)
        application = bound if bound is not None else getattr(application, "app", None)
    return ""


def _without(name: str, given: Any, layers: Sequence[Layer]) -> str:
    inner = next((layer.below for layer in layers if layer.keeper is not None), None)
    if inner is not None:
        return f"{name!r} has a UsageMiddleware only in what is mounted at {inner!r}: name that application"
    if not callable(given):
        return f"{name!r} is a {type(given).__name__} and no application, middleware or UsageKeeper: name one of these"
    line = _ADD if hasattr(given, "user_middleware") else "UsageMiddleware(app, policies=[...])"
    return f"{name!r} has no UsageMiddleware: add {line}, or name the UsageKeeper"


_ADD: Final = "app.add_middleware(UsageMiddleware, policies=[...])"
