"""Usage records in one SQLite file, shared by the processes of a host.

The file is in WAL mode: readers and the one writer of a moment do not wait for each other. It must
lie on a local disk, and nothing that has to answer at once belongs into it, because a writer lets
other threads run inside its transaction.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from usagekeeper.errors import ConfigurationError, StoreUnavailable
from usagekeeper.records import UsageRecord, decode
from usagekeeper.stores.base import RecordQuery
from usagekeeper.stores.sqlite_encoded import EncodedRows
from usagekeeper.stores.sqlite_rows import (
    PURGE,
    Words,
    insert,
    last_id,
    record_of,
    row_of,
    rows_at_once,
    select,
    storable,
)

_SLICE: Final = 20
"""Rows of one statement, and between two chances for other threads: 20 add 0.1 ms to the p99 of requests, 2,000 3.4.
One statement for all of them, because SQLite runs without the lock of the interpreter, and a busy interpreter gives it
back after 5 ms: row by row the writer was seen to store 200 records a second then, by twenties 15,000."""
_PURGED: Final = 100
"""Rows that one transaction forgets."""
_PAGE: Final = 200
"""Rows read at once: a cursor that stays open keeps the write-ahead log from being emptied."""
_PATIENCE: Final = 30.0
"""Seconds to wait for other writers."""


class SqliteStore:
    """Records in the file at *path*, made absolute at once; the first use in a process opens it.

    Safe to share between threads, and to have when the process forks.
    """

    def __init__(self, path: str | os.PathLike[str], *, patience: float = _PATIENCE) -> None:
        self.path = Path(os.path.abspath(path))
        self._writer = _Handle(self.path, patience)
        self._reader = _Handle(self.path, patience)

    def check(self) -> None:
        """See `check_writable`."""
        check_writable(self.path)

    def append(self, records: Sequence[UsageRecord]) -> int:
        """See `UsageStore.append`. Lets other threads run every twenty rows, or fifty times a batch."""
        new = 0
        with self._writer.opened() as connection, _transaction(connection):
            words = self._writer.words
            step = min(max(_SLICE, len(records) // 50), rows_at_once(connection))
            for start in range(0, len(records), step):
                if start:
                    time.sleep(0)
                new += insert(connection, [row_of(record, words) for record in records[start : start + step]])
        return new

    def append_encoded(self, encoded: Sequence[bytes]) -> int:
        """See `EncodedStore.append_encoded`. Lets other threads run as `append` does, which a subclass may have made
        its own: it is called then."""
        if type(self).append is not SqliteStore.append:
            return self.append([decode(one) for one in encoded])
        new = 0
        with self._writer.opened() as connection, _transaction(connection):
            rows = self._writer.encoded
            step = rows.step(len(encoded))
            for start in range(0, len(encoded), step):
                if start:
                    time.sleep(0)
                new += rows.insert(encoded[start : start + step], step)
            new += rows.finish()
        return new

    def read(self, query: RecordQuery) -> Iterator[UsageRecord]:
        """See `UsageStore.read`. What is appended or purged meanwhile may be seen or not."""
        left, after = query.limit, b""
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            after, page = self._page(query, after, size)
            yield from page
            if len(page) < size:
                return
            left = left and left - size

    def purge(self, before: int, *, limit: int = 1000) -> int:
        """See `UsageStore.purge`. In transactions of a hundred rows."""
        purged = 0
        while purged < limit:
            size = min(_PURGED, limit - purged)
            with self._writer.opened() as connection:
                count = connection.execute(PURGE, (last_id(before), storable(before), size)).rowcount
            purged += count
            if count < size:
                break
            time.sleep(0)
        return purged

    def close(self) -> None:
        """See `UsageStore.close`."""
        self._writer.close()
        self._reader.close()

    def drop(self) -> None:
        """See `UsageStore.drop`."""
        self._writer.drop()
        self._reader.drop()

    def _page(self, query: RecordQuery, after: bytes, size: int) -> tuple[bytes, list[UsageRecord]]:
        """Up to *size* records behind the id *after*, and the id of the last of them."""
        statement, values = select(query, after)
        with self._reader.opened() as connection:
            words = self._reader.words
            rows = connection.execute(statement, {**values, "size": size}).fetchall()
            return rows[-1][0] if rows else after, [record_of(row, words) for row in rows]


_SHARED: Final[WeakValueDictionary[Path, SqliteStore]] = WeakValueDictionary()


def open_sqlite(url: str) -> SqliteStore:
    """The store of `sqlite:///relative.db` or `sqlite:////absolute.db`; the same one for a file."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path or "?" in path or path.startswith(":memory:"):
        raise ConfigurationError(
            f"store {url!r} names no file: write sqlite:///relative.db or sqlite:////absolute.db, "
            "without options; memory:// keeps records in memory"
        )
    store = SqliteStore(path)
    return _SHARED.setdefault(store.path, store)


