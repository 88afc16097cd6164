"""What backends and applications are tested with: conformance suites for counters and stores, and helpers for tests.

The suites are modules of their own and need pytest; nothing here does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from usagekeeper.counters.memory import MemoryCounters
from usagekeeper.errors import UsageError
from usagekeeper.stores.base import RecordQuery
from usagekeeper.stores.memory import MemoryStore

if TYPE_CHECKING:
    from decimal import Decimal

    from usagekeeper.keeper import UsageKeeper
    from usagekeeper.records import UsageRecord

__all__ = ["ManualClock", "assert_recorded", "disabled", "recorded", "reset"]


class ManualClock:
    """A clock that moves when told: ``UsageKeeper(clock=ManualClock())``. Epoch seconds."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass; negative ones step the clock back."""
        self.now += seconds


@contextmanager
def disabled(keeper: UsageKeeper) -> Iterator[None]:
    """Within it nothing is limited and nothing recorded: every middleware of *keeper* passes requests through.

    Also those that have served already. Requests that began before are finished as they began.
    """
    before = keeper.enabled
    keeper.enabled = False
    try:
        yield
    finally:
        keeper.enabled = before


def recorded(keeper: UsageKeeper) -> list[UsageRecord]:
    """Every record of the keeper's application, oldest first, those of the last moment among them.

    A record is made when its answer has been read to the end.
    """
    if not keeper.flush():
        raise UsageError("the records could not be written within 5 seconds: the log of usagekeeper tells why")
    return list(keeper.store.read(RecordQuery(application=keeper.application)))


def assert_recorded(
    keeper: UsageKeeper,
    *,
    route: str | None = None,
    subject: str | None = None,
    status: int | None = None,
    outcome: str | None = None,
    units: int | Decimal | None = None,
    times: int = 1,
) -> list[UsageRecord]:
    """Exactly *times* records are as described; None is anything. Returns them.

    `AssertionError` lists what was recorded instead. *route* is the framework's template, or the pattern.
    """
    __tracebackhide__ = True
    given = {"route": route, "subject": subject, "status": status, "outcome": outcome, "units": units}
    wanted = {name: value for name, value in given.items() if value is not None}
    records = recorded(keeper)
    found = [record for record in records if all(getattr(record, name) == value for name, value in wanted.items())]
    if len(found) != times:
        described = ", ".join(f"{name}={value!r}" for name, value in wanted.items()) or "anything"
        told = "".join(f"\n  {_line(record)}" for record in records[-_SHOWN:]) or "\n  nothing"
        more = f"the last {_SHOWN} of {len(records)} records" if len(records) > _SHOWN else "recorded"
        raise AssertionError(f"{described}: expected {times} times, found {len(found)}; {more}:{told}")
    return found


_SHOWN = 20


def _line(record: UsageRecord) -> str:
    return (
        f"{record.method} {record.path} route={record.route!r} subject={record.subject!r}"
        f" status={record.status} outcome={record.outcome!r} units={record.units}"
    )


def reset(keeper: UsageKeeper) -> None:
    """Counts and records of *keeper* start from nothing, between two tests.

    Only what is in memory is forgotten: `UsageError` for other counters and stores, before anything is touched.
    """
    counters, store = keeper.counters, keeper.store
    if not isinstance(counters, MemoryCounters) or not isinstance(store, MemoryStore):
        kept = type(store if isinstance(counters, MemoryCounters) else counters).__name__
        raise UsageError(
            f"reset() forgets what is in memory, and this keeper has a {kept}:"
            ' build the one of the tests with store="memory://", or with a file in tmp_path for each test'
        )
    recorded(keeper)  # what is still on its way belongs to the past
    counters.clear()
    while store.purge(_END):
        pass


_END = 2**63
