"""What recording costs behind the request path: encoded records through the recorder into each store.

Rows 25 and 26 of the targets. Processor time of the draining thread; while SQLite writes, others have the interpreter.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.timing import printing, table
from usagekeeper import Header, Policy, UsageKeeper
from usagekeeper.engine import Engine
from usagekeeper.exchange import AsgiRequest
from usagekeeper.recorder import Recorder
from usagekeeper.stores.base import UsageStore
from usagekeeper.stores.memory import MemoryStore
from usagekeeper.stores.sqlite import SqliteStore
from usagekeeper.ticket import Ticket

AGENTS = ["python-httpx/0.28.1", "curl/8.5.0", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"]


def records(count: int) -> list[bytes]:
    """Encoded as the engine does: fifty routes, a thousand subjects, three clients; one in fifty is refused."""
    routes = [f"/v1/things{number}/{{id}}" for number in range(50)]
    policy = Policy("default", identity=Header("X-Customer"), limits=["1000000/minute"], routes=routes)
    engine = UsageKeeper(store="memory://", policies=[policy]).engine()
    pick = random.Random(7).randrange
    return [_record(engine, 1_800_000_000_000_000 + 1000 * number, pick) for number in range(count)]


def _record(engine: Engine, at: int, pick: Callable[[int], int]) -> bytes:
    method, path = ("POST", "GET", "GET", "GET")[pick(4)], f"/v1/things{pick(50)}/{pick(100_000)}"
    raw = {
        b"host": b"api.example.com",
        b"user-agent": AGENTS[pick(3)].encode(),
        b"accept": b"application/json",
        b"x-customer": b"customer-%d" % pick(1000),
        b"authorization": b"Bearer %064x" % pick(1000),
    }
    if method == "POST":
        raw |= {b"content-type": b"application/json", b"content-length": b"%d" % pick(2000)}
    scope = {
        "type": "http", "http_version": "1.1", "scheme": "https", "method": method, "path": path,
        "query_string": b"page=%d" % pick(20) if pick(4) == 0 else b"", "headers": list(raw.items()),
        "client": (f"203.0.113.{pick(250)}", 40_000),
    }  # fmt: skip
    request = AsgiRequest(method, path, scope, raw, False)
    plan = engine.find(method, path)
    assert plan is not None
    began = 1000 * at
    ticket = Ticket(plan, request, at, began, status=200)
    engine.price(ticket)
    ticket.started, ticket.bytes_out, ticket.length = began + 700_000 + pick(9000), pick(5000), b"%d" % pick(5000)
    ticket.mimetype = b"application/json"
    if pick(50) == 0:
        ticket.status, ticket.reason, ticket.usual, ticket.violated = 429, "limit", False, ("default:minute",)
    return engine.close(ticket, ticket.started + pick(900_000))


class Long(SqliteStore):
    """Takes records, as a store of somebody else does."""

    append_encoded = None  # type: ignore[assignment]


STORES: dict[str, Callable[[Path], UsageStore]] = {
    "SQLite, as encoded": SqliteStore,
    "SQLite, by way of records": Long,
    "memory": lambda path: MemoryStore(),
}


def drained(store: UsageStore, encoded: Sequence[bytes], *, at_once: int) -> float:
    """Processor seconds of a thread that brings all of *encoded* to the store, so many at a time."""
    recorder = Recorder(store)
    recorder._start_at = float("inf")  # no other thread: it is this one that is measured
    spent = 0.0
    gc.collect()
    for start in range(0, len(encoded), at_once):
        for record in encoded[start : start + at_once]:
            recorder.record(record)
        begin = time.thread_time()
        assert recorder.flush(600)
        spent += time.thread_time() - begin
    assert recorder.figures().written == len(encoded)
    return spent


def main() -> None:
    """Print one table for each size of batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=7)
    printing(parser)
    arguments = parser.parse_args()
    encoded = records(arguments.records)
    for at_once in (250, 20_000):
        spent, size = dict.fromkeys(STORES, float("inf")), dict.fromkeys(STORES, 0.0)
        for _ in range(arguments.repeats):
            for name, make in STORES.items():
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "usage.db"
                    store = make(path)
                    spent[name] = min(spent[name], drained(store, encoded, at_once=at_once))
                    store.close()
                    size[name] = path.stat().st_size / len(encoded) if path.exists() else 0
        rows = {
            name: (
                us := seconds / len(encoded) * 1e6,
                1e6 / us,
                seconds / spent["SQLite, by way of records"],
                size[name],
            )
            for name, seconds in spent.items()
        }
        columns = {"CPU us": ".2f", "records/s": ".0f", "ratio": ".2f", "bytes on disk": ".0f"}
        table(f"Drained {at_once} at a time", columns, rows, style=arguments.style)


if __name__ == "__main__":
    main()
