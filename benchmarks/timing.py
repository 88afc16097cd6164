"""How everything here is timed: cases alternate in one run, the best of many repeats counts, ratios are reported."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Case = Callable[[], object]
AsyncCase = Callable[[], Awaitable[object]]
Style = Literal["text", "markdown", "json"]


@dataclass(frozen=True)
class Effort:
    """How often to call and how often to repeat."""

    calls: int
    repeats: int


def effort(description: str | None) -> tuple[Effort, argparse.Namespace]:
    """The command line that most benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--calls", type=int, default=2000, help="calls in one repeat")
    parser.add_argument("--repeats", type=int, default=25, help="repeats of each case, alternating")
    printing(parser)
    arguments = parser.parse_args()
    return Effort(arguments.calls, arguments.repeats), arguments


def printing(parser: argparse.ArgumentParser) -> None:
    """Let the caller choose how tables are printed: ``style`` of the arguments."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", dest="style", action="store_const", const="json", help="a JSON object a table")
    group.add_argument("--markdown", dest="style", action="store_const", const="markdown", help="tables of Markdown")
    parser.set_defaults(style="text")


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


def report(title: str, figures: Mapping[str, float], bare: str, *, style: Style = "text") -> None:
    """A table of *figures* against the case *bare* of the same run."""
    base = figures[bare]
    if style == "json":
        print(json.dumps({"title": title, "python": platform.python_version(), "us": dict(figures), "bare": bare}))
        return
    columns = {"us": ".2f", "added": "+.2f", "ratio": ".3f"}
    table(title, columns, {name: (us, us - base, us / base) for name, us in figures.items()}, style=style)


def table(
    title: str,
    columns: Mapping[str, str],
    rows: Mapping[str, Sequence[float | None]],
    *,
    notes: Sequence[str] = (),
    style: Style = "text",
) -> None:
    """Rows of figures under *columns*, which give the format of each; None is printed as nothing."""
    if style == "json":
        named = {name: dict(zip(columns, row, strict=True)) for name, row in rows.items()}
        print(json.dumps({"title": title, "python": platform.python_version(), "rows": named, "notes": list(notes)}))
        return
    cells = {
        name: ["" if value is None else format(value, form) for value, form in zip(row, columns.values(), strict=True)]
        for name, row in rows.items()
    }
    print(f"\n{title} (CPython {platform.python_version()})")
    if style == "markdown":
        print(f"\n| | {' | '.join(columns)} |")
        print("|" + "---|" * (len(columns) + 1))
        for name, row in cells.items():
            print(f"| {' | '.join([name, *row])} |")
    else:
        width = max(map(len, rows))
        widths = [max(8, len(heading)) for heading in columns]
        for name, row in {"": list(columns), **cells}.items():
            print("  ".join([f"{name:{width}}", *(f"{cell:>{wide}}" for cell, wide in zip(row, widths, strict=True))]))
    for note in notes:
        print(f"\n{note}" if style == "markdown" else note)


def figure(name: str, value: float, form: str = ".2f", *, style: Style = "text") -> None:
    """One figure that belongs to no table."""
    if style == "json":
        print(json.dumps({"title": name, "python": platform.python_version(), "value": value}))
    elif style == "markdown":
        print(f"\n{name}: {value:{form}}")
    else:
        print(f"{name:48} {value:8{form}}")
