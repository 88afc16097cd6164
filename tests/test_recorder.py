"""The way of encoded records into a store: bounds, outages, flushing, closing, pruning, forking."""

import asyncio
import gc
import logging
import os
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

import usagekeeper.recorder as module
from usagekeeper.errors import ConfigurationError, StoreUnavailable
from usagekeeper.recorder import Recorder
from usagekeeper.records import UsageRecord, encode, grouped
from usagekeeper.stores.memory import MemoryStore
from usagekeeper.stores.sqlite import SqliteStore
from usagekeeper.testing.store_suite import SECOND, START, everything, make_record

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks on this system")
LONG = 60.0
"""Seconds after which a test gives up on another thread."""


class Store(MemoryStore):
    """A store that is away while `error` is set, and tells when it holds as many as a test waits for."""

    def __init__(self) -> None:
        super().__init__(keep=1_000_000)
        self.error: Exception | None = None
        self.batches: list[int] = []
        self.purges: list[tuple[int, int]] = []
        self.closed = 0
        self.held = 0
        self.changed = threading.Condition()

    def append(self, records: Sequence[UsageRecord]) -> int:
        if self.error is not None:
            raise self.error
        self.batches.append(len(records))
        new = super().append(records)
        with self.changed:
            self.held += new
            self.changed.notify_all()
        return new

    def purge(self, before: int, *, limit: int = 1000) -> int:
        self.purges.append((before, limit))
        if self.error is not None:
            raise self.error
        return super().purge(before, limit=limit)

    def close(self) -> None:
        self.closed += 1

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.held >= count, LONG)

    def serials(self) -> list[int]:
        return [record.serial for record in everything(self)]


