"""What a client sends reaches the application as it was sent, also where an identity is read from the body."""

import asyncio
import io
import json
from http import HTTPStatus
from typing import Any

import pytest

from tests.helpers import (
    CLIENT,
    AsgiCall,
    Call,
    Message,
    Pairs,
    Received,
    Reply,
    WsgiCall,
    http_scope,
    receiver,
    wsgi_environ,
)
from usagekeeper import Body, FirstOf, Header, Policy
from usagekeeper.sources import LARGEST_BODY

JSON = ("Content-Type", "application/json")
FORM = ("Content-Type", "application/x-www-form-urlencoded")
MULTIPART = ("Content-Type", "multipart/form-data; boundary=xyz")
UPLOAD = b'--xyz\r\nContent-Disposition: form-data; name="user"\r\n\r\nanne\r\n--xyz--\r\n'
USER = Policy("user", identity=Body("user"), limits=["100/minute"])
PLAIN = Policy("plain", limits=["100/minute"])

BODIES = [
    pytest.param((), None, id="no body"),
    pytest.param((JSON,), b"", id="empty"),
    pytest.param((JSON,), b'{"user": "anne", "n": [1, 2]}', id="json"),
    pytest.param((FORM,), b"user=anne&b=%20+x&b=2", id="form"),
    pytest.param((MULTIPART,), UPLOAD, id="multipart"),
    pytest.param((MULTIPART,), [UPLOAD[:7], UPLOAD[7:30], UPLOAD[30:]], id="multipart in chunks"),
    pytest.param((JSON,), [b'{"user"', b': "an', b'ne"}'], id="json in chunks"),
    pytest.param((JSON,), [b"", b'{"user": "anne"}', b""], id="empty chunks"),
    pytest.param((("Content-Type", "application/octet-stream"),), bytes(range(256)) * 4_000, id="1 MB"),
    pytest.param((JSON,), b'{"user": ' * 20, id="broken json"),
]


@pytest.fixture(params=[PLAIN, USER], ids=["plain", "identity in the body"])
def policy(request: pytest.FixtureRequest) -> Policy:
    found: Policy = request.param
    return found


@pytest.mark.parametrize(("headers", "body"), BODIES)
def test_bodies_reach_the_application_byte_for_byte(
    call: Call[Any], policy: Policy, headers: Pairs, body: bytes | list[bytes] | None
) -> None:
    got: list[bytes] = []

    def handler(request: Received) -> Reply:
        got.append(request.body)
        return Reply()

    call.behind(handler, policies=[policy])
    answer = call("POST", "/api/x", headers, body=body)
    sent = body if isinstance(body, bytes) else b"".join(body or ())
    if policy is USER and len(sent) > LARGEST_BODY:
        assert (answer.status, got) == (413, [])
    else:
        assert (answer.status, got) == (200, [sent])
        assert answer.record.bytes_in == len(sent)


@pytest.mark.parametrize("size", [LARGEST_BODY - 1, LARGEST_BODY, LARGEST_BODY + 1])
@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_body_is_read_for_an_identity_up_to_its_cap(call: Call[Any], size: int, chunked: bool) -> None:
    body = b'{"user": "anne", "fill": "' + b"x" * (size - 28) + b'"}'
    assert len(body) == size
    lengths: list[int] = []

    def handler(request: Received) -> Reply:
        lengths.append(len(request.body))
        return Reply()

    call.behind(handler, policies=[USER])
    pieces = [body[at : at + 1000] for at in range(0, size, 1000)]
    answer = call("POST", "/api/x", [JSON], body=pieces if chunked else body)
    if size > LARGEST_BODY:
        assert (answer.status, lengths) == (413, [])
        assert answer.one("content-type") == "application/problem+json"
        assert json.loads(answer.body) == {
            "type": "about:blank",
            "title": HTTPStatus(413).phrase,  # which Python renames now and then
            "status": 413,
            "detail": "The body is larger than 65536 bytes.",
            "reason": "body-too-large",
        }
        assert (answer.record.outcome, answer.record.reason) == ("refused", "body-too-large")
    else:
        assert (answer.status, lengths, answer.record.subject) == (200, [size], "anne")


