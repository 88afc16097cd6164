"""What only WSGI has: write(), a second start_response, lengths, file wrappers, late status, close()."""

import gc
import io
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any
from wsgiref.util import FileWrapper

import pytest

from tests.helpers import TEXT, Environ, Reply, StartResponse, WsgiApp, WsgiCall, wsgi_environ
from usagekeeper import Body, Policy, current_usage
from usagekeeper import wsgi as driver
from usagekeeper.errors import ConfigurationError

MANY = Policy("many", limits=["100/minute"])
IN_BODY = Policy("body", identity=Body("user"), limits=["99/minute"])
PLAIN = [("Content-Type", "text/plain")]


class Boom(Exception):
    """Raised by the application."""


# -- start_response and write -----------------------------------------------------------------------------------------


def test_what_is_written_passes_before_what_is_returned(wsgi: WsgiCall) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", list(PLAIN))
        write(b"one")
        wsgi.seen.append("written")
        write(b"two")
        return [b"three"]

    wsgi.around(app, policies=[MANY])
    answer = wsgi()
    assert answer.chunks == [b"one", b"two", b"three"]
    assert wsgi.seen == ["seen one", "written", "seen two", "seen three"]
    assert (answer.record.bytes_out, answer.record.aborted) == (11, False)


def test_a_response_that_is_all_written_is_complete(wsgi: WsgiCall) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [*PLAIN, ("Content-Length", "3")])(b"one")
        return []

    wsgi.around(app)
    record = wsgi().record
    assert (record.bytes_out, record.response_length, record.aborted) == (3, 3, False)


def test_start_response_may_come_again_with_an_error_before_the_body(wsgi: WsgiCall) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(PLAIN))
        try:
            raise Boom
        except Boom:
            start_response("500 Oops", [("Content-Type", "text/html")], sys.exc_info())
        return [b"error"]

    wsgi.around(app, policies=[MANY], headers="ietf")
    answer = wsgi()
    assert (answer.status, answer.body) == (500, b"error")
    assert answer.names == ["content-type", "ratelimit-policy", "ratelimit"]
    record = answer.record
    assert (record.status, record.response_mimetype, record.units, record.aborted) == (500, "text/html", 0, False)


def test_start_response_with_an_error_after_the_body_began_raises_it(wsgi: WsgiCall) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(PLAIN))
        yield b"half"
        try:
            raise Boom
        except Boom:
            start_response("500 Oops", list(PLAIN), sys.exc_info())

    wsgi.around(app, policies=[MANY])
    with pytest.raises(Boom):
        wsgi()
    assert (wsgi.last.status, wsgi.last.chunks) == (200, [b"half"])
    (record,) = wsgi.last.records
    assert (record.exception, record.aborted, record.bytes_out) == ("Boom", True, 4)
    assert record.status == 200


def test_a_second_start_response_without_an_error_is_the_servers_to_refuse(wsgi: WsgiCall) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(PLAIN))
        start_response("201 Created", list(PLAIN))
        return [b"ok"]

    wsgi.validated = False
    wsgi.around(app)
    with pytest.raises(AssertionError, match="twice"):
        wsgi()
    (record,) = wsgi.last.records
    assert (record.exception, record.aborted) == ("AssertionError", True)


def test_the_status_may_come_with_the_first_chunk(wsgi: WsgiCall) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        wsgi.clock.advance(1)
        start_response("201 Created", list(PLAIN))
        yield b"ok"

    wsgi.around(app, policies=[MANY])
    answer = wsgi()
    assert (answer.status, answer.body) == (201, b"ok")
    assert (answer.record.status, answer.record.first_byte, answer.record.aborted) == (201, 1_000_000, False)


