"""Counters of one process, bounded, without sweeps and without threads.

A subject's row is packed into bytes in one of 256 dicts per policy: nothing for the garbage collector to walk, and no
dict ever grows large enough to pause. Each new subject looks at the two oldest of its dict and gives back those whose
limits are whole again; those still in use go to the end of the queue.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from threading import Lock
from typing import Final

from usagekeeper.counters.base import AsyncCounters, judge
from usagekeeper.errors import ConfigurationError
from usagekeeper.values import ALLOCATE, ENFORCE, Limits, Operation, Spends, Words

_SHARDS: Final = 256
_FEW: Final = 32
"""Dicts smaller than this are not searched for rows to give back."""

_SEARCHED: Final = 16
"""Dicts that are searched for a new subject when every row is taken."""
_LONGEST: Final = 64
"""Characters of a subject that are kept as they are; a longer one is known by a digest, so that a row stays small."""

_FITS: Final = [True]
_FITS_NOT: Final = [False]

_Shard = dict[str, bytes]


class _Table:
    """The rows of one policy."""

    __slots__ = ("empty", "overflow", "pack", "shards", "unpack")

    def __init__(self, size: int) -> None:
        layout = Struct(f"<{size}q")
        self.pack = layout.pack
        self.unpack = layout.unpack
        self.empty: Words = (0,) * size
        self.shards: tuple[_Shard, ...] = tuple({} for _ in range(_SHARDS))
        self.overflow: _Shard = {}


class MemoryCounters:
    """Counts in this process, for at most *max_subjects* rows of all policies together.

    A row in use is never given up. Subjects that come when every row is taken, and sixteen looks find none that is
    whole again, share one row per policy, with the same limits: they are limited together, never let through
    uncounted. About 200 bytes a subject.
    """

    def __init__(self, *, max_subjects: int = 1_000_000) -> None:
        if max_subjects < 1:
            raise ConfigurationError(f"counters need room for at least one subject, not {max_subjects!r}")
        self.max_subjects = max_subjects
        self._room = max_subjects
        self._looked = 0
        self._lock = Lock()
        self._tables: dict[tuple[tuple[str, ...], tuple[bytes, ...]], _Table] = {}
        self._known: dict[Limits, _Table] = {}

    def apply(self, operation: Operation) -> Spends:
        """See `Counters.apply`; never unavailable."""
        charges, now = operation.charges, operation.now
        with self._lock:
            if len(charges) == 1 and operation.kind == ALLOCATE:
                # One policy applies to most requests: what `judge` would say, without its lists.
                charge = charges[0]
                limits, value = charge.limits, charge.value
                if len(value) > _LONGEST:
                    value = _shortened(value)
                table = self._known.get(limits) or self._table(limits)
                shard = table.shards[hash(value) & 255]
                packed = shard.get(value)
                if packed is not None:
                    row: Words = table.unpack(packed)
                    charged = limits.allocate(row, now, charge.cost)
                    if charged is not None:
                        shard[value] = table.pack(*charged)
                        return Spends(now, False, _FITS, [charged])
                    if limits.mode == ENFORCE and limits.mend(row, now) is None:
                        return Spends(now, True, _FITS_NOT, [row])
            places: list[tuple[_Table, _Shard, str]] = []
            rows: list[Words] = []
            for charge in charges:
                table = self._known.get(charge.limits) or self._table(charge.limits)
                value = charge.value if len(charge.value) <= _LONGEST else _shortened(charge.value)
                shard = table.shards[hash(value) & 255]
                packed = shard.get(value)
                if packed is None:
                    shard, value = self._place(table, shard, charge.limits, value, now, len(places))
                    packed = shard.get(value)
                places.append((table, shard, value))
                rows.append(table.empty if packed is None else table.unpack(packed))
            spends, after = judge(operation, rows)
            if after is not None:
                for (table, shard, value), row in zip(places, after, strict=True):
                    if value not in shard and shard is not table.overflow:
                        self._room -= 1
                    shard[value] = table.pack(*row)
        return spends

    def _table(self, limits: Limits) -> _Table:
        table = self._tables.setdefault((limits.head, limits.ids), _Table(limits.size))
        self._known[limits] = table
        return table

    def _place(
        self, table: _Table, shard: _Shard, limits: Limits, value: str, now: int, before: int
    ) -> tuple[_Shard, str]:
        """Where a new subject's row goes: its shard, or the row that all share when none is free.

        The rows *before* it in the operation may be as new.
        """
        if len(shard) >= _FEW:
            self._give_back(table, shard, limits, now)
        for _ in range(_SEARCHED):
            if self._room > before:
                return shard, value
            self._looked = (self._looked + 1) % _SHARDS
            self._give_back(table, table.shards[self._looked], limits, now)
        return table.overflow, ""

    def _give_back(self, table: _Table, shard: _Shard, limits: Limits, now: int) -> None:
        """Give back the two oldest rows of *shard* that are whole again; those in use go to the end."""
        for _ in range(min(2, len(shard))):
            oldest = next(iter(shard))
            packed = shard.pop(oldest)
            if limits.expires(table.unpack(packed)) <= now:
                self._room += 1
            else:
                shard[oldest] = packed

    def clear(self) -> None:
        """Forget every count."""
        with self._lock:
            self._tables, self._known, self._room = {}, {}, self.max_subjects

    def close(self) -> None:
        """Nothing is open; the counts stay."""

    def drop(self) -> None:
        """A forked child counts on from the parent's rows, with a lock of its own."""
        self._lock = Lock()

    def async_half(self) -> AsyncCounters:
        """The sibling for event loops, counting in the same place."""
        return self  # there is nothing to wait for


def _shortened(value: str) -> str:
    """A digest in the place of a long subject; one character longer than any that is kept as it is."""
    return "-" + blake2b(value.encode("utf-8", "surrogatepass"), digest_size=_LONGEST // 2).hexdigest()


def open_memory(url: str) -> MemoryCounters:
    """Counters for ``memory://``: new ones each time, known to this process alone."""
    if url != "memory://":
        raise ConfigurationError(f'counters in memory are written "memory://", not {url!r}')
    return MemoryCounters()
