"""Finds what an application is: its kind, the framework behind it and its routes; imports none that is not in use."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from types import FunctionType, MethodType
from typing import Any, Final

from usagekeeper.routes import Rest, Template

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
                if (templates := _known(seen)) is not None:
                    return templates
    except Exception:  # private shapes of frameworks move, and proxies object to being looked at
        _LOG.warning(
            "cannot read the routes of a %s: records show our own patterns", type(seen).__name__, exc_info=True
        )
    return []


def own_root(application: Any) -> str:
    """The prefix that *application* puts instead of the server: `root_path` of FastAPI; elsewhere that is a folder."""
    for layer in _layers(application):
        if _module_of(layer) == _FRAMEWORKS["fastapi"] and (root := getattr(layer, "root_path", "")):
            return str(root)
    return ""


def _known(application: Any) -> list[Template] | None:
    """The routes of *application* itself, None where it is of no framework that we know."""
    mounts = getattr(application, "mounts", None)
    if isinstance(mounts, dict) and type(application).__module__ == "werkzeug.middleware.dispatcher":
        prefixes = sorted(mounts, key=len, reverse=True)  # it looks for the longest
        below = [template for prefix in prefixes for template in _mounted(prefix, discover([mounts[prefix]]))]
        return below + discover([application.app])
    module = _module_of(application)
    return None if module is None else import_module(module).templates(application)


def _mounted(prefix: str, own: list[Template]) -> Iterator[Template]:
    """The routes of an application below *prefix*, and what keeps the rest of the paths there from all others."""
    before = tuple(part for part in prefix.split("/") if part)
    for template in own:
        yield replace(template, label=prefix + template.label, segments=(*before, *template.segments))
    yield Template(f"{prefix}/<path>", frozenset() if own else None, (*before, Rest()), mounted=len(own))


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
