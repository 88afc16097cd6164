"""What a handler sees of its own request: `current_usage`."""

from __future__ import annotations

import math
from contextvars import ContextVar
from decimal import Decimal
from typing import Any, Final

from usagekeeper.decisions import tightest
from usagekeeper.errors import UsageError, shown
from usagekeeper.records import redact
from usagekeeper.ticket import Notes, Ticket
from usagekeeper.values import SECOND, Spend

current: Final[ContextVar[Ticket | None]] = ContextVar("usagekeeper.ticket", default=None)
"""The exchange being served. Set by the drivers outside the application, so its tasks see it, and the threads that are
given a copy of the context, as `asyncio.to_thread` and the frameworks do."""

_MOST_NOTES: Final = 64


class Usage:
    """One request as its handler sees and prices it.

    Outside a watched request (another route, a test without the middleware) it is idle: it knows nobody, and what is
    charged or noted is dropped; `watched` tells.
    """

    __slots__ = ("_ticket",)

    def __init__(self, ticket: Ticket | None) -> None:
        self._ticket = ticket

    @property
    def watched(self) -> bool:
        """Whether there is a request that will be recorded."""
        return self._ticket is not None

    @property
    def subject(self) -> str | None:
        """Who is asking."""
        ticket = self._ticket
        return None if ticket is None else ticket.subject

    @property
    def remaining(self) -> int | None:
        """Units left of the tightest limit; None without limits."""
        spend = self._tightest()
        return None if spend is None else spend.remaining

    @property
    def renews_at(self) -> float | None:
        """When the tightest limit is whole again, in epoch seconds."""
        spend, ticket = self._tightest(), self._ticket
        if spend is None or ticket is None or ticket.spends is None:
            return None
        return (ticket.spends.now + spend.reset_after) / SECOND

    def _tightest(self) -> Spend | None:
        ticket = self._ticket
        return None if ticket is None or ticket.spends is None else tightest(ticket.charges, ticket.spends)

    def charge(self, amount: float | Decimal = 1) -> None:
        """Add *amount* units to what this request costs; rates keep what they were charged at the start."""
        units = amount_of(amount)
        if self._ticket is not None:
            _notes(self._ticket).units += units

    async def acharge(self, amount: float | Decimal = 1) -> None:
        """`charge`, for handlers on an event loop."""
        self.charge(amount)

    def note(self, **metadata: Any) -> None:
        """Keep *metadata* on the record; the values under secret names are replaced."""
        if self._ticket is None:
            return
        notes = _notes(self._ticket)
        kept = notes.metadata | redact(metadata)
        if len(kept) > _MOST_NOTES:
            raise UsageError(f"a record keeps at most {_MOST_NOTES} notes, not {len(kept)}")
        notes.metadata = kept

    def identify(self, subject: str) -> None:
        """Name the subject, known only now: changes the record and re-decides nothing."""
        if not isinstance(subject, str) or not subject or len(subject) > 256:
            raise UsageError(f"a subject is a text of 1 to 256 characters, not {subject!r}")
        if self._ticket is not None:
            self._ticket.subject, self._ticket.kind = subject, "subject"

    @property
    def error_code(self) -> str | None:
        """The application's own code for what went wrong."""
        return None if self._ticket is None else _notes(self._ticket).error_code

    @error_code.setter
    def error_code(self, code: str | None) -> None:
        if code is not None and (not isinstance(code, str) or len(code) > 256):
            raise UsageError(f"an error code is a text of up to 256 characters, not {code!r}")
        if self._ticket is not None:
            _notes(self._ticket).error_code = code


def current_usage() -> Usage:
    """The request being served, as its handler may see and price it."""
    return Usage(current.get())


def _notes(ticket: Ticket) -> Notes:
    notes = ticket.notes
    if notes is None:
        notes = ticket.notes = Notes()
        ticket.usual = False
    return notes


def amount_of(amount: object) -> int | Decimal:
    """*amount* as exact units: int or Decimal; a finite float is read as it is written. Never negative."""
    if isinstance(amount, float) and math.isfinite(amount):
        amount = Decimal(str(amount))
    if isinstance(amount, bool) or not isinstance(amount, int | Decimal) or not Decimal(amount).is_finite():
        raise UsageError(f"an amount is an int, a Decimal or a finite float, not {shown(amount)}")
    if not 0 <= amount < 2**53:
        raise UsageError(f"an amount is from 0 to 2^53 - 1 units, not {shown(amount)}: giving back is a refund")
    return amount
