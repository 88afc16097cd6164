"""Counters in memory do what all counters do."""

import os
import subprocess
import sys
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


def test_attack_21_a_flood_evicts_no_used_up_subject_and_gets_nothing_free() -> None:
    """actor-ts #607: whoever is at the limit is forgotten when enough others come, and is let in again."""
    counters = MemoryCounters(max_subjects=100)
    limits = LimitSet("app", "p", [Rate(1, "day", "fixed")])
    answers = [counters.apply(Operation([Charge(limits, f"s{n}", 1)], NOW)).refused for n in range(5000)]
    assert answers.count(False) == 101, "as many as there is room for, and one for all others together"
    again = [counters.apply(Operation([Charge(limits, f"s{n}", 1)], NOW + 1)).refused for n in range(5000)]
    assert again == [True] * 5000


def test_attack_20_rows_of_a_flood_that_is_over_are_given_to_others() -> None:
    counters = MemoryCounters(max_subjects=50_000)
    limits = LimitSet("app", "p", [Rate(1, "minute", "fixed")])
    for n in range(100_000):
        counters.apply(Operation([Charge(limits, f"s{n}", 1)], NOW))
    later = NOW + 61_000_000
    served = [counters.apply(Operation([Charge(limits, f"t{n}", 1)], later)).refused for n in range(25_000)]
    (table,) = counters._tables.values()
    assert not any(served)
    assert sum(map(len, table.shards)) <= 50_000


FORKING = """
import os, threading
from usagekeeper import Rate
from usagekeeper.counters.memory import MemoryCounters
from usagekeeper.limits import LimitSet
from usagekeeper.values import Charge, Operation

def hold(words, now, cost):
    inside.set()
    release.wait()
    return words

def allowed():
    return not counters.apply(Operation([Charge(limits, "x", 1)], 0)).refused

counters, inside, release = MemoryCounters(), threading.Event(), threading.Event()
limits, slow = LimitSet("app", "p", [Rate(3, "day", "fixed")]), LimitSet("app", "slow", [])
slow.allocate = hold
allowed()
thread = threading.Thread(target=counters.apply, args=[Operation([Charge(slow, "y", 1)], 0)])
thread.start()
inside.wait()
if not (child := os.fork()):
    counters.drop()
    os._exit([allowed() for _ in range(3)] != [True, True, False])
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
release.set()
thread.join()
print([allowed() for _ in range(3)])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_attack_fork_while_another_thread_holds_the_lock_harms_neither_side() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n[True, True, False]\n", "")


@pytest.mark.parametrize("room", [1, 100, 1000])
def test_after_a_flood_new_subjects_have_rows_of_their_own(room: int) -> None:
    counters = MemoryCounters(max_subjects=room)
    limits = LimitSet("app", "p", [Rate(1, "minute")])
    for n in range(2 * room):
        counters.apply(Operation([Charge(limits, f"flood-{n}", 1)], NOW))
    later = NOW + 3_600_000_000
    fits = [not counters.apply(Operation([Charge(limits, f"new-{n}", 1)], later)).refused for n in range(room)]
    assert sum(fits) >= 0.9 * room


class TestMemoryCountersAwaited(AsyncHalf, TestMemoryCounters):
    pass
