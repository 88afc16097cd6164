"""Counters in a SQLite file: many processes, stopped and killed ones, forks, and files that are not as they should be.

Run as a script this file plays one of its scenes, in a process that may be forked, stopped and killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import usagekeeper
from usagekeeper.counters import open_counters
from usagekeeper.counters import sqlite as module
from usagekeeper.counters.base import Counters
from usagekeeper.counters.sqlite import SqliteCounters, open_sqlite
from usagekeeper.counters.sqlite_rows import Layout
from usagekeeper.counters.sqlite_schema import OWNER, connected
from usagekeeper.errors import ConfigurationError, StoreUnavailable
from usagekeeper.limits import LimitSet
from usagekeeper.rates import Rate
from usagekeeper.testing.counters_suite import NOW, AsyncHalf, CountersSuite, awaited, remaining
from usagekeeper.values import ADJUST, CHECK, SECOND, Charge, Operation, Spends, Words

PATIENT = 60.0
"""A deadline that only a test that hangs would miss."""
LIMITS = LimitSet("app", "policy", [Rate(5, "day", "fixed")])
ONE = Operation([Charge(LIMITS, "ann", 1)], NOW)


class TestSqliteCounters(CountersSuite):
    persistent = True

    @pytest.fixture
    def counters(self, tmp_path: Path) -> Iterator[Counters]:
        counters = SqliteCounters(tmp_path / "counters.db", deadline=PATIENT)
        yield counters
        counters.close()


class TestSqliteCountersAwaited(AsyncHalf, TestSqliteCounters):
    pass


# -- shorthand -----------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "counters.db"


@pytest.fixture
def counters(path: Path) -> Iterator[SqliteCounters]:
    counters = SqliteCounters(path)
    yield counters
    counters.close()


def charge(counters: Counters, limits: LimitSet = LIMITS, *, now: int = NOW, to: str = "ann") -> bool:
    return not counters.apply(Operation([Charge(limits, to, 1)], now)).refused


def left(counters: Counters, limits: LimitSet = LIMITS, *, now: int = NOW, to: str = "ann") -> list[int]:
    return remaining(limits, counters.apply(Operation([Charge(limits, to, 0)], now, CHECK)).rows[0], now)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The lock in the hands of somebody else."""
    with open(f"{path}.lock", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_held(path: Path) -> bool:
    with open(f"{path}.lock", "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Slow(LimitSet):
    """Limits whose arithmetic takes as long as a test wants."""

    def __init__(self) -> None:
        super().__init__("app", "policy", LIMITS.rates)
        self.entered, self.leave = threading.Event(), threading.Event()
        self.quickly, self.allocate = self.allocate, self.slowly

    def slowly(self, words: Words, now: int, cost: int) -> Words | None:
        self.entered.set()
        assert self.leave.wait(PATIENT)
        return self.quickly(words, now, cost)


@contextmanager
def inside(counters: Counters) -> Iterator[None]:
    """Another thread is in the middle of a charge, until the block ends."""
    slow = Slow()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(charge, counters, slow)
        assert slow.entered.wait(PATIENT)
        try:
            yield
        finally:
            slow.leave.set()
        assert done.result(PATIENT)


class Clock:
    """Stands in for time: each look at it takes a millisecond, and naps take none."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        self.now += 0.001
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    monkeypatch.setattr(module, "sleep", lambda seconds: None)
    return clock


# -- opening -------------------------------------------------------------------------------------


def test_a_constructor_makes_nothing(path: Path) -> None:
    counters = SqliteCounters(path)
    counters.check()
    counters.async_half()
    counters.close()
    assert list(path.parent.iterdir()) == []


def test_a_relative_path_is_made_absolute_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    counters = open_counters("sqlite:///counts.db")
    monkeypatch.chdir("/")
    assert isinstance(counters, SqliteCounters)
    assert counters.path == tmp_path / "counts.db"
    assert repr(counters) == f"SqliteCounters('{tmp_path}/counts.db')"
    assert open_sqlite(f"sqlite:///{tmp_path}/counts.db").path == tmp_path / "counts.db"


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite://a.db", "sqlite:///:memory:", "sqlite:///a.db?b=1"]
)
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"name no file: write sqlite:///relative\.db"):
        open_counters(url)


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), 1e30])
def test_a_deadline_is_a_time_to_come(path: Path, deadline: float) -> None:
    with pytest.raises(ConfigurationError, match="a number of seconds above 0"):
        SqliteCounters(path, deadline=deadline)


def test_all_counters_of_a_path_share_one_connection(path: Path, counters: SqliteCounters) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    for name in (path, link, path.parent / ".." / path.parent.name / path.name):
        assert SqliteCounters(name).opened() is counters.opened()


def test_odd_characters_in_a_name_are_characters(tmp_path: Path) -> None:
    with closing(SqliteCounters(tmp_path / "a?b#c%20d é:.db")) as counters:
        assert charge(counters)
        assert (tmp_path / "a?b#c%20d é:.db").exists()


def test_a_place_that_cannot_work_is_said_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="there is no folder"):
        SqliteCounters(tmp_path / "missing" / "counters.db").check()
    with pytest.raises(ConfigurationError, match="it is a folder"):
        SqliteCounters(tmp_path).check()
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(ConfigurationError, match="is not writable"):
        SqliteCounters(tmp_path / "counters.db").check()


def test_a_loop_leaves_opening_to_a_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened_in = []

    def noting(path: Path, mode: str) -> sqlite3.Connection:
        opened_in.append(threading.current_thread())
        return connected(path, mode)

    monkeypatch.setattr(module, "connected", noting)
    with closing(SqliteCounters(path)) as counters:
        assert not asyncio.run(awaited(counters.async_half(), ONE)).refused
    assert opened_in != []
    assert threading.main_thread() not in opened_in


def test_an_open_file_is_counted_in_without_a_thread(counters: SqliteCounters) -> None:
    assert charge(counters)
    assert counters.async_half().apply(ONE) == counters.apply(Operation(ONE.charges, NOW, CHECK))


def test_a_process_that_ends_without_closing_says_nothing(path: Path) -> None:
    assert play("ends_without_closing", path, strict=True) == [2]


# -- many processes ------------------------------------------------------------------------------


def test_four_processes_get_exactly_the_limit(path: Path) -> None:
    assert sum(play("four_at_once", path)) == 1000


def test_a_killed_process_lets_nothing_through_twice(path: Path) -> None:
    admitted = play("one_is_killed", path)
    assert len(admitted) == 20
    assert all(199 <= each <= 200 for each in admitted)  # one may be counted, and never told


def test_a_killed_process_leaves_all_of_an_operation_or_nothing(path: Path) -> None:
    assert play("killed_in_mid_operation", path) == []


# -- waiting -------------------------------------------------------------------------------------


def test_others_are_waited_for_until_the_deadline(path: Path, counters: SqliteCounters, clock: Clock) -> None:
    assert charge(counters)
    clock.looks = 0
    with (
        held(path),
        pytest.raises(StoreUnavailable, match=f"{path} are unavailable: the lock was not free within 50 ms"),
    ):
        charge(counters)
    assert 49 <= clock.looks <= 53


def test_after_a_missed_deadline_answers_come_at_once(path: Path, counters: SqliteCounters, clock: Clock) -> None:
    assert charge(counters)
    with held(path):
        for pause in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
            with pytest.raises(StoreUnavailable):
                charge(counters)  # the one that tries
            missed = clock.now
            while clock.now < missed + pause - 0.01:
                looks = clock.looks
                with pytest.raises(StoreUnavailable, match="the lock was not free"):
                    charge(counters)
                assert clock.looks - looks == 1
                clock.now += pause / 10
            clock.now = missed + pause
    assert charge(counters)
    assert left(counters) == [3]


def test_while_one_tries_again_others_are_answered_at_once(path: Path, counters: SqliteCounters, clock: Clock) -> None:
    assert charge(counters)
    with held(path), pytest.raises(StoreUnavailable):
        charge(counters)
    clock.now += 1
    counters.opened().ask()
    with pytest.raises(StoreUnavailable):
        counters.opened().ask()


def test_many_that_miss_together_miss_once(counters: SqliteCounters) -> None:
    file = counters.opened()
    seen = [file.ask() for _ in range(9)]
    assert len({str(file.missed(0.05, misses)) for misses in seen}) == 1
    assert file._misses == 1


def test_a_thread_waits_for_another_no_longer_than_its_deadline(counters: SqliteCounters) -> None:
    with inside(counters), pytest.raises(StoreUnavailable, match="the lock was not free"):
        charge(counters)
    counters.close()
    assert left(counters) == [4]


def test_a_loop_is_held_up_by_the_first_of_many_that_wait(
    path: Path, counters: SqliteCounters, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []
    attempt = module._File.attempt

    def noting(self: module._File, operation: Operation, patience: float, seen: int) -> Spends | None:
        if threading.current_thread() is threading.main_thread():
            waited.append(patience)
        return attempt(self, operation, patience, seen)

    async def many_at_once() -> list[object]:
        half = counters.async_half()
        return await asyncio.gather(*(awaited(half, ONE) for _ in range(4)), return_exceptions=True)

    assert charge(counters)
    monkeypatch.setattr(module._File, "attempt", noting)
    with held(path):
        assert {type(answer) for answer in asyncio.run(many_at_once())} == {StoreUnavailable}
    assert waited == [module._LOOP_PATIENCE, 0, 0, 0]
    counters.opened()._misses = 0
    assert type(counters.async_half().apply(ONE)) is Spends
    assert counters.opened().crowded == 0


def test_a_waiting_loop_turns_on(path: Path) -> None:
    counters = SqliteCounters(path, deadline=0.5)
    assert charge(counters)

    async def many_at_once() -> tuple[list[Any], int]:
        half, turns, ended = counters.async_half(), 0, asyncio.Event()

        async def turning() -> None:
            nonlocal turns
            while not ended.is_set():
                turns += 1
                await asyncio.sleep(0)

        turner = asyncio.create_task(turning())
        answers = await asyncio.gather(*(awaited(half, ONE) for _ in range(50)), return_exceptions=True)
        ended.set()
        await turner
        return answers, turns

    with held(path):
        answers, turns = asyncio.run(many_at_once())
    assert {type(answer) for answer in answers} == {StoreUnavailable}
    assert turns > 50  # it would be two or three, had it waited itself
    counters.close()


def test_a_stopped_process_stops_nobody_else(path: Path, counters: SqliteCounters) -> None:
    assert charge(counters)
    with subprocess.Popen([sys.executable, __file__, "stops_inside", path], env=environment(), stdout=-1) as stopping:
        _, status = os.waitpid(stopping.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        with pytest.raises(StoreUnavailable):
            charge(counters)
        counters.opened()._misses = 0
        with pytest.raises(StoreUnavailable):
            asyncio.run(awaited(counters.async_half(), ONE))
        stopping.send_signal(signal.SIGCONT)
        output, _ = stopping.communicate(timeout=PATIENT)
        assert json.loads(output) == "charged"
    counters.close()
    assert left(counters) == [3]


def test_a_cancelled_wait_leaves_the_lock_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ThreadPoolExecutor(4)
    monkeypatch.setattr(module._THREADS, "pool", pool)

    async def cancelled(counters: SqliteCounters) -> None:
        waiting = [asyncio.create_task(awaited(counters.async_half(), ONE)) for _ in range(3)]
        while not counters.opened()._lock.locked():
            await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(answer) for answer in answers} == {asyncio.CancelledError}

    with closing(SqliteCounters(path, deadline=PATIENT)) as counters:
        assert charge(counters)
        with held(path):
            asyncio.run(cancelled(counters))
        pool.shutdown()
        assert not is_held(path)
        assert left(counters)[0] in (1, 2, 3, 4)  # each was charged or not


def test_an_operation_that_fails_inside_changes_nothing(path: Path, counters: SqliteCounters) -> None:
    def interrupted(words: Words) -> int:
        raise KeyboardInterrupt

    broken = LimitSet("app", "other", LIMITS.rates)
    broken.expires = interrupted
    assert charge(counters)
    charges = [
        Charge(LIMITS, "bob", 1),
        Charge(LIMITS, "ann", 1),
        Charge(broken, "ann", 1),
    ]
    with pytest.raises(KeyboardInterrupt):
        counters.apply(Operation(charges, NOW))
    assert not is_held(path)
    assert (left(counters), left(counters, to="bob")) == ([4], [5])


# -- forks ---------------------------------------------------------------------------------------


def test_parent_and_child_count_in_one_file(path: Path) -> None:
    assert play("forked", path, strict=True) == {"child": [3], "child after the parent closed": [2], "parent": [2]}


def test_a_child_of_a_fork_that_python_did_not_see_opens_anew(path: Path) -> None:
    assert play("forked_unseen", path) == {"child": [3], "parent": [2]}


def test_attack_fork_a_fork_in_mid_operation_leaves_the_lock_with_the_parent(path: Path) -> None:
    assert play("forked_in_mid_operation", path) == {"meanwhile": "unavailable", "child": [3], "parent": [3]}


def test_a_killed_parent_takes_its_lock_along(path: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", __file__, "killed_with_a_child", str(path)]
    played = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENT)
    assert (played.returncode, played.stdout, played.stderr) == (-signal.SIGKILL, "[4]", "")


def test_a_dropped_file_is_opened_anew(counters: SqliteCounters) -> None:
    assert charge(counters)
    counters.close()
    counters.drop()
    counters.drop()
    assert left(counters) == [4]


# -- files that are not as they should be --------------------------------------------------------


@pytest.mark.parametrize("names", [("", "-wal", "-shm", ".lock"), ("", "-wal", "-shm"), ("",)])
def test_deleted_counters_start_from_nothing_within_a_second(
    path: Path, counters: SqliteCounters, names: tuple[str, ...]
) -> None:
    assert charge(counters)
    assert charge(counters)
    for name in names:
        path.with_name(path.name + name).unlink()
    assert left(counters, now=NOW + SECOND) == [5]
    assert charge(counters, now=NOW + SECOND)
    assert path.exists()
    counters.close()
    assert left(counters, now=NOW + SECOND) == [4]


def test_a_deleted_lock_is_made_again_and_counts_stay(path: Path, counters: SqliteCounters) -> None:
    assert charge(counters)
    path.with_name("counters.db.lock").unlink()
    assert left(counters, now=NOW + SECOND) == [4]
    with held(path), pytest.raises(StoreUnavailable):
        charge(counters, now=NOW + SECOND)


def test_replaced_counters_are_taken_up_within_a_second(path: Path, counters: SqliteCounters) -> None:
    assert charge(counters)
    counters.close()
    shutil.copy(path, path.with_name("copy.db"))
    assert charge(counters)
    os.replace(path.with_name("copy.db"), path)
    path.with_name("counters.db-wal").unlink()
    path.with_name("counters.db-shm").unlink()
    assert left(counters, now=NOW + SECOND) == [4]


def test_while_the_folder_is_missing_counters_are_unavailable(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with closing(SqliteCounters(folder / "counters.db")) as counters:
        assert charge(counters)
        shutil.rmtree(folder)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match=r"folder/counters\.db are unavailable: .*No such file"):
                charge(counters, now=NOW + SECOND)
        folder.mkdir()
        clock.now += 1
        assert left(counters, now=NOW + SECOND) == [5]


def test_files_that_are_replaced_all_the_time_are_given_up(
    counters: SqliteCounters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._File, "_in_place", lambda self: False)
    with pytest.raises(StoreUnavailable):
        charge(counters)


@pytest.mark.parametrize("content", [b"something else " * 500, b"\x00" * 5000])
def test_a_file_of_another_kind_is_left_alone(path: Path, counters: SqliteCounters, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreUnavailable, match="it is no SQLite file: name another one, or move it away") as raised:
        charge(counters)
    assert isinstance(raised.value.__cause__, sqlite3.DatabaseError)
    assert path.read_bytes() == content


def test_an_empty_file_becomes_one_of_counters(path: Path, counters: SqliteCounters) -> None:
    path.touch()
    assert charge(counters)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("CREATE TABLE orders (id)", "belongs to another application"),
        ("PRAGMA application_id = 1970498416", "belongs to another application"),
        (f"PRAGMA application_id = {OWNER}; PRAGMA user_version = 2", "a newer usagekeeper wrote the file"),
    ],
)
def test_a_file_of_somebody_else_is_left_alone(
    path: Path, counters: SqliteCounters, change: str, sentence: str
) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(change)
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match=sentence):
        charge(counters)
    counters.close()
    assert path.read_bytes() == before


def test_a_damaged_file_is_said_to_be_damaged(path: Path, counters: SqliteCounters, clock: Clock) -> None:
    assert charge(counters)
    counters.close()
    with path.open("r+b") as file:
        file.seek(2048)
        file.write(b"\xa5" * 8192)
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="it is damaged: move it away"):
            charge(counters)
    path.unlink()
    clock.now += 1
    assert charge(counters)


def test_where_sqlite_cannot_share_a_log_counters_are_unavailable(
    counters: SqliteCounters, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *_, **options: connect(":memory:", isolation_level=None))
    with pytest.raises(StoreUnavailable, match="cannot share a write-ahead log"):
        charge(counters)


def test_somebody_who_writes_without_the_lock_costs_an_answer_and_no_count(
    path: Path, counters: SqliteCounters, clock: Clock
) -> None:
    assert charge(counters)
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="database is locked"):
            charge(counters)
        stranger.execute("ROLLBACK")
    clock.now += 1
    assert left(counters) == [4]


# -- rows ----------------------------------------------------------------------------------------


class Keyed(LimitSet):
    """Limits with a head of any length."""

    def __init__(self, *head: str) -> None:
        super().__init__("app", "policy", LIMITS.rates)
        self.head = head


_texts = st.text(st.sampled_from("ab\x00\x01é\ud800"), max_size=12) | st.text(st.characters(), max_size=50)
_cuts = st.lists(st.integers(0, 12), max_size=5).map(sorted)


@given(_texts, _cuts, _cuts)
def test_no_two_keys_are_written_alike(text: str, one: list[int], other: list[int]) -> None:
    keys = [tuple(text[a:b] for a, b in pairwise([0, *cuts, len(text)])) for cuts in (one, other)]
    written = [Layout(Keyed(*head)).key(value) for *head, value in keys]
    assert (written[0] == written[1]) == (keys[0] == keys[1])
    assert max(map(len, written)) <= 48


def test_a_key_keeps_its_row_when_the_policy_is_made_again(counters: SqliteCounters) -> None:
    assert charge(counters)
    assert left(counters, LimitSet("app", "policy", [Rate(7, "day", "fixed")])) == [6]


def test_processes_with_other_limits_leave_each_other_their_counts(counters: SqliteCounters) -> None:
    minute, hour, day = Rate(10, "minute"), Rate(20, "hour", "sliding"), Rate(30, "day", "fixed")
    old, new = LimitSet("app", "p", [day, minute]), LimitSet("app", "p", [minute, hour])
    for _ in range(4):
        assert charge(counters, old)
        assert charge(counters, new)
    assert left(counters, old) == [26, 2]
    assert left(counters, new) == [2, 16]
    alone = LimitSet("app", "p", [hour])
    assert charge(counters, alone, now=NOW + 60 * SECOND)
    assert left(counters, old, now=NOW + 60 * SECOND) == [26, 10]


def test_a_row_lives_as_long_as_what_others_count_in_it(path: Path, counters: SqliteCounters) -> None:
    long, short = LimitSet("app", "p", [Rate(30, "day", "fixed")]), LimitSet("app", "p", [Rate(10, "second")])
    assert charge(counters, long)
    assert charge(counters, short)
    (expires,) = rows(path, "SELECT expires FROM counts")
    assert expires == (NOW // (86_400 * SECOND) + 1) * 86_400 * SECOND + SECOND


@pytest.mark.parametrize("state", [b"", b"\x00", b"\xff" * 7, b"\x00\x01" + b"id" * 4, b"\x00\x02" + b"\x09" * 40])
def test_a_damaged_row_counts_from_nothing(path: Path, counters: SqliteCounters, state: bytes) -> None:
    assert charge(counters)
    counters.close()
    rows(path, "UPDATE counts SET state = ?", state)
    assert left(counters) == [5]
    assert charge(counters)
    assert left(counters) == [4]


def test_a_row_cut_short_counts_from_nothing(path: Path, counters: SqliteCounters) -> None:
    assert charge(counters)
    counters.close()
    rows(path, "UPDATE counts SET state = substr(state, 1, length(state) - 1)")
    assert left(counters) == [5]


@pytest.mark.parametrize("word", [2**63, 2**200, -(2**63) - 1, -(2**200), -1])
def test_a_word_beyond_64_bits_stops_there(path: Path, counters: SqliteCounters, word: int) -> None:
    class Odd(LimitSet):
        def force(self, words: Words, now: int, cost: int) -> list[int]:
            return [word]

    odd = Odd("app", "odd", [Rate(5, "day")])
    odd.expires = lambda words: word
    for to in ("new", "new", "ann"):
        counters.apply(Operation([Charge(odd, to, 1)], NOW, ADJUST))
    counters.close()
    (kept,) = counters.apply(Operation([Charge(odd, "new", 1)], NOW, CHECK)).rows[0]
    assert kept == max(-(2**63), min(word, 2**63 - 1))
    assert charge(counters)


def test_dead_rows_are_given_back_as_new_ones_come(path: Path, counters: SqliteCounters) -> None:
    brief, lasting = LimitSet("app", "brief", [Rate(3, "second")]), LimitSet("app", "lasting", [Rate(3, "day")])
    for number in range(20):
        assert charge(counters, lasting, to=f"client {number}")
    most = 0
    for number in range(2000):  # each is in use for a third of a second, and then late for one
        assert charge(counters, brief, now=NOW + number * SECOND // 30, to=f"client {number}")
        if number % 50 == 0:
            most = max(most, *rows(path, "SELECT count(*) FROM counts"))
    assert most <= 1.5 * (20 + 40) + 8
    later = NOW + 2000 * SECOND // 30
    assert all(left(counters, lasting, now=later, to=f"client {number}") == [2] for number in range(20))


def test_rows_known_from_before_are_read_again_when_somebody_else_wrote(path: Path, counters: SqliteCounters) -> None:
    assert charge(counters)
    here = counters.opened()
    module._FILES.pop(path)
    with closing(SqliteCounters(path)) as somebody_else:
        assert somebody_else.opened() is not here
        assert charge(somebody_else)
        assert charge(counters)
        assert charge(somebody_else)
        assert (left(counters), left(somebody_else)) == ([1], [1])


def rows(path: Path, statement: str, *values: object) -> tuple[Any, ...]:
    """The first row that *statement* finds, past the counters."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        found = connection.execute(statement, values).fetchone()
        return tuple(found) if found else ()


# -- the log -------------------------------------------------------------------------------------


class Later:
    """An executor that waits to be told."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def submit(self, work: Callable[[], None]) -> None:
        self.work.append(work)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    later = Later()
    monkeypatch.setattr(module, "LOG", 100)
    monkeypatch.setattr(module._THREADS, "pool", later)
    return later


def test_the_log_is_emptied_in_a_thread(path: Path, counters: SqliteCounters, later: Later) -> None:
    many = LimitSet("app", "many", [Rate(10**6, "day")])
    for _ in range(1000):
        assert charge(counters, many)
        for work in later.work:
            work()
        later.work.clear()
    assert path.with_name("counters.db-wal").stat().st_size < 150 * 2048
    assert left(counters, many) == [10**6 - 1000]


def test_on_a_slow_disk_nobody_has_to_wait_for_it(
    counters: SqliteCounters, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(module, "_QUICK", 0.0005)  # a look at the clock takes longer
    assert charge(counters)
    monkeypatch.setattr(module._File, "_seize", lambda *_: pytest.fail("the lock was taken"))
    counters.opened()._tidy()


def test_emptying_the_log_waits_for_nobody(path: Path, counters: SqliteCounters, later: Later) -> None:
    file = counters.opened()
    file._tidy()
    assert not path.exists()
    assert charge(counters)
    with held(path):
        file._tidy()
    with inside(counters):
        file._tidy()
    counters.close()
    file._tidy()
    assert left(counters) == [3]


# -- scenes --------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(usagekeeper.__file__).parent.parent)}


def play(scene: str, path: Path, *, strict: bool = False) -> Any:
    """What *scene* returns, played by a process of its own, which has nothing to complain about."""
    warnings = "error" if strict else "ignore::DeprecationWarning"
    command = [sys.executable, "-W", warnings, __file__, scene, str(path)]
    played = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=10 * PATIENT)
    assert played.stderr == ""
    assert played.returncode == 0
    return json.loads(played.stdout)


def child(work: Callable[[int], object]) -> tuple[int, int]:
    """Process and end of a pipe of a forked child that does *work* with the other end."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            work(writing)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)
    os.close(writing)
    return process, reading


def all_of(reading: int) -> bytes:
    with open(reading, "rb") as pipe:
        return pipe.read()


def ends_without_closing(path: Path) -> object:
    counters = SqliteCounters(path, deadline=PATIENT)
    for _ in range(2):
        assert charge(counters)
        assert not asyncio.run(awaited(counters.async_half(), ONE)).refused
        assert counters.opened().connection is not None
    return [2]


def four_at_once(path: Path) -> object:
    limits = LimitSet("app", "four", [Rate(1000, "day", "fixed"), Rate(5000, "hour")])
    start, go = os.pipe()

    def work(writing: int) -> None:
        os.close(go)
        os.read(start, 1)  # ends when everybody is there
        counters = SqliteCounters(path, deadline=PATIENT)
        os.write(writing, b"%d" % sum(charge(counters, limits) for _ in range(500)))

    pipes = [child(work)[1] for _ in range(4)]
    os.close(go)
    return [int(all_of(pipe)) for pipe in pipes]


def one_is_killed(path: Path) -> object:
    return [
        _round(path, LimitSet("app", f"round {n}", [Rate(200, "day", "fixed"), Rate(900, "hour")])) for n in range(20)
    ]


def _round(path: Path, limits: LimitSet) -> int:
    """How many of four processes' charges are reported as made when one of them is killed."""

    def work(writing: int) -> None:
        counters = SqliteCounters(path, deadline=PATIENT)
        for _ in range(150):
            if charge(counters, limits):
                os.write(writing, b"+")

    (victim, reports), *others = (child(work) for _ in range(4))
    admitted = sum(len(os.read(reports, 1)) for _ in range(random.randrange(60)))
    os.kill(victim, signal.SIGKILL)
    return admitted + sum(len(all_of(reading)) for reading in (reports, *(reading for _, reading in others)))


def killed_in_mid_operation(path: Path) -> object:
    """Rounds after which one operation's two rows differ."""
    differ = []
    for number in range(20):
        sets = [LimitSet("app", f"{name} {number}", [Rate(10**6, "day", "fixed")]) for name in ("one", "other")]

        def work(writing: int, sets: list[LimitSet] = sets) -> None:
            counters = SqliteCounters(path, deadline=PATIENT)
            while True:
                counters.apply(Operation([Charge(limits, "ann", 1) for limits in sets], NOW))
                os.write(writing, b"+")

        victim, reports = child(work)
        for _ in range(random.randrange(1, 60)):
            os.read(reports, 1)
        os.kill(victim, signal.SIGKILL)
        reported = len(all_of(reports))
        with closing(SqliteCounters(path, deadline=PATIENT)) as counters:
            one, other = (left(counters, limits) for limits in sets)
        if one != other or one[0] > 10**6 - reported:
            differ.append((number, one, other))
    return differ


def stops_inside(path: Path) -> object:
    def stopping(words: Words, now: int, cost: int) -> Words | None:
        os.kill(os.getpid(), signal.SIGSTOP)
        return LIMITS.allocate(words, now, cost)

    limits = LimitSet("app", "policy", LIMITS.rates)
    limits.allocate = stopping
    assert charge(SqliteCounters(path, deadline=PATIENT), limits)
    return "charged"


def forked(path: Path) -> object:
    counters = SqliteCounters(path, deadline=PATIENT)
    assert charge(counters)
    start, go = os.pipe()

    def work(writing: int) -> None:
        assert charge(counters)
        os.write(writing, json.dumps(left(counters)).encode())
        os.read(start, 1)
        assert charge(counters)
        os.write(writing, json.dumps(left(counters)).encode())
        counters.close()

    _, reading = child(work)
    first = json.loads(os.read(reading, 99))
    assert left(counters) == first
    counters.close()  # as the last one, were the child's locks not its own
    os.write(go, b"!")
    second = json.loads(all_of(reading))
    return {"child": first, "child after the parent closed": second, "parent": left(counters)}


def forked_unseen(path: Path) -> object:
    counters = SqliteCounters(path, deadline=PATIENT)
    assert charge(counters)
    reading, writing = os.pipe()
    if not ctypes.PyDLL(None).fork():
        charge(counters)
        os.write(writing, json.dumps(left(counters)).encode())
        os._exit(0)
    first = json.loads(os.read(reading, 99))
    assert charge(counters)
    return {"child": first, "parent": left(counters)}


def forked_in_mid_operation(path: Path) -> object:
    module._FORK_PATIENCE = 0.01  # type: ignore[misc]
    counters = SqliteCounters(path, deadline=PATIENT)
    impatient = SqliteCounters(path, deadline=0.05)
    start, go = os.pipe()

    def work(writing: int) -> None:
        try:
            charge(impatient)
        except StoreUnavailable:
            os.write(writing, b'"unavailable"')
        os.read(start, 1)
        impatient.opened().close()
        assert charge(impatient)
        os.write(writing, json.dumps(left(impatient)).encode())

    with inside(counters):
        _, reading = child(work)
        meanwhile = json.loads(os.read(reading, 99))
    os.write(go, b"!")
    return {"meanwhile": meanwhile, "child": json.loads(all_of(reading)), "parent": left(counters)}


def killed_with_a_child(path: Path) -> object:
    module._FORK_PATIENCE = 0.01  # type: ignore[misc]
    counters = SqliteCounters(path, deadline=PATIENT)
    alive, end = os.pipe()

    def work(writing: int) -> None:
        os.close(end)
        os.read(alive, 1)  # ends with the parent
        assert charge(counters)
        os.write(1, json.dumps(left(counters)).encode())

    with inside(counters):
        child(work)
        os.kill(os.getpid(), signal.SIGKILL)
    return "not reached"


SCENES = (
    ends_without_closing, four_at_once, one_is_killed, killed_in_mid_operation, stops_inside, forked, forked_unseen,
    forked_in_mid_operation, killed_with_a_child,
)  # fmt: skip

if __name__ == "__main__":
    _, scene, place = sys.argv
    print(json.dumps({each.__name__: each for each in SCENES}[scene](Path(place))))
