"""What the middleware costs behind real servers: requests a second, processor time a request, latency.

Rows 5-8 and 12 of the targets. Servers run in processes of their own, on one core where the system allows it, and the
load on another; cases take turns, and the best round counts. Load is made by `wrk` if it is on PATH, else by a client
below. Ends by itself: in about 90 seconds, or 20 with ``--quick`` on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from benchmarks import peers
from benchmarks.request_path import PATH, fastapi_app, flask_app, starlette_app
from benchmarks.timing import printing, table
from usagekeeper import Header, Policy, Rate, UsageKeeper, asgi, wsgi

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30.0
CONNECTIONS = 64
CHUNK = b"x" * 16_384

# -- what is served: the server calls `served` in its own process -----------------------------------------------------


def routes_of_bodies(app: Any) -> Any:
    """FastAPI with two routes more: one takes a small body, one sends 1 MiB in 64 chunks."""

    async def create(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield CHUNK

    async def download() -> StreamingResponse:
        return StreamingResponse(chunks(), media_type="application/octet-stream")

    app.post("/api/items")(create)
    app.get("/api/download", response_model=None)(download)
    return app


def fastapi_with_bodies() -> FastAPI:
    """The application of all cases of FastAPI."""
    app: FastAPI = routes_of_bodies(fastapi_app())
    return app


APPS: dict[str, Callable[[], Any]] = {"FastAPI": fastapi_with_bodies, "Starlette": starlette_app, "Flask": flask_app}
THREE = [Rate(10**6, "minute"), Rate(10**7, "hour"), Rate(10**8, "day")]
FULL = [*THREE, Rate(10**9, "day", "fixed", name="quota")]
FULL_DEFAULT, FULL_MEMORY, REFUSED, RECORD = "full, default files", "full, in memory", "refused", "record only"
OURS: dict[str, tuple[list[Rate], dict[str, Any]]] = {
    FULL_DEFAULT: (FULL, {}),
    FULL_MEMORY: (FULL, {"store": "memory://", "counters": "memory://"}),
    REFUSED: ([Rate(1, "day", "fixed"), *THREE[:2]], {}),
    RECORD: ([], {}),
}
SLOWAPI, FLASK_LIMITER = "slowapi, 3 limits + headers", "flask-limiter, 3 limits + headers"


def served() -> Any:
    """The application that BENCHMARK_APP names, as "framework: case"."""
    framework, _, case = os.environ["BENCHMARK_APP"].partition(": ")
    app = APPS[framework]
    if case == "bare":
        return app()
    if case == SLOWAPI:
        return peers.slowapi_middleware(app)(peers.AMPLE).app
    if case == FLASK_LIMITER:
        return peers.flask_limiter(peers.AMPLE).app
    limits, options = OURS[case]
    policy = Policy("default", routes=["/api/*"], identity=Header("X-Customer"), limits=limits)
    keeper = UsageKeeper(routes=["/api/*"], policies=[policy], **options)
    driver: Any = wsgi.UsageMiddleware if framework == "Flask" else asgi.UsageMiddleware
    return driver(app(), keeper=keeper)


# -- servers ----------------------------------------------------------------------------------------------------------

# Binds itself to a core before anything starts a thread, and is ended by the kernel when the benchmark is killed.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if sys.argv[1]:
    os.sched_setaffinity(0, {int(sys.argv[1])})
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
TARGET = "benchmarks.end_to_end:served"
SERVERS: dict[str, Callable[[str], list[str]]] = {
    "uvicorn": lambda port: [
        "uvicorn", TARGET, "--factory", "--port", port, "--http", "httptools", "--loop", "uvloop", "--no-access-log",
        "--log-level", "warning",
    ],
    "granian": lambda port: [
        "granian", TARGET, "--factory", "--interface", "wsgi", "--host", "127.0.0.1", "--port", port, "--workers", "1",
        "--log-level", "warning",
    ],
    "gunicorn gthread": lambda port: [
        "gunicorn", f"{TARGET}()", "--bind", f"127.0.0.1:{port}", "--worker-class", "gthread", "--threads", "8",
        "--workers", "1", "--no-control-socket", "--log-level", "warning",
    ],
}  # fmt: skip


class Cores(NamedTuple):
    """Where servers and where load run; "" where the system decides."""

    server: str
    load: str

    @classmethod
    def found(cls) -> Cores:
        """One core for each side, if there are two to choose from."""
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
        return cls(str(usable[0]), str(usable[1])) if len(usable) > 1 else cls("", "")


class Unusable(Exception):
    """A case that cannot be measured."""


class Server:
    """One case behind one server, in a process and a folder of its own."""

    def __init__(self, framework: str, server: str, case: str, folder: Path, core: str) -> None:
        self.case = case
        folder.mkdir()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port: int = taken.getsockname()[1]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("USAGEKEEPER_")}
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCHER, core, "-m", *SERVERS[server](str(self.port))],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**environ, "PYTHONPATH": str(ROOT), "BENCHMARK_APP": f"{framework}: {case}"},
            )

    def ready(self) -> None:
        """Wait until it listens, then look at what it answers: twice, so that a limit of one is exhausted."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Unusable(f"the server did not start: {self.log.read_text(errors='replace')[-500:].strip()}")
            time.sleep(0.02)
        self.ask()
        answer = self.ask().lower()
        wanted = b" 429 " if self.case == REFUSED else b" 200 "
        told = b"x-ratelimit-remaining:" in answer
        if wanted not in answer.partition(b"\r\n")[0] or told == (self.case in ("bare", RECORD)):
            raise Unusable(f"it answered {answer!r}")

    def ask(self) -> bytes:
        """One request on a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            connection.sendall(Load("").request(self.port, closing=True))
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    def cpu(self) -> float | None:
        """Seconds of processor time of the server and its children, if the system tells."""
        if not Path("/proc/self/stat").exists():
            return None
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has just ended
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid:  # of the session that was made for it
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End it and its children: they are of the session that was made for them."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


# -- load -------------------------------------------------------------------------------------------------------------


class Round(NamedTuple):
    """What one round of load saw; latencies in milliseconds."""

    requests: int
    per_second: float
    p50: float
    p99: float


class Load(NamedTuple):
    """Which request is sent, and on how many connections."""

    title: str
    method: str = "GET"
    path: str = PATH
    body: bytes = b""
    connections: int = CONNECTIONS

    def headers(self) -> dict[str, str]:
        """Those of a plain client."""
        found = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) bench", "Accept": "*/*", "X-Customer": "client-7"}
        return {**found, "Content-Type": "application/json"} if self.body else found

    def request(self, port: int, *, closing: bool = False) -> bytes:
        """Its bytes."""
        headers = {"Host": f"127.0.0.1:{port}", **self.headers()}
        if self.body:
            headers["Content-Length"] = str(len(self.body))
        if closing:
            headers["Connection"] = "close"
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


GET = Load("GET")
POST = Load("POST 2 KB", "POST", "/api/items", b'{"text": "' + b"x" * 2036 + b'"}')
DOWNLOAD = Load("1 MiB in 64 chunks", path="/api/download", connections=8)
QUIET = Load("GET, 2 connections", connections=2)


def by_wrk(server: Server, load: Load, seconds: float, folder: Path) -> Round:
    """One round by wrk, which runs for whole seconds."""
    script = folder / "request.lua"
    script.write_text(f"wrk.method = '{load.method}'\nwrk.body = [[{load.body.decode()}]]\n" if load.body else "")
    headers = [part for name, value in load.headers().items() for part in ("-H", f"{name}: {value}")]
    options = ["-t1", f"-c{load.connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(script)]
    url = f"http://127.0.0.1:{server.port}{load.path}"
    said = subprocess.run(["wrk", *options, *headers, url], capture_output=True, text=True, check=True).stdout
    return read_wrk(said)


def read_wrk(said: str) -> Round:
    """The figures in wrk's report."""
    units = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}

    def latency(percent: int) -> float:
        found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)$", said, re.MULTILINE)
        if not found:
            raise Unusable(f"wrk said: {said}")
        return float(found[1]) * units[found[2]]

    count = re.search(r"(\d+) requests in", said)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if not count or not rate:
        raise Unusable(f"wrk said: {said}")
    return Round(int(count[1]), float(rate[1]), latency(50), latency(99))


