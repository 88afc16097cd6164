"""How a running demo looks: a table that changes in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from usagekeeper.demo.summary import Row, total

if TYPE_CHECKING:
    from rich.table import Table

Show = Callable[[float, Sequence[Row]], None]
"""Shows the rows as they are so many seconds after the start."""

_EVERY: Final = 5.0
"""Seconds between two lines."""
_COLUMNS: Final = ("client", "sent", "allowed", "refused", "left", "recorded", "units", "")


@contextmanager
def view() -> Iterator[Show]:
    """The table where there is a terminal and rich, else the lines."""
    if not sys.stdout.isatty() or find_spec("rich") is None:
        yield Lines()
        return
    from rich.live import Live

    with Live(auto_refresh=False, transient=True) as live:
        yield lambda seconds, clients: live.update(table(seconds, clients), refresh=True)


class Lines:
    """A line for the whole every few seconds."""

    def __init__(self) -> None:
        self._next = _EVERY

    def __call__(self, seconds: float, clients: Sequence[Row]) -> None:
        """Print one when it is time."""
        if seconds >= self._next:
            self._next += _EVERY
            row = total(clients)
            print(
                f"{seconds:4.0f} s  {row.sent} sent, {row.allowed} allowed, {row.refused} refused,"
                f" {row.recorded} in the store",
                flush=True,
            )


def cells(row: Row) -> list[str]:
    """One client, a text for each column."""
    figures = (row.sent, row.allowed, row.refused, row.left or "", row.recorded, row.units)
    return [row.name, *map(str, figures), row.habit]


def table(seconds: float, clients: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    from rich.table import Table

    shown = Table(title=f"{seconds:.0f} s", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        shown.add_column(column, justify="left" if column in ("client", "") else "right")
    for row in clients:
        shown.add_row(*cells(row))
    shown.add_row(*cells(total(clients)))
    return shown


def text(clients: Sequence[Row]) -> str:
    """The rows without a terminal."""
    lines = [_COLUMNS, *map(cells, clients), cells(total(clients))]
    widths = [max(len(line[at]) for line in lines) for at in range(len(_COLUMNS))]
    return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *figures, last = (
        part.rjust(width) if 0 < at < len(widths) - 1 else part.ljust(width)
        for at, (part, width) in enumerate(zip(line, widths, strict=True))
    )
    return "  ".join((first, *figures, last)).rstrip()
