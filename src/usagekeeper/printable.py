"""How text that a client chose is shown on a terminal or in a log: on one line, and able to do nothing there."""

from __future__ import annotations

import json
from typing import Any


def visible(text: str, *, longest: int | None = None) -> str:
    """*text* with the backslash, and everything that is not a visible character, written as an escape.

    Line ends, terminal sequences, marks that turn the direction of writing and half surrogates are among them. Two
    texts never look the same for it. Longer ones than *longest* are cut, which an ellipsis shows.

    >>> print(visible("/api" + chr(10) + chr(27) + "[2J" + chr(0x202E)))
    /api\\n\\x1b[2J\\u202e
    """
    shown = "".join(map(_escaped, text)) if "\\" in text or not text.isprintable() else text
    return shown if longest is None or len(shown) <= longest else shown[: longest - 1] + "…"


def sentence(text: str) -> str:
    """`visible` for a sentence of ours, whose quoted values are escaped already: its backslashes stay single."""
    return text if text.isprintable() else "".join(char if char == "\\" else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    if char.isprintable() and char != "\\":
        return char
    return char.encode("unicode_escape").decode()


def json_text(value: Any, *, indent: int | None = None) -> str:
    """*value* as JSON in visible ASCII, on one line unless *indent* is given."""
    return json.dumps(value, indent=indent, default=str).replace("\x7f", "\\u007f")