@pytest.mark.parametrize(
    ("headers", "body", "subject"),
    [
        pytest.param((JSON,), b'{"user": "anne"}', "anne", id="json"),
        pytest.param((JSON,), b'{"user": 12}', "12", id="a whole number"),
        pytest.param((("Content-Type", "application/vnd.api+json; x=1"),), b'{"user": "anne"}', "anne", id="+json"),
        pytest.param((FORM,), b"a=1&user=anne%20b", "anne b", id="form"),
        pytest.param((("Content-Type", FORM[1] + "; charset=utf-8"),), b"us%65r=anne", "anne", id="form, escaped name"),
        pytest.param((JSON,), '{"user": "Ünïcode"}'.encode(), "Ünïcode", id="unicode"),
    ],
)
def test_an_identity_is_found_in_the_body(call: Call[Any], headers: Pairs, body: bytes, subject: str) -> None:
    call.behind(policies=[USER])
    record = call("POST", "/api/x", headers, body=body).record
    assert (record.subject, record.subject_kind) == (subject, "subject")


def test_an_identity_is_found_below_other_fields(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", identity=Body("user.id"), limits=["9/minute"])])
    assert call("POST", "/api/x", [JSON], body=b'{"user": {"id": "anne"}}').record.subject == "anne"
    assert call("POST", "/api/x", [FORM], body=b"user.id=bob").record.subject == "bob"
    assert call("POST", "/api/x", [JSON], body=b'{"user": [{"id": "x"}]}').record.subject == CLIENT


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param((JSON,), b'{"other": 1}', id="missing"),
        pytest.param((JSON,), b'{"user": null}', id="null"),
        pytest.param((JSON,), b'{"user": ""}', id="empty text"),
        pytest.param((JSON,), b"", id="empty body"),
        pytest.param((), None, id="no body"),
        pytest.param((JSON,), b"{not json", id="no json"),
        pytest.param((JSON,), b'{"user": "anne"', id="cut short"),
        pytest.param((JSON,), b"\xff\xfe", id="no unicode"),
        pytest.param((JSON,), b"[" * 60_000, id="deep"),
        pytest.param((JSON,), b'["user"]', id="a list"),
        pytest.param((("Content-Type", "text/plain"),), b'{"user": "anne"}', id="another type"),
        pytest.param((), b'{"user": "anne"}', id="no type"),
        pytest.param((MULTIPART,), UPLOAD, id="multipart"),
    ],
)
@pytest.mark.parametrize("missing", ["address", "reject", "allow"])
def test_a_body_without_the_identity_is_a_missing_one(
    call: Call[Any], headers: Pairs, body: bytes | None, missing: Any
) -> None:
    call.behind(policies=[Policy("p", identity=Body("user"), limits=["1/minute"], on_missing_identity=missing)])
    answers = [call("POST", "/api/x", headers, body=body) for _ in range(2)]
    expected = {"address": [200, 429], "reject": [401, 401], "allow": [200, 200]}[missing]
    assert [answer.status for answer in answers] == expected


@pytest.mark.parametrize(
    ("headers", "body", "reason"),
    [
        pytest.param((JSON,), b'{"user": 1.5}', "invalid-identity", id="a float"),
        pytest.param((JSON,), b'{"user": true}', "invalid-identity", id="a boolean"),
        pytest.param((JSON,), b'{"user": ["anne"]}', "invalid-identity", id="a list"),
        pytest.param((JSON,), b'{"user": {"id": 1}}', "invalid-identity", id="an object"),
        pytest.param((FORM,), b"user=anne&user=bob", "ambiguous-identity", id="twice in a form"),
        pytest.param((FORM,), b"user=anne&us%65r=bob", "ambiguous-identity", id="twice, once escaped"),
        pytest.param((JSON,), b'{"user": "' + b"x" * 257 + b'"}', "invalid-identity", id="too long"),
    ],
)
def test_an_unacceptable_identity_in_the_body_is_refused(
    call: Call[Any], headers: Pairs, body: bytes, reason: str
) -> None:
    call.behind(policies=[USER])
    answer = call("POST", "/api/x", headers, body=body)
    assert (answer.status, answer.record.reason, answer.record.outcome) == (400, reason, "refused")
    assert json.loads(answer.body)["reason"] == reason


def test_a_field_that_json_names_twice_is_refused(call: Call[Any]) -> None:
    call.behind(policies=[USER])
    answer = call("POST", "/api/x", [JSON], body=b'{"user": "anne", "user": "bob"}')
    assert (answer.status, answer.record.reason) == (400, "ambiguous-identity")


