"""Where the request path ends and throughput begins: a bounded buffer and the thread that empties it.

`record` takes encoded records on the request path and does nothing there that could wait or fail.
It takes no lock: a garbage collection may end one request, and record it, in the middle of
recording another. Everything slow happens in one thread of each process, a few records at a time.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from usagekeeper.errors import UsageError
from usagekeeper.printable import sentence
from usagekeeper.records import UsageRecord, decode
from usagekeeper.stores.base import EncodedStore, UsageStore

logger = logging.getLogger("usagekeeper")

_SLICE: Final = 20
"""Records decoded between two chances for other threads."""
_EARLY: Final = 5
"""Batches in the buffer that wake the thread before its time."""
_FIRST_RETRY: Final = 0.1
_LAST_RETRY: Final = 2.5
"""Seconds after a failure, doubled from one to the next; chance makes them up to twice as many."""
_PRUNED: Final = 500
_PRUNED_MOST: Final = 5_000
"""Records that one step of pruning forgets, and at most, where many are written."""
_PRUNE_AGAIN: Final = 1.0
_PRUNE_LATER: Final = 60.0
"""Seconds to the next step: where there was something to forget, and where there was nothing."""
_QUIET: Final = 60.0
"""Seconds between two log lines of one kind."""


class Figures(NamedTuple):
    """How recording goes in this process."""

    buffered: int
    buffered_bytes: int
    written: int
    """Delivered to the store, which may have had some of them already."""
    dropped: int
    """Refused because the buffer was full."""
    undecodable: int
    """Set aside: not decoded, or not taken by a store that took others."""
    lag: float | None
    """Seconds since the request behind the oldest record in the buffer; None when it is empty."""
    last_error: str | None
    """Why the store did not take the last batch; None when it did."""


class Recorder:
    """Takes encoded records and brings each to *store*, through any outage.

    The buffer holds *max_records* and *max_bytes*; what comes when it is full is dropped and
    counted. A record stays in it until the store has it, so one may be delivered twice, and stores
    know it by its id. *store* may be a callable that makes one on first use; `close` closes it then.
    Records older than *retention* by *clock* are pruned. *timer* and *wait* serve retries.
    """

    __slots__ = (
        "__weakref__", "_batch", "_buffer", "_bytes_in", "_bytes_mark", "_bytes_out", "_clock", "_draining", "_dropped",
        "_failures", "_flushes", "_idle", "_interval", "_last_error", "_make", "_max_bytes", "_max_records",
        "_prune_at", "_records_mark", "_reported", "_retention", "_retry_at", "_said", "_start_at", "_starting",
        "_store", "_timer", "_undecodable", "_unpruned", "_wait", "_worker", "_written",
    )  # fmt: skip

    def __init__(
        self,
        store: UsageStore | Callable[[], UsageStore],
        *,
        max_records: int = 100_000,
        max_bytes: int = 64 * 1024 * 1024,
        interval: float = 0.25,
        batch: int = 1000,
        retention: timedelta | None = None,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._make = None if isinstance(store, UsageStore) else store
        self._store = store if isinstance(store, UsageStore) else None
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._interval = interval
        self._batch = batch
        self._retention = retention
        self._clock = clock
        self._timer = timer
        self._wait = wait
        self._reset()
        _RECORDERS[id(self)] = self

    def _reset(self) -> None:
        self._buffer: deque[bytes] = deque()
        self._bytes_in = self._bytes_out = 0
        self._written = self._dropped = self._undecodable = 0
        self._last_error: str | None = None
        self._failures = 0
        self._retry_at = self._start_at = self._prune_at = float("-inf")
        self._unpruned = 0
        self._reported = 0
        self._said: dict[str, float] = {}
        self._worker: _Worker | None = None
        self._starting = threading.Lock()
        self._draining = threading.Lock()
        self._flushes: set[object] = set()
        self._expect(idle=False)

    # -- on the request path ---------------------------------------------------------------------

    def record(self, encoded: bytes) -> None:
        """Keep *encoded* until it is stored, or drop it when the buffer is full.

        Never raises and never waits. Starts the thread when none runs in this process.
        """
        size = len(encoded)
        if (len(self._buffer) >= self._records_mark or self._bytes_in + size > self._bytes_mark) and not self._has_room(
            size
        ):
            self._dropped += 1
            return
        # No call stands between reading the sum and writing it, so no thread comes between. Without
        # a global interpreter lock one may; the sum is put right whenever the buffer gets empty.
        self._bytes_in += size
        self._buffer.append(encoded)
        if self._worker is None:
            self.start()

    def _has_room(self, size: int) -> bool:
        worker = self._worker
        if self._idle and worker is not None:
            worker.wake()
        return len(self._buffer) < self._max_records and self._bytes_in + size - self._bytes_out <= self._max_bytes

    def _expect(self, *, idle: bool) -> None:
        """Set the marks where `record` looks closer: the bounds, or where it wakes an idle thread."""
        records, size = self._max_records, self._max_bytes
        if idle:
            records, size = min(_EARLY * self._batch, records // 2), size // 2
        self._idle = idle
        self._records_mark = records
        self._bytes_mark = self._bytes_out + size

    # -- the thread ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread now instead of at the first record.

        Where none can be started, as in an interpreter that shuts down, only `flush` stores.
        """
        if not self._starting.acquire(blocking=False):
            return  # another thread is at it
        try:
            # Python 3.11, when it shuts down, would wait for the new thread for ever.
            if self._worker is None and self._timer() >= self._start_at and not sys.is_finalizing():
                worker = _Worker(self._run)
                worker.start()
                self._worker = worker
        except Exception:  # as a rule a RuntimeError
            self._start_at = self._timer() + 1.0
        finally:
            self._starting.release()

    def _run(self, worker: _Worker) -> None:
        while not worker.stopped:
            try:
                rest = self._turn(worker)
            except Exception as error:  # such as want of memory: recording goes on after it
                self._failed(error)
                rest = self._interval
            self._expect(idle=not (self._failures or self._flushes))
            if not self._idle or len(self._buffer) < self._records_mark:
                worker.wait(rest)
            self._expect(idle=False)

    def _turn(self, worker: _Worker) -> float:
        """Store what is there; returns the seconds to rest."""
        rest = self._interval
        while self._buffer and not self._flushes and not worker.stopped:
            if (left := self._retry_at - self._timer()) > 0:
                rest = left
                break
            with self._draining:
                self._drain(self._portion())
            self._prune()
        self._prune()
        self._report()
        return rest

    # -- from the buffer into the store ----------------------------------------------------------

    def _portion(self) -> int:
        """A batch, and up to ten where many wait: the more at once, the less often others have to be waited for."""
        return min(max(self._batch, len(self._buffer) // 8), 10 * self._batch)

    def _drain(self, most: int) -> int:
        """Bring the first *most* records to the store; returns how many left the buffer, 0 on failure.

        They leave it afterwards, so the bounds hold for them too and nothing is lost in between.
        """
        buffer = self._buffer
        encoded = [buffer[position] for position in range(min(most, len(buffer)))]
        try:
            refused = self._deliver(encoded) if encoded else 0
        except Exception as error:
            self._failed(error)
            return 0
        for _ in encoded:
            buffer.popleft()
        self._bytes_out = self._bytes_out + sum(map(len, encoded)) if buffer else self._bytes_in
        self._expect(idle=False)
        self._stored(len(encoded) - refused, refused)
        return len(encoded)

    def _deliver(self, encoded: Sequence[bytes]) -> int:
        """How many of *encoded* had to be set aside; raises when the store did not take the others."""
        if self._store is None:
            assert self._make is not None
            self._store = self._make()
        store = self._store
        if isinstance(store, EncodedStore) and _taken_as_encoded(store, encoded):
            return 0
        records = _decoded(encoded)
        unread = len(encoded) - len(records)
        if not records:
            return unread
        try:
            store.append(records)
        except UsageError:
            raise
        except Exception:  # one of them may be what the store cannot take: find it
            return unread + _deliver_singly(store, records)
        return unread

    def _stored(self, written: int, undecodable: int) -> None:
        self._written += written
        self._unpruned += written
        if undecodable:
            self._undecodable += undecodable
            self._say(logging.WARNING, "%d usage records could not be read and are lost", undecodable)
        if self._failures:
            self._failures = 0
            self._last_error = None
            self._retry_at = float("-inf")
            logger.info("Usage records are stored again")

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._last_error = sentence(f"{type(error).__name__}: {error}")  # engines quote what a client wrote
        pause = min(_LAST_RETRY, _FIRST_RETRY * 2 ** min(self._failures - 1, 10))
        self._retry_at = self._timer() + pause * random.uniform(1, 2)
        self._say(
            logging.WARNING,
            "Usage records are not stored, %d are kept and tried again: %s",
            len(self._buffer),
            self._last_error,
        )

    # -- pruning ---------------------------------------------------------------------------------

    def _prune(self) -> None:
        """Forget a few records that are too old, when it is time to."""
        now = self._timer()
        if self._retention is None or self._store is None or now < self._prune_at or self._failures:
            return
        limit = min(max(_PRUNED, 2 * self._unpruned), _PRUNED_MOST)
        before = int((self._clock() - self._retention.total_seconds()) * 1_000_000)
        self._prune_at = now + _PRUNE_LATER
        self._unpruned = 0
        with self._draining:
            try:
                pruned = self._store.purge(before, limit=limit)
            except Exception as error:
                self._say(logging.WARNING, "Old usage records are not pruned: %s", sentence(str(error)))
                return
        if pruned:
            self._prune_at = now + _PRUNE_AGAIN

    # -- for whoever wants to know that it is stored ---------------------------------------------

    def flush(self, timeout: float = 5.0) -> bool:
        """Whether everything recorded before this call is in the store; tries for *timeout* seconds.

        Works without the thread, and in its stead while it runs.
        """
        deadline = self._timer() + timeout
        call = object()
        self._flushes.add(call)  # the thread steps aside: a lock alone is not handed over
        try:
            if not self._draining.acquire(timeout=max(timeout, 0)):
                return False
            try:
                return self._flush(deadline)
            finally:
                self._draining.release()
        finally:
            self._flushes.discard(call)
            self._report()

    def _flush(self, deadline: float) -> bool:
        left = len(self._buffer)
        while left > 0:
            done = self._drain(min(left, self._portion()))
            left -= done
            pause = deadline - self._timer()
            if left > 0 and pause <= 0:
                return False
            if not done:
                self._wait(max(min(self._retry_at - self._timer(), pause), 0))
        return True

    def close(self, timeout: float = 5.0) -> bool:
        """`flush`, and stop the thread; takes *timeout* seconds at most, and says what is left.

        A record that comes later starts the thread again.
        """
        deadline = self._timer() + timeout
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()
        flushed = self.flush(timeout)
        if worker is not None:
            worker.join_until(deadline - self._timer())
        if not flushed:
            logger.error(
                "%d usage records are not stored after %s seconds: %s",
                len(self._buffer),
                timeout,
                self._last_error or "the store is still busy",
            )
        elif self._make is not None and self._store is not None:
            with self._draining:
                self._store.close()
        return flushed

    def drop(self) -> None:
        """Start empty, as a forked child must: what the parent recorded is the parent's to deliver."""
        self._reset()
        if self._store is not None:
            self._store.drop()

    def figures(self) -> Figures:
        """How recording goes."""
        return Figures(
            buffered=len(self._buffer),
            buffered_bytes=max(0, self._bytes_in - self._bytes_out),
            written=self._written,
            dropped=self._dropped,
            undecodable=self._undecodable,
            lag=self._lag(),
            last_error=self._last_error,
        )

    def _lag(self) -> float | None:
        try:
            return self._clock() - decode(self._buffer[0]).at / 1_000_000
        except Exception:  # it has just left, or nobody can read it
            return None

    # -- the log ---------------------------------------------------------------------------------

    def _report(self) -> None:
        """Log what was dropped. Not where it happens: a log handler may wait, a request may not."""
        dropped = self._dropped
        if dropped > self._reported and self._say(
            logging.ERROR,
            "%d usage records were dropped: the buffer is full (%d records, %d bytes). %s",
            dropped - self._reported,
            len(self._buffer),
            self._bytes_in - self._bytes_out,
            self._last_error or "They arrive faster than the store takes them",
        ):
            self._reported = dropped

    def _say(self, level: int, message: str, *values: object) -> bool:
        now = self._timer()
        if now < self._said.get(message, now):
            return False
        self._said[message] = now + _QUIET
        logger.log(level, message, *values)
        return True


def _decoded(encoded: Sequence[bytes]) -> list[UsageRecord]:
    """The records that can be read."""
    records = []
    step = max(_SLICE, len(encoded) // 50)
    for start in range(0, len(encoded), step):
        if start:
            time.sleep(0)
        for one in encoded[start : start + step]:
            with suppress(Exception):
                records.append(decode(one))
    return records


def _taken_as_encoded(store: EncodedStore, encoded: Sequence[bytes]) -> bool:
    try:
        store.append_encoded(encoded)
    except UsageError:
        raise
    except Exception:  # one of them is odd: find it
        return False
    return True


def _deliver_singly(store: UsageStore, records: Sequence[UsageRecord]) -> int:
    refused = 0
    for record in records:
        try:
            store.append([record])
        except UsageError:
            raise
        except Exception:
            refused += 1
            if refused == len(records):
                raise  # it is not the records, then
    return refused


class _Worker(threading.Thread):
    """The thread of one process, and the bell that wakes it: a lock, because ringing it never waits."""

    def __init__(self, work: Callable[[_Worker], None]) -> None:
        super().__init__(name="usagekeeper-recorder", daemon=True)
        self.stopped = False
        self._work = work
        self._bell = threading.Lock()
        self._bell.acquire()

    def run(self) -> None:
        self._work(self)

    def wait(self, seconds: float) -> None:
        self._bell.acquire(timeout=max(seconds, 0))

    def wake(self) -> None:
        if self._bell.locked():
            with suppress(RuntimeError):  # another thread has just rung it
                self._bell.release()

    def stop(self) -> None:
        self.stopped = True
        self.wake()

    def join_until(self, seconds: float) -> None:
        if self is not threading.current_thread():
            self.join(max(seconds, 0))


_RECORDERS: Final[WeakValueDictionary[int, Recorder]] = WeakValueDictionary()


def _after_fork_in_child() -> None:
    for reference in _RECORDERS.valuerefs():
        if (recorder := reference()) is not None:
            recorder.drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
