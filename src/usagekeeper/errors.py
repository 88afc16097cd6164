"""What can go wrong, named by who is wrong: the developer, the engine behind, or the caller."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usagekeeper.decisions import Decision


def shown(value: object) -> str:
    """*value* for a sentence. Python itself refuses to write out an integer of more than 4,300 digits."""
    return f"an integer of {value.bit_length()} bits" if isinstance(value, int) and abs(value) >> 512 else repr(value)


class UsageError(Exception):
    """The root of everything this package raises."""


class ConfigurationError(UsageError, ValueError):
    """An option is wrong. The sentence shows the offending value and the way out."""


class StoreUnavailable(UsageError):
    """A backend did not answer in time; the cause is kept. What follows is the policy's `on_outage`."""


class QuotaExceeded(UsageError):
    """A limit refused a charge that was made by an explicit call; the decision is attached."""

    def __init__(self, message: str, *, decision: Decision) -> None:
        super().__init__(message)
        self.decision = decision

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(QuotaExceeded, decision=self.decision), self.args

    @property
    def remaining(self) -> int | None:
        """Units left of the tightest limit."""
        return self.decision.remaining

    @property
    def renews_at(self) -> float | None:
        """When more is available, in epoch seconds."""
        return self.decision.renews_at
