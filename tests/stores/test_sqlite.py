"""Records in a SQLite file: one process, many processes, forks, and files that are not what they should be."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import usagekeeper.stores.sqlite as module
import usagekeeper.stores.sqlite_encoded as short
import usagekeeper.stores.sqlite_rows as rows
from usagekeeper.errors import ConfigurationError, StoreUnavailable
from usagekeeper.records import UsageRecord, decode, encode, encode_bounded, grouped
from usagekeeper.stores import open_store
from usagekeeper.stores.base import RecordQuery, UsageStore
from usagekeeper.stores.sqlite import SqliteStore, check_writable, open_sqlite
from usagekeeper.testing.store_suite import SECOND, START, StoreSuite, everything, make_record, make_records

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks on this system")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path)
    yield store
    store.close()


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Python in a process of its own, which has imported what the scripts below need."""
    head = (
        "import os, sys\n"
        "from usagekeeper.stores.sqlite import SqliteStore\n"
        "from usagekeeper.testing.store_suite import everything, make_record, make_records\n"
    )
    command = [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    """What they write once they are let go; all must end well."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return outputs


def encoded(record: UsageRecord) -> bytes:
    """As the engine does: nil for what is nearly always the same."""
    *values, rare = grouped(msgspec.structs.asdict(record))
    return encode((*values, None if rare == ("allowed", None, (), False, None, None, {}) else rare))


class TestSqliteStore(StoreSuite):
    @pytest.fixture
    def store(self, path: Path) -> Iterator[UsageStore]:
        store = SqliteStore(path)
        yield store
        store.close()


# -- one file, one process -----------------------------------------------------------------------


def test_nothing_is_made_before_the_first_use(store: SqliteStore, path: Path) -> None:
    store.check()
    assert not path.exists()
    store.append([])
    assert path.exists()


def test_what_was_appended_is_there_for_the_next_process(store: SqliteStore, path: Path) -> None:
    store.append(make_records(3))
    store.close()
    output = finish(start("print(len(everything(SqliteStore(sys.argv[1]))))", path))
    assert output == ["3\n"]


def test_two_stores_on_one_file_see_each_other(store: SqliteStore, path: Path) -> None:
    other = SqliteStore(path)
    store.append(make_records(2))
    assert everything(other) == make_records(2)
    assert other.append(make_records(4)) == 2
    assert everything(store) == make_records(4)
    other.close()


def test_the_file_is_in_write_ahead_mode(store: SqliteStore, path: Path) -> None:
    store.append(make_records(1))
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_record_that_fits_no_column_is_kept_all_the_same(store: SqliteStore) -> None:
    odd: Any = {"error_code": 404, "status": None, "application": None, "subject": 5, "method": 7.5}
    store.append([make_record(1), make_record(2, **odd)])
    first, second = everything(store)
    assert first == make_record(1)
    kept: list[Any] = [second.error_code, second.status, second.application, second.subject, second.method]
    assert kept == ["404", None, None, "5", "7.5"]


def test_a_note_that_is_no_number_is_unknown(store: SqliteStore) -> None:
    store.append([make_record(metadata={"ratio": float("nan"), "rate": float("inf")})])
    assert everything(store)[0].metadata == {"ratio": None, "rate": None}


def test_repeated_texts_are_kept_once(store: SqliteStore, path: Path) -> None:
    agent = "agent " * 40
    store.append(make_records(1000, user_agent=agent, route="/a/very/long/template/" * 9))
    store.close()
    assert path.stat().st_size < 1000 * 260
    assert path.read_bytes().count(agent.encode()) == 2  # the word and its index


def test_clients_cannot_use_up_the_words(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {position: 40 if most > 10_000 else 20 for position, most in rows._LIMITS.items()}
    monkeypatch.setattr(rows, "_LIMITS", few)
    records = [make_record(n, user_agent=f"agent {n}", route=f"/route/{n}") for n in range(1, 101)]
    store.append(records)
    assert everything(store) == records
    found = list(store.read(RecordQuery(route="/route/1"))) + list(store.read(RecordQuery(route="/route/99")))
    assert found == [records[0], records[98]]
    with store._reader.opened() as connection:
        assert connection.execute("SELECT count(*) FROM words").fetchone() == (40,)


def test_a_word_of_a_failed_batch_is_not_taken_for_known(store: SqliteStore) -> None:
    with pytest.raises(OverflowError):
        store.append([make_record(1, route="/new"), make_record(2, at=1 << 80)])
    store.append([make_record(3, route="/other"), make_record(4, route="/new")])
    assert [record.route for record in everything(store)] == ["/other", "/new"]


@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_a_subject_is_read_through_its_index(store: SqliteStore, order: Any) -> None:
    asked = RecordQuery(subject="ada", since=START, until=START + SECOND, order=order)
    statement, values = rows.select(asked, b"")
    with store._reader.opened() as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", {**values, "size": 10}).fetchall()
    assert [row[3] for row in plan] == ["SEARCH records USING INDEX records_subject (subject=? AND id>? AND id<?)"]


# -- what any exchange may hold ------------------------------------------------------------------

TEXT = st.text(st.characters(), max_size=40)  # lone surrogates and NUL included
OPTIONAL = st.none() | TEXT
COUNT = st.integers(0, (1 << 63) - 1)
NOTE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
HEADER = st.none() | TEXT | st.binary(max_size=40)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "at": st.integers(0, (1 << 48) * 1000 - 1),
    "serial": COUNT,
    "process": st.integers(0, (1 << 48) - 1),
    "violated": st.lists(TEXT, max_size=3).map(tuple),
    "policies": st.lists(TEXT, max_size=3).map(tuple),
    "units": COUNT | st.decimals(allow_nan=False, allow_infinity=False),
    "status": COUNT,
    "aborted": st.booleans(),
    "first_byte": st.none() | COUNT,
    "duration": COUNT,
    "bytes_in": COUNT,
    "bytes_out": COUNT,
    "request_length": HEADER | COUNT,
    "response_length": HEADER | COUNT,
    "metadata": st.dictionaries(TEXT, NOTE, max_size=3),
    "auth_digest": OPTIONAL | st.text("0123456789abcdefABCDEF ", min_size=32, max_size=32),
    **dict.fromkeys(
        ("host", "request_mimetype", "response_mimetype", "referer", "origin", "user_agent", "trace_id", "request_id"),
        HEADER,
    ),
    **dict.fromkeys(("application", "method", "scheme", "path", "query", "outcome"), TEXT),
}
VALUES = st.tuples(*(KINDS.get(name, OPTIONAL) for name in UsageRecord.__struct_fields__))


@settings(suppress_health_check=[HealthCheck.too_slow])  # forty fields take their time on a busy machine
@given(st.lists(VALUES, min_size=1, max_size=4, unique_by=lambda values: values[:3]))
def test_whatever_the_request_path_encodes_comes_back_from_the_file(
    tmp_path_factory: pytest.TempPathFactory, many: list[tuple[Any, ...]]
) -> None:
    names = UsageRecord.__struct_fields__
    records = [decode(encode_bounded(grouped(dict(zip(names, values, strict=True))))) for values in many]
    store = SqliteStore(tmp_path_factory.mktemp("any") / "usage.db")
    store.append(records)
    kept = everything(store)
    by_id = {record.id: record for record in records}
    assert kept == [by_id[identity] for identity in sorted(by_id)]
    assert store.append(records) == 0
    store.close()


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(VALUES, min_size=1, max_size=4, unique_by=lambda values: values[:3]))
def test_encoded_or_decoded_the_file_keeps_the_same(
    tmp_path_factory: pytest.TempPathFactory, many: list[tuple[Any, ...]]
) -> None:
    names = UsageRecord.__struct_fields__
    wire = [encode_bounded(grouped(dict(zip(names, values, strict=True)))) for values in many]
    store = SqliteStore(tmp_path_factory.mktemp("any") / "usage.db")
    assert store.append_encoded(wire) == len(wire)
    by_id = {record.id: record for record in map(decode, wire)}
    assert everything(store) == [by_id[identity] for identity in sorted(by_id)]
    store.close()


def test_what_a_request_leaves_is_stored_without_a_record(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    records = make_records(250, trace_id=None)  # what is encoded of one is the header
    many = [encoded(record) for record in records]
    monkeypatch.setattr(module, "decode", lambda one: pytest.fail("it was decoded"))
    assert store.append_encoded(many) == 250
    assert store.append_encoded(many) == 0
    assert everything(store) == records


def test_a_store_that_appends_in_its_own_way_sees_records(path: Path) -> None:
    class Own(SqliteStore):
        def append(self, records: Sequence[UsageRecord]) -> int:
            return super().append([msgspec.structs.replace(record, subject="ada") for record in records])

    store = Own(path)
    assert store.append_encoded([encoded(make_record(1, subject="bob"))]) == 1
    assert everything(store)[0].subject == "ada"
    store.close()


def test_what_is_remembered_of_clients_is_bounded(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short, "_REMEMBERED", 50)
    records = [make_record(n, trace_id=None, user_agent=f"{n} " * (n % 120), origin=f"{n}") for n in range(1, 300)]
    assert store.append_encoded([encoded(record) for record in records]) == len(records)
    assert everything(store) == records
    known = store._writer.encoded._texts
    assert len(known) <= 50
    assert max(len(value or b"") for value in known) <= 256


def test_usual_and_rare_records_are_stored_together(store: SqliteStore) -> None:
    rare = {"outcome": "refused", "reason": "limit", "violated": ("a", "b"), "aborted": True, "metadata": {"n": 1}}
    records = [make_record(serial, trace_id=None, **(rare if serial % 3 else {})) for serial in range(1, 1200)]
    assert store.append_encoded([encoded(record) for record in records]) == len(records)
    assert everything(store) == records


@pytest.mark.parametrize("length", ["²", "٣", "1" * 5000, "-5", "", "12 "])
def test_a_length_that_is_no_number_is_unknown(length: str) -> None:
    values = {**{n: getattr(make_record(), n) for n in UsageRecord.__struct_fields__}, "request_length": length}
    assert decode(encode_bounded(grouped(values))).request_length is None


# -- several processes ---------------------------------------------------------------------------


def test_four_processes_write_at_once(store: SqliteStore, path: Path) -> None:
    script = """
        records = [make_record(n, process=int(sys.argv[2]), route=f"/{n % 50}") for n in range(1, 2001)]
        store = SqliteStore(sys.argv[1])
        sys.stdin.readline()
        print(sum(store.append(records[start : start + 100]) for start in range(0, 2000, 100)))
        """
    writers = [start(script, path, process) for process in range(1, 5)]
    assert [output.strip() for output in finish(*writers)] == ["2000"] * 4
    kept = everything(store)
    assert {(record.process, record.serial) for record in kept} == {
        (process, serial) for process in range(1, 5) for serial in range(1, 2001)
    }
    assert all(record.route == f"/{record.serial % 50}" for record in kept)


def test_the_file_is_made_once_however_many_come_first(tmp_path: Path) -> None:
    script = """
        sys.stdin.readline()
        for number in range(20):
            store = SqliteStore(f"{sys.argv[1]}/{number}.db")
            assert store.append([make_record(1, process=int(sys.argv[2]))]) == 1
            store.close()
        """
    finish(*[start(script, tmp_path, process) for process in range(1, 5)])
    for number in range(20):
        connection = sqlite3.connect(tmp_path / f"{number}.db")
        assert connection.execute("SELECT number FROM schema_version").fetchall() == [(1,)]
        assert connection.execute("SELECT count(*) FROM records").fetchall() == [(4,)]
        connection.close()


def test_a_writer_killed_in_the_middle_leaves_whole_batches(store: SqliteStore, path: Path) -> None:
    script = """
        store = SqliteStore(sys.argv[1])
        for batch in range(1_000_000):
            store.append(make_records(200, status=batch, process=batch))
            print(batch, flush=True)
        """
    for round_ in range(5):
        writer = start(script, path)
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(3 + round_)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout.read().splitlines()]
        writer.communicate(timeout=60)
        counts: dict[int, int] = {}
        for record in everything(store):
            counts[record.status] = counts.get(record.status, 0) + 1
        assert set(counts.values()) == {200}
        assert set(told) <= set(counts)
        assert len(counts) <= len(told) + 1
        store.close()
        path.unlink()


# -- forks ---------------------------------------------------------------------------------------


@FORKS
def test_a_child_keeps_what_it_writes_after_the_parent_has_closed(path: Path) -> None:
    script = """
        store = SqliteStore(sys.argv[1])
        store.append([make_record(1)])
        child_wrote, parent_closed = os.pipe(), os.pipe()
        if not (child := os.fork()):
            store.append([make_record(2)])
            os.write(child_wrote[1], b".")
            os.read(parent_closed[0], 1)
            store.append([make_record(3)])
            sys.exit()
        os.read(child_wrote[0], 1)
        store.append([make_record(4)])
        store.close()
        os.write(parent_closed[1], b".")
        assert os.waitpid(child, 0)[1] == 0
        print([record.serial for record in everything(store)])
        """
    assert finish(start(script, path)) == ["[1, 2, 3, 4]\n"]


@FORKS
def test_forks_in_the_middle_of_writing_lose_nothing(path: Path) -> None:
    script = """
        import threading
        store = SqliteStore(sys.argv[1], patience=60)
        stop = threading.Event()
        written = []
        def write():
            while not stop.is_set():
                written.append(store.append(make_records(300, process=len(written) + 100)))
        thread = threading.Thread(target=write)
        thread.start()
        children = []
        for number in range(1, 9):
            if not (child := os.fork()):
                store.append(make_records(300, process=number))
                os._exit(0)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
        stop.set()
        thread.join()
        print(set(written) | {300}, len(everything(store)) - sum(written))
        """
    assert finish(start(script, path)) == ["{300} 2400\n"]


@FORKS
def test_a_fork_that_python_does_not_see_leaves_the_parent_alone(path: Path) -> None:
    script = """
        import ctypes
        store = SqliteStore(sys.argv[1])
        store.append([make_record(1)])
        if not (child := ctypes.PyDLL(None).fork()):
            store.append([make_record(2)])
            store.close()
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        store.append([make_record(3)])
        print([record.serial for record in everything(store)])
        """
    assert finish(start(script, path)) == ["[1, 2, 3]\n"]


# -- files that are not what they should be ------------------------------------------------------


def test_a_busy_file_is_unavailable_and_comes_back(path: Path) -> None:
    store = SqliteStore(path, patience=0)
    store.append(make_records(1))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match=r"usage.db did not answer: database is locked") as caught:
        store.append(make_records(2))
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    with pytest.raises(StoreUnavailable):
        store.purge(START * 2)
    assert everything(store) == make_records(1)
    other.execute("ROLLBACK")
    assert store.append(make_records(2)) == 1
    other.close()
    store.close()


def test_a_folder_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    store = SqliteStore(folder / "usage.db")
    store.append(make_records(1))
    folder.rename(tmp_path / "away")
    for attempt in (lambda: store.append(make_records(2)), lambda: everything(store)):
        with pytest.raises(StoreUnavailable, match="did not answer"):
            attempt()
    (tmp_path / "away").rename(folder)
    assert store.append(make_records(2)) == 1
    assert everything(store) == make_records(2)
    store.close()


def test_a_deleted_file_is_made_again(store: SqliteStore, path: Path) -> None:
    store.append(make_records(3))
    path.unlink()
    assert store.append(make_records(2)) == 2
    assert everything(store) == make_records(2)


def test_a_file_of_another_application_is_refused_and_left_alone(store: SqliteStore, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    for attempt in (lambda: store.append(make_records(1)), lambda: everything(store)):
        with pytest.raises(ConfigurationError, match="belongs to another application: name a file of its own"):
            attempt()
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_left_alone(store: SqliteStore, path: Path) -> None:
    path.write_text("name,count\n" * 100)
    with pytest.raises(ConfigurationError, match="belongs to another application"):
        store.append(make_records(1))
    assert path.read_text() == "name,count\n" * 100


def test_a_file_of_a_newer_version_is_refused(store: SqliteStore, path: Path) -> None:
    store.append(make_records(1))
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO schema_version VALUES (7)")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigurationError, match=r"written by a newer usagekeeper \(schema 7, this one knows 1\)"):
        store.append(make_records(1))


def test_an_older_file_gets_the_scripts_it_lacks(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(make_records(2))
    store.close()
    known = module._scripts()
    more = "CREATE TABLE later (x TEXT);  -- one; two\nINSERT INTO later VALUES ('a;b');\n"
    monkeypatch.setattr(module, "_scripts", lambda: [*known, more])
    assert everything(store) == make_records(2)
    with store._reader.opened() as connection:
        assert connection.execute("SELECT x FROM later").fetchall() == [("a;b",)]
        assert connection.execute("SELECT number FROM schema_version").fetchall() == [(1,), (2,)]


def test_a_script_that_fails_leaves_the_file_as_it_was(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(make_records(2))
    store.close()
    known = module._scripts()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_scripts", lambda: [*known, "CREATE TABLE later (x);\nSELECT nonsense;\n"])
        with pytest.raises(StoreUnavailable, match="no such column: nonsense"):
            everything(store)
    assert everything(store) == make_records(2)
    with store._reader.opened() as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'later'").fetchall() == []


def test_a_moved_copy_can_be_opened(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    store.append(make_records(3))
    with store._reader.opened() as connection:
        connection.execute("VACUUM INTO ?", [str(tmp_path / "copy.db")])  # leaves write-ahead mode behind
    copy = SqliteStore(tmp_path / "copy.db")
    assert everything(copy) == make_records(3)
    assert copy.append(make_records(4)) == 1
    copy.close()


# -- where the file may be -----------------------------------------------------------------------


def test_a_relative_path_is_made_absolute_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_sqlite("sqlite:///usage.db")
    monkeypatch.chdir("/")
    assert store.path == tmp_path / "usage.db"


def test_an_absolute_url_has_four_slashes(path: Path) -> None:
    opened = open_store(f"sqlite:///{path}")
    assert isinstance(opened, SqliteStore)
    assert opened.path == path


def test_a_file_has_one_store_in_a_process(path: Path) -> None:
    assert open_sqlite(f"sqlite:///{path}") is open_sqlite(f"sqlite:///{path}")
    assert open_sqlite(f"sqlite:///{path}") is not open_sqlite(f"sqlite:///{path}.other")


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite://file.db", "sqlite:///:memory:", "sqlite:///a.db?x=1"]
)
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"names no file: write sqlite:///relative\.db"):
        open_store(url)


def test_a_writable_place_is_fine_and_stays_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "usage.db")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no folder .*/nowhere. Make it, or name a file in another"):
        check_writable(tmp_path / "nowhere" / "usage.db")


def test_a_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a folder: name a file in it"):
        check_writable(tmp_path)


@pytest.mark.parametrize("locked", ["folder", "file"])
def test_a_place_that_cannot_be_written_is_named_with_its_owner(
    path: Path, locked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    refused = path if locked == "file" else path.parent
    monkeypatch.setattr(os, "access", lambda place, mode, **_: str(place) != str(refused))
    monkeypatch.setattr(os, "supports_effective_ids", set())
    with pytest.raises(ConfigurationError) as caught:
        check_writable(path)
    assert str(caught.value).startswith(f"{refused} cannot be written: it belongs to ")
    assert "this process runs as" in str(caught.value)
    assert "Give it to the user that the service runs as, or name a file in another folder" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become somebody else")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigurationError, match=r"cannot be made: there is no folder|cannot be written"):
            check_writable(tmp_path / "usage.db")
    finally:
        os.seteuid(0)


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(ConfigurationError, match=r"cannot be written: it belongs to .* \(mode 555\)"):
        check_writable(folder / "usage.db")
    shutil.rmtree(folder)
