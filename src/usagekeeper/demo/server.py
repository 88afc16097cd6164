"""The sample API in a process of its own, which ends when its standard input does: nobody can leave it behind."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from usagekeeper.demo import HOST
from usagekeeper.errors import UsageError

_START: Final = 60.0
_END: Final = 15.0
"""Seconds that starting and ending may take."""


@contextmanager
def served(folder: Path, port: int) -> Iterator[int]:
    """Serve the sample API on *port* (0: any that is free) and give the port; afterwards all is written and closed."""
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UsageError(f"port {port} of {HOST}: {reason}; leave out --port to get a free one") from error
    with listener:
        port = listener.getsockname()[1]
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno()), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # ^C is for the demo alone: it ends its clients before the server
        )
    try:
        _wait(port)
        yield port
    finally:
        _end(child)


def _wait(port: int) -> None:
    """Until the first answer; connections wait in the listener's queue."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_START)
    try:
        connection.request("GET", "/api/health")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        raise UsageError(f"the sample API did not start: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.close()
    try:
        child.wait(_END)
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"the sample API did not end within {_END:g} seconds") from error
    finally:  # too slow, or whoever waits has lost patience
        if child.poll() is None:
            child.kill()
            child.wait()


def serve(descriptor: int, folder: Path) -> None:
    """What the child does."""
    import uvicorn

    from usagekeeper.demo.app import build

    config = uvicorn.Config(build(folder), log_level="warning", proxy_headers=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    threading.Thread(target=_stop_at_end_of_input, args=(server,), daemon=True).start()
    server.run(sockets=[socket.socket(fileno=descriptor)])


def _stop_at_end_of_input(server: object) -> None:
    while os.read(0, 1024):
        pass
    server.should_exit = True  # type: ignore[attr-defined]


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
