"""The limits of one policy, compiled: one row of integers per subject, charged all or none. No clock, no storage.

This is the flat half of the rates: an object and a call per limit cost three times as much. A row is charged by
straight-line code where that can be written, else by one loop over plain tuples. `read` says the same through the
readable half; tests hold the three together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Final

from usagekeeper.errors import ConfigurationError
from usagekeeper.rates import LATE, Rate, moment, read_fixed, read_gcra, read_sliding, slide
from usagekeeper.unrolled import (
    FIXED,
    GCRA,
    LISTED,
    SLIDING,
    Allocate,
    Face,
    Mend,
    Row,
    Standing,
    Tell,
    charger,
    expirer,
    mender,
    teller,
)
from usagekeeper.values import ENFORCE, SECOND, SHADOW, Mode, Spend, Words

_CODES: Final = {"gcra": GCRA, "fixed": FIXED, "sliding": SLIDING}
_SIZES: Final = (1, 2, 3)
_READERS: Final[tuple[Callable[[str, Rate, Words, int, int], Spend], ...]] = (read_gcra, read_fixed, read_sliding)


class LimitSet:
    """All limits that one policy sets for one kind of subject."""

    __slots__ = (
        "_rows", "allocate", "count", "expires", "head", "ids", "kind", "mend", "mode", "names", "rates", "size",
        "sizes",
    )  # fmt: skip

    allocate: Allocate
    """The row after *cost* units were charged to every limit at *now*; None when one of them refuses."""
    mend: Mend
    """The row that says the same at *now*, when its times show that the clock was set back; None when they do not.
    Unmended it would refuse until the clock has caught up."""
    expires: Callable[[Words], int]
    """From this moment on the row answers like an all-zero one, to late charges too, and may be forgotten."""

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
        self.allocate = charger(self._rows, self.size, self._walk)
        self.mend = mender(self._rows, self.size, self._mended)
        self.expires = expirer(self._rows, self.size)

    def __repr__(self) -> str:
        return f"LimitSet{(*self.head, *self.names)!r}"

    def _walk(self, words: Words, now: int, cost: int) -> list[int] | None:
        """`allocate`, limit by limit."""
        row: list[int] = []
        for algorithm, at, step, room, own in self._rows:
            units = cost if own is None else own
            if algorithm == GCRA:
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
            if algorithm == FIXED:
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
            if algorithm == GCRA:
                horizon = now + room
                arrival = max(words[at], now) if words[at] <= horizon + LATE else horizon
                forced = max(now, arrival + step * units)
                # Past the limit, by how much does not matter: a debt lives no longer than a window of the other kinds.
                row.append(max(arrival, horizon + 1) if units > 0 and forced > horizon else forced)
                continue
            index = moment(words[at], now, step) // step
            if algorithm == FIXED:
                used = units + (words[at + 1] if words[at] >= index else 0)
                row += (index, max(0, min(used, _MOST)))
            else:
                used, before = slide(words[at : at + 3], index)
                row += (index, max(0, min(used + units, _MOST)), before)
        return row

    def _mended(self, words: Words, now: int) -> list[int]:
        row = list(words)
        for algorithm, at, step, room, _own in self._rows:
            if algorithm == GCRA:
                if words[at] > now + room + LATE:
                    row[at] = now + room
            elif words[at] * step > now + LATE:
                row[at] = now // step
        return row

    def read(self, words: Words, now: int, cost: int | None = None) -> list[Spend]:
        """Where every limit stands, and whether a charge of *cost* would fit; None asks for no charge."""
        spends = []
        for (algorithm, at, _step, _room, own), name, rate in zip(self._rows, self.names, self.rates, strict=True):
            units = 0 if cost is None else cost if own is None else own
            row = words[at : at + _SIZES[algorithm]]
            spends.append(_READERS[algorithm](name, rate, row, now, units))
        return spends

    def refusing(self, words: Words, now: int, cost: int) -> list[Spend]:
        """Where those limits stand that a charge of *cost* does not fit."""
        spends = []
        for number, (algorithm, at, step, room, own) in enumerate(self._rows):
            units = cost if own is None else own
            if algorithm == GCRA and (words[at] - now if words[at] > now else 0) + step * units <= room:
                continue
            row = words[at : at + _SIZES[algorithm]]
            spend = _READERS[algorithm](self.names[number], self.rates[number], row, now, units)
            if not spend.allowed:
                spends.append(spend)
        return spends

    def passed(self, words: Words, now: int) -> tuple[str, ...]:
        """Names of the limits that a row charged by force is beyond."""
        names = []
        for (algorithm, at, step, room, _own), name in zip(self._rows, self.names, strict=True):
            if algorithm == GCRA:
                beyond = words[at] > now + room
            elif algorithm == FIXED:
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


def standing(faces: Sequence[Face], rows: Sequence[Words], now: int) -> Standing:
    """What a served client is told of limits in any state."""
    told: list[int] = []
    least, tightest = _ENDLESS, 0
    for position, (row, algorithm, at, step, room, count, quick) in enumerate(faces):
        words = rows[row]
        if algorithm == GCRA:
            free = min(max(0, room + now - words[at]), room)
            remaining = free // step
            more = 0 if free == room else step - free % step
        elif algorithm == FIXED:
            index = moment(words[at], now, step) // step
            remaining = max(0, room - words[at + 1]) if words[at] >= index else room
            more = (index + 1) * step - now
        else:
            remaining, more, _ = _sliding(words[at : at + 3], now, step, count)
        if position < LISTED:
            told += (remaining,) if quick else (remaining, (more + _ROUND_UP) // SECOND)
        if remaining < least:
            least, tightest = remaining, position
    return tuple(told), least, tightest, _whole_at(faces[tightest], rows, now)


def written_standing(faces: tuple[Face, ...], sizes: tuple[int | None, ...], *, charged: bool) -> Tell:
    """`standing`, written out for these limits; *sizes* and *charged* as `teller` wants them."""
    return teller(faces, sizes, partial(standing, faces), charged=charged)


def _whole_at(face: Face, rows: Sequence[Words], now: int) -> int:
    """When a limit is whole again, in epoch seconds, rounded up."""
    row, algorithm, at, step, room, count, _ = face
    if algorithm == GCRA:
        whole = min(max(now, rows[row][at]), now + room)
    elif algorithm == FIXED:
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


def _compile(rates: Sequence[Rate]) -> tuple[Row, ...]:
    rows: list[Row] = []
    at = 0
    for rate in rates:
        algorithm = _CODES[rate.algorithm]
        if algorithm == GCRA:
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