class Time:
    """Stands still, but for those who wait."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []
        self.when_waited: Callable[[], object] = int

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        self.when_waited()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def make(store: Store) -> Iterator[Callable[..., Recorder]]:
    """Recorders, closed in the end; without a thread unless they are given an interval."""
    made: list[Recorder] = []

    def make_recorder(target: Any = store, **options: Any) -> Recorder:
        made.append(Recorder(target, **options))
        if "interval" not in options:
            made[-1]._start_at = float("inf")
        return made[-1]

    yield make_recorder
    store.error = None
    for recorder in made:
        recorder.close(LONG)


def encoded(serial: int = 1, **changes: Any) -> bytes:
    record = make_record(serial, **changes)
    return encode(grouped(msgspec.structs.asdict(record)))


def fill(recorder: Recorder, *serials: int) -> None:
    for serial in serials:
        recorder.record(encoded(serial))


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "usagekeeper-recorder"]


def run(script: str, *arguments: object) -> str:
    """What a script prints that ends well; it finds `recorder_on(path)` and what this file imports."""
    head = (
        "import os, sys, threading\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_recorder import encoded, fill, everything, SqliteStore, Store, Recorder, LONG\n"
        "def serials(store): return [record.serial for record in everything(store)]\n"
    )
    command = [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout


# -- the request path ----------------------------------------------------------------------------


def test_constructing_starts_and_opens_nothing(make: Callable[..., Recorder]) -> None:
    before = threads()
    make(lambda: pytest.fail("opened"), interval=0.25)
    assert threads() == before


def test_a_record_reaches_the_store_by_itself(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make(interval=0.001)
    fill(recorder, 1, 2, 3)
    store.wait_for(3)
    assert store.serials() == [1, 2, 3]


def test_one_thread_is_started_however_many_record_first(store: Store, make: Callable[..., Recorder]) -> None:
    before = len(threads())
    recorder = make(interval=LONG)
    gate = threading.Barrier(16)

    def record(serial: int) -> None:
        gate.wait(LONG)
        recorder.record(encoded(serial))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(record, range(16)))
    assert len(threads()) == before + 1


def test_where_no_thread_can_be_started_flush_stores(
    store: Store, time: Time, make: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[float] = []

    def refuse(worker: object) -> None:
        attempts.append(time.now)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module._Worker, "start", refuse)
    recorder = make(interval=0.25, timer=time, wait=time.wait)
    fill(recorder, *range(1, 101))
    time.now += 1.5
    fill(recorder, 101)
    assert recorder.flush()
    assert len(store.serials()) == 101
    assert attempts == [1000.0, 1001.5]  # not once for each record


def test_nothing_but_bytes_is_kept_of_a_request(make: Callable[..., Recorder]) -> None:
    recorder = make()
    records = [encoded(serial) for serial in range(1000)]
    gc.collect()
    before = len(gc.get_objects())
    for record in records:
        recorder.record(record)
    assert len(gc.get_objects()) - before < 20


def test_a_record_may_be_made_while_one_is_stored(make: Callable[..., Recorder]) -> None:
    class Echo(Store):
        def append(self, records: Sequence[UsageRecord]) -> int:
            if self.held < 5:
                recorder.record(encoded(100 + self.held))
            return super().append(records)

    echo = Echo()
    recorder = make(echo, interval=0.001)
    recorder.record(encoded(1))
    echo.wait_for(6)
    assert echo.serials() == [1, 100, 101, 102, 103, 104]


def test_much_in_the_buffer_wakes_the_thread_early(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make(interval=10 * LONG, batch=10, max_records=1000)
    recorder.record(encoded(1))
    store.wait_for(1)
    fill(recorder, *range(2, 200))
    store.wait_for(150)


# -- bounds --------------------------------------------------------------------------------------


def test_a_burst_is_stored_without_loss(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make(interval=0.25)
    for record in [encoded(serial) for serial in range(100_000)]:
        recorder.record(record)
    assert recorder.flush(LONG)
    assert store.held == 100_000
    assert recorder.figures().dropped == 0


def test_a_full_buffer_drops_and_counts_what_comes_last(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make(max_records=100)
    fill(recorder, *range(1, 1001))
    figures = recorder.figures()
    assert (figures.buffered, figures.dropped) == (100, 900)
    assert recorder.flush()
    assert store.serials() == list(range(1, 101))
    fill(recorder, 1001)
    assert recorder.flush()
    assert store.serials()[-1] == 1001


def test_the_buffer_is_bounded_in_bytes_too(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make(max_bytes=100_000)
    large = encoded(1, path="/" + "x" * 9000)
    for _ in range(50):
        recorder.record(large)
    figures = recorder.figures()
    assert figures.buffered == 100_000 // len(large)
    assert figures.buffered_bytes == figures.buffered * len(large) <= 100_000
    assert figures.dropped == 50 - figures.buffered
    recorder.flush()
    assert recorder.figures().buffered_bytes == 0
    recorder.record(large)
    assert recorder.figures().buffered == 1


def test_a_batch_that_is_being_written_counts_for_the_bounds(make: Callable[..., Recorder]) -> None:
    class Slow(Store):
        def append(self, records: Sequence[UsageRecord]) -> int:
            fill(recorder, *range(1000, 1100))
            return super().append(records)

    recorder = make(Slow(), max_records=50)
    fill(recorder, *range(1, 31))
    recorder.flush()
    assert recorder.figures().dropped == 80


def test_drops_are_logged_once_a_minute(
    store: Store, time: Time, make: Callable[..., Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    recorder = make(max_records=10, timer=time, wait=time.wait)
    for minute in range(3):
        for _ in range(30):
            fill(recorder, *range(1, 21))
            recorder.flush()
            time.now += 1
        assert len(caplog.records) == 1 + minute // 2, caplog.messages
    first, second = caplog.messages
    assert first == (
        "10 usage records were dropped: the buffer is full (0 records, 0 bytes). "
        "They arrive faster than the store takes them"
    )
    assert second.startswith("600 usage records were dropped")
    assert {(record.name, record.levelname) for record in caplog.records} == {("usagekeeper", "ERROR")}


# -- outages -------------------------------------------------------------------------------------


def test_a_store_that_is_away_is_tried_again_at_growing_intervals(
    store: Store, time: Time, make: Callable[..., Recorder]
) -> None:
    recorder = make(timer=time, wait=time.wait)
    store.error = StoreUnavailable("away")
    fill(recorder, 1, 2)
    assert not recorder.flush(120)
    for waited, expected in zip(time.waits, [0.1, 0.2, 0.4, 0.8, 1.6, *[2.5] * 10], strict=False):
        assert expected <= waited <= 2 * expected
    assert len(time.waits) > 20
    assert len(set(time.waits)) > 15  # chance keeps processes from trying all at once
    assert time.now == pytest.approx(1120)


def test_nothing_is_lost_while_the_store_is_away(
    store: Store, time: Time, make: Callable[..., Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "usagekeeper")
    recorder = make(timer=time, wait=time.wait)
    store.error = StoreUnavailable("usage.db did not answer")
    fill(recorder, *range(1, 3001))

    def come_back() -> None:
        if len(time.waits) == 4:
            store.error = None

    time.when_waited = come_back
    assert recorder.flush(60)
    assert store.serials() == list(range(1, 3001))
    assert caplog.messages == [
        "Usage records are not stored, 3000 are kept and tried again: StoreUnavailable: usage.db did not answer",
        "Usage records are stored again",
    ]


def test_the_thread_waits_for_a_store_that_is_away(store: Store, make: Callable[..., Recorder]) -> None:
    tried = threading.Semaphore(0)

    class Away(Store):
        def append(self, records: Sequence[UsageRecord]) -> int:
            tried.release()
            return super().append(records)

    away = Away()
    away.error = StoreUnavailable("away")
    recorder = make(away, interval=0.001, max_records=20)
    fill(recorder, *range(1, 101))  # full: the thread is not woken early to a store that is away
    for _ in range(2):
        assert tried.acquire(timeout=LONG)
    assert recorder.figures().last_error == "StoreUnavailable: away"
    assert recorder.figures().buffered == 20
    away.error = None
    away.wait_for(20)
    assert recorder.flush(LONG)
    assert recorder.figures().last_error is None


def test_a_wrong_configuration_is_waited_out_too(store: Store, time: Time, make: Callable[..., Recorder]) -> None:
    recorder = make(timer=time, wait=time.wait)
    store.error = ConfigurationError("usage.db belongs to another application")
    fill(recorder, 1)
    assert not recorder.flush(1)
    assert recorder.figures().last_error == "ConfigurationError: usage.db belongs to another application"
    store.error = None
    assert recorder.flush(1)


def test_a_store_is_made_on_first_use_and_again_when_that_failed(
    store: Store, time: Time, make: Callable[..., Recorder]
) -> None:
    made: list[int] = []

    def factory() -> Store:
        made.append(1)
        if len(made) < 3:
            raise StoreUnavailable("not yet")
        return store

    recorder = make(factory, timer=time, wait=time.wait)
    assert recorder.flush()
    assert made == []
    fill(recorder, 1)
    assert recorder.flush()
    assert len(made) == 3
    recorder.close()
    assert store.closed == 1


# -- records that are not what they should be ----------------------------------------------------


def test_what_cannot_be_decoded_is_counted_and_skipped(
    store: Store, make: Callable[..., Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    recorder = make()
    for odd in (b"", b"\xc1", b"\x90", encode((1, 2)), encoded(1)[:-1], os.urandom(50)):
        recorder.record(odd)
        recorder.record(encoded(2))
        recorder.record(encoded(3))
    assert recorder.flush()
    assert store.serials() == [2, 3]
    assert recorder.figures().undecodable == 6
    assert caplog.messages == ["6 usage records could not be read and are lost"]


def test_what_the_store_cannot_take_stops_nothing_else(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make()
    fill(recorder, 1)
    recorder.record(encoded(2, at=(1 << 63) - 1))  # has no id: its time is too far away
    fill(recorder, 3)
    assert recorder.flush()
    assert store.serials() == [1, 3]
    assert recorder.figures().undecodable == 1
    assert recorder.figures().written == 2


@pytest.mark.parametrize(
    ("odd", "kept"),
    [
        pytest.param(b"\xc1", None, id="no MessagePack"),
        pytest.param(encode((1, 2)), None, id="no record"),
        pytest.param(encoded(2, at=(1 << 63) - 1), None, id="no id"),
        pytest.param(encoded(2, at=-1), None, id="before all time"),
        pytest.param(encoded(2, subject={"a": 1}), "{'a': 1}", id="a subject that is no text"),
        pytest.param(encoded(2, subject=(1 << 64) - 1), str((1 << 63) - 1), id="a number that is too large"),
    ],
)
def test_what_is_odd_is_stored_or_set_aside_alone(
    tmp_path: Path, make: Callable[..., Recorder], odd: bytes, kept: str | None
) -> None:
    target = SqliteStore(tmp_path / "usage.db")
    recorder = make(target)
    fill(recorder, 1)
    recorder.record(odd)
    fill(recorder, 3)
    assert recorder.flush()
    found = {record.serial: record.subject for record in everything(target)}
    assert found == {1: "ada", 3: "ada"} | ({2: kept} if kept else {})
    assert recorder.figures().undecodable == (kept is None)
    target.close()


def test_encoded_records_that_a_store_does_not_take_are_tried_as_records(make: Callable[..., Recorder]) -> None:
    class Choosy(Store):
        def append_encoded(self, encoded: Sequence[bytes]) -> int:
            raise StoreUnavailable("away") if self.error else ValueError("odd")

    choosy = Choosy()
    recorder = make(choosy)
    fill(recorder, 1, 2)
    choosy.error = StoreUnavailable("away")
    assert not recorder.flush(0)
    choosy.error = None
    assert recorder.flush()
    assert choosy.batches == [2]


def test_a_store_that_takes_nothing_is_away(store: Store, time: Time, make: Callable[..., Recorder]) -> None:
    recorder = make(timer=time, wait=time.wait)
    store.error = ValueError("a fault in the store")
    fill(recorder, 1, 2)
    assert not recorder.flush(1)
    assert recorder.figures().buffered == 2
    assert recorder.figures().undecodable == 0


# -- flush ---------------------------------------------------------------------------------------


def test_flushing_nothing_is_done_at_once(store: Store, make: Callable[..., Recorder]) -> None:
    assert make().flush(0)
    assert store.batches == []


def test_everything_recorded_before_a_flush_is_stored_after_it(make: Callable[..., Recorder]) -> None:
    store = Store()
    recorder = make(store, interval=0.001, batch=50)

    def use(thread: int) -> None:
        for number in range(40):
            serials = range(thread * 10_000 + number * 20, thread * 10_000 + number * 20 + 20)
            fill(recorder, *serials)
            if random.random() < 0.3:
                assert recorder.flush(LONG)
                assert set(serials) <= set(store.serials())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert recorder.flush(LONG)
    assert store.held == 8 * 40 * 20
    assert sum(store.batches) == 8 * 40 * 20  # nothing was delivered twice


def test_threads_and_event_loops_record_at_once(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make(interval=0.001)

    async def serve(loop: int, task: int) -> None:
        for number in range(100):
            recorder.record(encoded(loop * 100_000 + task * 1000 + number))
            if number % 10 == 0:
                await asyncio.sleep(0)

    async def tasks(loop: int) -> None:
        await asyncio.gather(*(serve(loop, task) for task in range(20)))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda loop: asyncio.run(tasks(loop)), range(6)))
    assert recorder.flush(LONG)
    assert store.held == 12_000
    figures = recorder.figures()
    assert (figures.written, figures.buffered, figures.buffered_bytes) == (12_000, 0, 0)


def test_large_backlogs_are_written_in_larger_batches(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make(batch=100)
    fill(recorder, *range(20_000))
    recorder.flush(LONG)
    assert max(store.batches) == 1000
    assert store.batches[-1] <= 100


# -- close ---------------------------------------------------------------------------------------


def test_closing_stores_what_is_left_and_stops_the_thread(store: Store, make: Callable[..., Recorder]) -> None:
    before = threads()
    recorder = make(interval=LONG)
    fill(recorder, 1, 2)
    assert recorder.close()
    assert store.serials() == [1, 2]
    assert threads() == before
    assert recorder.close()


def test_a_record_after_closing_starts_again(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make(interval=0.001)
    fill(recorder, 1)
    recorder.close()
    fill(recorder, 2)
    store.wait_for(2)


def test_closing_leaves_a_store_open_that_it_was_given(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make()
    fill(recorder, 1)
    recorder.close()
    assert store.closed == 0


def test_closing_while_the_store_is_away_ends_in_time_and_says_what_is_left(
    store: Store, time: Time, make: Callable[..., Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    recorder = make(timer=time, wait=time.wait)
    store.error = StoreUnavailable("away")
    fill(recorder, *range(1, 8))
    assert not recorder.close(timeout=5)
    assert time.now == pytest.approx(1005)
    assert caplog.messages[-1] == "7 usage records are not stored after 5 seconds: StoreUnavailable: away"
    store.error = None
    assert recorder.close(timeout=5)
    assert store.serials() == [1, 2, 3, 4, 5, 6, 7]


def test_attack_33_log_injection_what_an_engine_quotes_stays_on_its_line(
    store: Store, time: Time, make: Callable[..., Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    recorder = make(timer=time, wait=time.wait, retention=timedelta(days=1))
    store.error = StoreUnavailable("key (path)=(/a\r\nINFO admin logged in\x1b[2J\u202e) is too long")
    fill(recorder, 1)
    assert not recorder.flush(5)
    assert "(/a\\r\\nINFO admin logged in\\x1b[2J\\u202e)" in caplog.text
    assert all(message.isprintable() for message in caplog.messages)
    store.error = None


def test_closing_does_not_wait_for_a_store_that_hangs(
    make: Callable[..., Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Hanging(Store):
        def append(self, records: Sequence[UsageRecord]) -> int:
            inside.set()
            assert go_on.wait(LONG)
            return super().append(records)

    store = Hanging()
    recorder = make(store, interval=0.001)
    fill(recorder, 1)
    assert inside.wait(LONG)
    assert not recorder.close(timeout=0.01)
    assert caplog.messages == ["1 usage records are not stored after 0.01 seconds: the store is still busy"]
    go_on.set()
    assert recorder.close(LONG)
    assert store.serials() == [1]


def test_records_of_the_last_moment_are_stored_at_exit(tmp_path: Path) -> None:
    script = """
        import atexit
        recorder = Recorder(SqliteStore(sys.argv[1]), interval=LONG)
        atexit.register(recorder.close)
        atexit.register(fill, recorder, 2, 3)  # runs before, when no thread can be started any more
        if sys.argv[2] == "running":
            fill(recorder, 1)
        """
    for case, expected in (("running", [1, 2, 3]), ("idle", [2, 3])):
        run(script, tmp_path / case, case)
        store = SqliteStore(tmp_path / case)
        assert [record.serial for record in everything(store)] == expected
        store.close()


# -- pruning -------------------------------------------------------------------------------------


def test_what_is_older_than_the_retention_is_pruned(time: Time, tmp_path: Path, make: Callable[..., Recorder]) -> None:
    store = SqliteStore(tmp_path / "usage.db")
    now = START / SECOND + 2000
    recorder = make(store, retention=timedelta(seconds=500), clock=lambda: now, timer=time, wait=time.wait)
    fill(recorder, *range(1, 2001))
    recorder.flush(LONG)
    for _ in range(3):
        recorder._prune()
        time.now += 1
    assert [record.serial for record in everything(store)] == list(range(1500, 2001))
    store.close()


def test_pruning_goes_in_steps_of_a_second(store: Store, time: Time, make: Callable[..., Recorder]) -> None:
    now = START / SECOND + 10_000
    recorder = make(retention=timedelta(seconds=10), clock=lambda: now, timer=time, wait=time.wait)
    store.append([make_record(serial) for serial in range(1, 1201)])
    for _ in range(40):
        recorder._prune()
        time.now += 0.1
    before = START + 9_990 * SECOND
    assert store.purges == [(before, 500)] * 4
    assert store.serials() == []
    for _ in range(100):
        recorder._prune()
        time.now += 1
    assert len(store.purges) == 5  # nothing is left, so it looks once a minute


def test_pruning_keeps_up_with_what_is_written(store: Store, time: Time, make: Callable[..., Recorder]) -> None:
    recorder = make(retention=timedelta(seconds=10), clock=lambda: START / SECOND, timer=time, wait=time.wait)
    for count in (10, 1000, 9000):
        fill(recorder, *range(count))
        recorder.flush(LONG)
        time.now += 60
        recorder._prune()
    assert [limit for _, limit in store.purges] == [500, 2000, 5000]


def test_the_thread_prunes_between_batches(store: Store, make: Callable[..., Recorder]) -> None:
    pruned = threading.Event()

    class Pruning(Store):
        def purge(self, before: int, *, limit: int = 1000) -> int:
            pruned.set()
            return super().purge(before, limit=limit)

    recorder = make(Pruning(), interval=0.001, retention=timedelta(days=1))
    fill(recorder, 1)
    assert pruned.wait(LONG)


def test_without_a_retention_nothing_is_pruned(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make()
    fill(recorder, 1)
    recorder.flush()
    recorder._prune()
    assert store.purges == []


def test_pruning_that_fails_keeps_no_record_from_being_stored(
    time: Time, make: Callable[..., Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    class Unprunable(Store):
        def purge(self, before: int, *, limit: int = 1000) -> int:
            raise StoreUnavailable("away")

    store = Unprunable()
    recorder = make(store, retention=timedelta(days=1), timer=time, wait=time.wait)
    recorder._prune()
    fill(recorder, 1)
    assert recorder.flush(0)
    assert caplog.messages == ["Old usage records are not pruned: away"]
    assert recorder.figures().last_error is None


# -- figures -------------------------------------------------------------------------------------


def test_figures_tell_how_it_goes(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make(clock=lambda: START / SECOND + 100)
    assert recorder.figures() == (0, 0, 0, 0, 0, None, None)
    fill(recorder, 10, 20)
    size = len(encoded(10)) + len(encoded(20))
    assert recorder.figures() == (2, size, 0, 0, 0, 90.0, None)
    recorder.flush()
    assert recorder.figures() == (0, 0, 2, 0, 0, None, None)


def test_figures_can_be_asked_of_records_that_nobody_can_read(make: Callable[..., Recorder]) -> None:
    recorder = make()
    recorder.record(b"\xc1")
    assert recorder.figures().lag is None


# -- forks ---------------------------------------------------------------------------------------


def test_a_dropped_recorder_is_empty_and_usable(store: Store, make: Callable[..., Recorder]) -> None:
    recorder = make()
    fill(recorder, 1, 2)
    recorder.drop()
    assert recorder.figures() == (0, 0, 0, 0, 0, None, None)
    recorder.record(encoded(3))
    assert recorder.flush()
    assert store.serials() == [3]


@FORKS
def test_records_pending_at_a_fork_are_delivered_once_by_the_parent(tmp_path: Path) -> None:
    script = """
        class Counting(SqliteStore):
            delivered = 0
            def append(self, records):
                self.delivered += len(records)
                return super().append(records)
        store = Counting(sys.argv[1])
        recorder = Recorder(store)
        recorder._start_at = float("inf")  # all are pending still when it forks
        fill(recorder, *range(1, 101))
        children = []
        for number in range(4):
            if not (child := os.fork()):
                store.delivered = 0
                fill(recorder, 1000 + number)
                assert recorder.close(LONG)
                os._exit(store.delivered - 1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
        assert recorder.close(LONG)
        print(store.delivered, serials(store) == [*range(1, 101), *range(1000, 1004)])
        """
    assert run(script, tmp_path / "usage.db") == "100 True\n"


@FORKS
def test_attack_fork_a_fork_while_the_thread_is_storing_harms_neither_side(tmp_path: Path) -> None:
    script = """
        inside, go_on = threading.Event(), threading.Event()
        class Slow(Store):
            def append(self, records):
                if os.getpid() == parent:
                    inside.set()
                    assert go_on.wait(LONG)
                return super().append(records)
        parent = os.getpid()
        store = Slow()
        recorder = Recorder(store, interval=0.001)
        fill(recorder, 1)
        assert inside.wait(LONG)
        if not (child := os.fork()):
            fill(recorder, 2)
            store.wait_for(1)  # by a thread of its own
            fill(recorder, 3)
            assert recorder.close(LONG)
            os._exit(serials(store) != [2, 3])
        assert os.waitpid(child, 0)[1] == 0
        fill(recorder, 4)
        go_on.set()
        assert recorder.close(LONG)
        print(serials(store))
        """
    assert run(script) == "[1, 4]\n"


@FORKS
def test_a_child_records_with_a_thread_of_its_own(tmp_path: Path) -> None:
    script = """
        store = Store()
        recorder = Recorder(store, interval=0.001)
        fill(recorder, 1)
        store.wait_for(1)
        if not (child := os.fork()):
            store.held = 0
            fill(recorder, 2)
            store.wait_for(1)
            os._exit(serials(store) != [2])
        assert os.waitpid(child, 0)[1] == 0
        fill(recorder, 3)
        store.wait_for(2)
        print(serials(store))
        """
    assert run(script) == "[1, 3]\n"