class Client(asyncio.Protocol):
    """One kept connection of the built-in client: sends again as soon as an answer is complete."""

    def __init__(self, request: bytes, until: float, most: int) -> None:
        self.request = request
        self.until = until
        self.most = most
        self.latencies: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.send()

    def send(self) -> None:
        """One request."""
        self.begin = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        self.buffer += data
        if not complete(self.buffer):
            return
        self.buffer.clear()
        now = time.perf_counter()
        self.latencies.append(now - self.begin)
        if now < self.until and len(self.latencies) < self.most:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """The end, be it ours or the server's."""
        if not self.done.done():
            self.done.set_result(None)


def complete(buffer: bytearray) -> bool:
    """Whether *buffer* holds a whole response, with a length or in chunks."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = re.search(rb"\r\ncontent-length: *(\d+)", buffer[: end + 2], re.IGNORECASE)
    if length:
        return len(buffer) >= end + 4 + int(length[1])
    return buffer.endswith(b"\r\n0\r\n\r\n")


async def by_client(server: Server, load: Load, seconds: float, most: int = 100_000) -> Round:
    """One round by the built-in client: at most *seconds*, and *most* requests a connection."""
    loop = asyncio.get_running_loop()
    begin = time.perf_counter()
    clients = []
    for _ in range(load.connections):
        _, client = await loop.create_connection(
            lambda: Client(load.request(server.port), begin + seconds, most), "127.0.0.1", server.port
        )
        clients.append(client)
    await asyncio.wait_for(asyncio.gather(*(client.done for client in clients)), seconds + PATIENCE)
    taken = time.perf_counter() - begin
    latencies = sorted(latency * 1e3 for client in clients for latency in client.latencies)
    if len(latencies) < 2:
        raise Unusable("no request was answered")
    cuts = statistics.quantiles(latencies, n=100)
    return Round(len(latencies), len(latencies) / taken, cuts[49], cuts[98])


# -- groups of cases, and their turns ---------------------------------------------------------------------------------


class Group(NamedTuple):
    """Cases behind one kind of server, and what is asked of which."""

    framework: str
    server: str
    loads: dict[Load, list[str]]

    @property
    def cases(self) -> list[str]:
        return list(dict.fromkeys(case for cases in self.loads.values() for case in cases))


EVERY = ["bare", FULL_DEFAULT, FULL_MEMORY]
GROUPS = [
    Group("FastAPI", "uvicorn", {
        GET: [*EVERY, RECORD, SLOWAPI], POST: ["bare", RECORD], DOWNLOAD: ["bare", RECORD],
    }),
    Group("Starlette", "uvicorn", {GET: [*EVERY, REFUSED, SLOWAPI], QUIET: ["bare", FULL_DEFAULT]}),
    Group("Flask", "granian", {GET: [*EVERY, FLASK_LIMITER]}),
    Group("Flask", "gunicorn gthread", {GET: [*EVERY, FLASK_LIMITER]}),
]  # fmt: skip


@dataclass
class Figures:
    """All rounds of one case under one load."""

    rounds: list[Round] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    """Microseconds of the server's processor time a request, one a round."""


