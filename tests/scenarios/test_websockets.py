"""A WebSocket does not get around a limit, on live servers and with handshakes as raw bytes."""

from collections.abc import Callable, Sequence

import pytest

from tests.scenarios.conftest import Serve
from tests.scenarios.servers import Server, hypercorn, uvicorn

APP = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute

from usagekeeper import Policy
from usagekeeper.asgi import UsageMiddleware

async def page(request):
    return PlainTextResponse("page")

async def socket(websocket):
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()

app = Starlette(routes=[Route("/api/x", page), WebSocketRoute("/api/live/{room}", socket)])
app.add_middleware(UsageMiddleware, policies=[Policy("reads", routes=["GET /api/*"], limits=["2/day"])])
"""


def handshake(server: Server, request_id: str) -> int:
    lines = [
        "GET /api/live/7 HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        f"X-Request-Id: {request_id}",
    ]
    return server.raw("\r\n".join([*lines, "", ""]).encode()).status


@pytest.mark.parametrize("command", [uvicorn(), hypercorn()], ids=["uvicorn", "hypercorn"])
def test_attack_14_handshakes_and_requests_share_their_limit(
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
