"""Whether the middleware stands where it sees every request once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from usagekeeper.doctor.codes import Finding, finding
from usagekeeper.inspection.locate import Installation, Layer

_CORS: Final = "CORSMiddleware"
_PASSING: Final = frozenset(
    (_CORS, "GZipMiddleware", "SessionMiddleware", "ProxyHeadersMiddleware", "ServerErrorMiddleware", "ProxyFix")
)
"""Layers that answer nothing which should count: CORSMiddleware answers preflights, which are never charged."""


def findings(found: Installation) -> Iterator[Finding]:
    """What is wrong with the layers."""
    if not found.keeper.enabled:
        yield finding("UK106", "The keeper has enabled=False: nothing is limited and nothing is recorded.")
    yield from _doubled(found)
    around = [layer for layer in found.layers if not layer.below]
    for layer in around[: found.place]:
        if layer.name not in _PASSING:
            yield finding(
                "UK104",
                f"{layer.name} stands outside UsageMiddleware: what it answers by itself is neither limited nor"
                " recorded.",
                f"add UsageMiddleware after {layer.name}, so that it stands outside",
            )
    if any(layer.name == _CORS for layer in around[found.place + 1 :]):
        yield finding(
            "UK105",
            f"{_CORS} stands inside UsageMiddleware: refusals have no CORS headers, so browsers show a network error"
            " instead of 429.",
        )


def _doubled(found: Installation) -> Iterator[Finding]:
    first, *others = found.ours or (Layer(""),)
    for other in others:
        if other.keeper is not first.keeper:
            place = f"in what is mounted at {other.below!r}" if other.below else "further inside"
            yield finding(
                "UK103",
                f"A UsageMiddleware stands around the application and another, with a keeper of its own, {place}:"
                " such a request is charged and recorded twice.",
            )