@dataclass(frozen=True)
class Plan:
    """How much is measured, and with what."""

    rounds: int
    seconds: float
    until: float
    """When the last round has to begin, on the monotonic clock."""
    wrk: bool
    cores: Cores


def drive(server: Server, load: Load, plan: Plan, folder: Path) -> Round:
    """One round of load."""
    if plan.wrk:
        return by_wrk(server, load, plan.seconds, folder)
    return asyncio.run(by_client(server, load, plan.seconds))


def turn(server: Server, load: Load, plan: Plan, folder: Path, figures: Figures) -> None:
    """One round of one case; a moment later, when what was left to write is written, its processor time."""
    before = server.cpu()
    seen = drive(server, load, plan, folder)
    figures.rounds.append(seen)
    if before is not None:
        time.sleep(0.1)
        figures.cpus.append(((server.cpu() or before) - before) / seen.requests * 1e6)


def measure(group: Group, plan: Plan) -> tuple[dict[tuple[Load, str], Figures], list[str]]:
    """All cases of *group* in turn, and what could not be measured."""
    figures: dict[tuple[Load, str], Figures] = {}
    failures = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        servers = {
            case: Server(group.framework, group.server, case, folder / str(number), plan.cores.server)
            for number, case in enumerate(group.cases)
        }
        try:
            for case in group.cases:
                try:
                    servers[case].ready()
                except Unusable as error:
                    failures.append(f"Not measured: {case}. {error}")
                    servers.pop(case).stop()
            turns = [(load, case) for load, cases in group.loads.items() for case in cases if case in servers]
            for load, case in turns:  # warm up
                asyncio.run(by_client(servers[case], load, plan.seconds / 4))
            for number in range(plan.rounds):
                for load, case in turns:
                    if number and time.monotonic() > plan.until:
                        break
                    turn(servers[case], load, plan, folder, figures.setdefault((load, case), Figures()))
        finally:
            for server in servers.values():
                server.stop()
    return figures, failures


