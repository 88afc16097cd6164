"""Starlette: the application's own routes as templates, so that a request refused before routing has its label."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

from usagekeeper.routes import Converter, Piece, Template, segments_of


def templates(app: Any) -> list[Template]:
    """The routes of *app* in the order in which they are tried, those of mounted applications among them.

    Routes of other hosts come last: a template says nothing about hosts.
    """
    return list(_collect(_routed(app), "", (), ()))


def _collect(app: Any, prefix: str, before: tuple[Piece, ...], outer: tuple[Any, ...]) -> Iterator[Template]:
    hosts = []
    for route in _flat(app.routes):
        kind = getattr(route, "original_route", route)  # FastAPI's contexts answer for any name
        label = getattr(route, "path_format", None)
        if hasattr(kind, "host"):
            hosts.append(_routed(route.app))
        elif label is None:
            continue
        elif hasattr(kind, "routes"):
            yield from _mounted(route, prefix, before, (*outer, app))
        elif hasattr(kind, "endpoint"):
            pieces = (*before, *_pieces(label, route.param_convertors))
            methods = frozenset((getattr(kind, "methods", None) and route.methods) or ()) or None
            yield _template(prefix + label, methods, pieces, socket=not hasattr(kind, "methods"))
    for host in hosts:
        if _known(host, (*outer, app)):
            yield from _collect(host, prefix, before, (*outer, app))


def _mounted(mount: Any, prefix: str, before: tuple[Piece, ...], outer: tuple[Any, ...]) -> Iterator[Template]:
    """What is below a mount, then the mount itself: it keeps every path that begins like it."""
    head = mount.path_format.removesuffix("/{path}")
    before = (*before, *_pieces(head, mount.param_convertors))
    app = _routed(mount.app)
    known = _known(app, outer)
    own = list(_collect(app, prefix + head, before, outer)) if known else []
    yield from own
    pieces = (*before, "/", Converter("path", ".*", spans=True))
    yield _template(f"{prefix}{head}/{{path}}", frozenset() if known else None, pieces, mounted=len(own), socket=None)


def _known(app: Any, outer: tuple[Any, ...]) -> bool:
    """Whether *app* has routes to describe, and is not being described: applications may be mounted in themselves."""
    return hasattr(app, "routes") and all(app is not other for other in outer)


def _template(
    label: str,
    methods: frozenset[str] | None,
    pieces: tuple[Piece, ...],
    *,
    mounted: int | None = None,
    socket: bool | None = False,
) -> Template:
    slash = None if label == "/" else label.endswith("/")
    return Template(label, methods, segments_of(pieces), slash=slash, mounted=mounted, socket=socket, newline=True)


def _routed(app: Any) -> Any:
    """The application that has the routes, found through the middleware around it."""
    for _ in range(_WRAPPED):
        if hasattr(app, "routes") or not hasattr(app, "app"):
            break
        app = app.app
    return app


_WRAPPED: Final = 100


def _flat(routes: Iterable[Any]) -> Iterable[Any]:
    """Since 0.137 FastAPI keeps included routers as a tree, and flattens it on demand."""
    contexts = getattr(sys.modules.get("fastapi.routing"), "iter_route_contexts", None)
    return contexts(routes) if contexts else _flat_by_hand(routes)


def _flat_by_hand(routes: Iterable[Any]) -> Iterator[Any]:
    for route in routes:
        if hasattr(route, "effective_route_contexts"):  # FastAPI 0.137.0 and 0.137.1
            for context in route.effective_route_contexts():
                yield context.starlette_route or context
        else:
            yield route


def _pieces(path: str, converters: Any) -> list[Piece]:
    """The path of one route, as `compile_path` formatted it, with the converters of its parameters."""
    pieces: list[Piece] = []
    for at, text in enumerate(_PARAMETER.split(path)):
        if at % 2:
            regex = converters[text].regex
            pieces.append(Converter(text, regex, spans=not _ONE_SEGMENT.fullmatch(regex)))
        elif text:
            pieces.append(text)
    return pieces


_PARAMETER: Final = re.compile(r"{([a-zA-Z_][a-zA-Z0-9_]*)}")
_ONE_SEGMENT: Final = re.compile(r"(?:\[(?:\^/|(?:\w-\w|\\[dw.-]|[\w~@:])+-?)\]|\\[dw.-]|[\w~@:,(){}|?*+-])*")
"""Regexes that can be seen to match no slash. Others are asked about all the rest of a path, which is always right."""