def test_the_arguments_of_start_response_are_those_of_the_server(wsgi: WsgiCall) -> None:
    """Three only where there are three: some servers know no third."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(PLAIN))
        return [b"ok"]

    def start_response(status: str, headers: list[tuple[str, str]]) -> Any:
        assert type(headers) is list
        return lambda data: None

    wsgi.validated = False
    wsgi.around(app, policies=[MANY])
    assert b"".join(wsgi.app(wsgi_environ(), start_response)) == b"ok"  # type: ignore[arg-type]


def test_an_application_that_never_starts_its_response_is_an_error_of_its_own(wsgi: WsgiCall) -> None:
    wsgi.validated = False
    wsgi.around(lambda environ, start_response: [], policies=[MANY])
    list(wsgi.app(wsgi_environ(), wsgi.start_response))
    (record,) = wsgi.fresh()
    assert (record.status, record.units) == (500, 0)


# -- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [[], [b"a"], (b"a", b"b"), [b"x"] * 9], ids=["0", "1", "2", "9"])
def test_a_body_with_a_length_keeps_it(wsgi: WsgiCall, body: Any) -> None:
    wsgi.validated = False
    wsgi.behind(lambda request: Reply(body=body), policies=[MANY])
    served = wsgi.app(wsgi_environ(), wsgi.start_response)
    assert len(served) == len(body)  # type: ignore[arg-type]
    assert list(served) == list(body)
    served.close()  # type: ignore[attr-defined]
    assert wsgi.fresh()[0].bytes_out == len(b"".join(body))


def test_a_stream_has_no_length(wsgi: WsgiCall) -> None:
    wsgi.validated = False
    wsgi.behind(lambda request: Reply(body=iter([b"a"])), policies=[MANY])
    served = wsgi.app(wsgi_environ(), wsgi.start_response)
    assert not hasattr(served, "__len__")
    assert list(served) == [b"a"]


def test_a_refusal_has_one_chunk_and_its_length(wsgi: WsgiCall) -> None:
    wsgi.validated = False
    wsgi.behind(policies=[Policy("p", limits=["1/minute"])])
    wsgi()
    served = wsgi.app(wsgi_environ(), lambda *args: lambda data: None)
    assert len(served) == 1  # type: ignore[arg-type]


class Closing:
    """A body that counts its closings."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = iter(chunks)
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("chunks", [(), (b"a", b"b")], ids=["empty", "two chunks"])
@pytest.mark.parametrize("leave_after", [None, 1])
def test_the_body_of_the_application_is_closed_exactly_once(
    wsgi: WsgiCall, chunks: tuple[bytes, ...], leave_after: int | None
) -> None:
    body = Closing(*chunks)
    wsgi.behind(lambda request: Reply(body=body), policies=[MANY])
    wsgi(leave_after=leave_after)
    assert body.closed == 1
    assert len(wsgi.last.records) == 1


def test_a_body_without_a_close_needs_none(wsgi: WsgiCall) -> None:
    wsgi.validated = False
    wsgi.around(lambda environ, start: (start("200 OK", list(PLAIN)), iter([b"a"]))[1])
    assert wsgi().record.aborted is False


def test_a_response_closed_before_its_first_chunk_is_aborted(wsgi: WsgiCall) -> None:
    wsgi.validated = False
    wsgi.behind(lambda request: Reply(body=iter([b"a"])))
    wsgi.app(wsgi_environ(), wsgi.start_response).close()  # type: ignore[attr-defined]
    (record,) = wsgi.fresh()
    assert (record.status, record.aborted, record.bytes_out) == (200, True, 0)


def test_a_head_request_with_a_length_and_no_body_is_complete(wsgi: WsgiCall) -> None:
    wsgi.behind(lambda request: Reply(headers=[*TEXT, ("content-length", "999")], body=[]), policies=[MANY])
    record = wsgi("HEAD").record
    assert (record.bytes_out, record.response_length, record.aborted) == (0, 999, False)


# -- file wrappers ----------------------------------------------------------------------------------------------------


def filed(content: bytes, length: str | None = None) -> WsgiApp:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [*PLAIN, *([("Content-Length", length)] if length else [])])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](io.BytesIO(content), 2)
        return wrapped

    return app


def test_the_servers_file_wrapper_reaches_the_server_itself(wsgi: WsgiCall) -> None:
    wsgi.validated = False
    wsgi.around(filed(b"12345", "5"), policies=[MANY])
    served = wsgi.app({**wsgi_environ(), "wsgi.file_wrapper": FileWrapper}, wsgi.start_response)
    assert type(served) is FileWrapper
    assert wsgi.fresh() == []
    served.close()
    assert served.filelike.closed
    (record,) = wsgi.fresh()
    assert (record.status, record.bytes_out, record.aborted) == (200, 5, False)


def test_a_file_that_the_server_reads_itself_passes_whole(wsgi: WsgiCall) -> None:
    wsgi.validated = False
    wsgi.around(filed(b"12345"), policies=[MANY])
    served = wsgi.app({**wsgi_environ(), "wsgi.file_wrapper": FileWrapper}, wsgi.start_response)
    assert list(served) == [b"12", b"34", b"5"]
    served.close()  # type: ignore[attr-defined]
    assert len(wsgi.fresh()) == 1


def test_a_file_wrapper_that_is_a_function_passes_as_any_body(wsgi: WsgiCall) -> None:
    wsgi.validated = False
    wsgi.around(filed(b"12345"), policies=[MANY])
    environ = {**wsgi_environ(), "wsgi.file_wrapper": lambda file, size: iter(lambda: file.read(size), b"")}
    assert b"".join(wsgi.app(environ, wsgi.start_response)) == b"12345"
    assert wsgi.fresh()[0].bytes_out == 5


