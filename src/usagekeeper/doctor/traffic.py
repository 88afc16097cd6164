"""What the newest records tell: clocks that were set back, and requests that no route answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from usagekeeper.doctor.codes import Finding, finding
from usagekeeper.errors import UsageError
from usagekeeper.inspection.backends import absent, file_of
from usagekeeper.inspection.locate import Installation
from usagekeeper.keeper import UsageKeeper
from usagekeeper.records import UsageRecord
from usagekeeper.stores.base import RecordQuery
from usagekeeper.values import SECOND

_READ: Final = 5_000
"""Records that are looked at, the newest first."""
_AHEAD: Final = 60
"""Seconds that a record may be ahead of this clock."""
_MANY: Final = 10
_TOP: Final = 3
_LONGEST: Final = 80


class Sample(NamedTuple):
    """The newest records of the application."""

    records: Sequence[UsageRecord]
    why: str = ""
    """Where there are none: why."""

    def told(self) -> str:
        """How many there are."""
        return f"{len(self.records)} newest records" if self.records else self.why or "no records yet"


def newest(keeper: UsageKeeper) -> Sample:
    """Up to five thousand records; none where the store cannot be read, which is found elsewhere."""
    if (path := absent(keeper.store)) is not None:
        return Sample((), f"{path} does not exist yet")
    try:
        query = RecordQuery(application=keeper.application, order="newest", limit=_READ)
        return Sample(list(keeper.store.read(query)))
    except UsageError as error:
        return Sample((), f"cannot be read: {error}")


def findings(found: Installation, sample: Sample) -> Iterator[Finding]:
    """What is wrong with the traffic."""
    now = found.keeper.now() / 1e9
    yield from _clock(found.keeper, sample, now)
    yield from _unmatched(sample)


def _clock(keeper: UsageKeeper, sample: Sample, now: float) -> Iterator[Finding]:
    """A record, or a file of ours, from a time that this clock has not reached."""
    latest = max((record.at for record in sample.records), default=0) / SECOND
    if latest > now + _AHEAD:
        yield finding(
            "UK501",
            f"The newest record is of {_moment(latest)}, and the clock says {_moment(now)}: it was set back, or another"
            " machine wrote with a wrong one. Windows of limits that were begun then last longer.",
        )
        return
    for path in filter(None, map(file_of, (keeper.store, keeper.counters))):
        for file in (path, path.with_name(f"{path.name}-wal")):
            if file.exists() and file.stat().st_mtime > time.time() + _AHEAD:
                written = _moment(file.stat().st_mtime)
                yield finding("UK501", f"{file} was written at {written}, which the clock has not reached.")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(min(seconds, 253_402_300_799), UTC).isoformat(" ", "seconds")


def _unmatched(sample: Sample) -> Iterator[Finding]:
    lost = [record for record in sample.records if record.route is None or record.status == 404]
    if len(lost) < _MANY:
        return
    top = Counter(f"{record.method} {record.path}" for record in lost).most_common(_TOP)
    shown = ", ".join(f"{path[:_LONGEST]} ({times}x)" for path, times in top)
    yield finding(
        "UK502", f"Of the {len(sample.records)} newest records {len(lost)} match no route or found nothing: {shown}."
    )