def rows(found: dict[tuple[Load, str], Figures], load: Load) -> dict[str, list[float | None]]:
    """The best round of each case under *load*, against the bare one."""
    chosen = {case: figures for (one, case), figures in found.items() if one == load and figures.rounds}
    base = best(chosen["bare"]) if "bare" in chosen else None
    shown: dict[str, list[float | None]] = {}
    for case, figures in chosen.items():
        rate, cpu, p50, p99 = best(figures)
        added = cpu - base[1] if base and base[1] is not None and cpu is not None else None
        shown[case] = [rate, rate / base[0] if base else None, cpu, added, p50, p99, p99 - base[3] if base else None]
    return shown


def best(figures: Figures) -> tuple[float, float | None, float, float]:
    """Requests a second, processor time, median and p99, each of its best round: others were only disturbed more."""
    return (
        max(one.per_second for one in figures.rounds),
        min(figures.cpus) if figures.cpus else None,
        min(one.p50 for one in figures.rounds),
        min(one.p99 for one in figures.rounds),
    )


COLUMNS = {
    "requests/s": ".0f", "ratio": ".3f", "CPU us": ".1f", "added CPU": "+.1f", "p50 ms": ".2f", "p99 ms": ".2f",
    "added p99": "+.2f",
}  # fmt: skip


def planned() -> tuple[Plan, argparse.Namespace]:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round a case")
    parser.add_argument("--client", action="store_true", help="use the built-in client even if wrk is on PATH")
    printing(parser)
    arguments = parser.parse_args()
    wrk = not arguments.client and not arguments.quick and shutil.which("wrk") is not None  # wrk knows whole seconds
    rounds, seconds, limit = (1, 0.25, 15.0) if arguments.quick else (2 if wrk else 3, 1.0 if wrk else 0.6, 75.0)
    cores = Cores.found()
    if cores.load:
        os.sched_setaffinity(0, {int(cores.load)})
    return Plan(rounds, seconds, time.monotonic() + limit, wrk, cores), arguments


def main() -> None:
    """Print every table."""
    if importlib.util.find_spec("fcntl") is None:
        sys.exit("These servers need a POSIX system.")
    plan, arguments = planned()
    load_by = "wrk" if plan.wrk else "the built-in client, which may be slower than a bare server"
    where = (
        f"server on core {plan.cores.server}, load on {plan.cores.load}" if plan.cores.load else "no core of its own"
    )
    for group in GROUPS:
        found, failures = measure(group, plan)
        for load in group.loads:
            title = f"{group.framework}, {group.server}: {load.title}"
            notes = [*failures, f"{load.connections} connections; load by {load_by}; {where}."]
            table(title, COLUMNS, rows(found, load), notes=notes, style=arguments.style)


if __name__ == "__main__":
    main()
