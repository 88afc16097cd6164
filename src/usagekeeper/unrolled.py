"""The arithmetic of a limit set as straight-line code, written once at start-up from its numbers.

A loop over the limits spends two thirds of its steps on taking tuples apart and on asking which algorithm comes next;
written out, the answers are already there (0.7 us instead of 2.8 us for four limits). Only whole numbers ever enter the
text. What is rare (a late charge, a limit passed) is left to the loops of `limits`, and tests hold both to the same
answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from usagekeeper.rates import LATE
from usagekeeper.values import SECOND, Words

GCRA: Final = 0
FIXED: Final = 1
SLIDING: Final = 2

Row = tuple[int, int, int, int, int | None]
"""Algorithm, first word, step (spacing or window), room (tolerance or count), own cost."""
Face = tuple[int, int, int, int, int, int, bool]
"""What a client is told of a limit: which row, algorithm, first word, step, room, count, several units a second."""
Standing = tuple[tuple[int, ...], int, int, int]
"""The numbers of the RateLimit header: units left and whole seconds until more, limit by limit, without the seconds of
limits with several units a second; then the fewest units left, the position of that limit, and when it is whole again,
in epoch seconds."""

Allocate = Callable[[Words, int, int], Words | None]
Mend = Callable[[Words, int], Words | None]
Tell = Callable[[Sequence[Words], int], Standing]

LISTED: Final = 10
"""Limits that the headers list at most: long headers cost every client, and servers bound them."""
_UP: Final = SECOND - 1


def charger(rows: tuple[Row, ...], size: int, walk: Allocate) -> Allocate:
    """`LimitSet.allocate` for *rows* of *size* words; *walk* is the loop that answers where this one does not."""
    if not rows or any(row[0] == SLIDING for row in rows):
        return walk
    made: Allocate = _made(_charge(rows, size))(walk)
    return made


def _charge(rows: Sequence[Row], size: int) -> str:
    lines = [f"{_names(range(size))} = words"]
    for algorithm, at, step, room, own in rows:
        units = "cost" if own is None else str(own)
        asked = f" and {units}" if own != 0 else " and False"  # what costs nothing is never refused
        if algorithm == GCRA:
            lines += [
                f"w{at} = (w{at} if w{at} > now else now) + {step} * {units}",
                f"if w{at} > now + {room}{asked}: return None",
            ]
        else:
            lines += [
                f"index = now // {step}",
                f"if w{at} > index: return walk(words, now, cost)",
                f"w{at + 1} = w{at + 1} + {units} if w{at} == index else {units}",
                f"w{at} = index",
                f"if w{at + 1} > {room}{asked}: return None",
            ]
    return _function("walk", "words, now, cost", [*lines, f"return {_names(range(size))}"])


def mender(rows: tuple[Row, ...], size: int, walk: Mend) -> Mend:
    """`LimitSet.mend`: *walk* mends the row, once it is seen to be ahead of the clock."""
    if not rows:
        return walk
    ahead = [
        f"w{at} > now + {room + LATE}" if algorithm == GCRA else f"w{at} * {step} > now + {LATE}"
        for algorithm, at, step, room, _ in rows
    ]
    lines = [f"{_names(range(size))} = words", f"return walk(words, now) if {' or '.join(ahead)} else None"]
    made: Mend = _made(_function("walk", "words, now", lines))(walk)
    return made


def expirer(rows: tuple[Row, ...], size: int) -> Callable[[Words], int]:
    """`LimitSet.expires`. A sliding window is seen for one window more."""
    ends = [f"w{at}" if row == GCRA else f"(w{at} + {row}) * {step}" for row, at, step, _, _ in rows]
    lines = [f"{_names(range(size))} = words", f"return max(0, {', '.join(ends)}) + {LATE}"]
    made: Callable[[Words], int] = _made(_function("", "words", lines if rows else [f"return {LATE}"]))()
    return made


def teller(faces: tuple[Face, ...], sizes: tuple[int | None, ...], read: Tell, *, charged: bool) -> Tell:
    """How *faces* stand; *sizes* are the words of each row, None where clients are told nothing of it.

    *charged* if every row was just charged within its limits: then none has to be brought to this moment first. *read*
    answers where something else turns out.
    """
    if not faces or any(face[1] == SLIDING for face in faces):
        return read
    made: Tell = _made(_tell(faces, sizes, charged=charged))(read)
    return made


def _tell(faces: Sequence[Face], sizes: Sequence[int | None], *, charged: bool) -> str:
    first = [sum(size or 0 for size in sizes[:row]) for row in range(len(sizes))]
    taken = "".join(
        "_, " if size is None else f"({_names(range(start, start + size))}), "
        for start, size in zip(first, sizes, strict=True)
    )
    lines, told, ends = [f"{taken}= rows"], "", []
    for position, (row, algorithm, at, step, room, count, quick) in enumerate(faces):
        word, left = f"w{first[row] + at}", f"left{position}"
        if algorithm == GCRA:
            if not charged:
                lines.append(f"{word} = now if {word} < now else {word} if {word} < now + {room} else now + {room}")
            lines.append(f"{left} = ({room} + now - {word}) // {step}")
            more = f"({word} - now + {step} * {left} + {step - room + _UP}) // {SECOND} if {left} < {count} else 0"
            ends.append(f"({word} + {_UP}) // {SECOND}")
        else:
            used = f"w{first[row] + at + 1}"
            if not charged:
                lines += [
                    f"index = now // {step}",
                    f"if {word} > index: return read(rows, now)",
                    f"{used} = 0 if {word} < index else {used} if {used} < {room} else {room}",
                    f"{word} = index",
                ]
            lines.append(f"{left} = {room} - {used}")
            more = f"(({word} + 1) * {step} - now + {_UP}) // {SECOND}"
            ends.append(f"({word} + 1) * {step // SECOND}")
        if position < LISTED:
            told += f"{left}, " if quick else f"{left}, {more}, "
    every = ", ".join(f"left{position}" for position in range(len(faces)))
    lines.append(f"least = min({every})" if len(faces) > 1 else "least = left0")
    if charged:
        lines.append("if least < 0: return read(rows, now)")  # charged nothing, past a limit
    lines.append(f"told = ({told})")
    lines += [f"if least == left{position}: return told, least, {position}, {end}" for position, end in enumerate(ends)]
    return _function("read", "rows, now", lines)


def _names(words: Iterable[int]) -> str:
    return "".join(f"w{word}, " for word in words)


def _function(given: str, arguments: str, lines: Sequence[str]) -> str:
    body = "\n".join(f"        {line}" for line in lines)
    return f"def make({given}):\n    def written({arguments}):\n{body}\n    return written"


@lru_cache(maxsize=256)
def _made(source: str) -> Any:
    scope: dict[str, Any] = {}
    exec(compile(source, "<limits, written out>", "exec"), {"__builtins__": {"min": min, "max": max}}, scope)
    return scope["make"]
