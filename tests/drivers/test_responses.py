"""What the application answers reaches the client as it is, at once, and makes exactly one record."""

import gc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.helpers import CLIENT, TEXT, Call, Received, Reply
from usagekeeper import Policy, current_usage

MANY = Policy("many", limits=["1000/minute"])


class Boom(Exception):
    """Raised by the application."""


# -- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([b"one"], id="one chunk"),
        pytest.param([b"a", b"bb", b"\x00\xff" * 5000], id="several chunks"),
        pytest.param([], id="nothing"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["list", "generator"])
def test_the_chunks_of_a_body_pass_as_they_are(call: Call[Any], chunks: list[bytes], stream: bool) -> None:
    call.behind(lambda request: Reply(body=iter(chunks) if stream else chunks), policies=[MANY])
    answer = call()
    assert (answer.status, answer.chunks) == (200, chunks)
    assert (answer.record.bytes_out, answer.record.aborted) == (sum(map(len, chunks)), False)


@pytest.mark.parametrize("announced", [True, False], ids=["with content-length", "without"])
def test_a_chunk_is_seen_before_the_next_is_made(call: Call[Any], announced: bool) -> None:
    def body() -> Iterator[bytes]:
        for letter in "abc":
            call.seen.append(f"made {letter}")
            yield letter.encode()
        call.seen.append("done")

    headers = [*TEXT, *([("content-length", "3")] if announced else ())]
    call.behind(lambda request: Reply(headers=headers, body=body()), policies=[MANY])
    call()
    assert call.seen == ["made a", "seen a", "made b", "seen b", "made c", "seen c", "done"]


def test_the_record_is_made_before_the_last_bytes_leave(call: Call[Any]) -> None:
    recorded: list[int] = []

    class Watching(list[str]):
        def append(self, event: str) -> None:
            recorded.append(len(call.recorded()))

    call.behind(lambda request: Reply(headers=[*TEXT, ("content-length", "2")], body=[b"o", b"k"]), policies=[MANY])
    call.seen = Watching()
    call()
    assert recorded == [0, 1]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, [*TEXT, ("content-length", "2")], [b"ok"]),
        (204, [], []),
        (304, [("etag", '"x"')], []),
        (404, TEXT, [b"no"]),
        (405, [*TEXT, ("allow", "GET")], [b"no"]),
        (500, TEXT, [b"oh"]),
    ],
    ids=["200", "204", "304", "404", "405", "500"],
)
def test_every_kind_of_answer_passes_as_it_is(
    call: Call[Any], method: str, status: int, headers: list[tuple[str, str]], body: list[bytes]
) -> None:
    sent = [] if method == "HEAD" else body
    call.behind(lambda request: Reply(status, headers, sent), policies=[MANY], headers="none")
    answer = call(method)
    assert (answer.status, answer.headers, answer.chunks) == (status, list(headers), sent)
    record = answer.record
    assert (record.method, record.status, record.bytes_out, record.aborted) == (
        method,
        status,
        len(b"".join(sent)),
        False,
    )
    assert record.response_length == (2 if status == 200 else None)
    assert (record.exception, record.outcome) == (None, "allowed")


def test_sizes_are_counted_and_announced_ones_kept_apart(call: Call[Any]) -> None:
    call.behind(lambda request: Reply(headers=[*TEXT, ("content-length", "2")], body=[b"a", b"b"]))
    record = call("POST", body=b"12345").record
    assert (record.bytes_in, record.request_length, record.bytes_out, record.response_length) == (5, 5, 2, 2)


def test_times_to_the_first_and_to_the_last_byte_are_recorded(call: Call[Any]) -> None:
    def body() -> Iterator[bytes]:
        call.clock.advance(2)
        yield b"a"
        call.clock.advance(3)
        yield b"b"

    def handler(request: Received) -> Reply:
        call.clock.advance(1)
        return Reply(body=body())

    call.behind(handler)
    began = call.clock()
    record = call().record
    assert record.at == round(began * 1_000_000)
    assert record.duration == 6_000_000
    # WSGI's status may leave with the first chunk; ASGI's has an own message.
    assert record.first_byte == 1_000_000


# -- exceptions -------------------------------------------------------------------------------------------------------


def test_an_exception_before_the_response_is_raised_on_untouched_and_recorded(call: Call[Any]) -> None:
    error = Boom("private words")

    def handler(request: Received) -> Reply:
        raise error

    call.behind(handler, policies=[MANY])
    with pytest.raises(Boom) as caught:
        call()
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    (record,) = call.last.records
    assert (record.status, record.exception, record.aborted, record.units) == (500, "Boom", True, 0)
    assert "private words" not in repr(record)


def test_an_exception_in_the_middle_of_a_body_is_raised_on_and_recorded(call: Call[Any]) -> None:
    def body() -> Iterator[bytes]:
        yield b"half"
        raise Boom

    call.behind(lambda request: Reply(body=body()), policies=[MANY])
    with pytest.raises(Boom):
        call()
    assert (call.last.status, call.last.chunks) == (200, [b"half"])
    (record,) = call.last.records
    assert (record.status, record.exception, record.aborted) == (200, "Boom", True)
    assert (record.bytes_out, record.units) == (4, 1)


