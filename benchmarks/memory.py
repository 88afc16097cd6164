"""What the front holds in memory: streams in both directions, many streams at once, a million clients, a flood of keys.

Rows 15, 16, 20, 21 and 30 of the targets. Streams are measured as the resident memory of real servers, against the bare
application on the same server in the same run. Linux alone (/proc).
"""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any, Final

from benchmarks.counters import FOUR, population
from usagekeeper import Policy, Rate, UsageKeeper, UsageRecord
from usagekeeper.asgi import UsageMiddleware
from usagekeeper.counters.memory import MemoryCounters
from usagekeeper.limits import LimitSet
from usagekeeper.values import Charge, Operation

MEGABYTE: Final = 1 << 20
SERVED: Final = """
from usagekeeper import Policy
PIECE = b"x" * 65536
async def asgi(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(800 if scope["path"] == "/down" else 1):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body"})
def wsgi(environ, start_response):
    while environ["wsgi.input"].read(65536):
        pass
    start_response("200 OK", [])
    return (PIECE for _ in range(800 if environ["PATH_INFO"] == "/down" else 1))
app = {protocol}
if {watched}:
    from usagekeeper.{protocol} import UsageMiddleware
    app = UsageMiddleware(app, store="memory://", policies=[Policy("p", limits=["9000/second"])])
"""
COMMANDS: Final = {
    "asgi": ["-m", "uvicorn", "measured:app", "--no-access-log", "--lifespan", "off", "--log-level", "error", "--port"],
    "wsgi": ["-m", "waitress", "--listen"],
}


def streamed(protocol: str, *, watched: bool) -> dict[str, float]:
    """MiB that the peak of a server grows by 50 MB up and 50 MB down."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        source = SERVED.replace("{protocol}", protocol).replace("{watched}", str(watched))
        Path(folder, "measured.py").write_text(source)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        place = [str(port)] if protocol == "asgi" else [f"127.0.0.1:{port}", "measured:app"]
        process = subprocess.Popen([sys.executable, *COMMANDS[protocol], *place], cwd=folder)
        try:
            _served(port, "/", b"warm")
            found = {}
            for name, path, body in (("up", "/", b"x" * (50 * MEGABYTE)), ("down", "/down", b"")):
                before = _peak(process.pid)
                _served(port, path, body)
                found[name] = _peak(process.pid) - before
            return found
        finally:
            process.terminate()
            process.wait(20)


def _served(port: int, path: str, body: bytes) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), 30)
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
    with connection:
        head = f"POST {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        while connection.recv(MEGABYTE):
            pass


def _peak(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def waiting(count: int, *, watched: bool) -> tuple[float, int]:
    """Bytes that each of *count* waiting streams holds, and how many objects are left after they were cancelled."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await asyncio.Event().wait()

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None: ...

    served: Any = app
    if watched:
        keeper = UsageKeeper(store="memory://", policies=[Policy("p", limits=["90000/second"])])
        served = UsageMiddleware(app, keeper=keeper)

    async def run() -> float:
        headers = [(b"host", b"h")]
        shared = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/x", "query_string": b""}
        shared |= {"scheme": "http", "root_path": "", "headers": headers, "client": ("203.0.113.9", 1)}
        tracemalloc.start()
        tasks = [asyncio.ensure_future(served(dict(shared), receive, send)) for _ in range(count)]
        for _ in range(5):
            await asyncio.sleep(0)
        held = tracemalloc.get_traced_memory()[0] / count
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return held

    objects = _objects()
    held = asyncio.run(run())
    return held, _objects() - objects


def _objects() -> int:
    """What the garbage collector knows of, less the records that the store in memory keeps, as it should."""
    gc.collect()
    return sum(type(one) is not UsageRecord for one in gc.get_objects())


def live_keys(keys: int = 100_000, hits: int = 20_000) -> tuple[float, float]:
    """Per cent of a core that 1,000 hits a second on *keys* live keys take, and milliseconds of the worst decision."""
    limits = LimitSet("bench", "default", FOUR)
    counters = MemoryCounters()
    now = 1_800_000_000_000_000
    names = [f"client-{number}" for number in range(keys)]
    for name in names:
        counters.apply(Operation([Charge(limits, name, 1)], now))
    pick = random.Random(7).randrange
    worst, begin = 0.0, time.process_time()
    for number in range(hits):
        operation = Operation([Charge(limits, names[pick(keys)], 1)], now + number * 1000)
        before = time.thread_time()
        counters.apply(operation)
        worst = max(worst, time.thread_time() - before)
    return (time.process_time() - begin) / hits * 1000 * 100, worst * 1e3


def flood(keys: int, room: int = 100_000, length: int = 16) -> tuple[float, bool]:
    """MiB that the second half of *keys* distinct keys adds to *room* rows, and whether the used-up key stayed so."""
    limits = LimitSet("bench", "default", [Rate(1, "day", "fixed")])
    counters = MemoryCounters(max_subjects=room)
    now = 1_800_000_000_000_000
    counters.apply(Operation([Charge(limits, "victim", 1)], now))
    half = 0
    for number in range(keys):
        if number == keys // 2:
            half = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        counters.apply(Operation([Charge(limits, f"{number:0{length}x}", 1)], now + number))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - half) / 1024
    return grown, counters.apply(Operation([Charge(limits, "victim", 1)], now + keys)).refused


def main() -> None:
    """Print every figure."""
    for protocol in ("asgi", "wsgi"):
        bare, ours = streamed(protocol, watched=False), streamed(protocol, watched=True)
        for way in bare:
            print(f"{protocol}, 50 MB {way:4}  peak grows by {bare[way]:6.2f} MiB bare, {ours[way]:6.2f} MiB watched")
    bare_held, bare_left = waiting(10_000, watched=False)
    held, left = waiting(10_000, watched=True)
    print(f"10,000 waiting streams: {bare_held:.0f} bytes each bare, {held - bare_held:.0f} more when watched;")
    print(f"    objects left after they were cancelled: {bare_left} bare, {left} watched")
    for name, value in population(1_000_000).items():
        print(f"a million clients: {name:48} {value:8.2f}")
    share, worst = live_keys()
    print(f"100,000 live keys at 1,000 hits a second: {share:.2f} % of a core, worst decision {worst:.2f} ms")
    grown, refused = flood(10_000_000)
    print(f"10 million distinct keys into 100,000 rows: second half adds {grown:.2f} MiB; used up stays so: {refused}")


if __name__ == "__main__":
    main()
