"""Following a store: everything once, also what comes late."""

import random

from usagekeeper.inspection.following import Follower
from usagekeeper.records import UsageRecord
from usagekeeper.stores.memory import MemoryStore
from usagekeeper.testing.store_suite import SECOND, make_record, make_records


def started(*records: UsageRecord) -> tuple[MemoryStore, Follower]:
    store = MemoryStore()
    store.append(records)
    follower = Follower(store)
    follower.start()
    return store, follower


def test_what_was_there_is_not_new() -> None:
    _, follower = started(*make_records(3))
    assert follower.look() == []


def test_what_comes_is_new_once() -> None:
    store, follower = started(*make_records(3))
    store.append([make_record(4), make_record(5)])
    assert [record.serial for record in follower.look()] == [4, 5]
    assert follower.look() == []


def test_an_empty_store_may_fill() -> None:
    store, follower = started()
    store.append(make_records(2))
    assert len(follower.look()) == 2


def test_a_slow_request_is_found_behind_a_thousand_quick_ones() -> None:
    store, follower = started(make_record(1))
    store.append([make_record(serial) for serial in range(1_002, 2_000)])
    store.append([make_record(serial) for serial in range(2, 1_001)])
    found = {record.serial for record in follower.look()} | {record.serial for record in follower.look()}
    assert found == {*range(2, 2_000)} - {1_001}
    store.append([make_record(1_001, at=make_record(11).at, duration=1_000 * SECOND)])
    assert [record.serial for record in follower.look()] == [1_001]
    assert follower.look() == []


def test_a_slow_request_of_a_quiet_server_needs_no_later_one() -> None:
    store, follower = started(*make_records(100))
    store.append([make_record(101, at=make_record(1).at, duration=200 * SECOND)])
    assert [record.serial for record in follower.look()] == [101]


def test_a_worker_that_comes_later_is_heard() -> None:
    store, follower = started(*make_records(3))
    store.append([make_record(1, process=7, at=make_record(4).at)])
    assert [record.process for record in follower.look()] == [7]


def test_an_idle_worker_is_heard_without_its_past() -> None:
    past = [make_record(serial, process=7) for serial in range(1, 20)]
    store, follower = started(*past, *(make_record(serial) for serial in range(1_000, 2_000)))
    store.append([make_record(20, process=7, at=make_record(2_001).at)])
    assert [record.serial for record in follower.look()] == [20]
    assert [follower.look() for _ in range(5)] == [[]] * 5


def test_a_serial_that_never_comes_is_given_up() -> None:
    store, follower = started(make_record(1))
    store.append([make_record(3)])
    assert [len(follower.look()) for _ in range(100)] == [1] + [0] * 99
    store.append([make_record(2)])
    assert follower.look() == []


def test_whatever_order_processes_write_in_nothing_is_lost_or_shown_twice() -> None:
    chance = random.Random(5)
    store, follower = started()
    waiting = {process: [make_record(serial, process=process) for serial in range(1, 300)] for process in range(6)}
    seen: list[tuple[int, int]] = []
    while any(waiting.values()):
        process = chance.randrange(6)
        count = chance.randrange(1, 40)
        store.append(waiting[process][:count])
        del waiting[process][:count]
        if chance.random() < 0.5:
            seen += [(record.process, record.serial) for record in follower.look()]
    seen += [(record.process, record.serial) for record in follower.look()]
    assert len(seen) == len(set(seen)) == 6 * 299
