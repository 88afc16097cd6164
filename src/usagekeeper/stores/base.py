"""The protocol of the record stores: append, read, purge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from usagekeeper.records import UsageRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordQuery:
    """Which records to read; None asks nothing. Times are microseconds since the epoch, *since* included."""

    application: str | None = None
    since: int | None = None
    until: int | None = None
    subject: str | None = None
    route: str | None = None
    outcome: str | None = None
    order: Literal["oldest", "newest"] = "oldest"
    limit: int | None = None


@runtime_checkable
class UsageStore(Protocol):
    """Finished exchanges, each under its id. Used by one thread at a time per handle."""

    def append(self, records: Sequence[UsageRecord]) -> int:
        """Keep *records* and return how many were new.

        Atomic: all are kept or, when it raises, none. A record whose id is there already changes nothing, so a batch
        may be delivered again. Raises `StoreUnavailable` when the engine behind does not answer.
        """
        ...

    def read(self, query: RecordQuery) -> Iterator[UsageRecord]:
        """The records that *query* asks for, by time."""
        ...

    def purge(self, before: int, *, limit: int = 1000) -> int:
        """Forget up to *limit* records that arrived before this moment; return how many there were."""
        ...

    def close(self) -> None:
        """Let go of files and connections of this process; a later call opens them again."""
        ...

    def drop(self) -> None:
        """Forget, without closing, what a forked child inherited; files are opened again on use."""
        ...


@runtime_checkable
class EncodedStore(UsageStore, Protocol):
    """A store that can do without the records between what was encoded and what it keeps."""

    def append_encoded(self, encoded: Sequence[bytes]) -> int:
        """`append` of the records that *encoded* decodes to; the same is kept.

        Raises, and keeps none of them, also where one cannot be decoded or is not as usual: they are appended then.
        """
        ...
