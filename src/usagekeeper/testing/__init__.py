"""What backends and applications are tested with: conformance suites for counters and stores, and a clock by hand."""

from __future__ import annotations


class ManualClock:
    """A clock that moves when told: ``UsageKeeper(clock=ManualClock())``. Epoch seconds."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass; negative ones step the clock back."""
        self.now += seconds
