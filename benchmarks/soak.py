"""Does anything a client sends make the front crash, stall or grow? A bounded hunt with mutated requests.

Each request goes, as raw bytes, to uvicorn (ASGI) and gunicorn (WSGI), and in process through both drivers. Then paths
and headers of 10 and of 100 KB are compared. Whatever is wrong ends the hunt with what shows it, and exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, unquote_to_bytes

from usagekeeper import Body, ClientAddress, Cookie, FirstOf, Header, Host, PathParam, Policy, Query, UsageKeeper, asgi
from usagekeeper import wsgi as wsgi_driver
from usagekeeper.counters.memory import MemoryCounters

SECRET: Final = "pl4ntedS3cret"
PATHS: Final = [
    "/", "/api/x", "//api//x", "/api/%78", "/api/x%0a", "/api/x%00", "/a/../api/x", "/%2e%2e/", "/api;v=1/x",
    "/api/%2578", "/api/%c0%af", "/%ed%a0%80", "http://u:p@h/api/x", "*", "/token/" + SECRET,
    "/./token/" + SECRET, "/api/x#/health",
    "/api/x?q=1&q=2", "/?user[token]=" + SECRET, "/?%74oken=" + SECRET, "/?a=1;sig=" + SECRET, "/" + "a/" * 300,
]  # fmt: skip
HEADERS: Final = [
    ("X-Customer", "anne"), ("X-Customer", "\xc3\xa9"), ("X-Customer", "\xe9"), ("X-Customer", "a,b"),
    ("Cookie", 'session="\\141bc"; a'), ("Cookie", "session=" + SECRET), ("Authorization", "Bearer " + SECRET),
    ("X-API-Key", SECRET), ("Referer", f"https://u:{SECRET}@h/?token={SECRET}#{SECRET}"), ("X-Customer", ""),
    ("X-Forwarded-For", "::1%25a,[::]:1"),
    ("Forwarded", 'for="[2001:db8::1]:80";by=_x,for=unknown'),
    ("Traceparent", "00-" + "0" * 32 + "-" + "1" * 16 + "-01"),
    ("User-Agent", "a" * 3000), ("Origin", "null"), ("Access-Control-Request-Method", "PUT"), ("X-Request-Id", "\xff"),
    ("Content-Type", "application/json"), ("Content-Type", "application/x-www-form-urlencoded"),
]  # fmt: skip
BODIES: Final = [
    b"", b'{"user":"a"}', b'{"user":"a","user":"b"}', b'{"user":' * 900, b"[" * 9000, b"user=%ff",
    b'{"user":"\\ud800"}',
    b'{"user":' + b"9" * 5000 + b"}", b"user=a&user=b", b"\xff\xfe\x00", b"x" * 70_000,
]  # fmt: skip
METHODS: Final = ["GET", "POST", "HEAD", "OPTIONS", "get", "PROPFIND", "X" * 40]
PIECES: Final = [
    "/", "//", "..", ".", "%", "%25", "%2f", "%00", "%0a", ";", "?", "#", "&", "=", ",", '"', "\\", "[", "]", "é", " ",
    "\t", "@", ":", "a" * 200,
]  # fmt: skip

Sent = tuple[str, str, list[tuple[str, str]], bytes]


def options() -> dict[str, Any]:
    """Rules that read everything a client can send."""
    user = FirstOf(Header("X-Customer"), Cookie("session"), Header("X-API-Key"), Body("user"), Query("q"))
    return {
        "store": "memory://",
        "counters": MemoryCounters(max_subjects=500),
        "trusted_proxies": ["127.0.0.0/8", "203.0.113.0/24"],
        "whitelist": ["GET /health"],
        "policies": [
            Policy("user", identity=user, limits=["9/second", "100/minute"]),
            Policy("host", identity=Host(), limits=["90000/second"], mode="soft"),
            Policy("part", routes=["/token/{token}", "/api/:b/*"], limits=["9000/second"], identity=PathParam("token")),
            Policy("address", identity=ClientAddress(), limits=["90000/second"], mode="shadow"),
        ],
    }


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    """Reads all and answers a little."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else b"ok"})


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    """The same."""
    while environ["wsgi.input"].read(8192):
        pass
    start_response("200 OK", [("Content-Length", "2")])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"ok"]


