"""The state of one watched exchange, from its first byte to its record, in one small object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from usagekeeper.exchange import Refusal, Request
from usagekeeper.sources import Lack
from usagekeeper.values import Charge, Spends

if TYPE_CHECKING:
    from decimal import Decimal

    from usagekeeper.decisions import HeaderForm
    from usagekeeper.policies import Line, RoutePlan


class Notes(msgspec.Struct):
    """What the handler said about its request."""

    units: int | Decimal = 0
    error_code: str | None = None
    metadata: dict[str, Any] = {}


class Ticket(msgspec.Struct):
    """An exchange that is being watched. The drivers extend it with what they need to pass bytes on.

    *at* is the wall clock in microseconds, *began* and *started* the timer in nanoseconds.
    """

    plan: RoutePlan
    request: Request
    at: int
    began: int
    subject: str | None = None
    kind: str | None = None
    charges: Sequence[Charge] = ()
    payer: Line | None = None
    """The policy of the first charge, where it is not the only one."""
    found: Sequence[Any] | None = None
    """Identities that were gathered before pricing, one per policy."""
    lacks: Lack | None = None
    """What has to be fetched, and pricing done again, before the subject is known."""
    form: HeaderForm | None = None
    """How the client is told where it stands."""
    spends: Spends | None = None
    refusal: Refusal | None = None
    reason: str | None = None
    violated: tuple[str, ...] = ()
    exempt: bool = False
    unmetered: bool = False
    status: int = 0
    started: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    length: str | bytes | None = None
    mimetype: str | bytes | None = None
    exception: str | None = None
    closed: bool = False
    usual: bool = False
    """Decided by the subject alone and served, with nothing to add: what most records say of their outcome."""
    notes: Notes | None = None

    def raised(self, error: BaseException) -> None:
        """The application raised *error*, whoever answers for it."""
        self.exception = type(error).__name__
        self.usual = False
