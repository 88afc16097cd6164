"""How everything here is timed: cases alternate in one run, the best of many repeats counts, ratios are reported."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

Case = Callable[[], object]
AsyncCase = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Effort:
    """How often to call and how often to repeat."""

    calls: int
    repeats: int


def effort(description: str | None) -> tuple[Effort, argparse.Namespace]:
    """The command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--calls", type=int, default=2000, help="calls in one repeat")
    parser.add_argument("--repeats", type=int, default=25, help="repeats of each case, alternating")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    return Effort(arguments.calls, arguments.repeats), arguments


def best(cases: Mapping[str, Case], how: Effort) -> dict[str, float]:
    """Microseconds a call of each case: the best of the repeats, garbage collector on."""
    found = dict.fromkeys(cases, float("inf"))
    for _ in range(how.repeats):
        for name, case in cases.items():
            gc.collect()
            begin = time.perf_counter()
            for _ in range(how.calls):
                case()
            found[name] = min(found[name], (time.perf_counter() - begin) / how.calls * 1e6)
    return found


def best_async(cases: Mapping[str, AsyncCase], how: Effort) -> dict[str, float]:
    """`best` for coroutines, in one event loop."""

    async def run() -> dict[str, float]:
        found = dict.fromkeys(cases, float("inf"))
        for _ in range(how.repeats):
            for name, case in cases.items():
                gc.collect()
                begin = time.perf_counter()
                for _ in range(how.calls):
                    await case()
                found[name] = min(found[name], (time.perf_counter() - begin) / how.calls * 1e6)
        return found

    return asyncio.run(run())


def report(title: str, figures: Mapping[str, float], bare: str, *, as_json: bool = False) -> None:
    """A table of *figures* against the case *bare* of the same run."""
    base = figures[bare]
    if as_json:
        print(json.dumps({"title": title, "python": platform.python_version(), "us": dict(figures), "bare": bare}))
        return
    print(f"\n{title} (CPython {platform.python_version()})")
    width = max(map(len, figures))
    print(f"{'':{width}}  {'us':>8}  {'added':>8}  {'ratio':>6}")
    for name, value in figures.items():
        print(f"{name:{width}}  {value:8.2f}  {value - base:+8.2f}  {value / base:6.3f}")
