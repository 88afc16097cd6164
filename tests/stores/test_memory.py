"""Records in memory."""

import pytest

from usagekeeper.errors import ConfigurationError
from usagekeeper.stores import open_store
from usagekeeper.stores.base import RecordQuery, UsageStore
from usagekeeper.stores.memory import MemoryStore
from usagekeeper.testing.store_suite import StoreSuite, everything, make_records


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def store(self) -> UsageStore:
        return MemoryStore()


def test_the_newest_records_are_kept() -> None:
    store = MemoryStore(keep=100)
    for record in make_records(1000):
        store.append([record])
    assert everything(store) == make_records(1000)[-100:]


def test_a_record_older_than_all_that_are_kept_makes_no_room_for_itself() -> None:
    records = make_records(4)
    store = MemoryStore(keep=3)
    store.append(records[1:])
    store.append(records[:1])
    assert everything(store) == records[1:]


def test_a_store_that_could_keep_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="keep=0 leaves room for no record"):
        MemoryStore(keep=0)


def test_a_dropped_store_is_empty() -> None:
    store = MemoryStore()
    store.append(make_records(2))
    store.drop()
    assert everything(store) == []


def test_records_appended_while_reading_are_not_seen() -> None:
    store = MemoryStore()
    store.append(make_records(2))
    reading = store.read(RecordQuery())
    first = next(reading)
    store.append(make_records(5))
    assert [first, *reading] == make_records(2)


def test_each_url_opens_a_store_of_its_own() -> None:
    first, second = open_store("memory://"), open_store("memory://")
    first.append(make_records(1))
    assert everything(second) == []


def test_memory_has_no_options() -> None:
    with pytest.raises(ConfigurationError, match="use memory://"):
        open_store("memory://name")


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="this version knows memory://, sqlite://"):
        open_store("oracle://db")
