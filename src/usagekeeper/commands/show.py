"""How answers are written: tables and colours on a terminal, plain lines elsewhere, and never what a client wrote raw.

Everything that is shown goes through here, so that no text of a client reaches a terminal as it was sent.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

from usagekeeper.printable import json_text, sentence, visible

_LONGEST: Final = 100
"""Characters of a cell."""
COLOURS: Final = {
    "error": "bold red", "warning": "yellow", "note": "cyan", "refused": "red", "soft": "yellow", "shadow": "yellow",
    "unmetered": "magenta", "allowed": "green",
}  # fmt: skip


def rich_terminal() -> bool:
    """Whether there is a terminal, and rich to draw on it."""
    return sys.stdout.isatty() and find_spec("rich") is not None


def as_json(value: Any, *, line: bool = False) -> None:
    """*value* as JSON; on one line when it is one of many."""
    print(json_text(value, indent=None if line else 2), flush=line)


def say(text: str, *, colour: str | None = None) -> None:
    """A sentence of ours on a line of its own; the values in it are made visible."""
    shown = sentence(text)
    if colour is None or not rich_terminal():
        print(shown, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(soft_wrap=True).print(Text(shown, style=colour))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table whose cells are made visible; a cell has a hundred characters at most."""
    cells = [[visible(str(cell), longest=_LONGEST) for cell in row] for row in rows]
    if rich_terminal():
        _drawn(columns, cells)
        return
    lines = [list(columns), *cells]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _drawn(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))  # Text: brackets are no markup
    Console().print(drawn)