def test_an_exception_after_the_announced_end_changes_nothing_of_the_record(call: Call[Any]) -> None:
    def body() -> Iterator[bytes]:
        yield b"ok"
        raise Boom

    def whole(request: Received) -> Reply:
        return Reply(headers=[*TEXT, ("content-length", "2")], body=body())

    call.behind(whole, policies=[MANY])
    with pytest.raises(Boom):
        call()
    (record,) = call.last.records
    if call.protocol == "wsgi":  # ASGI's end is a message, and that one never came
        assert (record.status, record.exception, record.aborted) == (200, None, False)
    else:
        assert (record.status, record.exception, record.aborted) == (200, "Boom", True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_is_raised_on_and_recorded_too(call: Call[Any], error: type[BaseException]) -> None:
    raised: list[BaseException] = []

    def handler(request: Received) -> Reply:
        raised.append(error())
        raise raised[0]

    call.behind(handler)
    # The loop has no exception of this kind pass by itself.
    app = call.app
    if call.protocol == "asgi":

        async def shielded(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except BaseException as caught:
                raise Boom from caught

        call.app = shielded
        with pytest.raises(Boom) as wrapped:
            call()
        assert wrapped.value.__cause__ is raised[0]
    else:
        with pytest.raises(error) as plain:
            call()
        assert plain.value is raised[0]
    (record,) = call.last.records
    assert (record.exception, record.aborted) == (error.__name__, True)


# -- clients that leave -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [1, 2])
def test_a_client_that_leaves_makes_one_aborted_record(call: Call[Any], seen: int) -> None:
    closed: list[str] = []

    def body() -> Iterator[bytes]:
        try:
            while True:
                yield b"more"
        finally:
            closed.append("closed")

    call.behind(lambda request: Reply(body=body()), policies=[MANY])
    call(leave_after=seen)
    assert closed == ["closed"]
    assert call.last.chunks == [b"more"] * seen
    (record,) = call.last.records
    assert (record.status, record.aborted, record.units) == (200, True, 1)
    assert record.bytes_out >= 4 * seen


def test_a_body_closed_by_an_exception_of_its_own_close_is_recorded_all_the_same(call: Call[Any]) -> None:
    def body() -> Iterator[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            raise Boom

    call.behind(lambda request: Reply(body=body()))
    with pytest.raises(Boom):
        call(leave_after=1)
    (record,) = call.last.records
    assert (record.status, record.aborted) == (200, True)


def test_every_way_out_makes_exactly_one_record(call: Call[Any]) -> None:
    def body(kind: str) -> Iterator[bytes]:
        yield b"one"
        if kind == "breaks":
            raise Boom
        yield b"two"

    def handler(request: Received) -> Reply:
        kind = request.query
        if kind == "raises":
            raise Boom
        return Reply(body=[] if kind == "empty" else body(kind))

    call.behind(handler, policies=[Policy("p", limits=["5/minute"])])
    kinds = ["fine", "empty", "breaks", "raises", "leaves", "refused", "refused"]
    for kind in kinds:
        with suppress(Boom):
            call("GET", f"/api/x?{kind}", leave_after=1 if kind == "leaves" else None)
        assert [record.query for record in call.last.records] == [kind]
    assert len(call.recorded()) == len(kinds)


# -- what is left behind ----------------------------------------------------------------------------------------------


def test_nothing_of_a_request_outlives_it(call: Call[Any]) -> None:
    class Marker:
        """Found again by the garbage collector where somebody keeps it."""

    def handler(request: Received) -> Reply:
        current_usage().note(seen=True)
        return Reply(body=iter([b"a", b"b"]))

    call.behind(handler, policies=[MANY, Policy("named", identity=lambda request: "anne", limits=["9000/minute"])])
    for _ in range(3):
        call()
    gc.collect()
    before = len(gc.get_objects())
    records = [call().record for _ in range(50)]
    del records
    call._known.clear()
    call.keeper.store.drop()
    gc.collect()
    assert len(gc.get_objects()) - before < 50


def test_a_handler_sees_nobody_after_its_exchange(call: Call[Any]) -> None:
    call.behind()
    call()
    assert not current_usage().watched


def test_the_least_of_a_record_is_known(call: Call[Any]) -> None:
    call.behind(application="shop", policies=[MANY])
    headers = {
        "Host": "api.example.org",
        "User-Agent": "curl/8.5",
        "Referer": "https://example.org/page?token=abc#x",
        "Origin": "https://example.org",
        "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "X-Request-Id": "r-1",
        "Content-Type": "application/json; charset=utf-8",
    }
    record = call("PUT", "/api/x?a=1", headers, body=b"{}").record
    assert (record.application, record.method, record.scheme) == ("shop", "PUT", "http")
    assert (record.host, record.path, record.query) == ("api.example.org", "/api/x", "a=1")
    assert (record.subject, record.subject_kind, record.remote_address) == (CLIENT, "address", CLIENT)
    assert (record.outcome, record.policies, record.units) == ("allowed", ("many",), 1)
    assert (record.user_agent, record.origin) == ("curl/8.5", "https://example.org")
    assert record.referer == "https://example.org/page?token=REDACTED"
    assert (record.trace_id, record.request_id) == ("0af7651916cd43dd8448eb211c80319c", "r-1")
    assert (record.request_mimetype, record.response_mimetype) == ("application/json", "text/plain")
