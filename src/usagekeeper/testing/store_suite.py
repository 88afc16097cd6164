"""What every record store must do, as tests to subclass. Keeps out how a store does it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from itertools import islice
from typing import Any

import pytest

from usagekeeper.records import UsageRecord
from usagekeeper.stores.base import RecordQuery, UsageStore

SECOND = 1_000_000
START = 1_750_000_000 * SECOND

_PLAIN: dict[str, Any] = {
    "application": "shop",
    "method": "GET",
    "scheme": "https",
    "host": "api.example.com",
    "path": "/items/7",
    "query": "page=2",
    "route": "/items/{id}",
    "subject": "ada",
    "subject_kind": "subject",
    "outcome": "allowed",
    "reason": None,
    "violated": (),
    "policies": ("default",),
    "units": 1,
    "status": 200,
    "aborted": False,
    "exception": None,
    "error_code": None,
    "first_byte": 900,
    "duration": 1200,
    "bytes_in": 0,
    "bytes_out": 512,
    "request_length": None,
    "request_mimetype": None,
    "response_length": 512,
    "response_mimetype": "application/json",
    "referer": None,
    "origin": None,
    "user_agent": "curl/8.5.0",
    "remote_address": "203.0.113.7",
    "auth_scheme": "bearer",
    "auth_digest": "0123456789abcdef0123456789abcdef",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "request_id": "r-1",
    "metadata": {},
}


def make_record(serial: int = 1, **changes: Any) -> UsageRecord:
    """The record number *serial* of one process, a second after the one before it."""
    at = START + serial * SECOND
    return UsageRecord(**{"at": at, "serial": serial, "process": 0xA1B2C3D4E5F6, **_PLAIN, **changes})


def make_records(count: int, **changes: Any) -> list[UsageRecord]:
    """*count* records, in the order of time."""
    return [make_record(serial, **changes) for serial in range(1, count + 1)]


def everything(store: UsageStore) -> list[UsageRecord]:
    """All that *store* holds."""
    return list(store.read(RecordQuery()))


class StoreSuite:
    """Subclass it as `TestYourStore`, with a fixture `store` that gives an empty one and closes it."""

    @pytest.fixture
    def store(self) -> Any:
        """The store under test."""
        pytest.fail("a subclass says what is tested: give it a fixture named store")

    # -- append ----------------------------------------------------------------------------------

    def test_it_is_a_usage_store(self, store: UsageStore) -> None:
        assert isinstance(store, UsageStore)

    def test_a_new_store_is_empty(self, store: UsageStore) -> None:
        assert everything(store) == []

    def test_what_was_appended_is_read(self, store: UsageStore) -> None:
        records = make_records(3)
        assert store.append(records) == 3
        assert everything(store) == records

    def test_appending_nothing_does_nothing(self, store: UsageStore) -> None:
        assert store.append([]) == 0
        assert everything(store) == []

    def test_a_batch_delivered_again_changes_nothing(self, store: UsageStore) -> None:
        records = make_records(5)
        store.append(records)
        assert store.append(records) == 0
        assert everything(store) == records

    def test_of_an_overlapping_batch_the_new_ones_are_kept(self, store: UsageStore) -> None:
        records = make_records(6)
        store.append(records[:4])
        assert store.append(records[2:]) == 2
        assert everything(store) == records

    def test_a_record_twice_in_a_batch_is_kept_once(self, store: UsageStore) -> None:
        assert store.append([make_record(), make_record()]) == 1
        assert everything(store) == [make_record()]

    def test_the_first_record_of_an_id_stays(self, store: UsageStore) -> None:
        store.append([make_record(status=200)])
        store.append([make_record(status=500)])
        assert [record.status for record in everything(store)] == [200]

    def test_a_batch_that_fails_leaves_nothing(self, store: UsageStore) -> None:
        beyond = make_record(at=1 << 80)  # its time does not fit into an id
        with pytest.raises(OverflowError):
            store.append([*make_records(50), beyond])
        assert everything(store) == []
        assert store.append(make_records(50)) == 50

    def test_many_threads_append_at_once(self, store: UsageStore) -> None:
        batches = [[make_record(serial, process=process) for serial in range(1, 101)] for process in range(1, 9)]
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(store.append, batches)) == 800
        assert len(everything(store)) == 800

    # -- read ------------------------------------------------------------------------------------

    def test_records_are_read_by_time_whatever_their_order_of_arrival(self, store: UsageStore) -> None:
        records = make_records(40)
        store.append(records[20:])
        store.append(records[:20][::-1])
        assert everything(store) == records

    def test_the_newest_are_read_first_when_asked_so(self, store: UsageStore) -> None:
        records = make_records(5)
        store.append(records)
        assert list(store.read(RecordQuery(order="newest", limit=2))) == [records[4], records[3]]

    @pytest.mark.parametrize("order", ["oldest", "newest"])
    @pytest.mark.parametrize("limit", [0, 1, 199, 200, 201, 1500, 1501])
    def test_a_limit_is_kept(self, store: UsageStore, order: Any, limit: int) -> None:
        records = make_records(1500)
        store.append(records)
        wanted = records[::-1] if order == "newest" else records
        assert list(store.read(RecordQuery(order=order, limit=limit))) == wanted[:limit]

    def test_since_is_included_and_until_is_not(self, store: UsageStore) -> None:
        records = make_records(5)
        store.append(records)
        asked = RecordQuery(since=records[1].at, until=records[3].at)
        assert list(store.read(asked)) == records[1:3]

    def test_times_are_asked_by_the_microsecond(self, store: UsageStore) -> None:
        records = [make_record(serial, at=START + serial) for serial in range(1, 9)]
        store.append(records)
        asked = RecordQuery(since=START + 3, until=START + 6)
        assert list(store.read(asked)) == records[2:5]

    def test_times_may_lie_anywhere(self, store: UsageStore) -> None:
        store.append(make_records(2))
        assert list(store.read(RecordQuery(since=-1, until=1 << 90))) == make_records(2)
        assert list(store.read(RecordQuery(since=1 << 90))) == []
        assert list(store.read(RecordQuery(until=-1))) == []

    @pytest.mark.parametrize(
        ("name", "value"),
        [("application", "other"), ("subject", "bob"), ("route", "/other"), ("outcome", "refused")],
    )
    def test_a_query_asks_for_what_it_names(self, store: UsageStore, name: str, value: str) -> None:
        records = [make_record(serial, **({name: value} if serial % 3 == 0 else {})) for serial in range(1, 10)]
        store.append(records)
        asked: Any = {name: value}
        assert list(store.read(RecordQuery(**asked))) == records[2::3]
        unknown: Any = {name: "nobody has this"}
        assert list(store.read(RecordQuery(**unknown))) == []

    def test_conditions_hold_together(self, store: UsageStore) -> None:
        records = make_records(6) + [make_record(serial, subject="bob") for serial in range(7, 13)]
        store.append(records)
        asked = RecordQuery(
            application="shop", subject="bob", since=records[8].at, outcome="allowed", route="/items/{id}", limit=2
        )
        assert list(store.read(asked)) == records[8:10]

    @pytest.mark.parametrize("text", ["' OR 1=1 --", "%", "*", '"', "\\", "a\x00b", "\ud800", ":subject", "?1", "{}"])
    def test_the_values_of_a_query_are_never_read_as_anything_else(self, store: UsageStore, text: str) -> None:
        store.append(make_records(3))
        for name in ("application", "subject", "route", "outcome"):
            asked: Any = {name: text}
            assert list(store.read(RecordQuery(**asked))) == []

    def test_a_reader_may_stop_and_others_write_meanwhile(self, store: UsageStore) -> None:
        records = make_records(900)
        store.append(records[:600])
        reading = store.read(RecordQuery())
        first = list(islice(reading, 300))
        store.append(records[600:])
        store.purge(records[100].at)
        assert first + list(islice(reading, 200)) == records[:500]

    # -- what is kept ----------------------------------------------------------------------------

    @pytest.mark.parametrize("units", [0, 7, -3, Decimal("0.000001"), Decimal("-12.50"), (1 << 63) - 1, 10**30])
    def test_units_are_exact(self, store: UsageStore, units: int | Decimal) -> None:
        store.append([make_record(units=units)])
        assert everything(store)[0].units == units

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "a\x00b",
            "\x00",
            "𝄞 naïve 日本",
            "\u202e\u0000\r\n\x1b[31m",
            "'; DROP TABLE records; --",
            "x" * 9000,
        ],
        ids=ascii,
    )
    def test_any_text_comes_back_as_it_was(self, store: UsageStore, text: str) -> None:
        record = make_record(path=text, subject=text, user_agent=text, host=text, metadata={text: [text]})
        store.append([record])
        assert everything(store) == [record]

    def test_text_that_is_no_unicode_is_kept_as_well_as_it_can(self, store: UsageStore) -> None:
        odd = "a\ud800b"
        store.append([make_record(path=odd, subject=odd, user_agent=odd, policies=(odd,), metadata={odd: odd})])
        (kept,) = everything(store)
        for text in (kept.path, kept.subject, kept.user_agent, *kept.policies, *kept.metadata):
            assert text is not None
            assert (text[0], text[-1]) == ("a", "b")
            assert text == odd or text.encode()

    def test_integers_of_any_size_are_kept_as_well_as_they_can(self, store: UsageStore) -> None:
        others = make_records(4)
        huge = make_record(9, request_length=10**30, bytes_in=-(10**30), metadata={"n": 10**30})
        store.append([*others, huge])
        assert everything(store)[:4] == others
        kept = everything(store)[4]
        assert kept.request_length is not None
        assert kept.request_length >= (1 << 53)
        assert kept.bytes_in <= -(1 << 53)
        assert int(kept.metadata["n"]) == 10**30

    def test_notes_keep_their_shape(self, store: UsageStore) -> None:
        notes = {"model": "large", "pages": 3, "ratio": 0.25, "parts": [1, [2, {"a": None}]], "ok": True, "": ""}
        store.append([make_record(metadata=notes)])
        assert everything(store)[0].metadata == notes

    def test_a_serial_may_pass_what_an_id_can_hold(self, store: UsageStore) -> None:
        record = make_record((1 << 26) + 5, at=START)
        store.append([record])
        assert everything(store) == [record]

    # -- purge -----------------------------------------------------------------------------------

    def test_purge_forgets_what_is_older(self, store: UsageStore) -> None:
        records = make_records(10)
        store.append(records)
        assert store.purge(records[4].at) == 4
        assert everything(store) == records[4:]
        assert store.purge(records[4].at) == 0

    def test_purge_is_exact_to_the_microsecond(self, store: UsageStore) -> None:
        records = [make_record(serial, at=START + serial) for serial in range(1, 9)]
        store.append(records)
        assert store.purge(START + 4) == 3
        assert everything(store) == records[3:]

    def test_purge_takes_the_oldest_and_no_more_than_its_limit(self, store: UsageStore) -> None:
        records = make_records(700)
        store.append(records)
        assert store.purge(START * 2, limit=450) == 450
        assert everything(store) == records[450:]

    def test_a_purge_long_ago_or_far_ahead_is_no_error(self, store: UsageStore) -> None:
        store.append(make_records(3))
        assert store.purge(-1) == 0
        assert store.purge(1 << 90) == 3

    # -- close and drop --------------------------------------------------------------------------

    def test_a_closed_store_opens_again(self, store: UsageStore) -> None:
        store.append(make_records(2))
        store.close()
        store.close()
        assert store.append(make_records(3)) == 1
        assert everything(store) == make_records(3)

    def test_closing_an_unused_store_does_nothing(self, store: UsageStore) -> None:
        store.close()
        store.drop()

    def test_a_dropped_store_can_be_used(self, store: UsageStore) -> None:
        store.append(make_records(2))
        store.drop()
        store.append(make_records(3))
        assert everything(store)[-1] == make_record(3)
