"""Which records of a store are new, asked again and again: none is shown twice, and none is passed over.

Ids are sorted by the arrival of a request, and a record is made when its response ends: a slow one appears behind what
was read long ago. But the records of one process carry serials without gaps, in the order in which they are stored. So
the newest records are read backwards, a few at each look, and further back while a serial is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from usagekeeper.records import UsageRecord
from usagekeeper.stores.base import RecordQuery, UsageStore
from usagekeeper.values import SECOND

_AT_LEAST: Final = 500
"""Records that every look reads: on a quiet server they reach back past any slow request."""
_LATE: Final = 10 * SECOND
"""How far behind the newest record every look reads: batches of several processes arrive in any order."""
_AT_MOST: Final = 50_000
"""Records that a look reads in search of a missing serial."""
_PATIENCE: Final = 64
"""Looks after which a missing serial is given up: its record was dropped, or belongs to another store."""
_PROCESSES: Final = 10_000


class _Process:
    """What was seen of one process."""

    __slots__ = ("missing", "newest")

    def __init__(self, newest: int) -> None:
        self.newest = newest
        self.missing: dict[int, int] = {}
        """Serials that were passed over, each with the looks that did not find it."""

    def take(self, serial: int) -> bool:
        """Whether this serial was not seen before."""
        if serial <= self.newest:
            return self.missing.pop(serial, None) is not None
        for absent in range(max(self.newest + 1, serial - _AT_MOST), serial):
            self.missing[absent] = 0
        self.newest = serial
        return True

    def wait(self) -> None:
        """A look has passed."""
        self.missing = {serial: looks + 1 for serial, looks in self.missing.items() if looks + 1 < _PATIENCE}

    def sought(self) -> list[int]:
        """The serials that are worth a look far back: ever more rarely, as that reads many records."""
        return [serial for serial, looks in self.missing.items() if not looks & (looks - 1)]


class Follower:
    """Reads what is new in *store*. Memory is bounded by the number of processes and of missing serials."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store
        self._processes: dict[int, _Process] = {}
        self._began = 0
        """When the last request ended that `start` found."""

    def start(self) -> None:
        """Take what is there now as seen."""
        found = list(self._behind())
        self._began = max((record.at + record.duration for record in found), default=0)
        for record in found:
            known = self._processes.get(record.process)
            if known is None or known.newest < record.serial:
                self._processes[record.process] = _Process(record.serial)

    def look(self) -> list[UsageRecord]:
        """What has come since the last look, in the order of arrival."""
        found = sorted(self._behind(), key=lambda record: record.serial)
        new = [record for record in found if self.note(record)]
        for process in self._processes.values():
            process.wait()
        while len(self._processes) > _PROCESSES:
            del self._processes[next(iter(self._processes))]
        return sorted(new, key=_order)

    def note(self, record: UsageRecord) -> bool:
        """Take *record* as seen; False when it was already."""
        known = self._processes.get(record.process)
        if known is None:  # a new one, or one that had been idle for long at the start
            known = self._processes[record.process] = _Process(max(0, record.serial - _AT_LEAST))
        return known.take(record.serial) and record.at + record.duration >= self._began - _LATE

    def _behind(self) -> Iterator[UsageRecord]:
        """The newest records, backwards, as far as there may be a new one among them."""
        absent = {(process, serial) for process, known in self._processes.items() for serial in known.sought()}
        newest: int | None = None
        for count, record in enumerate(self._store.read(RecordQuery(order="newest"))):
            newest = record.at if newest is None else newest
            near = count < _AT_LEAST or record.at > newest - _LATE
            if not near and (not absent or count >= _AT_MOST):
                return
            absent.discard((record.process, record.serial))
            yield record


def _order(record: UsageRecord) -> tuple[int, int, int]:
    return record.at, record.process, record.serial
