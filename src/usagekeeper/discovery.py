"""Finds what an application is: its kind, the framework behind it and its routes; imports none that is not in use."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import FunctionType, MethodType
from typing import Any, Final

from usagekeeper.routes import Template

_LOG: Final = logging.getLogger("usagekeeper")

_FRAMEWORKS: Final = {
    "fastapi": "usagekeeper.fastapi",
    "starlette": "usagekeeper.starlette",
    "flask": "usagekeeper.flask",
}
_DEEPEST: Final = 32


def discover(candidates: Iterable[Any]) -> list[Template]:
    """The routes of the first of *candidates*, or of what it wraps, that belongs to a framework we know.

    A framework that has changed under us costs its labels, never a request.
    """
    seen: object = None
    try:
        for candidate in candidates:
            for seen in _layers(candidate):
                if (module := _module_of(seen)) is not None:
                    templates: list[Template] = import_module(module).templates(seen)
                    return templates
    except Exception:  # private shapes of frameworks move, and proxies object to being looked at
        _LOG.warning(
            "cannot read the routes of a %s: records show our own patterns", type(seen).__name__, exc_info=True
        )
    return []


def takes(application: Any, arguments: int) -> bool:
    """Whether it can be called with so many *arguments*: an ASGI application takes three, a WSGI application two."""
    if type(application) in (FunctionType, MethodType):
        call, given = application, arguments
    else:  # asked of its class: proxies object to being looked at
        call, given = type(application).__call__, arguments + 1
    try:
        inspect.signature(call, follow_wrapped=False).bind(*range(given))
    except (TypeError, ValueError):  # it takes others, or does not tell
        return False
    return True


def _layers(application: Any) -> Iterator[Any]:
    """*application* and, from outside in, the middlewares around it."""
    for _ in range(_DEEPEST):
        if application is None:
            return
        yield application
        bound = getattr(application, "__self__", None)  # app.wsgi_app is a method of its application
        application = bound if bound is not None else getattr(application, "app", None)


def _module_of(application: Any) -> str | None:
    if not hasattr(application, "routes") and not hasattr(application, "url_map"):
        return None
    for base in type(application).__mro__:
        framework = base.__module__.partition(".")[0]
        if framework in _FRAMEWORKS:
            return _FRAMEWORKS[framework]
    return None