def served(protocol: str) -> Any:
    """What the servers of this hunt are told to serve."""
    built: Any = asgi.UsageMiddleware(asgi_app, **options())
    return built if protocol == "asgi" else wsgi_driver.UsageMiddleware(wsgi_app, **options())


# -- what is sent -----------------------------------------------------------------------------------------------------


def mutated(text: str, chance: random.Random) -> str:
    """*text* with a few pieces put in, taken out, doubled or turned round."""
    changes = chance.randrange(4)
    if changes:
        text = text.replace(SECRET, "s3")  # turned round, it would stand where no secret does
    for _ in range(changes):
        at, to = sorted((chance.randrange(len(text) + 1), chance.randrange(len(text) + 1)))
        kind = chance.randrange(5)
        middle = text[at:to]
        new = [chance.choice(PIECES), "", middle * 2, middle[::-1], chr(chance.randrange(256))][kind]
        text = (text[:at] + new + text[to if kind else at :])[:20_000]
    return text


def drawn(chance: random.Random) -> Sent:
    """One hostile request."""
    headers = [(name, mutated(value, chance)) for name, value in chance.choices(HEADERS, k=chance.randrange(7))]
    body = chance.choice(BODIES)
    if chance.random() < 0.3:
        body = mutated(body.decode("latin-1"), chance).encode("latin-1", "replace")
    return chance.choice(METHODS), mutated(chance.choice(PATHS), chance), headers, body


def shown(sent: Sent) -> str:
    """A request that shows a fault."""
    method, target, headers, body = sent
    return f"{method!r}, {target!r}, {headers!r}, {body[:200]!r} ({len(body)} bytes)"


class Wrong(Exception):
    """What the hunt looks for."""


# -- in process -------------------------------------------------------------------------------------------------------


class Drivers:
    """Both drivers, asked directly."""

    def __init__(self) -> None:
        self.asgi = UsageKeeper(**options())
        self.wsgi = UsageKeeper(**options())
        self._asgi: Any = asgi.UsageMiddleware(asgi_app, keeper=self.asgi)
        self._wsgi: Any = wsgi_driver.UsageMiddleware(wsgi_app, keeper=self.wsgi)
        self._runner = asyncio.Runner()

    def __call__(self, sent: Sent) -> None:
        """Raises what the drivers raise, and `Wrong` for what they answer."""
        for ask in (self._ask_asgi, self._ask_wsgi):
            status, said = ask(*sent)
            if status >= 500 or not status:
                raise Wrong(f"{ask.__name__[5:]} answered {status}: {said!r}")
            if status != 200 and SECRET.encode() in said:
                raise Wrong(f"{ask.__name__[5:]} repeated a secret: {said!r}")

    def kept(self) -> list[bytes]:
        """Encoded records that wait to be stored."""
        return [*self.asgi.recorder._buffer, *self.wsgi.recorder._buffer]

    def forget(self) -> None:
        """Begin with an empty store."""
        for keeper in (self.asgi, self.wsgi):
            keeper.flush()
            keeper.store.purge(1 << 62, limit=1 << 30)

    def _ask_asgi(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> tuple[int, bytes]:
        path, _, query = target.partition("?")
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": body}]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop() if len(messages) > 1 else messages[0]

        async def send(message: Any) -> None:
            sent.append(message)

        raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers]
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": unquote(path),
            "query_string": query.encode("latin-1", "replace"), "root_path": "", "client": ("203.0.113.9", 1),
            "headers": [*raw, (b"content-length", b"%d" % len(body))],
        }  # fmt: skip
        self._runner.run(self._asgi(scope, receive, send))
        said = b"".join(one.get("body", b"") + repr(one.get("headers")).encode() for one in sent)
        return (sent[0]["status"] if sent else 0), said

    def _ask_wsgi(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> tuple[int, bytes]:
        path, _, query = target.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method, "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "REMOTE_ADDR": "203.0.113.9",
            "QUERY_STRING": query.encode("latin-1", "replace").decode("latin-1"), "wsgi.input": io.BytesIO(body),
            "wsgi.url_scheme": "http", "CONTENT_LENGTH": str(len(body)),
        }  # fmt: skip
        for name, value in headers:
            key = name.upper().replace("-", "_")
            environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value.encode("latin-1", "replace").decode(
                "latin-1"
            )
        told: list[Any] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
            told[:] = [int(status[:3]), headers]

        response = self._wsgi(environ, start_response)
        said = b"".join(response) + repr(told).encode()
        getattr(response, "close", lambda: None)()
        return (told[0] if told else 0), said


