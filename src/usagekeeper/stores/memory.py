"""Usage records in the memory of one process: for tests, demonstrations and short-lived programs."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from itertools import islice
from threading import Lock

from usagekeeper.errors import ConfigurationError
from usagekeeper.records import UsageRecord, record_id
from usagekeeper.stores.base import RecordQuery


class MemoryStore:
    """The newest *keep* records; older ones make room for them.

    A record that had to make room is forgotten whole: delivered again, it counts as new.
    """

    def __init__(self, *, keep: int = 100_000) -> None:
        if keep < 1:
            raise ConfigurationError(f"keep={keep} leaves room for no record: give at least 1")
        self._keep = keep
        self._lock = Lock()
        self._records: dict[bytes, UsageRecord] = {}
        self._order: list[bytes] = []

    def append(self, records: Sequence[UsageRecord]) -> int:
        """See `UsageStore.append`."""
        identified = {record_id(r.at, r.serial, r.process): r for r in records}
        with self._lock:
            new = [identity for identity in identified if identity not in self._records]
            for identity in new:
                self._records[identity] = identified[identity]
                insort(self._order, identity)  # nearly always at the end
            self._forget(len(self._order) - self._keep)
        return len(new)

    def read(self, query: RecordQuery) -> Iterator[UsageRecord]:
        """See `UsageStore.read`. What is appended meanwhile is not seen."""
        with self._lock:
            found = [self._records[identity] for identity in self._order]
        if query.order == "newest":
            found.reverse()
        left = len(found) if query.limit is None else query.limit
        for record in found:
            if left <= 0:
                return
            if _asked(record, query):
                left -= 1
                yield record

    def purge(self, before: int, *, limit: int = 1000) -> int:
        """See `UsageStore.purge`."""
        with self._lock:
            old = list(islice(self._before(before), limit))
            for identity in old:
                del self._records[identity]
            if old:
                self._order = [identity for identity in self._order if identity in self._records]
        return len(old)

    def close(self) -> None:
        """Nothing to let go of; what is kept stays."""

    def drop(self) -> None:
        """Start empty: in a forked child, what is kept belongs to the parent."""
        self._lock = Lock()
        self._records = {}
        self._order = []

    def _before(self, moment: int) -> Iterator[bytes]:
        for identity in self._order:  # by millisecond, the moment is one of microseconds
            at = self._records[identity].at
            if at // 1000 > moment // 1000:
                return
            if at < moment:
                yield identity

    def _forget(self, count: int) -> None:
        if count > 0:
            for identity in self._order[:count]:
                del self._records[identity]
            del self._order[:count]


def _asked(record: UsageRecord, query: RecordQuery) -> bool:
    return (
        (query.since is None or record.at >= query.since)
        and (query.until is None or record.at < query.until)
        and (query.application is None or record.application == query.application)
        and (query.subject is None or record.subject == query.subject)
        and (query.route is None or record.route == query.route)
        and (query.outcome is None or record.outcome == query.outcome)
    )


def open_memory(url: str) -> MemoryStore:
    """The store of a `memory://` URL: a new one each time, gone with the process."""
    if url != "memory://":
        raise ConfigurationError(f"store {url!r}: memory has no name and no options, use memory://")
    return MemoryStore()
