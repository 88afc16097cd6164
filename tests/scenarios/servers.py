"""Real servers on free loopback ports, ended by the process that started them; and clients on plain sockets."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

from tests.helpers import PATIENCE
from usagekeeper import RecordQuery, UsageRecord
from usagekeeper.stores.sqlite import SqliteStore

# The kernel ends the server when the tests are killed: a launcher asks for it, because hooks of `subprocess` would run
# in a fork of the test process.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells start what runs in the background with ^C ignored
os.execv(sys.argv[1], sys.argv[1:])
"""


class Response(NamedTuple):
    """What came back."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


class Program:
    """A Python program in a folder: *source* is its module *name*, and *arguments* are those of Python."""

    def __init__(self, folder: Path, source: str, arguments: Sequence[str], name: str = "served") -> None:
        self.folder = folder
        (folder / f"{name}.py").write_text(dedent(source))
        self.log = folder / f"{name}.log"
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("USAGEKEEPER_", "COV_"))}
        command = [sys.executable, "-c", _LAUNCHER, sys.executable, *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**environ, "PYTHONUNBUFFERED": "1"},
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> int:
        """The exit code of a program that ends by itself."""
        return self.process.wait(PATIENCE)

    def until(self, holds: Callable[[], bool]) -> None:
        """Ask again and again."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, f"it never happened:\n{self.output}"
            time.sleep(0.01)

    def wait_for(self, words: str) -> None:
        """Wait until the program has said so."""
        self.until(lambda: words in self.output or self.process.poll() is not None)
        assert words in self.output, self.output

    def kill(self) -> None:
        """End whatever is left, children too: they are of the session that was made for them."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


class Server(Program):
    """A program that listens on a port."""

    def __init__(self, folder: Path, source: str, arguments: Callable[[int], Sequence[str]]) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port: int = taken.getsockname()[1]
        super().__init__(folder, source, arguments(self.port))

    def ready(self) -> Server:
        """Wait until somebody listens."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self.process.poll() is None, f"the server has ended:\n{self.output}"
                assert time.monotonic() < deadline, f"nobody listens:\n{self.output}"
                time.sleep(0.01)
            else:
                return self

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> int:
        """Ask the server to end, and wait for its exit code."""
        self.process.send_signal(with_signal)
        return self.process.wait(PATIENCE)

    def raw(self, request: bytes) -> Response:
        """What the server answers to these very bytes."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            connection.sendall(request)
            method = request.split(b" ", 1)[0].decode("latin-1")
            response = http.client.HTTPResponse(connection, method=method)
            try:
                response.begin()
                return Response(response.status, response.getheaders(), response.read())
            except (http.client.HTTPException, ConnectionError) as error:
                raise AssertionError(f"{request!r}: {error!r}\n{self.output}") from error
            finally:
                response.close()

    def __call__(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        """One request on a connection of its own."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return self.raw("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    def crowd(self, requests: Iterable[Mapping[str, str]], target: str, clients: int = 16) -> list[tuple[str, int]]:
        """The X-Request-Id and status of many requests that *clients* send as fast as they can, all from the start."""
        together = threading.Barrier(clients)
        started = threading.local()

        def ask(headers: Mapping[str, str]) -> tuple[str, int]:
            if not hasattr(started, "yes"):
                started.yes = True
                together.wait(PATIENCE)
            return headers["X-Request-Id"], self("GET", target, headers).status

        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(ask, requests))

    def records(self, name: str = "usagekeeper.db") -> list[UsageRecord]:
        """What is in the store, oldest first."""
        store = SqliteStore(self.folder / name)
        try:
            return list(store.read(RecordQuery()))
        finally:
            store.close()


def uvicorn(*more: str) -> Callable[[int], list[str]]:
    """The command line of uvicorn for `served.app`."""
    return lambda port: ["-m", "uvicorn", "served:app", "--port", str(port), "--no-access-log", *more]


def gunicorn(*more: str) -> Callable[[int], list[str]]:
    """The command line of gunicorn for `served.app`."""
    return lambda port: [
        "-m", "gunicorn", "served:app", "--bind", f"127.0.0.1:{port}", "--no-control-socket", "--log-level", "warning",
        *more,
    ]  # fmt: skip


def granian(interface: str, *more: str) -> Callable[[int], list[str]]:
    """The command line of granian for `served.app`."""
    return lambda port: [
        "-m", "granian", "served:app", "--interface", interface, "--port", str(port), "--log-level", "warning", *more,
    ]  # fmt: skip


def hypercorn(*more: str) -> Callable[[int], list[str]]:
    """The command line of hypercorn for `served.app`."""
    return lambda port: ["-m", "hypercorn", "served:app", "--bind", f"127.0.0.1:{port}", *more]


def daphne(*more: str) -> Callable[[int], list[str]]:
    """The command line of daphne for `served.app`."""
    return lambda port: ["-m", "daphne", "--port", str(port), *more, "served:app"]


def uwsgi(*more: str) -> Callable[[int], list[str]]:
    """The command line of uWSGI for `served.app`; without threads it would have none for the recorder either."""
    options = [
        "--master",
        "--hook-master-start",
        "unix_signal:15 gracefully_kill_them_all",
        "--enable-threads",
        "--need-app",
        "--disable-logging",
        "--module",
        "served:app",
    ]
    return lambda port: [
        "-c", "import pyuwsgi; pyuwsgi.run()", "--http-socket", f"127.0.0.1:{port}", *options, *more,
    ]  # fmt: skip


def werkzeug() -> Callable[[int], list[str]]:
    """The command line of Werkzeug's own server for `served.app`."""
    return lambda port: ["-m", "flask", "--app", "served:app", "run", "--port", str(port), "--with-threads"]


def waitress(*more: str) -> Callable[[int], list[str]]:
    """The command line of waitress for `served.app`."""
    return lambda port: ["-m", "waitress", "--listen", f"127.0.0.1:{port}", *more, "served:app"]