# -- over sockets -----------------------------------------------------------------------------------------------------

SERVERS: Final = {
    "uvicorn, h11": ("asgi", ["-m", "uvicorn", "hunted:app", "--http", "h11", "--no-access-log", "--port"]),
    "uvicorn, httptools": ("asgi", ["-m", "uvicorn", "hunted:app", "--http", "httptools", "--no-access-log", "--port"]),
    "gunicorn": (
        "wsgi",
        ["-m", "gunicorn", "hunted:app", "-k", "gthread", "--threads", "2", "--no-control-socket", "--bind"],
    ),
}  # fmt: skip


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, tuple[int, Path, int]]]:
    """All servers: port, log and process of each."""
    started: dict[str, tuple[int, Path, subprocess.Popen[bytes]]] = {}
    try:
        for name, (protocol, arguments) in SERVERS.items():
            home = folder / name.replace(", ", "-")
            home.mkdir()
            (home / "hunted.py").write_text(f"from benchmarks.soak import served\n\napp = served({protocol!r})\n")
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            log = home / "log"
            place = str(port) if protocol == "asgi" else f"127.0.0.1:{port}"
            environ = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent.parent}{os.pathsep}{home}"}
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [sys.executable, *arguments, place], cwd=home, stdout=out, stderr=out, env=environ
                )
            started[name] = (port, log, process)
        for name, (port, log, process) in started.items():
            _await(port, process, f"{name} does not start:\n{log.read_text()}")
        yield {name: (port, log, process.pid) for name, (port, log, process) in started.items()}
    finally:
        for _, _, process in started.values():
            process.send_signal(signal.SIGTERM)
        for _, _, process in started.values():
            process.wait(20)


def _await(port: int, process: subprocess.Popen[bytes], otherwise: str) -> None:
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise Wrong(otherwise)


def raw(port: int, sent: Sent) -> bytes:
    """What a server answers; nothing where it hangs up on what is no HTTP."""
    method, target, headers, body = sent
    lines = [f"{method} {target} HTTP/1.1", "Host: h", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers] + [f"Content-Length: {len(body)}"]
    head = "\r\n".join([*(line.replace("\r", "").replace("\n", "") for line in lines), "", ""])
    answer = b""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        try:
            connection.sendall(head.encode("latin-1", "replace") + body)
            while piece := connection.recv(65_536):
                answer += piece
        except ConnectionError:
            pass
        except TimeoutError:
            raise Wrong("no answer within 20 seconds") from None
    return answer


def judge(name: str, answer: bytes, log: Path) -> None:
    """No failure of ours, in the answer or the log."""
    if answer.startswith(b"HTTP/1.1 5"):
        raise Wrong(f"{name} answered {answer[:300]!r}\n{log.read_text(errors='replace')[-3000:]}")
    if SECRET.encode() in answer:
        raise Wrong(f"{name} repeated a secret: {answer[:600]!r}")


def resident(pid: int) -> float:
    """MiB of a process and of its children."""
    total = 0.0
    for process in (pid, *_children(pid)):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) / 1024
    return total


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(one) for one in listed.read_text().split()] if listed.exists() else []


# -- how it grows -----------------------------------------------------------------------------------------------------

