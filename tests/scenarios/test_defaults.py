"""An application behind the middleware on a real server, with the defaults: SQLite in the folder it was started in."""

import signal
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.scenarios.conftest import Serve, end, folder
from tests.scenarios.servers import Server, gunicorn, uvicorn, waitress

FASTAPI = """
from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from usagekeeper import Header, Policy, current_usage
from usagekeeper.asgi import UsageMiddleware

app = FastAPI()
app.add_middleware(
    UsageMiddleware,
    routes=[{"method": "*", "url": "/api/*"}],
    whitelist=[{"method": "GET", "url": "/api/health"}],
    policies=[Policy("default", routes=["/api/*"], identity=Header("X-Customer"), limits=["3/hour", "1000/day"])],
)

@app.get("/api/health")
async def health() -> str:
    return "fine"

@app.get("/api/items/{item}")
def item(item: int) -> dict[str, object]:
    usage = current_usage()
    usage.note(item=item)
    return {"item": item, "subject": usage.subject, "remaining": usage.remaining}

@app.post("/api/echo")
async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/octet-stream")

@app.get("/api/stream")
def stream() -> StreamingResponse:
    def chunks() -> Iterator[bytes]:
        for letter in b"abc":
            yield bytes([letter]) * 1000
    return StreamingResponse(chunks())

@app.api_route("/api/file", methods=["GET", "HEAD"])
def file() -> FileResponse:
    return FileResponse("content.bin")

@app.get("/api/endless")
def endless() -> StreamingResponse:
    def chunks() -> Iterator[bytes]:
        while True:
            yield bytes(10_000)
    return StreamingResponse(chunks())

@app.get("/api/failure")
def failure() -> None:
    raise LookupError("private words")
"""

