"""Counters in one SQLite file, exact between all processes of a host that open it. No server.

The file is their own, beside the records and never among them: SQLite has one writer a file. Each
operation runs behind an exclusive flock on `<path>.lock`, because SQLite's own way of waiting lets
a process starve for half a second. Nobody waits for that lock beyond a deadline, and never on an
event loop: whoever stops while holding it costs the others `StoreUnavailable`, not their time.

What was counted survives kill -9 of any process; a power failure may take back the last seconds.
The file must lie on a local disk.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import threading
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from usagekeeper.counters.base import judge
from usagekeeper.counters.sqlite_rows import LAYOUTS, MOST, Layout, layout_of
from usagekeeper.counters.sqlite_schema import (
    CHECKPOINT,
    INSERT,
    LOG,
    SELECT,
    SELECT_LAST,
    UPDATE,
    VERSION,
    connected,
    sentence,
)
from usagekeeper.errors import ConfigurationError, StoreUnavailable
from usagekeeper.values import ALLOCATE, SECOND, Charge, Operation, Spends, Words

try:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
except ImportError:  # pragma: no cover  (not a Unix system: said by the constructor)
    flock, LOCK_EX, LOCK_NB, LOCK_UN = None, 0, 0, 0  # type: ignore[assignment,misc]

_DEADLINE: Final = 0.05
"""Seconds that a decision may wait."""
_LOOP_PATIENCE: Final = 0.0002
"""Seconds that an event loop may wait: as a rule the lock is held for 10 us."""


class SqliteCounters:
    """Counts in the file at *path*, made absolute at once; the first `apply` in a process opens it.

    All objects of a process for one path share one connection. *deadline*: how many seconds an
    operation waits for other processes and threads before it raises `StoreUnavailable`. After a
    missed deadline, and after any failure of the file, operations raise it at once for 50 ms, then
    twice as long each time up to a second, until one that tries again succeeds.

    Rows whose limits are whole again are given back as new ones come, four looked at for each new
    one: the file never holds more than one and a half times the rows that are in use at a time (in
    use: until a second after the limits are whole, and until the look comes round to them).

    A file that was deleted or replaced (with its -wal and -shm) is noticed within a second of use,
    and counting goes on in what is there then; while the folder is missing, nothing is available.
    """

    def __init__(self, path: str | os.PathLike[str], *, deadline: float = _DEADLINE) -> None:
        if flock is None:  # pragma: no cover
            raise ConfigurationError("counters in SQLite need flock, which this system does not have: use memory://")
        if not 0 < deadline < threading.TIMEOUT_MAX:
            raise ConfigurationError(f"the deadline of counters is a number of seconds above 0, not {deadline!r}")
        self.path = Path(os.path.realpath(path))  # two names of one file are locked by one name
        self.deadline = deadline
        self._file: _File | None = None

    def __repr__(self) -> str:
        return f"SqliteCounters({str(self.path)!r})"

    def apply(self, operation: Operation) -> Spends:
        """See `Counters.apply`. Several charges are one transaction: all of it is kept or nothing."""
        file = self.opened()
        seen = file.ask()
        spends = file.attempt(operation, self.deadline, seen)
        if spends is None:
            raise file.missed(self.deadline, seen)
        return spends

    def close(self) -> None:
        """See `Counters.close`; lets go for all objects of this process that count in the file."""
        self.opened().close()

    def drop(self) -> None:
        """See `Counters.drop`. Hooks do it on every fork that Python knows of."""
        self._file = None
        _forget(self.path)

    def async_half(self) -> AsyncSqliteCounters:
        """The sibling for event loops, counting in the same file."""
        return AsyncSqliteCounters(self)

    def check(self) -> None:
        """Raise `ConfigurationError` unless this process can write, or make, the file; makes nothing."""
        folder = self.path.parent
        if not folder.is_dir():
            raise ConfigurationError(f"counters cannot be kept in {self.path}: there is no folder {folder}")
        if self.path.is_dir():
            raise ConfigurationError(f"counters cannot be kept in {self.path}: it is a folder")
        for place, mode in ((folder, os.W_OK | os.X_OK), (self.path, os.R_OK | os.W_OK)):
            if place.exists() and not os.access(place, mode):
                raise ConfigurationError(f"counters cannot be kept in {self.path}: {place} is not writable")

    def opened(self) -> _File:
        """The file as this process has it."""
        file = self._file
        if file is None or file.process != os.getpid():
            file = self._file = _shared(self.path)
        return file


class AsyncSqliteCounters:
    """`SqliteCounters` for event loops: tries for 0.2 ms, then waits in a thread, where files are opened too.

    Of many operations that find the lock taken only the first holds up the loop for that long. A task that is
    cancelled while it waits is charged or not, never half.
    """

    def __init__(self, counters: SqliteCounters) -> None:
        self._counters = counters

    def apply(self, operation: Operation) -> Spends | Awaitable[Spends]:
        """See `AsyncCounters.apply`."""
        file = self._counters.opened()
        seen = file.ask()
        if file.connection is not None:
            crowded = file.crowded and monotonic() < file.crowded
            spends = file.attempt(operation, 0.0 if crowded else _LOOP_PATIENCE, seen)
            if spends is not None:
                file.crowded = 0.0
                return spends
        deadline = self._counters.deadline
        ends = monotonic() + deadline
        file.crowded = ends
        return get_running_loop().run_in_executor(_THREADS.pool, file.attempt_later, operation, ends, deadline, seen)


def open_sqlite(url: str) -> SqliteCounters:
    """The counters of ``sqlite:///relative.db`` or ``sqlite:////absolute.db``."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path or "?" in path or path.startswith(":memory:"):
        raise ConfigurationError(
            f"counters {url!r} name no file: write sqlite:///relative.db or sqlite:////absolute.db,"
            " without options; memory:// counts in this process alone"
        )
    return SqliteCounters(path)


