"""A WebSocket does not get around a limit, on live servers and with handshakes as raw bytes."""

import socket
from collections.abc import Callable, Sequence

import pytest

from tests.helpers import PATIENCE
from tests.scenarios.conftest import Serve
from tests.scenarios.servers import Server, hypercorn, uvicorn

APP = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute

from usagekeeper import Policy, current_usage
from usagekeeper.asgi import UsageMiddleware

async def page(request):
    return PlainTextResponse("page")

async def socket(websocket):
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()

async def messages(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await current_usage().acharge(2)
        await websocket.send_text(text)

routes = [WebSocketRoute("/api/live/{room}", socket), WebSocketRoute("/api/messages", messages)]
app = Starlette(routes=[Route("/api/x", page), *routes])
app.add_middleware(UsageMiddleware, policies=[Policy("reads", routes=["GET /api/*"], limits=["2/day"])])
"""


def opening(server: Server, request_id: str, target: str = "/api/live/7") -> bytes:
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        f"X-Request-Id: {request_id}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def handshake(server: Server, request_id: str) -> int:
    return server.raw(opening(server, request_id)).status


BOTH = pytest.mark.parametrize("command", [uvicorn(), hypercorn()], ids=["uvicorn", "hypercorn"])


@pytest.mark.parametrize(
    ("command", "tells"),
    [pytest.param(uvicorn(), True, id="uvicorn"), pytest.param(hypercorn(), False, id="hypercorn")],
)
def test_attack_14_live_the_messages_of_a_connection_are_counted_and_cost(
    serve: Serve, command: Callable[[int], Sequence[str]], tells: bool
) -> None:
    """hypercorn does not tell that a client ended the connection in good order."""
    server = serve(APP, command)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client, client.makefile("rb") as answers:
        client.sendall(opening(server, "talk", "/api/messages"))
        assert answers.readline().split()[1] == b"101"
        while answers.readline() != b"\r\n":
            pass
        for _ in range(3):
            client.sendall(b"\x81\x85\0\0\0\0hello")  # RFC 6455, 5.2: text, five bytes, masked with nothing
            assert answers.read(7) == b"\x81\x05hello"
        client.sendall(b"\x88\x82\0\0\0\0\x03\xe8")
        assert answers.read(1) == b"\x88"
    server.until(lambda: len(server.records()) == 1)
    (record,) = server.records()
    assert (record.request_id, record.status, record.units) == ("talk", 101, 7)
    assert (record.bytes_in, record.bytes_out, record.aborted) == (15, 15, not tells)


@BOTH
def test_attack_14_live_handshakes_and_requests_share_their_limit(
    serve: Serve, command: Callable[[int], Sequence[str]]
) -> None:
    server = serve(APP, command)
    assert server("GET", "/api/x", {"X-Request-Id": "page"}).status == 200
    assert [handshake(server, name) for name in ("first", "second")] == [101, 429]
    assert server("GET", "/api/x", {"X-Request-Id": "again"}).status == 429
    server.stop()
    told = {record.request_id: (record.status, record.route) for record in server.records()}
    assert told == {
        "page": (200, "/api/x"),
        "first": (101, "/api/live/{room}"),
        "second": (429, "/api/live/{room}"),
        "again": (429, "/api/x"),
    }
