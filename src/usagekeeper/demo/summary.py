"""Whether the demo adds up: what the clients counted beside what the store recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from usagekeeper.demo.clients import CLIENTS, Tally
from usagekeeper.demo.ledger import OTHERS, Ledger, Recorded


class Row(NamedTuple):
    """One client as it counted and as it was recorded."""

    name: str
    habit: str
    sent: int
    answered: int
    allowed: int
    refused: int
    left: str | None
    recorded: int
    recorded_refused: int
    units: int

    @property
    def adds_up(self) -> bool:
        """Every request was answered and recorded, as what it was."""
        return (
            self.sent == self.answered == self.recorded
            and self.allowed + self.refused == self.sent
            and self.refused == self.recorded_refused
        )


def rows(tallies: Mapping[str, Tally], ledger: Ledger) -> list[Row]:
    """The clients in their order."""
    return [_row(client.name, client.habit, tallies[client.name], ledger.clients[client.name]) for client in CLIENTS]


def _row(name: str, habit: str, tally: Tally, recorded: Recorded) -> Row:
    return Row(
        name,
        habit,
        tally.sent,
        tally.answered,
        tally.allowed,
        tally.refused,
        tally.left,
        recorded.records,
        recorded.refused,
        recorded.units,
    )


def total(clients: Sequence[Row]) -> Row:
    """All of them."""
    sums = {name: sum(getattr(row, name) for row in clients) for name in _SUMMED}
    return Row("total", "", left=None, **sums)


_SUMMED = ("sent", "answered", "allowed", "refused", "recorded", "recorded_refused", "units")


class Summary(NamedTuple):
    """The end of a demo."""

    seconds: float
    clients: list[Row]
    others: int
    """Records of requests that were not the demo's own."""
    failures: list[str]

    @property
    def adds_up(self) -> bool:
        """For every client, so for all of them too."""
        return all(row.adds_up for row in self.clients)

    def sentence(self) -> str:
        """The figures in words."""
        all_ = total(self.clients)
        said = (
            f"{all_.sent} requests sent, {all_.answered} answered, {all_.recorded} recorded;"
            f" {all_.allowed} allowed + {all_.refused} refused = {all_.allowed + all_.refused}."
        )
        own = f" Besides these, {self.others} of your own were recorded." if self.others else ""
        return said + (" It adds up." if self.adds_up else " It does not add up.") + own

    def as_json(self) -> dict[str, Any]:
        """The figures for programs."""
        all_ = total(self.clients)
        return {
            "seconds": round(self.seconds, 3),
            **{name: getattr(all_, name) for name in _SUMMED},
            "others_recorded": self.others,
            "adds_up": self.adds_up,
            "failures": self.failures,
            "clients": [{**row._asdict(), "adds_up": row.adds_up} for row in self.clients],
        }


def summary(seconds: float, tallies: Mapping[str, Tally], ledger: Ledger) -> Summary:
    """The end of a demo that took *seconds*."""
    failures = [f"{name}: {tally.failure}" for name, tally in tallies.items() if tally.failure]
    return Summary(seconds, rows(tallies, ledger), ledger.clients[OTHERS].records, failures)
