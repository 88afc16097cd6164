"""Faults that were shown in other recorders, by the number under which they were noted: none of them is ours."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from tests.helpers import AsgiCall, Call, Received, Reply, WsgiCall, http_scope, receiver, wsgi_environ
from usagekeeper import Policy

MEBIBYTE = 1 << 20


def test_o1_a_method_that_a_route_has_not_is_answered_as_without_us(wsgi: WsgiCall) -> None:
    wsgi.validated = False
    app = Flask("peer")
    app.add_url_rule("/api/x", view_func=lambda: "x", endpoint="x", methods=["GET"])
    wsgi.around(app.wsgi_app)
    answer = wsgi("DELETE", "/api/x")
    assert (answer.status, answer.record.status, answer.record.exception) == (405, 405, None)


def overlapping_asgi(call: AsgiCall) -> None:
    """Two exchanges, of which the one that came first ends last."""
    ends = {"/slow": asyncio.Event(), "/quick": asyncio.Event()}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await ends[scope["path"]].wait()
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    async def send(message: Any) -> None: ...

    async def both() -> None:
        tasks = []
        for path in ends:
            headers = [("x-request-id", path)]
            tasks.append(asyncio.create_task(call.app(http_scope("GET", path, headers), receiver(), send)))
            await asyncio.sleep(0)
            call.clock.advance(1)
        for path in reversed(ends):
            ends[path].set()
            await tasks.pop()
            call.clock.advance(1)

    call.around(app)
    call.run(both())


def overlapping_wsgi(call: WsgiCall) -> None:
    """Two exchanges, of which the one that came first ends last."""
    call.validated = False

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield environ["PATH_INFO"].encode()

    call.around(app)
    bodies: list[Any] = []
    for path in ("/slow", "/quick"):
        bodies.append(call.app(wsgi_environ("GET", path, [("X-Request-Id", path)]), lambda *args: lambda data: None))
        call.clock.advance(1)
    for body in reversed(bodies):
        list(body)
        body.close()
        call.clock.advance(1)


@pytest.mark.parametrize(("kind", "overlap"), [(AsgiCall, overlapping_asgi), (WsgiCall, overlapping_wsgi)])
def test_o2_o3_requests_that_overlap_have_their_own_times_sizes_and_ids(kind: Any, overlap: Any) -> None:
    call = kind()
    overlap(call)
    told = {one.request_id: (one.path, one.bytes_out, one.duration) for one in call.recorded()}
    call.close()
    assert told == {"/quick": ("/quick", 6, 1_000_000), "/slow": ("/slow", 5, 3_000_000)}


def test_o5_the_size_of_an_answer_is_not_that_of_the_one_before(call: Call[Any]) -> None:
    def handler(request: Received) -> Reply:
        return Reply(body=[b"x" * 54] if request.path == "/small" else (b"y" * 16_384 for _ in range(64)))

    call.behind(handler)
    assert [call("GET", path).record.bytes_out for path in ("/small", "/large", "/small")] == [54, MEBIBYTE, 54]


def test_o6_a_stream_is_timed_to_its_first_byte_and_to_its_last(call: Call[Any]) -> None:
    def handler(request: Received) -> Reply:
        def chunks() -> Iterator[bytes]:
            for letter in b"abc":
                call.clock.advance(2)
                yield bytes([letter])

        call.clock.advance(1)
        return Reply(body=chunks())

    call.behind(handler)
    record = call("GET", "/stream").record
    assert (record.first_byte, record.duration) == (1_000_000, 7_000_000)


@pytest.mark.parametrize("status", [404, 405, 500])
def test_o6_the_status_is_that_on_the_wire(call: Call[Any], status: int) -> None:
    call.behind(lambda request: Reply(status=status))
    assert call("GET", "/nowhere").record.status == status


def test_o7_requests_with_credentials_and_streams_of_lines_are_recorded(call: Call[Any]) -> None:
    lines = [b'{"n": 1}\n', b'{"n": 2}\n']
    call.behind(lambda request: Reply(headers=[("content-type", "application/jsonl")], body=iter(lines)))
    answer = call("GET", "/api/x", {"Authorization": "Bearer abc", "User-Agent": "curl/8"})
    assert answer.body == b"".join(lines)
    assert (answer.record.auth_scheme, answer.record.user_agent, answer.record.bytes_out) == ("bearer", "curl/8", 18)


def test_what_a_limiter_says_of_an_unknown_path_is_said_of_all_of_them(call: Call[Any]) -> None:
    """fastapi-limiter and slowapi limit by handler: what has none is free there."""
    call.behind(lambda request: Reply(status=404), policies=[Policy("p", limits=["2/minute"])])
    assert [call.status("GET", f"/made/up/{n}") for n in range(4)] == [404, 404, 429, 429]