LARGE = b'{"user": "anne", "fill": "' + b"x" * 100_000 + b'"}'


def reading(got: list[int]) -> Any:
    def handler(request: Received) -> Reply:
        got.append(len(request.body))
        return Reply()

    return handler


def test_a_shadow_policy_never_refuses_a_large_body(call: Call[Any]) -> None:
    got: list[int] = []
    call.behind(reading(got), policies=[Policy("dark", identity=Body("user"), limits=["9/minute"], mode="shadow")])
    assert call("POST", "/api/x", [JSON], body=LARGE).status == 200
    assert got == [len(LARGE)]


def test_an_exempt_request_may_have_a_large_body(call: Call[Any]) -> None:
    got: list[int] = []
    call.behind(reading(got), policies=[USER], exempt=lambda request: True)
    assert call("POST", "/api/x", [JSON], body=LARGE).status == 200
    assert got == [len(LARGE)]


def test_a_large_body_is_no_matter_where_a_header_names_the_subject(call: Call[Any]) -> None:
    got: list[int] = []
    first = Policy("p", identity=FirstOf(Header("X-Customer"), Body("user")), limits=["9/minute"])
    call.behind(reading(got), policies=[first])
    answer = call("POST", "/api/x", [JSON, ("X-Customer", "bob")], body=LARGE)
    assert (answer.status, answer.record.subject, got) == (200, "bob", [len(LARGE)])


# -- ASGI alone -------------------------------------------------------------------------------------------------------


def test_messages_come_again_as_they_came(asgi: AsgiCall) -> None:
    sent: list[Message] = [
        {"type": "http.request", "body": b'{"user":', "more_body": True},
        {"type": "http.request", "body": b'"anne"}', "more_body": True, "extra": 1},
        {"type": "http.request", "body": b""},
        {"type": "http.disconnect"},
    ]
    got: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not got or got[-1]["type"] != "http.disconnect":
            got.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    waiting = iter(sent)

    async def receive() -> Message:
        return next(waiting)

    asgi.around(app, policies=[USER])
    asgi.run(asgi.exchange(http_scope("POST", "/", [JSON, ("transfer-encoding", "chunked")]), receive))
    assert got == sent
    assert asgi.fresh()[0].subject == "anne"


def test_a_client_that_leaves_while_its_body_is_read_is_told_to_the_application(asgi: AsgiCall) -> None:
    got: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.extend([(await receive())["type"] for _ in range(2)])
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body"})

    messages: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b'{"user": "anne"', "more_body": True},
    ]

    async def receive() -> Message:
        return messages.pop()

    asgi.around(app, policies=[USER])
    asgi.run(asgi.exchange(http_scope("POST", "/", [JSON, ("content-length", "99")]), receive))
    assert got == ["http.request", "http.disconnect"]
    assert asgi.fresh()[0].subject == CLIENT


def test_a_body_is_not_awaited_before_a_plain_policy_decides(asgi: AsgiCall) -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    asgi.behind(policies=[Policy("p", limits=["1/minute"])])
    asgi("GET")
    asgi.run(asgi.exchange(http_scope("POST", "/", [JSON, ("content-length", "99")]), receive))
    assert asgi.last.status == 429


def test_a_body_of_http_2_needs_no_length_to_be_read(asgi: AsgiCall) -> None:
    asgi.behind(policies=[USER])
    scope = http_scope("POST", "/", [JSON], http_version="2")

    async def receive() -> Message:
        return {"type": "http.request", "body": b'{"user": "anne"}'}

    asgi.run(asgi.exchange(scope, receive))
    (record,) = asgi.fresh()
    assert (record.subject, record.bytes_in) == ("anne", 16)


