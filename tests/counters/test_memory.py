"""Counters in memory do what all counters do."""

from collections.abc import Iterator

import pytest

from usagekeeper import Rate
from usagekeeper.counters import memory as counters_module
from usagekeeper.counters.base import Counters
from usagekeeper.counters.memory import MemoryCounters
from usagekeeper.limits import LimitSet
from usagekeeper.testing.counters_suite import AsyncHalf, CountersSuite
from usagekeeper.values import Charge, Operation

NOW = 1_800_000_000_000_000


class TestMemoryCounters(CountersSuite):
    @pytest.fixture
    def counters(self) -> Iterator[Counters]:
        counters = MemoryCounters()
        yield counters
        counters.close()


def test_a_long_subject_is_kept_as_a_digest_and_shares_it_with_nobody() -> None:
    counters = MemoryCounters()
    limits = LimitSet("app", "p", [Rate(1, "day")])
    subjects = ["\U0001f600" * 256, "\U0001f600" * 255, "x" * 64, "x" * 65, counters_module._shortened("x" * 65)[:64]]
    answers = [counters.apply(Operation([Charge(limits, subject, 1)], NOW)).refused for subject in 2 * subjects]
    assert answers == [False] * 5 + [True] * 5
    (table,) = counters._tables.values()
    assert max(len(key) for shard in table.shards for key in shard) == 65


def test_an_operation_of_several_policies_makes_no_more_rows_than_there_is_room_for() -> None:
    counters = MemoryCounters(max_subjects=2)
    charges = [Charge(LimitSet("app", f"p{n}", [Rate(9, "day")]), "x", 1) for n in range(5)]
    assert not counters.apply(Operation([*charges], NOW)).refused
    rows = [len(shard) for table in counters._tables.values() for shard in table.shards]
    assert sum(rows) == 2


class TestMemoryCountersAwaited(AsyncHalf, TestMemoryCounters):
    pass
