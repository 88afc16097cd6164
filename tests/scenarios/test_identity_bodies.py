"""Who sent a body that comes in pieces, on real servers over plain sockets; the application has all of it."""

import hashlib
import http.client
import json
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers import PATIENCE
from tests.scenarios.conftest import end
from tests.scenarios.servers import Response, Server, gunicorn, uvicorn, waitress
from tests.tokens import AUDIENCE, ISSUER, SECRET, claims, sealed

POLICIES = f"""
from usagekeeper import BearerClaim, Body, Policy

claim = BearerClaim("sub", key={SECRET!r}, algorithms=["HS256"], issuer={ISSUER!r}, audience={AUDIENCE!r})
POLICIES = [
    Policy("bodies", routes=["POST /bodies"], identity=Body("user"), limits=["1/day"]),
    Policy("tokens", routes=["GET /tokens"], identity=claim, limits=["1/day"]),
]
"""

ASGI = (
    POLICIES
    + """
import hashlib
from usagekeeper.asgi import UsageMiddleware

async def echo(scope, receive, send):
    body, more = b"", scope["type"] == "http"
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": hashlib.sha256(body).hexdigest().encode()})

app = UsageMiddleware(echo, store="memory://", policies=POLICIES)
"""
)

WSGI = (
    POLICIES
    + """
import hashlib
from usagekeeper.wsgi import UsageMiddleware

def echo(environ, start_response):
    body = b"".join(iter(lambda: environ["wsgi.input"].read(1000), b"")) if environ["REQUEST_METHOD"] == "POST" else b""
    start_response("200 OK", [])
    return [hashlib.sha256(body).hexdigest().encode()]

app = UsageMiddleware(echo, store="memory://", policies=POLICIES)
"""
)

SERVERS = {
    "uvicorn": (ASGI, uvicorn("--lifespan", "off")),
    "uvicorn h11": (ASGI, uvicorn("--lifespan", "off", "--http", "h11")),
    "gunicorn": (WSGI, gunicorn()),
    "waitress": (WSGI, waitress()),
}


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Each server once for all of these."""
    folder: Path = tmp_path_factory.mktemp("bodies")
    source, arguments = SERVERS[request.param]
    started = Server(folder, source, arguments)
    try:
        yield started.ready()
    finally:
        end([started])


def sent(server: Server, head: str, pieces: Iterable[bytes]) -> Response:
    """What is answered to pieces that leave one by one."""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(f"{head}\r\nHost: x\r\nContent-Type: application/json\r\n".encode())
        with suppress(ConnectionError):  # a server that has answered may take no more
            for piece in pieces:
                connection.sendall(piece)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return Response(response.status, response.getheaders(), response.read())


def chunked(body: bytes, size: int) -> Iterator[bytes]:
    yield b"Transfer-Encoding: chunked\r\n\r\n"
    for at in range(0, len(body), size):
        piece = body[at : at + size]
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def announced(body: bytes) -> Iterator[bytes]:
    yield b"Content-Length: %d\r\n\r\n" % len(body)
    for at in range(len(body)):
        yield body[at : at + 1]


@pytest.mark.parametrize("way", ["chunks", "bytes in chunks", "bytes"])
def test_a_body_in_pieces_names_the_subject_and_reaches_the_application_whole(server: Server, way: str) -> None:
    body = json.dumps({"user": way, "more": "x" * 300}).encode()
    statuses = []
    for _ in range(2):
        pieces = announced(body) if way == "bytes" else chunked(body, 100 if way == "chunks" else 1)
        answer = sent(server, "POST /bodies HTTP/1.1", pieces)
        statuses.append(answer.status)
        assert answer.status == 429 or answer.body.decode() == hashlib.sha256(body).hexdigest()
    assert statuses == [200, 429]


def test_attack_18_live_a_body_over_the_cap_is_refused_in_chunks_too(server: Server) -> None:
    body = json.dumps({"user": "large", "more": "x" * 70_000}).encode()
    assert sent(server, "POST /bodies HTTP/1.1", chunked(body, 10_000)).status == 413


def test_attack_24_live_two_tokens_on_the_wire_are_refused(server: Server) -> None:
    good = sealed(claims(exp=4_000_000_000), SECRET, "HS256", {})
    line = b"Authorization: Bearer " + good.encode() + b"\r\n"
    assert sent(server, "GET /tokens HTTP/1.1", [line + line + b"\r\n"]).status == 400
    assert [sent(server, "GET /tokens HTTP/1.1", [line + b"\r\n"]).status for _ in range(2)] == [200, 429]
    answer = sent(server, "GET /tokens HTTP/1.1", [b"\r\n"])
    assert (answer.status, answer.header("www-authenticate")) == (401, "Bearer")
