"""The limits of one policy, compiled: one row of integers per subject, charged all or none. No clock, no storage.

This is the flat half of the rates: an object and a call per limit cost three times as much, so a row is charged by one
loop over plain tuples. `read` says the same through the readable half; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

from usagekeeper.errors import ConfigurationError
from usagekeeper.rates import LATE, Rate, moment, read_fixed, read_gcra, read_sliding, slide
from usagekeeper.values import ENFORCE, SECOND, SHADOW, Mode, Spend, Words

_GCRA: Final = 0
_FIXED: Final = 1
_SLIDING: Final = 2

_CODES: Final = {"gcra": _GCRA, "fixed": _FIXED, "sliding": _SLIDING}
_SIZES: Final = (1, 2, 3)
_READERS: Final[tuple[Callable[[str, Rate, Words, int, int], Spend], ...]] = (read_gcra, read_fixed, read_sliding)

_Row = tuple[int, int, int, int, int | None]
"""Algorithm, first word, step (spacing or window), room (tolerance or count), own cost."""
Face = tuple[int, int, int, int, int, int, bool]
"""What a client is told of a limit: which row, algorithm, first word, step, room, count, several units a second."""


class LimitSet:
    """All limits that one policy sets for one kind of subject."""

    __slots__ = ("_rows", "_spaced", "count", "head", "ids", "kind", "mode", "names", "plain", "rates", "size", "sizes")

    def __init__(
        self,
        application: str,
        policy: str,
        rates: Sequence[Rate],
        *,
        kind: str = "subject",
        mode: Mode = ENFORCE,
    ) -> None:
        self.mode: Mode = mode
        self.kind = kind
        # Shadow charges live on counters of their own, so a policy that starts to be enforced starts from nothing.
        self.head: tuple[str, ...] = (application, policy, kind, SHADOW if mode == SHADOW else ENFORCE)
        self.rates = tuple(rates)
        self.count = len(self.rates)
        self.names = tuple(rate.name or f"{policy}-{rate.unit}" for rate in rates)
        self.ids = tuple(_limit_id(policy, rate) for rate in rates)
        _unique(policy, self.names, self.ids)
        self.sizes = tuple(_SIZES[_CODES[rate.algorithm]] for rate in rates)
        self.size = sum(self.sizes)
        self._rows = _compile(rates)
        # Most sets are gcra alone, with one cost for all: the same arithmetic in half the steps.
        spaced = all(rate.algorithm == "gcra" and rate.cost is None for rate in rates)
        self.plain = all(rate.algorithm != "sliding" for rate in rates)
        """No limit needs more than its own words and the moment to be told."""
        self._spaced = tuple((row[2], row[3]) for row in self._rows) if spaced else None

    def __repr__(self) -> str:
        return f"LimitSet{(*self.head, *self.names)!r}"

    def allocate(self, words: Words, now: int, cost: int) -> list[int] | None:
        """The row after *cost* units were charged to every limit at *now*; None when one of them refuses."""
        row: list[int] = []
        for algorithm, at, step, room, own in self._rows:
            units = cost if own is None else own
            if algorithm == _GCRA:
                arrival = words[at]
                if arrival < now:
                    arrival = now
                arrival += step * units
                if arrival > now + room and units:
                    return None
                row.append(arrival)
                continue
            index, when = now // step, now
            if words[at] > index:
                when = moment(words[at], now, step)
                index = when // step
            if algorithm == _FIXED:
                used = units + words[at + 1] if words[at] >= index else units
                if used > room and units:
                    return None
                row += (index, used)
            else:
                used, before = slide(words[at : at + 3], index)
                used += units
                if used * step + before * (step - when % step) > room * step and units:
                    return None
                row += (index, used, before)
        return row

    def force(self, words: Words, now: int, cost: int) -> list[int]:
        """The row after *cost* units were charged past any limit; a negative cost gives back, never below empty."""
        row: list[int] = []
        for algorithm, at, step, room, own in self._rows:
            units = cost if own is None else own if cost >= 0 else -own
            if algorithm == _GCRA:
                horizon = now + room
                arrival = max(words[at], now) if words[at] <= horizon + LATE else horizon
                forced = max(now, arrival + step * units)
                # Past the limit, by how much does not matter: a debt lives no longer than a window of the other kinds.
                row.append(max(arrival, horizon + 1) if units > 0 and forced > horizon else forced)
                continue
            index = moment(words[at], now, step) // step
            if algorithm == _FIXED:
                used = units + (words[at + 1] if words[at] >= index else 0)
                row += (index, max(0, min(used, _MOST)))
            else:
                used, before = slide(words[at : at + 3], index)
                row += (index, max(0, min(used + units, _MOST)), before)
        return row

    def mend(self, words: Words, now: int) -> list[int] | None:
        """The row that says the same at *now*, when its times show that the clock was set back; None when they do not.

        Unmended it would refuse until the clock has caught up.
        """
        row = list(words)
        for algorithm, at, step, room, _own in self._rows:
            if algorithm == _GCRA:
                if words[at] > now + room + LATE:
                    row[at] = now + room
            elif words[at] * step > now + LATE:
                row[at] = now // step
        return row if row != list(words) else None

    def expires(self, words: Words) -> int:
        """From this moment on the row answers like an all-zero one, to late charges too, and may be forgotten."""
        latest = 0
        for algorithm, at, step, _room, _own in self._rows:
            # A sliding window is seen for one window more.
            ends = words[at] if algorithm == _GCRA else (words[at] + algorithm) * step
            if ends > latest:
                latest = ends
        return latest + LATE

    def read(self, words: Words, now: int, cost: int | None = None) -> list[Spend]:
        """Where every limit stands, and whether a charge of *cost* would fit; None asks for no charge."""
        spends = []
        for (algorithm, at, _step, _room, own), name, rate in zip(self._rows, self.names, self.rates, strict=True):
            units = 0 if cost is None else cost if own is None else own
            row = words[at : at + _SIZES[algorithm]]
            spends.append(_READERS[algorithm](name, rate, row, now, units))
        return spends

    def passed(self, words: Words, now: int) -> tuple[str, ...]:
        """Names of the limits that a row charged by force is beyond."""
        names = []
        for (algorithm, at, step, room, _own), name in zip(self._rows, self.names, strict=True):
            if algorithm == _GCRA:
                beyond = words[at] > now + room
            elif algorithm == _FIXED:
                beyond = words[at] >= now // step and words[at + 1] > room
            else:
                when = moment(words[at], now, step)
                used, before = slide(words[at : at + 3], when // step)
                beyond = used * step + before * (step - when % step) > room * step
            if beyond:
                names.append(name)
        return tuple(names)

    def faces(self, row: int) -> list[Face]:
        """What `standing` needs to know of the limits, when the words are in *row* of a request's rows."""
        return [
            (row, algorithm, at, step, room, rate.count, rate.algorithm == "gcra" and rate.spacing <= SECOND)
            for (algorithm, at, step, room, _own), rate in zip(self._rows, self.rates, strict=True)
        ]