FLASK = """
import os
from collections.abc import Iterator
from pathlib import Path

from flask import Flask, Response, request, send_file

from usagekeeper import Header, Policy, current_usage
from usagekeeper.flask import UsageMiddleware

app = Flask(__name__)
middleware = UsageMiddleware(
    routes=[{"method": "*", "url": "/api/*"}],
    whitelist=[{"method": "GET", "url": "/api/health"}],
    policies=[Policy("default", routes=["/api/*"], identity=Header("X-Customer"), limits=["3/hour", "1000/day"])],
)
middleware(app)

@app.get("/api/health")
def health() -> str:
    return "fine"

@app.get("/api/items/<int:item>")
def item(item: int) -> dict[str, object]:
    usage = current_usage()
    usage.note(item=item)
    return {"item": item, "subject": usage.subject, "remaining": usage.remaining}

@app.post("/api/echo")
def echo() -> Response:
    return Response(request.get_data(), content_type="application/octet-stream")

@app.get("/api/stream")
def stream() -> Response:
    def chunks() -> Iterator[bytes]:
        for letter in b"abc":
            yield bytes([letter]) * 1000
    return Response(chunks())

@app.get("/api/file")
def file() -> Response:
    return send_file(os.path.abspath("content.bin"))

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


GTHREAD = gunicorn("--worker-class", "gthread", "--threads", "4")
SERVERS = {
    "fastapi on uvicorn": (FASTAPI, uvicorn()),
    "flask on gunicorn, sync": (FLASK, gunicorn()),
    "flask on gunicorn, gthread": (FLASK, GTHREAD),
    "flask on waitress": (FLASK, waitress()),
}
FILE = bytes(range(256)) * 2000


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, Server]]:
    """All of them at once, because they take their time to start."""
    started = {name: Server(folder(tmp_path, name), *how) for name, how in SERVERS.items()}
    yield started
    end(started.values())


def test_a_day_in_the_life_of_an_application_on_a_real_server(
    servers: dict[str, Server], subtests: pytest.Subtests
) -> None:
    for name, server in servers.items():
        with subtests.test(name):
            server.ready()
            files_and_clients_that_leave_are_recorded_as_what_they_are(server, leaving="waitress" not in name)
            everything_is_in_the_store_when_the_server_has_ended(server)


def files_and_clients_that_leave_are_recorded_as_what_they_are(server: Server, leaving: bool) -> None:
    (server.folder / "content.bin").write_bytes(FILE)
    assert server("GET", "/api/file").body == FILE
    assert server("HEAD", "/api/file").header("content-length") == str(len(FILE))
    server.until(lambda: len(server.records()) == 2)
    whole, head = server.records()
    assert (whole.status, whole.bytes_out, whole.response_length, whole.aborted) == (200, len(FILE), len(FILE), False)
    assert (head.status, head.bytes_out, head.response_length, head.aborted) == (200, 0, len(FILE), False)
    if not leaving:
        return  # waitress reads on for seconds before it notices
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.sendall(b"GET /api/endless HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000)
    server.until(lambda: len(server.records()) == 3)
    left = server.records()[2]
    assert (left.path, left.status, left.aborted, left.units) == ("/api/endless", 200, True, 1)
    assert left.bytes_out >= 10_000


def everything_is_in_the_store_when_the_server_has_ended(server: Server) -> None:
    served = [server("GET", f"/api/items/{n}", {"X-Customer": "anne", "X-Request-Id": f"r{n}"}) for n in range(5)]
    assert [answer.status for answer in served] == [200, 200, 200, 429, 429]
    check_headers(server)

    assert b'"subject":"anne"' in served[0].body.replace(b" ", b"")
    assert served[0].header("ratelimit-policy") == '"default-hour";q=3;w=3600, "default-day";q=1000;w=86400'
    assert served[0].header("x-ratelimit-remaining") == "2"
    assert served[3].header("content-type") == "application/problem+json"
    assert 0 < int(served[3].header("retry-after") or 0) <= 1200

    assert [server("GET", "/api/health", {"X-Customer": "anne"}).status for _ in range(3)] == [200] * 3
    assert server("GET", "/elsewhere").status == 404

    bob = {"X-Customer": "bob"}
    assert server("POST", "/api/echo", bob, body=bytes(range(256)) * 1000).body == bytes(range(256)) * 1000
    assert server("GET", "/api/stream", bob).body == b"a" * 1000 + b"b" * 1000 + b"c" * 1000
    failed = server("GET", "/api/failure", bob)
    assert (failed.status, b"private words" in failed.body) == (500, False)

    server.stop(signal.SIGINT if "waitress" in server.output else signal.SIGTERM)  # which waitress dies of at once
    records = [record for record in server.records() if record.subject_kind == "subject"]
    told = [(record.path, record.status, record.outcome, record.subject) for record in records]
    assert told == [
        ("/api/items/0", 200, "allowed", "anne"),
        ("/api/items/1", 200, "allowed", "anne"),
        ("/api/items/2", 200, "allowed", "anne"),
        ("/api/items/3", 429, "refused", "anne"),
        ("/api/items/4", 429, "refused", "anne"),
        ("/api/items/9", 200, "allowed", "carol"),
        ("/api/echo", 200, "allowed", "bob"),
        ("/api/stream", 200, "allowed", "bob"),
        ("/api/failure", 500, "allowed", "bob"),
    ]
    items, (echo, stream, failure) = records[:6], records[6:]
    template = "/api/items/{item}" if "uvicorn" in server.output.lower() else "/api/items/<int:item>"
    assert {record.route for record in items} == {template}
    assert [record.request_id for record in items[:5]] == [f"r{n}" for n in range(5)]
    assert [record.metadata for record in items[2:4]] == [{"item": 2}, {}]
    assert (echo.bytes_in, echo.bytes_out, stream.bytes_out) == (256_000, 256_000, 3000)
    assert (failure.exception, failure.units) == ("LookupError", 0)
    assert all(record.remote_address == "127.0.0.1" and not record.aborted for record in items)
    assert all(earlier.at <= later.at for earlier, later in pairwise(records))


def check_headers(server: Server) -> None:
    """Two cookies and the like are the frameworks' tests; here that ours are there once, on a real connection."""
    answer = server("GET", "/api/items/9", {"X-Customer": "carol"})
    names = [name.lower() for name, _ in answer.headers]
    assert [names.count(name) for name in ("ratelimit", "ratelimit-policy", "x-ratelimit-limit")] == [1, 1, 1]


OUTERMOST = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from usagekeeper import Policy
from usagekeeper.asgi import UsageMiddleware

async def root(request: object) -> PlainTextResponse:
    return PlainTextResponse("hello")

inner = Starlette(routes=[Route("/", root)])
app = UsageMiddleware(inner, policies=[Policy("default", limits=["2/hour"])])
"""


def test_a_middleware_around_the_whole_application_is_recognised_as_asgi_3(serve: Serve) -> None:
    server = serve(OUTERMOST, uvicorn())
    assert [server("GET", "/").status for _ in range(3)] == [200, 200, 429]
    server.stop()
    assert [record.route for record in server.records()] == ["/", "/", "/"]
    assert "ASGI 'lifespan' protocol appears unsupported" not in server.output
