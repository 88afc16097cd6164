"""The clients of the demo: each calls the sample API in a thread of its own, over HTTP, and counts what it got."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final, NamedTuple

from usagekeeper.demo import HOST

AGENT: Final = "usagekeeper-demo/"
"""How the User-Agent of these clients begins, so that their records can be told from those of others."""
_PATIENCE: Final = 20.0
"""Seconds to wait for an answer."""
_EMPTY: Final = re.compile(r";r=0;t=(\d+)", re.ASCII)

Call = tuple[str, str]


class Client(NamedTuple):
    """Somebody who calls the API every *pause* seconds; a polite one waits for more when nothing is left."""

    name: str
    habit: str
    pause: float
    calls: Sequence[Call]
    headers: Mapping[str, str]
    polite: bool = False


CLIENTS: Final = (
    Client("acme", "waits when 0 are left", 0.3, [("GET", "/api/items/7")], {"X-Customer": "acme"}, polite=True),
    Client("globex", "6 calls a second", 1 / 6, [("GET", "/api/items/8")], {"X-Customer": "globex"}),
    Client(
        "initech",
        "404s, reports, streams",
        1.5,
        [("GET", "/api/items/404"), ("POST", "/api/reports"), ("GET", "/api/stream"), ("GET", "/api/items/9")],
        {"X-Customer": "initech"},
    ),
    Client("anonymous", "limited by its address", 1 / 3, [("GET", "/api/items/10")], {}),
)


@dataclass(slots=True)
class Tally:
    """What one client has seen. Written by its thread alone."""

    sent: int = 0
    answered: int = 0
    allowed: int = 0
    refused: int = 0
    left: str | None = None
    """What the last answer said was left."""
    failure: str | None = None
    """Why the last unanswered request was not answered."""


class Traffic:
    """All clients at work."""

    def __init__(self, port: int, clients: Sequence[Client] = CLIENTS) -> None:
        self.tallies = {client.name: Tally() for client in clients}
        self._port = port
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(client,), daemon=True) for client in clients]

    def start(self) -> None:
        """Begin to call."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Call no more, and wait for the answers that are still to come."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _work(self, client: Client) -> None:
        tally = self.tallies[client.name]
        for method, path in cycle(client.calls):
            wait = _call(self._port, client, method, path, tally)
            if self._stopped.wait(max(client.pause, wait if client.polite else 0)):
                return


def _call(port: int, client: Client, method: str, path: str, tally: Tally) -> float:
    """One request over a connection of its own; returns the seconds until there is more, where nothing is left."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_PATIENCE)
    tally.sent += 1
    try:
        connection.request(method, path, headers={"User-Agent": AGENT + client.name, **client.headers})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        tally.failure = f"{method} {path}: {error or type(error).__name__}"
        return 0.0
    finally:
        connection.close()
    if answer.status == 429:
        tally.refused += 1
    else:
        tally.allowed += 1
    tally.answered += 1
    tally.left = answer.headers.get("X-RateLimit-Remaining", tally.left)
    empty = _EMPTY.search(answer.headers.get("RateLimit", ""))
    return float(empty[1]) if empty else 0.0
