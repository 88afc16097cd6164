"""The protocol of the counters, and the judgement that every backend written in Python shares.

Two siblings with the same verb: `Counters` for WSGI and plain calls, `AsyncCounters` for ASGI. One operation is one
trip, whatever the number of charges and limits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol, runtime_checkable

from usagekeeper.values import ADJUST, ALLOCATE, SHADOW, SOFT, Operation, Spends, Words


@runtime_checkable
class Counters(Protocol):
    """Counts of limits, shared by whoever opens the same place."""

    def apply(self, operation: Operation) -> Spends:
        """Judge *operation* and keep what it charged.

        Atomic: no other operation on these counters sees or interrupts a half-made one. A refused operation changes
        nothing. Order: as if all operations came one after the other. A second identical call charges again, so a
        request's charge is never retried. Raises `StoreUnavailable` within the decision deadline when the backend does
        not answer; nothing was charged then, or, where a connection broke in mid-call, at most this one operation.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections of this process; a later `apply` opens them again."""
        ...

    def drop(self) -> None:
        """Forget, without closing, what a forked child inherited: locks are replaced, files opened again on use."""
        ...

    def async_half(self) -> AsyncCounters:
        """The sibling for event loops, counting in the same place."""
        ...


@runtime_checkable
class AsyncCounters(Protocol):
    """`Counters` for event loops. Never blocks the loop for longer than a local file access."""

    def apply(self, operation: Operation) -> Spends | Awaitable[Spends]:
        """See `Counters.apply`. The answer itself where it is there at once, else something to await for it."""
        ...


def judge(operation: Operation, rows: Sequence[Words]) -> tuple[Spends, list[Words] | None]:
    """The answer to *operation* on *rows* (one per charge), and the rows to keep, None when nothing changes."""
    now, kind = operation.now, operation.kind
    if kind == ADJUST:
        after: list[Words] = [c.limits.force(row, now, c.cost) for c, row in zip(operation.charges, rows, strict=True)]
        return Spends(now, False, [True] * len(rows), after), after
    refused = False
    fits: list[bool] = []
    after = []
    for charge, row in zip(operation.charges, rows, strict=True):
        charged: Words | None = charge.limits.allocate(row, now, charge.cost)
        fits.append(charged is not None)
        if charged is None:
            mode = charge.limits.mode
            if mode == SOFT:
                charged = charge.limits.force(row, now, charge.cost)
            elif mode == SHADOW:
                charged = charge.limits.mend(row, now) or row
            else:
                refused, charged = True, row
        after.append(charged)
    if kind != ALLOCATE:
        return Spends(now, refused, fits, list(rows)), None
    if refused:
        return _refused(operation, rows, fits)
    return Spends(now, False, fits, after), after


def _refused(operation: Operation, rows: Sequence[Words], fits: list[bool]) -> tuple[Spends, list[Words] | None]:
    """Nothing is charged; a row that a clock set back has left in the future is kept as it reads now."""
    now = operation.now
    mended = [charge.limits.mend(row, now) for charge, row in zip(operation.charges, rows, strict=True)]
    if not any(mended):
        return Spends(now, True, fits, list(rows)), None
    kept = [new or row for new, row in zip(mended, rows, strict=True)]
    return Spends(now, True, fits, kept), kept
