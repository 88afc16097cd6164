"""What the store holds of the demo, client by client, read while the sample API writes it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from usagekeeper.demo.clients import AGENT
from usagekeeper.records import REFUSED
from usagekeeper.stores.base import RecordQuery, UsageStore

OTHERS: Final = ""
"""Stands for whoever is none of the demo's clients."""
_OVERLAP: Final = 10_000_000
"""Microseconds: a record is written when its request ends, and looked for by when it began."""


@dataclass(slots=True)
class Recorded:
    """The records of one client."""

    records: int = 0
    refused: int = 0
    units: int = 0


class Ledger:
    """Counts the records of *store*; each `read` looks only for what is new."""

    def __init__(self, store: UsageStore) -> None:
        self.clients: defaultdict[str, Recorded] = defaultdict(Recorded)
        self._store = store
        self._latest = 0
        self._known: dict[UUID, int] = {}

    def read(self) -> None:
        """Count what has come in since the last time."""
        since = self._latest - _OVERLAP
        for record in self._store.read(RecordQuery(since=max(0, since))):
            if record.id in self._known:
                continue
            self._known[record.id] = record.at
            self._latest = max(self._latest, record.at)
            agent = record.user_agent or ""
            row = self.clients[agent.removeprefix(AGENT) if agent.startswith(AGENT) else OTHERS]
            row.records += 1
            row.refused += record.outcome == REFUSED
            row.units += int(record.units)
        self._known = {known: at for known, at in self._known.items() if at >= self._latest - _OVERLAP}
