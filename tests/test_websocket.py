"""WebSockets: handshakes are limited like the GET they are, and every connection has one record."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.helpers import AsgiApp, AsgiCall, Down, Message, http_scope
from usagekeeper import Body, Header, Policy, current_usage
from usagekeeper.decisions import Decision
from usagekeeper.errors import QuotaExceeded

ONE: Final = Policy("one", routes=["GET /api/*"], limits=["1/hour"])
DENIED: Final[Mapping[str, Any]] = {"websocket.http.response": {}}
LEFT: Final[Message] = {"type": "websocket.disconnect", "code": 1000}


@pytest.fixture
def asgi() -> Iterator[AsgiCall]:
    call = AsgiCall()
    yield call
    call.close()


def connect(
    asgi: AsgiCall,
    *received: Message,
    target: str = "/api/x",
    headers: Sequence[tuple[str, str]] = (),
    extensions: Mapping[str, Any] = DENIED,
) -> list[Message]:
    """What a server is told when a client opens a connection and then sends *received*."""
    scope = {**http_scope("GET", target, headers), "type": "websocket", "scheme": "ws", "extensions": extensions}
    del scope["method"]
    coming: list[Message] = [{"type": "websocket.connect"}, *received, LEFT]
    sent: list[Message] = []

    async def receive() -> Message:
        return coming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    asgi.run(asgi.app(scope, receive, send))
    return sent


def kinds(messages: Sequence[Message]) -> list[str]:
    return [message["type"].removeprefix("websocket.") for message in messages]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept", "headers": [(b"x-own", b"1")]})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", **{key: message[key] for key in ("bytes", "text") if key in message}})


def test_attack_14_a_handshake_over_the_limit_is_answered_as_http_where_the_server_can(asgi: AsgiCall) -> None:
    asgi.around(echo, policies=[ONE])
    connect(asgi)
    start, body = connect(asgi)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 429)
    assert {b"retry-after", b"ratelimit", b"ratelimit-policy"} <= dict(start["headers"]).keys()
    assert b"quota-exceeded" in body["body"]


def test_elsewhere_the_handshake_is_closed_before_it_is_accepted(asgi: AsgiCall) -> None:
    asgi.around(echo, policies=[ONE])
    connect(asgi, extensions={})
    assert connect(asgi, extensions={}) == [{"type": "websocket.close", "code": 1013}]
    assert [record.status for record in asgi.fresh()] == [101, 429]


def test_attack_14_requests_and_handshakes_meet_the_same_counter(asgi: AsgiCall) -> None:
    asgi.behind(policies=[ONE])
    assert asgi.status("GET") == 200
    assert connect(asgi)[0]["status"] == 429


def test_an_accepted_handshake_tells_where_the_client_stands(asgi: AsgiCall) -> None:
    asgi.around(echo, policies=[ONE])
    (accept,) = connect(asgi)
    names = [name for name, _ in accept["headers"]]
    assert names[0] == b"x-own"
    assert dict(accept["headers"])[b"x-ratelimit-remaining"] == b"0"


def test_a_connection_has_one_record_with_what_went_over_it(asgi: AsgiCall) -> None:
    asgi.around(echo, policies=[Policy("p", limits=["9/hour"], identity=Header("X-Customer"))])
    text: Message = {"type": "websocket.receive", "text": "grüße", "bytes": None}
    sent = connect(asgi, text, {"type": "websocket.receive", "bytes": b"12345"}, headers=[("x-customer", "acme")])
    assert kinds(sent) == ["accept", "send", "send"]
    (record,) = asgi.fresh()
    assert (record.status, record.scheme, record.method, record.subject) == (101, "ws", "GET", "acme")
    assert (record.bytes_in, record.bytes_out, record.units, record.aborted) == (12, 12, 1, False)


def test_a_connection_that_broke_is_recorded_as_aborted(asgi: AsgiCall) -> None:
    asgi.around(echo)
    connect(asgi, {"type": "websocket.disconnect", "code": 1006})
    assert [record.aborted for record in asgi.fresh()] == [True]


def test_attack_14_what_messages_cost_is_on_the_record(asgi: AsgiCall) -> None:
    async def charging(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await current_usage().acharge(4)
        await send({"type": "websocket.close"})

    asgi.around(charging, policies=[ONE])
    connect(asgi)
    assert [record.units for record in asgi.fresh()] == [5]


@pytest.mark.parametrize(
    ("accepted", "told"),
    [
        pytest.param(False, ["http.response.start", "http.response.body"], id="before it is accepted"),
        pytest.param(True, ["accept", "close"], id="after"),
    ],
)
def test_attack_14_a_charge_that_is_refused_ends_the_connection(
    asgi: AsgiCall, accepted: bool, told: list[str]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if accepted:
            await send({"type": "websocket.accept"})
        raise QuotaExceeded("Used up.", decision=Decision(429, "quota-exceeded", "Used up."))

    asgi.around(app)
    sent = connect(asgi)
    assert kinds(sent) == told
    assert sent[-1].get("code", 1013) == 1013
    assert [record.outcome for record in asgi.fresh()] == ["refused"]


def test_an_exception_is_raised_on_and_recorded(asgi: AsgiCall) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("private")

    asgi.around(app)
    with pytest.raises(LookupError):
        connect(asgi)
    assert [(record.status, record.exception) for record in asgi.fresh()] == [(500, "LookupError")]


def test_a_cancelled_connection_is_recorded(asgi: AsgiCall) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        raise asyncio.CancelledError

    asgi.around(app)
    with pytest.raises(asyncio.CancelledError):
        connect(asgi)
    assert [(record.status, record.aborted) for record in asgi.fresh()] == [(101, True)]


def test_an_application_that_refuses_by_itself_is_recorded_with_its_answer(asgi: AsgiCall) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 418, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"teapot"})

    async def closing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.close"})

    for one in (app, closing):
        asgi.around(one)
        connect(asgi)
    assert [(record.status, record.bytes_out) for record in asgi.fresh()] == [(418, 6), (403, 0)]


def test_an_identity_given_twice_is_rejected(asgi: AsgiCall) -> None:
    asgi.around(echo, policies=[Policy("p", limits=["9/hour"], identity=Header("X-Customer"))])
    assert connect(asgi, headers=[("x-customer", "a"), ("x-customer", "b")])[0]["status"] == 400


def test_an_asynchronous_strategy_is_awaited(asgi: AsgiCall) -> None:
    async def who(request: Any) -> str:
        return "somebody"

    asgi.around(echo, policies=[Policy("p", limits=["9/hour"], identity=who)])
    connect(asgi)
    assert [record.subject for record in asgi.fresh()] == ["somebody"]


def test_a_strategy_for_bodies_reads_no_message(asgi: AsgiCall) -> None:
    asgi.around(echo, policies=[Policy("p", limits=["9/hour"], identity=Body("user"))])
    assert kinds(connect(asgi, {"type": "websocket.receive", "text": '{"user": "x"}'})) == ["accept", "send"]


@pytest.mark.parametrize("outage", ["allow", "deny"])
def test_counters_that_do_not_answer_are_what_the_policy_says(asgi: AsgiCall, outage: Any) -> None:
    asgi.around(echo, policies=[Policy("p", limits=["9/hour"], on_outage=outage)], counters=Down())
    first = connect(asgi)[0]
    assert first.get("status") == (None if outage == "allow" else 503)


def test_a_connection_that_is_not_watched_passes_as_the_very_objects(asgi: AsgiCall) -> None:
    got: list[Any] = []

    async def app(*given: Any) -> None:
        got.extend(given)

    scope = {"type": "websocket", "path": "/api/x"}
    given: list[Any] = [scope, object(), object()]
    asgi.around(app, whitelist=["GET /api/x"], policies=[ONE])
    asgi.run(asgi.app(*given))
    assert all(one is other for one, other in zip(got, given, strict=True))
    assert scope == {"type": "websocket", "path": "/api/x"}


def test_an_inner_middleware_of_the_same_keeper_counts_nothing_twice(asgi: AsgiCall) -> None:
    keeper = asgi.keep(policies=[ONE])
    asgi.around(asgi.middleware(echo, keeper), keeper=keeper)
    assert kinds(connect(asgi)) == ["accept"]
    assert len(asgi.fresh()) == 1


async def greet(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


async def page(request: Any) -> PlainTextResponse:
    return PlainTextResponse("page")


APP: Final[AsgiApp] = Starlette(
    routes=[
        Route("/both/{page}", page),
        WebSocketRoute("/both/{room}", greet),
        WebSocketRoute("/only/{room}", greet),
        Mount("/m", routes=[WebSocketRoute("/in/{room}", greet), Route("/in/{page}", page)]),
    ]
)


@pytest.mark.parametrize(
    ("target", "of_socket", "of_request"),
    [
        ("/both/1", "/both/{room}", "/both/{page}"),
        ("/only/1", "/only/{room}", None),
        ("/m/in/1", "/m/in/{room}", "/m/in/{page}"),
    ],
)
def test_a_label_is_that_of_the_route_for_its_kind(
    asgi: AsgiCall, target: str, of_socket: str, of_request: str | None
) -> None:
    asgi.around(APP)
    connect(asgi, target=target)
    asgi.status("GET", target)
    assert [record.route for record in asgi.fresh()] == [of_socket, of_request]
