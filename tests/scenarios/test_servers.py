"""The same story on every server: what was answered is what was recorded, also of the last second before it ended."""

import signal
import socket
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import NamedTuple

import pytest

from tests.helpers import PATIENCE
from tests.scenarios.conftest import Serve
from tests.scenarios.servers import Server, daphne, granian, gunicorn, hypercorn, uvicorn, uwsgi, waitress, werkzeug
from usagekeeper import UsageRecord

STARLETTE = """
import asyncio
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from usagekeeper import Header, Policy
from usagekeeper.asgi import UsageMiddleware

async def item(request: Request) -> Response:
    return PlainTextResponse("an item")

async def echo(request: Request) -> Response:
    return Response(await request.body())

async def cookies(request: Request) -> Response:
    response = PlainTextResponse("sweet")
    response.set_cookie("one", "1")
    response.set_cookie("two", "2")
    return response

async def stream(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for letter in b"abc":
            yield bytes([letter]) * 1000
    return StreamingResponse(chunks())

async def endless(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield bytes(10_000)
            await asyncio.sleep(0)
    return StreamingResponse(chunks())

async def failure(request: Request) -> Response:
    raise LookupError("private words")

paths = {
    "/api/item": item, "/api/cookies": cookies, "/api/stream": stream, "/api/endless": endless,
    "/api/failure": failure, "/health": item,
}
routes = [Route(path, handler) for path, handler in paths.items()]
app = Starlette(routes=[*routes, Route("/api/echo", echo, methods=["POST"])])
app.add_middleware(
    UsageMiddleware,
    whitelist=["GET /health"],
    policies=[Policy("default", identity=Header("X-Customer"), limits=["3/hour"])],
)
"""

FLASK = """
from collections.abc import Iterator

from flask import Flask, Response, request

from usagekeeper import Header, Policy
from usagekeeper.flask import UsageMiddleware

app = Flask(__name__)
UsageMiddleware(
    app,
    whitelist=["GET /health"],
    policies=[Policy("default", identity=Header("X-Customer"), limits=["3/hour"])],
)

@app.get("/api/item")
@app.get("/health")
def item() -> Response:
    return Response("an item")

@app.post("/api/echo")
def echo() -> Response:
    return Response(request.get_data())

@app.get("/api/cookies")
def cookies() -> Response:
    response = Response("sweet")
    response.set_cookie("one", "1")
    response.set_cookie("two", "2")
    return response

@app.get("/api/stream")
def stream() -> Response:
    return Response(bytes([letter]) * 1000 for letter in b"abc")

@app.get("/api/endless")
def endless() -> Response:
    def chunks() -> Iterator[bytes]:
        while True:
            yield bytes(10_000)
    return Response(chunks())

@app.get("/api/failure")
def failure() -> str:
    raise LookupError("private words")
"""

HEEDING = """
import signal, sys

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # exit hooks run after this, and not after the signal alone
"""


class How(NamedTuple):
    """How a server is run, and what it does in its own way."""

    source: str
    arguments: Callable[[int], Sequence[str]]
    pipelines: bool = True
    """Answers the second of two requests that came in one go."""
    chunks: bool = True
    """Hands over a body that came in chunks."""
    leaves: bool = True
    """Notices soon that a client has left."""
    ends_by: signal.Signals = signal.SIGTERM
    """The signal after which it runs exit hooks."""


SERVERS = {
    "uvicorn, h11": How(STARLETTE, uvicorn("--http", "h11")),
    "uvicorn, httptools": How(STARLETTE, uvicorn("--http", "httptools")),
    "granian, asgi": How(STARLETTE, granian("asgi")),
    "hypercorn": How(STARLETTE, hypercorn()),
    "daphne": How(STARLETTE, daphne()),
    "gunicorn, asgi": How(STARLETTE, gunicorn("--worker-class", "asgi", "--asgi-disconnect-grace-period", "0")),
    "gunicorn, sync": How(FLASK, gunicorn(), pipelines=False),
    "gunicorn, gthread": How(FLASK, gunicorn("--worker-class", "gthread", "--threads", "4")),
    "gunicorn, preloaded": How(FLASK, gunicorn("--preload", "--workers", "2"), pipelines=False),
    "granian, wsgi": How(FLASK, granian("wsgi")),
    "uwsgi": How(FLASK, uwsgi(), pipelines=False, chunks=False),
    "waitress": How(FLASK, waitress(), leaves=False, ends_by=signal.SIGINT),
    "werkzeug": How(FLASK, werkzeug(), pipelines=False, ends_by=signal.SIGINT),
}
MATRIX = pytest.mark.parametrize("how", SERVERS.values(), ids=list(SERVERS))

Told = tuple[int, str, int | Decimal, int, int, bool]
"""Status, outcome, units, bytes in, bytes out, whether the response was cut short."""


@MATRIX
def test_what_a_server_answered_is_what_was_recorded(serve: Serve, how: How) -> None:
    server = serve(how.source, how.arguments)
    answered = ask_everything(server, how)
    answered |= pipeline(server, how)
    left = leave(server) if how.leaves else None
    assert server("GET", "/health", {"X-Request-Id": "never"}).status == 200
    answered |= {"last": ask(server, "last", "GET", "/api/item")}
    server.stop(how.ends_by)

    records = {record.request_id: record for record in server.records()}
    assert len(records) == len(server.records()), "something was recorded twice"
    assert records.pop("left", None) == left
    recorded: dict[str | None, Told] = {
        name: (one.status, one.outcome, one.units, one.bytes_in, one.bytes_out, one.aborted)
        for name, one in records.items()
    }
    assert recorded == answered
    assert {one.remote_address for one in records.values()} == {"127.0.0.1"}
    assert {name: one.exception for name, one in records.items() if one.exception} == {"failure": "LookupError"}