# -- the file in this process --------------------------------------------------------------------

_SWEEP_EACH: Final = 8
_SWEPT: Final = 4 * _SWEEP_EACH
"""Rows looked at, each time: while a pass goes over n rows at most n/3 new ones come, so n <= used + n/3."""
_QUICK: Final = 0.01
_REMEMBERED: Final = 4096
_FORK_PATIENCE: Final = 1.0
_SHORTEST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_REPLACED: Final = 3
"""Tries to find the files in place that were just opened."""

_Found = tuple[Layout, bytes, Words, bytes | None, int]
"""Layout, key, words, what belongs to others (None: the row is new), when the row may be forgotten."""


class _File:
    """One connection and one lock file, used by one thread of one process at a time."""

    _run: Callable[..., sqlite3.Cursor]
    _fetch: Callable[[], tuple[bytes, int] | None]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = os.getpid()
        self.connection: sqlite3.Connection | None = None
        self.crowded = 0.0
        """Until then, or until it finds the lock free, no event loop waits for it again."""
        self._fd = -1
        self._file: os.stat_result | None = None
        self._lock = threading.Lock()  # a flock belongs to the open file: threads have to take turns
        self._tidying = threading.Lock()
        # The lock file tells who had the lock last. While that was always this one, the rows are as it left them:
        # that spares a fifth of a decision.
        self._me = b""
        self._rows: dict[bytes, _Found] = {}
        self._looked = 0
        self._inserted = 0
        self._written = 0
        self._misses = 0
        self._again = 0.0
        self._why = ""

    # -- within reach or not ------------------------------------------------------------------------

    def ask(self) -> int:
        """Failures so far. Raises at once while the file is out of reach, but for one try after each pause."""
        misses = self._misses
        if misses:
            now = monotonic()
            if now < self._again:
                raise StoreUnavailable(self._why)
            self._again = now + _pause(misses)
        return misses

    def missed(self, deadline: float, seen: int) -> StoreUnavailable:
        """The error of an operation that waited in vain."""
        return self._failed(f"the lock was not free within {deadline * 1000:g} ms", seen)

    def _failed(self, why: str, seen: int) -> StoreUnavailable:
        self._why = f"counters in {self.path} are unavailable: {why}"
        if self._misses == seen:  # of all that failed together, one counts
            self._misses = seen + 1
            self._again = monotonic() + _pause(seen + 1)
        return StoreUnavailable(self._why)

    # -- one operation ------------------------------------------------------------------------------

    def attempt(self, operation: Operation, patience: float, seen: int) -> Spends | None:
        """The answer; None when others held the lock for all of *patience* seconds."""
        try:
            if not self._enter(operation.now, patience):
                return None
            try:
                spends = self._count(operation)
            except BaseException:
                self._shut()  # undoes what was not committed
                raise
            finally:
                self._leave()
        except (sqlite3.Error, OSError) as error:
            raise self._failed(sentence(error), seen) from error
        self._misses = 0
        return spends

    def attempt_later(self, operation: Operation, ends: float, deadline: float, seen: int) -> Spends:
        """`attempt` in a thread, until *ends*; at once when the file got out of reach before its turn."""
        if self._misses > seen:
            raise StoreUnavailable(self._why)
        spends = self.attempt(operation, max(0.0, ends - monotonic()), seen)
        if spends is None:
            raise self.missed(deadline, seen)
        return spends

    def _count(self, operation: Operation) -> Spends:
        if os.pread(self._fd, 8, 0) != self._me:
            self._rows.clear()
            os.pwrite(self._fd, self._me, 0)
        charges = operation.charges
        if len(charges) == 1 and operation.kind == ALLOCATE:
            # One policy applies to most requests: what `judge` would say, without its lists.
            row = self._find(charges[0])
            words = charges[0].limits.allocate(row[2], operation.now, charges[0].cost)
            if words is not None and row[3] is not None:
                self._write(row, words)  # a statement is a transaction, and nobody else can write meanwhile
                return Spends(operation.now, False, [True], [words])
            found = [row]
        else:
            found = [self._find(charge) for charge in charges]
        spends, after = judge(operation, [row[2] for row in found])
        if after is not None:
            self._run("BEGIN IMMEDIATE")
            for row, kept in zip(found, after, strict=True):
                if kept is not row[2]:
                    self._write(row, kept)
                    if row[3] is None:
                        self._grown(operation.now)
            self._run("COMMIT")
        return spends

    def _find(self, charge: Charge) -> _Found:
        layout = LAYOUTS.get(charge.limits) or layout_of(charge.limits)
        key = layout.key(charge.value)
        known = self._rows.get(key)
        if known is not None and known[0] is layout:
            return known
        self._run(SELECT, (key,))
        found = self._fetch()
        if found is None:
            return layout, key, layout.empty, None, 0
        state, expires = found
        words, rest = layout.read(state)
        row = (layout, key, words, rest, expires)
        self._remember(row)
        return row

    def _remember(self, row: _Found) -> None:
        if len(self._rows) >= _REMEMBERED:
            self._rows.clear()
        self._rows[row[1]] = row

    def _write(self, row: _Found, words: Words) -> None:
        layout, key, _, rest, expires = row
        until = layout.expires(words)
        if rest and expires > until:
            until = expires
        if not 0 <= until <= MOST:
            until = max(0, min(until, MOST))
        self._run(INSERT if rest is None else UPDATE, (layout.write(words, rest or b""), until, key))
        self._remember((layout, key, words, rest or b"", until))
        self._written += 1
        if self._written >= LOG:
            self._written = 0
            with suppress(RuntimeError):  # the interpreter is ending: closing empties the log as well
                _THREADS.pool.submit(self._tidy)

    def _grown(self, now: int) -> None:
        """Give back dead rows among the next ones, in the order of their keys."""
        self._inserted += 1
        if self._inserted % _SWEEP_EACH != 1:
            return
        (start,) = self._run("SELECT after FROM swept").fetchone()
        last = self._run(SELECT_LAST, (start, _SWEPT - 1)).fetchone()
        if last is None:
            self._run("DELETE FROM counts WHERE key > ? AND expires <= ?", (start, now))
        else:
            self._run("DELETE FROM counts WHERE key > ? AND key <= ? AND expires <= ?", (start, *last, now))
        self._run("UPDATE swept SET after = ?", last or (b"",))
        self._rows.clear()

    # -- the locks, and what is open under them ---------------------------------------------------

    def _enter(self, now: int, patience: float) -> bool:
        """Take the lock of the threads and that of the processes, and open what is not; or give up."""
        ends = 0.0
        if not self._lock.acquire(False):
            ends = monotonic() + patience
            if not self._lock.acquire(timeout=patience):
                return False
        try:
            if self.connection is not None and -SECOND < now - self._looked < SECOND:
                try:
                    flock(self._fd, _TRY)
                    return True
                except BlockingIOError:
                    pass
            for _ in range(_REPLACED):
                if self._fd < 0:
                    self._fd = os.open(_lock_path(self.path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                if not self._seize(patience, ends):
                    break
                if self.connection is not None and -SECOND < now - self._looked < SECOND:
                    return True
                if self._in_place():
                    self._looked = now
                    if self.connection is None:
                        self._open()
                    return True
                self._shut()
        except BaseException:
            self._shut()
            self._lock.release()
            raise
        self._lock.release()
        return False

    def _seize(self, patience: float, ends: float) -> bool:
        """The lock of the processes: tried eagerly, then between short naps."""
        naps = 0.0
        while True:
            try:
                flock(self._fd, _TRY)
                return True
            except BlockingIOError:
                now = monotonic()
            if not naps:
                naps = now + _EAGER
                ends = ends or now + patience
            if now >= ends:
                return False
            if now < naps:
                _yield()
            else:
                sleep(_NAP)

    def _leave(self) -> None:
        try:
            if self._fd >= 0:
                flock(self._fd, LOCK_UN)
        finally:
            self._lock.release()

    def _in_place(self) -> bool:
        """Whether the paths still name what is open: a deleted file would be counted in unseen."""
        try:
            if not os.path.samestat(os.fstat(self._fd), os.stat(_lock_path(self.path))):
                return False
            return self._file is None or os.path.samestat(self._file, os.stat(self.path))
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        connection = connected(self.path, "rwc")
        cursor = connection.cursor()
        self._run, self._fetch = cursor.execute, cursor.fetchone
        self._file = os.stat(self.path)
        self._me = os.urandom(8)
        self.connection = connection

    def _shut(self) -> None:
        """Close what is open; the lock of the processes goes with its file."""
        connection, fd = self.connection, self._fd
        self.connection, self._file, self._fd = None, None, -1
        self._rows.clear()
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
        if fd >= 0:
            with suppress(OSError):
                flock(fd, LOCK_UN)  # said, because a child that was forked unseen may have the file open too
            os.close(fd)

    def _tidy(self) -> None:
        """In a thread: move the write-ahead log into the file while others go on counting, then start it anew."""
        with (
            self._tidying,
            suppress(sqlite3.Error, OSError),
            closing(connected(self.path, "rw")) as connection,
        ):
            connection.execute(CHECKPOINT)
            began = monotonic()
            connection.execute(CHECKPOINT)  # what came meanwhile: about as much as is left for the next step
            if monotonic() - began > _QUICK or not self._lock.acquire(timeout=_DEADLINE):
                return
            try:
                if self.connection is not None and self._seize(_DEADLINE, 0.0):
                    # The log starts anew when all of it is on disk, so everybody has to wait for that. Where it
                    # takes long the log rather grows on, until a better moment or its largest size.
                    try:
                        connection.execute(CHECKPOINT)
                        connection.execute(f"PRAGMA user_version = {VERSION}")
                    finally:
                        flock(self._fd, LOCK_UN)
            finally:
                self._lock.release()

    # -- closing and forking --------------------------------------------------------------------------

    def close(self) -> None:
        with self._tidying, self._lock:
            self._shut()
            self._misses = 0

    def pause(self) -> bool:
        """Before a fork: close everything and let nobody in; False when somebody does not come out."""
        if not self._tidying.acquire(timeout=_FORK_PATIENCE):
            return False
        if not self._lock.acquire(timeout=_FORK_PATIENCE):
            self._tidying.release()
            return False
        self._shut()
        return True

    def resume(self) -> None:
        self._lock.release()
        self._tidying.release()

    def forget(self) -> None:
        """In a child: what was inherited is never used or closed again."""
        if self.connection is not None:
            # A reference that nobody gives back: closing would touch the parent's log, also at the very end.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.connection))
        if self._fd >= 0 and self.process != os.getpid():
            # Does not unlock: the parent has the same file open. But were the parent killed while it holds the
            # lock, nobody else could ever have it.
            os.close(self._fd)


_TRY: Final = LOCK_EX | LOCK_NB
_yield: Final[Callable[[], object]] = getattr(os, "sched_yield", lambda: sleep(0))
_EAGER: Final = 5e-5
"""Seconds during which only the processor is offered to others between two tries."""
_NAP: Final = 1e-4
"""Seconds, to which Linux adds half as many. Longer naps starve: in a crowd one try in twenty succeeds."""


def _pause(misses: int) -> float:
    return min(_SHORTEST_PAUSE * 2.0 ** min(misses - 1, 10), _LONGEST_PAUSE)


def _lock_path(path: Path) -> str:
    return f"{path}.lock"


# -- all files of this process ---------------------------------------------------------------------


class _Threads:
    """Where waiting is done for event loops. Threads start when there is something to wait for."""

    pool = ThreadPoolExecutor(4, "usagekeeper-counters")


_THREADS: Final = _Threads()
_FILES: Final[dict[Path, _File]] = {}
_paused: Final[dict[int, list[_File]]] = {}
"""By thread that is about to fork: the files it has closed."""


def _shared(path: Path) -> _File:
    file = _FILES.get(path)
    if file is not None and file.process == os.getpid():
        return file
    _forget(path)
    return _FILES.setdefault(path, _File(path))


def _forget(path: Path) -> None:
    file = _FILES.pop(path, None)
    if file is not None:
        file.forget()


# SQLite keeps the file locks of a process in tables of its own. A forked child inherits the tables and not the
# locks, so that the parent, when it closes, deletes the log under the child, which goes on counting in a file that
# nobody sees. Therefore nothing is open while Python forks.


def _before_fork() -> None:
    _paused[threading.get_ident()] = [file for file in list(_FILES.values()) if file.pause()]


def _after_fork_in_parent() -> None:
    for file in _paused.pop(threading.get_ident(), ()):
        file.resume()


def _after_fork_in_child() -> None:
    _paused.clear()
    _THREADS.pool = ThreadPoolExecutor(4, "usagekeeper-counters")
    for path in list(_FILES):
        _forget(path)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
