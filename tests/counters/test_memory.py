"""Counters in memory do what all counters do."""

from collections.abc import Iterator

import pytest

from usagekeeper.counters.base import Counters
from usagekeeper.counters.memory import MemoryCounters
from usagekeeper.testing.counters_suite import AsyncHalf, CountersSuite


class TestMemoryCounters(CountersSuite):
    @pytest.fixture
    def counters(self) -> Iterator[Counters]:
        counters = MemoryCounters()
        yield counters
        counters.close()


class TestMemoryCountersAwaited(AsyncHalf, TestMemoryCounters):
    pass