def test_a_file_that_is_closed_in_another_thread_leaves_no_request_behind(wsgi: WsgiCall) -> None:
    """As waitress does, whose thread goes on to the next request at once."""
    wsgi.validated = False
    wsgi.around(filed(b"12345", "5"))
    served: Any = wsgi.app({**wsgi_environ(), "wsgi.file_wrapper": FileWrapper}, wsgi.start_response)
    closer = threading.Thread(target=served.close)
    closer.start()
    closer.join()
    assert not current_usage().watched
    assert len(wsgi.fresh()) == 1


# -- what is left behind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "stream", "file", "raises", "large body"])
@pytest.mark.parametrize(
    "policy", [MANY, Policy("body", identity=Body("user"), limits=["99/minute"])], ids=["plain", "body"]
)
def test_a_request_is_freed_at_once_and_not_by_the_garbage_collector(wsgi: WsgiCall, kind: str, policy: Policy) -> None:
    class Marker:
        """Lives as long as the environ does."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ["wsgi.input"].read()
        if kind == "raises":
            raise Boom
        start_response("200 OK", list(PLAIN))
        if kind == "file":
            return FileWrapper(io.BytesIO(b"ok"))
        return [b"ok"] if kind == "list" else iter([b"ok"])

    def drive() -> weakref.ref[Marker]:
        marker = Marker()
        size = 100_000 if kind == "large body" else 16
        headers = [("Content-Type", "application/json"), ("Content-Length", str(size))]
        environ = {**wsgi_environ("POST", "/", headers, [b'{"user": "anne"}'.ljust(size)]), "marker": marker}
        environ["wsgi.file_wrapper"] = FileWrapper
        with suppress(Boom):
            served: Any = wsgi.app(environ, lambda *args: lambda data: None)
            list(served)
            served.close()
        return weakref.ref(marker)

    wsgi.validated = False
    wsgi.around(app, policies=[policy])
    drive()
    gc.disable()
    try:
        assert drive()() is None
    finally:
        gc.enable()


# -- what is wrong ----------------------------------------------------------------------------------------------------


def test_a_wrong_option_is_raised_at_once() -> None:
    with pytest.raises(ConfigurationError, match="there is no option 'polices': did you mean 'policies'"):
        driver.UsageMiddleware(lambda environ, start: [], polices=[])  # type: ignore[call-arg]


def test_what_is_no_application_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"write app = UsageMiddleware\(app, "):
        driver.UsageMiddleware("app")  # type: ignore[arg-type]


def test_an_application_of_the_other_kind_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"called as ASGI asks: write from usagekeeper\.asgi import"):
        driver.UsageMiddleware(lambda scope, receive, send: [])  # type: ignore[arg-type, misc]


def test_keeper_and_options_together_are_refused(wsgi: WsgiCall) -> None:
    with pytest.raises(ConfigurationError, match="give either keeper= or options, not both"):
        driver.UsageMiddleware(lambda environ, start: [], keeper=wsgi.keep(), policies=[MANY])


def test_a_body_that_cannot_be_iterated_is_an_error_of_the_application(wsgi: WsgiCall) -> None:
    wsgi.validated = False
    wsgi.around(lambda environ, start: (start("200 OK", list(PLAIN)), None)[1])  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError):
        wsgi()
    (record,) = wsgi.last.records
    assert (record.exception, record.aborted) == ("TypeError", True)


# -- threads ----------------------------------------------------------------------------------------------------------


def test_answers_of_concurrent_requests_do_not_mix(wsgi: WsgiCall) -> None:
    together = threading.Barrier(8)

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        number = int(environ["PATH_INFO"][1:])
        together.wait(10)
        current_usage().note(number=number)
        start_response("200 OK", list(PLAIN))
        for _ in range(number):
            yield b"x"
        together.wait(10)
        current_usage().error_code = str(number)

    def drive(number: int) -> None:
        served: Any = wsgi.app(wsgi_environ("GET", f"/{number}"), lambda *args: lambda data: None)
        list(served)
        served.close()

    wsgi.validated = False
    wsgi.around(app, policies=[MANY])
    threads = [threading.Thread(target=drive, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [(record.path, record.bytes_out, record.metadata, record.error_code) for record in wsgi.fresh()]
    assert sorted(told) == [(f"/{n}", n, {"number": n}, str(n)) for n in range(8)]


def test_streams_that_are_read_by_turns_in_one_thread_keep_their_own_figures(wsgi: WsgiCall) -> None:
    def body(number: int) -> Iterator[bytes]:
        for _ in range(number):
            yield b"x"

    wsgi.validated = False
    wsgi.behind(lambda request: Reply(body=body(int(request.path[1:]))))
    served: list[Any] = [wsgi.app(wsgi_environ("GET", f"/{n}"), lambda *args: lambda data: None) for n in (2, 3)]
    for _ in range(3):
        for one in served:
            next(one, None)
    for one in served:
        assert list(one) == []
        one.close()
    assert not current_usage().watched
    assert sorted((record.path, record.bytes_out) for record in wsgi.fresh()) == [("/2", 2), ("/3", 3)]