GROWING: Final[dict[str, Callable[[int], Sent]]] = {
    "path": lambda n: ("GET", "/" + "a" * n, [], b""),
    "segments": lambda n: ("GET", "/a" * (n // 2), [], b""),
    "dots": lambda n: ("GET", "/.." * (n // 3), [], b""),
    "encoded": lambda n: ("GET", "/" + "%25" * (n // 3), [], b""),
    "semicolons": lambda n: ("GET", "/a" + ";" * n, [], b""),
    "query": lambda n: ("GET", "/?" + "q=1&" * (n // 4), [], b""),
    "cookie": lambda n: ("GET", "/", [("Cookie", 'session="' + '\\"' * (n // 2) + '"')], b""),
    "forwarded": lambda n: ("GET", "/", [("Forwarded", ",for=203.0.113.1" * (n // 16))], b""),
    "referer": lambda n: ("GET", "/", [("Referer", "//@" * (n // 3))], b""),
    "headers": lambda n: ("GET", "/", [(f"X-{at}", "v") for at in range(n // 20)], b""),
    "json": lambda n: ("POST", "/", [("Content-Type", "application/json")], b'{"a":[' * (n // 12)),
    "numbers": lambda n: ("POST", "/", [("Content-Type", "application/json")], b'{"user":' + b"9" * (n // 2) + b"}"),
}


def growth(drivers: Drivers) -> None:
    """Ten times as much takes at most some thirty times as long: what is quadratic takes a hundred times."""
    for name, make in GROWING.items():
        quickest = [min(_timed(drivers, make(size)) for _ in range(7)) for size in (10_000, 100_000)]
        print(f"{name:12} 10 KB {quickest[0] * 1e3:8.2f} ms   100 KB {quickest[1] * 1e3:8.2f} ms")
        if quickest[1] > 30 * quickest[0] + 0.005:
            raise Wrong(f"{name}: more than linear time")


def _timed(drivers: Drivers, sent: Sent) -> float:
    begin = time.perf_counter()
    drivers(sent)
    return time.perf_counter() - begin


# -- the hunt ---------------------------------------------------------------------------------------------------------


_FULL: Final = 10_000
"""Requests after which every cache is full."""


def in_process(drivers: Drivers, chance: random.Random, seconds: float) -> int:
    """Requests through both drivers, and memory that does not grow once caches are full."""
    count, base, end = 0, 0.0, time.monotonic() + seconds
    warm = time.monotonic() + seconds / 2
    while time.monotonic() < end:
        for _ in range(200):
            sent = drawn(chance)
            try:
                drivers(sent)
            except Exception as error:
                raise Wrong(f"in process, {error!r} for {shown(sent)}") from error
            count += 1
        if any(SECRET.encode() in one for one in drivers.kept()):
            raise Wrong(f"a record holds a secret; the last request was {shown(sent)}")
        drivers.forget()
        if not base and time.monotonic() > warm and count > _FULL:
            gc.collect()
            base = resident(os.getpid())
    gc.collect()
    grown = resident(os.getpid()) - base if base else 0.0
    print(f"in process: {count} requests to each driver, {grown:+.2f} MiB in the second half")
    if grown > 16:
        raise Wrong(f"memory grew by {grown:.1f} MiB")
    return count


def live(chance: random.Random, seconds: float) -> None:
    """Requests to real servers, as bytes."""
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as running:
        count, end, half = 0, time.monotonic() + seconds, time.monotonic() + seconds / 2
        before: dict[str, float] = {}
        while time.monotonic() < end:
            sent = drawn(chance)
            for name, (port, log, _) in running.items():
                try:
                    judge(name, raw(port, sent), log)
                except Wrong as error:
                    raise Wrong(f"{error}\nfor {shown(sent)}") from None
            count += 1
            if not before and time.monotonic() > half:
                before = {name: resident(pid) for name, (_, _, pid) in running.items()}
        for name, (_, log, pid) in running.items():
            said = log.read_text(errors="replace")
            grown = resident(pid) - before.get(name, resident(pid))
            print(f"{name}: {count} requests, {grown:+.1f} MiB in the second half")
            if "Traceback" in said or SECRET in said:
                raise Wrong(f"{name} logged:\n{said[-3000:]}")
            if grown > 32:
                raise Wrong(f"{name} grew by {grown:.1f} MiB")


def main() -> None:
    """Hunt, and exit with 1 and what shows the fault when one is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="that of an earlier hunt, to see it again")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}")
    logging.basicConfig(level=logging.WARNING)
    try:
        drivers = Drivers()
        growth(drivers)
        in_process(drivers, random.Random(seed), arguments.seconds / 2)
        live(random.Random(seed + 1), arguments.seconds / 2)
    except Wrong as error:
        sys.exit(f"seed {seed}: {error}")
    print("nothing found")


if __name__ == "__main__":
    main()
