"""How SQLite's counters write a row: under which key, and which word belongs to which limit. No file, no clock."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from usagekeeper.values import Limits, Words

_LONGEST_KEY: Final = 48
_LEAST: Final = -(1 << 63)
MOST: Final = (1 << 63) - 1
_ID: Final = 8


class Layout:
    """How the rows of one policy are written: under which keys, and which word belongs to what.

    A row tells what it holds: the number of its limits, of each its id and how many words it has,
    then the words. So counts are found again when limits were added, removed or put in another
    order. Limits that only another process knows (during a deployment) follow in the same form and
    are handed on unread.
    """

    __slots__ = ("empty", "expires", "ids", "label", "prefix", "size", "sizes", "words")

    def __init__(self, limits: Limits) -> None:
        parts = [part.encode("utf-8", "surrogatepass") for part in limits.head]
        self.label = bytes([len(parts)]) + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        self.ids = limits.ids
        self.sizes = limits.sizes
        self.prefix = _described(limits.ids, limits.sizes)
        self.words = struct.Struct(f"<{limits.size}q")
        self.size = len(self.prefix) + self.words.size
        self.empty = (0,) * limits.size
        self.expires = limits.expires

    def key(self, value: str) -> bytes:
        """One key for each (head, value), and for no other: the head tells its parts and their lengths."""
        key = self.label + value.encode("utf-8", "surrogatepass")
        if len(key) <= _LONGEST_KEY:
            return key
        return b"\xff" + blake2b(key, digest_size=16).digest()  # no head has 255 parts

    def read(self, state: bytes) -> tuple[Words, bytes]:
        """The words of these limits, 0 where the row does not know one; and what belongs to others."""
        if state.startswith(self.prefix) and len(state) >= self.size:
            return self.words.unpack_from(state, len(self.prefix)), state[self.size :]
        known = _taken_apart(state)
        words = b"".join(
            found if len(found := known.pop(limit, b"")) == 8 * size else bytes(8 * size)
            for limit, size in zip(self.ids, self.sizes, strict=True)
        )
        rest = _described(tuple(known), [len(words) // 8 for words in known.values()])
        return self.words.unpack(words), b"".join((rest, *known.values())) if known else b""

    def write(self, words: Words, rest: bytes) -> bytes:
        """The row as bytes; a number beyond 64 bits stops at their end."""
        try:
            return self.prefix + self.words.pack(*words) + rest
        except struct.error:
            return self.prefix + self.words.pack(*(max(_LEAST, min(word, MOST)) for word in words)) + rest


def _described(ids: Sequence[bytes], sizes: Sequence[int]) -> bytes:
    limits = (limit + bytes([size]) for limit, size in zip(ids, sizes, strict=True))
    return len(ids).to_bytes(2, "big") + b"".join(limits)


def _taken_apart(state: bytes) -> dict[bytes, bytes]:
    """The words of every limit in a row, by its id; of a damaged row what can be told."""
    known: dict[bytes, bytes] = {}
    while state:
        count = int.from_bytes(state[:2], "big")
        words = 2 + count * (_ID + 1)
        for at in range(2, min(words, len(state)), _ID + 1):
            size = 8 * int.from_bytes(state[at + _ID : at + _ID + 1], "big")
            known.setdefault(state[at : at + _ID], state[words : words + size])
            words += size
        state = state[words:]
    return known


LAYOUTS: Final[dict[Limits, Layout]] = {}
"""Those already made."""
_FEWLAYOUTS: Final = 4096


def layout_of(limits: Limits) -> Layout:
    """The layout of *limits*, made when it is first needed; callers look into `LAYOUTS` before."""
    if len(LAYOUTS) >= _FEWLAYOUTS:  # limits made per subject: compiled again, never piled up
        LAYOUTS.clear()
    layout = LAYOUTS[limits] = Layout(limits)
    return layout