def ask(server: Server, name: str, method: str, target: str, customer: str = "", body: bytes | None = None) -> Told:
    """What was answered, as its record should tell it."""
    answer = server(method, target, {"X-Request-Id": name, "X-Customer": customer or name}, body)
    allowed = answer.status != 429
    units = int(allowed and answer.status < 500)
    return answer.status, "allowed" if allowed else "refused", units, len(body or b""), len(answer.body), False


def ask_everything(server: Server, how: How) -> dict[str, Told]:
    told = {
        "get": ask(server, "get", "GET", "/api/item"),
        "head": ask(server, "head", "HEAD", "/api/item"),
        "post": ask(server, "post", "POST", "/api/echo", body=b"x" * 50_000),
        "stream": ask(server, "stream", "GET", "/api/stream"),
        "nowhere": ask(server, "nowhere", "GET", "/nowhere"),
        "wrong": ask(server, "wrong", "POST", "/api/item", body=b""),
        "failure": ask(server, "failure", "GET", "/api/failure"),
        **{f"busy{n}": ask(server, f"busy{n}", "GET", "/api/item", "busy") for n in range(5)},
    }
    assert [told[name][0] for name in ("get", "head", "post", "stream")] == [200] * 4
    assert [told[name][0] for name in ("nowhere", "wrong", "failure")] == [404, 405, 500]
    assert [told[f"busy{n}"][0] for n in range(5)] == [200, 200, 200, 429, 429]
    assert (told["post"][4], told["stream"][4]) == (50_000, 3000)
    if how.source is STARLETTE:  # hands a body over to HEAD as well, and leaves the answer to an exception to others
        told["head"] = (200, "allowed", 1, 0, len(b"an item"), False)
        told["failure"] = (500, "allowed", 0, 0, 0, True)

    sweet = server("GET", "/api/cookies", {"X-Request-Id": "sweet"})
    cookies = [value.partition(";")[0] for name, value in sweet.headers if name.lower() == "set-cookie"]
    assert cookies == ["one=1", "two=2"]
    told["sweet"] = (200, "allowed", 1, 0, len(sweet.body), False)

    head = "POST /api/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: chunked\r\nX-Customer: chunked\r\n"
    pieces = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n"
    echoed = server.raw(head.encode() + pieces)
    assert echoed.body == (b"abcdefgh" if how.chunks else b"")
    told["chunked"] = (200, "allowed", 1, len(echoed.body), len(echoed.body), False)
    return told


def pipeline(server: Server, how: How) -> dict[str, Told]:
    """Two requests in one go; the second asks for the end of the connection."""
    line = "GET /api/item HTTP/1.1\r\nHost: x\r\nX-Customer: pipe\r\nX-Request-Id: pipe{}\r\n{}\r\n"
    got = b""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall((line.format(0, "") + line.format(1, "Connection: close\r\n")).encode())
        try:
            while piece := client.recv(65536):
                got += piece
        except ConnectionResetError:  # what was not read is thrown away with the connection
            assert not how.pipelines
    answers = got.count(b"an item")
    assert answers == (2 if how.pipelines else 1)
    return {f"pipe{n}": (200, "allowed", 1, 0, len(b"an item"), False) for n in range(answers)}


def leave(server: Server) -> UsageRecord:
    """A client that leaves in the middle of a stream, and the record of it."""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(b"GET /api/endless HTTP/1.1\r\nHost: x\r\nX-Request-Id: left\r\nX-Customer: left\r\n\r\n")
        assert client.recv(1000)
    server.until(lambda: any(record.request_id == "left" for record in server.records()))
    (left,) = (record for record in server.records() if record.request_id == "left")
    assert (left.status, left.outcome, left.units, left.aborted) == (200, "allowed", 1, True)
    assert left.bytes_out >= 10_000
    return left


KILLED = pytest.mark.parametrize("arguments", [waitress(), werkzeug()], ids=["waitress", "werkzeug"])


@KILLED
def test_a_server_without_exit_hooks_loses_only_what_was_answered_last(
    serve: Serve, arguments: Callable[[int], Sequence[str]]
) -> None:
    """SIGTERM kills these two at once; what the recorder had written by then is there."""
    server = serve(FLASK, arguments)
    told = {f"r{n}": ask(server, f"r{n}", "GET", "/api/item")[0] for n in range(20)}
    server.until(lambda: len(server.records()) == 20)
    ask(server, "last", "GET", "/api/item")
    server.stop(signal.SIGTERM)
    records = {record.request_id: record.status for record in server.records()}
    assert records.items() >= told.items()


@KILLED
def test_a_signal_handler_that_exits_saves_the_last_answers_too(
    serve: Serve, arguments: Callable[[int], Sequence[str]]
) -> None:
    server = serve(FLASK + HEEDING, arguments)
    told = {f"r{n}": ask(server, f"r{n}", "GET", "/api/item")[0] for n in range(20)}
    assert server.stop(signal.SIGTERM) == 0
    assert {record.request_id: record.status for record in server.records()} == told