# -- WSGI alone -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [PLAIN, USER], ids=["plain", "identity in the body"])
@pytest.mark.parametrize("way", ["read", "read(n)", "readline", "readlines", "iter", "readinto", "next"])
def test_every_way_to_read_the_input_gives_and_counts_it_all(wsgi: WsgiCall, policy: Policy, way: str) -> None:
    body = b'{"user":\n "anne"}\nlast'
    got: list[bytes] = []

    def take(given: Any) -> bytes:
        match way:
            case "read":
                return given.read(len(body))  # type: ignore[no-any-return]
            case "read(n)":
                return b"".join(iter(lambda: given.read(4), b""))
            case "readline":
                return b"".join(iter(given.readline, b""))
            case "readlines":
                return b"".join(given.readlines())
            case "iter":
                return b"".join(given)
            case "next":
                return b"".join(iter(lambda: next(given, b""), b""))
            case _:
                buffer = bytearray(100)
                return bytes(buffer[: given.readinto(buffer)])

    def app(environ: Any, start_response: Any) -> list[bytes]:
        got.append(take(environ["wsgi.input"]))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    wsgi.validated = False  # the validator's own input has fewer ways
    wsgi.around(app, policies=[policy])
    answer = wsgi("POST", "/", [JSON], body=body)
    assert got == [body]
    assert answer.record.bytes_in == len(body)


@pytest.mark.parametrize("length", ["²", "-1", "1e3", " ", "9" * 5000, "x"])
def test_a_senseless_content_length_is_no_exception_of_ours(wsgi: WsgiCall, length: str) -> None:
    wsgi.validated = False
    wsgi.behind(policies=[USER])
    environ = wsgi_environ("POST", "/", [JSON], [b'{"user": "anne"}'])
    environ["CONTENT_LENGTH"] = length
    wsgi.exchange(environ)
    assert wsgi.last.status == 200


def test_an_input_without_an_end_is_read_no_further_than_announced(wsgi: WsgiCall) -> None:
    class Endless(io.BytesIO):
        """As a socket is: reading on waits for ever."""

        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert 0 <= size <= len(self.getbuffer()) - self.tell(), "this would wait for ever"
            return super().read(size)

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))]

    wsgi.validated = False
    wsgi.around(app, policies=[USER])
    environ = wsgi_environ("POST", "/", [JSON], [b'{"user": "anne"}'])
    environ |= {"wsgi.input": Endless(b'{"user": "anne"}'), "CONTENT_LENGTH": "16", "wsgi.input_terminated": False}
    wsgi.exchange(environ)
    assert wsgi.last.body == b'{"user": "anne"}'


def test_chunks_that_a_server_does_not_end_are_not_waited_for(wsgi: WsgiCall) -> None:
    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise AssertionError("this would wait for ever")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    wsgi.validated = False
    wsgi.around(app, policies=[USER])
    environ = wsgi_environ("POST", "/", [JSON, ("Transfer-Encoding", "chunked")])
    environ["wsgi.input"] = Endless()
    del environ["wsgi.input_terminated"]
    wsgi.exchange(environ)
    assert (wsgi.last.status, wsgi.fresh()[0].subject) == (200, CLIENT)


# -- bodies that trickle in -------------------------------------------------------------------------------------------


def test_a_body_that_trickles_in_is_kept_in_few_messages(asgi: AsgiCall) -> None:
    body = b'{"user": "anne", "more": "' + b"x" * 30_000 + b'"}'
    got: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not got or got[-1].get("more_body"):
            got.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    asgi.around(app, policies=[USER])
    pieces = receiver([body[at : at + 1] for at in range(len(body))])
    asgi.run(asgi.exchange(http_scope("POST", "/", [JSON, ("transfer-encoding", "chunked")]), pieces))
    assert asgi.fresh()[0].subject == "anne"
    assert b"".join(message["body"] for message in got) == body
    assert len(got) <= 256


def test_attack_18_a_body_that_trickles_in_without_end_is_read_up_to_the_cap(asgi: AsgiCall) -> None:
    asked = 0

    async def receive() -> Message:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"x", "more_body": True}

    asgi.behind(policies=[USER])
    asgi.run(asgi.exchange(http_scope("POST", "/", [JSON, ("transfer-encoding", "chunked")]), receive))
    assert (asgi.last.status, asked) == (413, LARGEST_BODY + 1)


def test_attack_18_an_input_that_trickles_in_without_end_is_read_up_to_the_cap(wsgi: WsgiCall) -> None:
    class Trickle:
        asked = 0

        def read(self, size: int) -> bytes:
            self.asked += 1
            return b"x"

    trickle = Trickle()
    wsgi.validated = False
    wsgi.behind(policies=[USER])
    environ = wsgi_environ("POST", "/", [JSON, ("transfer-encoding", "chunked")])
    wsgi.exchange({**environ, "wsgi.input": trickle})
    assert (wsgi.last.status, trickle.asked) == (413, LARGEST_BODY + 1)