def standing(faces: Sequence[Face], rows: Sequence[Words], now: int) -> tuple[list[int], int, int]:
    """What a served client is told: remaining units and whole seconds until more, limit by limit; then the remaining
    units and the position of the tightest limit.

    Limits with several units a second say no seconds: it is always one.
    """
    told: list[int] = []
    least, tightest = _ENDLESS, 0
    for position, (row, algorithm, at, step, room, count, quick) in enumerate(faces):
        words = rows[row]
        if algorithm == _GCRA:
            free = room + now - words[at]
            if free > room:
                free = room
            elif free < 0:
                free = 0
            remaining = free // step
            told.append(remaining)
            if not quick:
                told.append(0 if free == room else (step - free % step + _ROUND_UP) // SECOND)
        elif algorithm == _FIXED:
            index = moment(words[at], now, step) // step
            remaining = max(0, room - words[at + 1]) if words[at] >= index else room
            told += (remaining, ((index + 1) * step - now + _ROUND_UP) // SECOND)
        else:
            remaining, more, _ = _sliding(words[at : at + 3], now, step, count)
            told += (remaining, (more + _ROUND_UP) // SECOND)
        if remaining < least:
            least, tightest = remaining, position
    return told, least, tightest


def charged_standing(faces: Sequence[Face], rows: Sequence[Words], now: int) -> tuple[list[int], int, int]:
    """`standing` where every row was just charged within its limits: no clamps, and windows are this moment's."""
    left = [
        (room + now - rows[row][at]) // step if algorithm == _GCRA else room - rows[row][at + 1]
        for row, algorithm, at, step, room, _, _ in faces
    ]
    least = min(left)
    if least < 0:  # charged nothing, past a limit
        return standing(faces, rows, now)
    told = []
    for units, (row, algorithm, at, step, room, count, quick) in zip(left, faces, strict=False):
        told.append(units)
        if not quick:
            if algorithm == _FIXED:
                told.append(((rows[row][at] + 1) * step - now + _ROUND_UP) // SECOND)
            elif units < count:
                told.append((rows[row][at] - now - room + (units + 1) * step + _ROUND_UP) // SECOND)
            else:
                told.append(0)
    return told, least, left.index(least)


def whole_at(face: Face, rows: Sequence[Words], now: int) -> int:
    """When a limit is whole again, in epoch seconds, rounded up."""
    row, algorithm, at, step, room, count, _ = face
    if algorithm == _GCRA:
        whole = min(max(now, rows[row][at]), now + room)
    elif algorithm == _FIXED:
        whole = (moment(rows[row][at], now, step) // step + 1) * step
    else:
        whole = now + _sliding(rows[row][at : at + 3], now, step, count)[2]
    return (whole + _ROUND_UP) // SECOND


def _sliding(words: Words, now: int, period: int, count: int) -> tuple[int, int, int]:
    """Remaining units, microseconds until more and until whole."""
    spend = read_sliding("", Rate(count, period // SECOND, "sliding"), words, now, 0)
    return spend.remaining, spend.more_after, spend.reset_after


_ENDLESS: Final = 1 << 62
_MOST: Final = 1 << 61
"""Forced charges stop counting here, so that a word always fits 64 bits."""
_ROUND_UP: Final = SECOND - 1


def _compile(rates: Sequence[Rate]) -> tuple[_Row, ...]:
    rows: list[_Row] = []
    at = 0
    for rate in rates:
        algorithm = _CODES[rate.algorithm]
        if algorithm == _GCRA:
            rows.append((algorithm, at, rate.spacing, rate.spacing * rate.count, rate.cost))
        else:
            rows.append((algorithm, at, rate.period, rate.count, rate.cost))
        at += _SIZES[algorithm]
    return tuple(rows)


def _limit_id(policy: str, rate: Rate) -> bytes:
    """Eight bytes from what a limit is, not from its position or amount: a changed amount keeps what was used."""
    text = "\x00".join((policy, rate.algorithm, str(rate.seconds), rate.name or ""))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _unique(policy: str, names: tuple[str, ...], ids: tuple[bytes, ...]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(
            f"policy {policy!r} has two limits called {twice[0]!r}: clients tell limits apart by name,"
            f' so give one its own, as in Rate(5, "minute", name="{policy}-requests")'
        )
    for position, limit_id in enumerate(ids):
        if (first := ids.index(limit_id)) != position:
            raise ConfigurationError(
                f"policy {policy!r} has two limits over the same window, {names[first]!r} and {names[position]!r}:"
                f' keep the smaller one, or give one a name, as in Rate(5, "minute", name="{policy}-requests")'
            )