# -- may the file be written? --------------------------------------------------------------------


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `ConfigurationError` unless this process can write, or make, *path*; makes nothing."""
    file = os.path.abspath(path)
    folder = os.path.dirname(file)
    if not os.path.isdir(folder):
        raise ConfigurationError(
            f"{file} cannot be made: there is no folder {folder}. Make it, or name a file in another folder with store="
        )
    if os.path.isdir(file):
        raise ConfigurationError(f"{file} is a folder: name a file in it with store=")
    # The log lies beside the file, so the folder is needed even where the file is there.
    _check_access(folder, os.W_OK | os.X_OK)
    if os.path.exists(file):
        _check_access(file, os.R_OK | os.W_OK)


def _check_access(path: str, mode: int) -> None:
    if not os.access(path, mode, effective_ids=os.access in os.supports_effective_ids):
        raise ConfigurationError(
            f"{path} cannot be written{_ownership(path)}. Give it to the user that the service "
            "runs as, or name a file in another folder with store="
        )


def _ownership(path: str) -> str:
    try:
        from pwd import getpwuid

        found = os.stat(path)
        owner, user = getpwuid(found.st_uid).pw_name, getpwuid(os.geteuid()).pw_name
    except (ImportError, OSError, KeyError):  # no users here, not to be seen, or without a name
        return ""
    return f": it belongs to {owner} (mode {found.st_mode & 0o777:o}), this process runs as {user}"


# -- connections ---------------------------------------------------------------------------------


class _Handle:
    """One connection, used by one thread at a time, and what was looked up through it.

    SQLite keeps a process's file locks in tables of its own. A forked child inherits the tables and
    not the locks: when the parent closes, the write-ahead log is deleted under the child; and after
    a parent in mid-transaction the child waits for ever. So connections are closed before a fork.
    Should a fork come without Python's hooks, the inherited connection is left alone.
    """

    words: Words
    encoded: EncodedRows

    def __init__(self, path: Path, patience: float) -> None:
        self._path = path
        self._patience = patience
        self._connection: sqlite3.Connection | None = None
        self.drop()
        _HANDLES[id(self)] = self

    @contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """The connection. When something fails it is closed, which undoes what was not committed."""
        if self._process != os.getpid():
            self.drop()
        with self._lock:
            try:
                yield self._current()
            except sqlite3.Error as error:
                self._close()
                raise StoreUnavailable(f"{self._path} did not answer: {error}") from error
            except BaseException:
                self._close()
                raise

    def close(self) -> None:
        """Close the connection, unless somebody uses it for longer than one waits here."""
        if self._process == os.getpid() and self.pause():
            self.resume()

    def pause(self) -> bool:
        """Close the connection and keep it closed until `resume`; False when it stays in use."""
        free = self._lock.acquire(timeout=_CLOSE_PATIENCE)
        if free:
            self._close()
        return free

    def resume(self) -> None:
        """Let it be opened again."""
        self._lock.release()

    def drop(self) -> None:
        """Forget the connection without closing it, which would touch the parent's log."""
        if self._connection is not None:
            # A reference that nobody gives back: not even the end of the process closes it.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
        self._connection = None
        self._file: tuple[int, int] | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()

    def _current(self) -> sqlite3.Connection:
        if self._connection is not None and self._file != _file_behind(self._path):
            self._close()  # moved or deleted: nobody would see what is written into it
        if self._connection is None:
            self._connection = _connect(self._path, self._patience)
            self.words = Words(self._connection)
            self.encoded = EncodedRows(self._connection, self.words)
            self._file = _file_behind(self._path)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


_HANDLES: Final[WeakValueDictionary[int, _Handle]] = WeakValueDictionary()
_CLOSE_PATIENCE: Final = 2.0
_paused: dict[int, list[_Handle]] = {}
"""By thread that is about to fork: the handles it has closed."""


def _handles() -> list[_Handle]:
    return [handle for reference in _HANDLES.valuerefs() if (handle := reference()) is not None]


def _before_fork() -> None:
    _paused[threading.get_ident()] = [handle for handle in _handles() if handle.pause()]


def _after_fork_in_parent() -> None:
    for handle in _paused.pop(threading.get_ident(), ()):
        handle.resume()


def _after_fork_in_child() -> None:
    _paused.clear()
    for handle in _handles():
        handle.drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def _file_behind(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def _connect(path: Path, patience: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, path, patience)
    except BaseException as error:
        connection.close()
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise _foreign(path) from error
        raise
    return connection


# -- schema --------------------------------------------------------------------------------------

_OWNER: Final = 1970498418
"""SQLite's application_id of our records: "uskr"."""


def _prepare(connection: sqlite3.Connection, path: Path, patience: float) -> None:
    scripts = _scripts()
    version = _version(connection, path, newest=len(scripts))
    _use_wal(connection, patience)
    connection.execute("PRAGMA synchronous = NORMAL")
    if version < len(scripts):
        with _transaction(connection):  # whoever comes second finds it done
            version = _version(connection, path, newest=len(scripts))
            for number, script in enumerate(scripts[version:], version + 1):
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute("INSERT INTO schema_version VALUES (?)", (number,))


def _scripts() -> list[str]:
    folder = files("usagekeeper.stores") / "schema" / "sqlite"
    return [file.read_text("utf-8") for file in sorted(folder.iterdir(), key=attrgetter("name"))]


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _version(connection: sqlite3.Connection, path: Path, *, newest: int) -> int:
    """How many of the scripts have run on this file."""
    # In this order: another process may be making the tables, and signs the file in the same transaction.
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    if owner != _OWNER:
        if owner or tables:
            raise _foreign(path)
        return 0
    version = int(connection.execute("SELECT max(number) FROM schema_version").fetchone()[0])
    if version > newest:
        raise ConfigurationError(
            f"{path} was written by a newer usagekeeper (schema {version}, this one knows "
            f"{newest}): upgrade it here, or name another file with store="
        )
    return version


def _foreign(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{path} belongs to another application: name a file of its own for usagekeeper with store="
    )


def _use_wal(connection: sqlite3.Connection, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:  # it needs the file alone, and does not wait for that
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
