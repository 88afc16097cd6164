"""What only ASGI has: messages beyond start and body, background work, cancellation, lifespan."""

import asyncio
import contextvars
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers import AsgiApp, AsgiCall, Message, Unfinished, http_scope, receiver
from usagekeeper import Body, Policy, current_usage
from usagekeeper import asgi as driver
from usagekeeper.errors import ConfigurationError
from usagekeeper.usage import current

MANY = Policy("many", limits=["100/minute"])
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
LAST: Message = {"type": "http.response.body", "body": b"ok"}


def sending(*messages: Message) -> AsgiApp:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


# -- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([{"type": "http.response.early_hint", "links": [b"</a.css>"]}], [], id="early hints"),
        pytest.param([{"type": "http.response.debug", "info": {"template": 1}}], [], id="debug"),
        pytest.param([{"type": "http.response.push", "path": "/a", "headers": []}], [], id="push"),
        pytest.param([{"type": "http.response.unheard_of", "x": object()}], [], id="unknown"),
        pytest.param([], [{"type": "http.response.trailers", "headers": [(b"a", b"b")]}], id="trailers"),
    ],
)
def test_messages_that_are_not_ours_pass_as_the_very_objects(
    asgi: AsgiCall, before: list[Message], after: list[Message]
) -> None:
    asgi.around(sending(*before, START, LAST, *after))
    answer = asgi()
    assert all(one is other for one, other in zip(asgi.sent, [*before, START, LAST, *after], strict=True))
    assert (answer.status, answer.record.bytes_out, answer.record.aborted) == (200, 2, False)


def test_extra_keys_of_messages_survive(asgi: AsgiCall) -> None:
    asgi.around(sending({**START, "trailers": True}, {**LAST, "more": 1}), policies=[MANY])
    asgi()
    assert asgi.sent[0]["trailers"] is True
    assert asgi.sent[1] == {**LAST, "more": 1}


@pytest.mark.parametrize(
    ("headers", "size"),
    [([(b"content-length", b"1000")], 1000), ([], 0), ([(b"content-length", b"many")], 0)],
    ids=["announced", "not announced", "nonsense"],
)
def test_a_file_sent_by_the_server_ends_the_response(
    asgi: AsgiCall, headers: list[tuple[bytes, bytes]], size: int
) -> None:
    asgi.around(sending({**START, "headers": headers}, {"type": "http.response.pathsend", "path": "/etc/hosts"}))
    record = asgi().record
    assert (record.status, record.bytes_out, record.aborted) == (200, size, False)


def test_a_file_sent_by_its_descriptor_is_counted_and_ends_the_response(asgi: AsgiCall) -> None:
    piece: Message = {"type": "http.response.zerocopysend", "file": 3, "count": 700}
    asgi.around(sending(START, {**piece, "more_body": True}, piece))
    record = asgi().record
    assert (record.status, record.bytes_out, record.aborted) == (200, 1400, False)


@pytest.mark.parametrize("make", [bytearray, memoryview], ids=["bytearray", "memoryview"])
def test_bodies_may_be_any_buffer(asgi: AsgiCall, make: Callable[[bytes], Any]) -> None:
    asgi.around(sending(START, {"type": "http.response.body", "body": make(b"12345")}))
    answer = asgi()
    assert (answer.body, answer.record.bytes_out) == (b"12345", 5)


def test_the_last_body_may_come_without_a_body(asgi: AsgiCall) -> None:
    asgi.around(sending(START, {**LAST, "more_body": True}, {"type": "http.response.body"}))
    assert asgi().record.bytes_out == 2


def test_an_application_that_never_ends_its_response_makes_an_aborted_record(asgi: AsgiCall) -> None:
    asgi.around(sending(START, {**LAST, "more_body": True}), policies=[MANY])
    with pytest.raises(Unfinished):
        asgi()
    (record,) = asgi.last.records
    assert (record.status, record.aborted, record.bytes_out, record.units) == (200, True, 2, 1)


def test_an_application_that_says_nothing_is_recorded_as_a_client_that_left_and_pays(asgi: AsgiCall) -> None:
    asgi.around(sending(), policies=[MANY])
    with pytest.raises(Unfinished):
        asgi()
    (record,) = asgi.last.records
    assert (record.status, record.aborted, record.units) == (499, True, 1)


def test_work_after_the_last_body_changes_nothing_of_the_record(asgi: AsgiCall) -> None:
    done: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(LAST)
        asgi.clock.advance(60)
        done.append("done")

    asgi.around(app)
    record = asgi().record
    assert (done, record.duration, record.aborted) == (["done"], 0, False)


def test_work_after_the_last_body_that_fails_is_raised_on_and_not_blamed_on_the_response(asgi: AsgiCall) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(LAST)
        raise LookupError

    asgi.around(app)
    with pytest.raises(LookupError):
        asgi()
    (record,) = asgi.last.records
    assert (record.status, record.exception, record.aborted) == (200, None, False)


def test_a_send_that_fails_is_raised_into_the_application(asgi: AsgiCall) -> None:
    caught: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send(START)
        except OSError as error:
            caught.append(error)
            raise

    async def send(message: Message) -> None:
        raise OSError("the client is gone")

    asgi.around(app, policies=[MANY])
    with pytest.raises(OSError, match="gone") as raised:
        asgi.run(asgi.app(http_scope(), receiver(), send))
    assert caught == [raised.value]
    (record,) = asgi.fresh()
    assert (record.status, record.exception, record.aborted) == (200, "OSError", True)


def test_answers_of_concurrent_requests_do_not_mix(asgi: AsgiCall) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        number = int(scope["path"][1:])
        current_usage().note(number=number)
        await send(START)
        for _ in range(number):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Message) -> None:
        await asyncio.sleep(0)

    async def all_at_once() -> None:
        await asyncio.gather(*(asgi.app(http_scope("GET", f"/{n}"), receiver(), send) for n in range(50)))

    asgi.around(app, policies=[MANY])
    asgi.run(all_at_once())
    told = [(record.path, record.bytes_out, record.metadata) for record in asgi.fresh()]
    assert sorted(told) == sorted((f"/{n}", n, {"number": n}) for n in range(50))


def test_a_request_is_freed_at_once_and_not_by_the_garbage_collector(asgi: AsgiCall) -> None:
    class Marker:
        """Lives as long as the scope does."""

    async def send(message: Message) -> None: ...

    async def exchange(scope: Any) -> None:
        await asgi.app(scope, receiver([b'{"user": ', b'"anne"}']), send)

    asgi.behind(policies=[MANY, Policy("body", identity=Body("user"), limits=["100/minute"])])
    headers = [("content-length", "16"), ("content-type", "application/json")]
    gc.disable()
    try:
        marker = Marker()
        seen = weakref.ref(marker)
        asgi.run(exchange(http_scope("POST", "/", headers, marker=marker)))
        del marker
        assert seen() is None
    finally:
        gc.enable()


# -- cancellation -----------------------------------------------------------------------------------------------------


def test_a_cancelled_handler_is_recorded_as_a_client_that_left(asgi: AsgiCall) -> None:
    started = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    async def cancelled() -> None:
        task = asyncio.create_task(asgi.app(http_scope(), receiver(), None))  # type: ignore[arg-type]
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asgi.around(app, policies=[MANY])
    asgi.run(cancelled())
    (record,) = asgi.fresh()
    assert (record.status, record.exception, record.aborted, record.units) == (499, "CancelledError", True, 1)


def test_a_request_cancelled_while_the_counters_are_asked_is_recorded(asgi: AsgiCall) -> None:
    asked = asyncio.Event()

    class Slow:
        def apply(self, operation: Any) -> Any:
            raise AssertionError

        def close(self) -> None: ...

        def drop(self) -> None: ...

        def async_half(self) -> Any:
            return self.Half()

        class Half:
            async def apply(self, operation: Any) -> Any:
                asked.set()
                await asyncio.Event().wait()

    async def cancelled() -> None:
        task = asyncio.create_task(asgi.app(http_scope(), receiver(), None))  # type: ignore[arg-type]
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asgi.behind(policies=[MANY], counters=Slow())
    asgi.run(cancelled())
    (record,) = asgi.fresh()
    assert (record.status, record.exception, record.aborted) == (499, "CancelledError", True)


def test_an_exchange_that_is_dropped_in_another_context_is_recorded(asgi: AsgiCall) -> None:
    """As when a loop stops without cancelling its tasks, and the garbage collector ends them."""

    class Pause:
        def __await__(self) -> Any:
            yield

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Pause()

    asgi.around(app, policies=[MANY])
    exchange = asgi.app(http_scope(), receiver(), None)  # type: ignore[arg-type]
    contextvars.copy_context().run(exchange.send, None)
    exchange.close()
    (record,) = asgi.fresh()
    assert (record.status, record.exception, record.aborted) == (499, "GeneratorExit", True)


# -- what is not HTTP -------------------------------------------------------------------------------------------------


def lifespan(app: AsgiApp, asgi: AsgiCall) -> list[Message]:
    """What the application says when a server starts and stops it."""
    messages: list[Message] = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    asgi.run(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
    return sent


async def alive(scope: Any, receive: Any, send: Any) -> None:
    """An application that knows lifespan and answers everything else."""
    if scope["type"] != "lifespan":
        await send(START)
        await send(LAST)
        return
    scope["state"]["mine"] = 1
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete", "extra": 1})


def test_lifespan_passes_through(asgi: AsgiCall) -> None:
    asgi.around(alive, policies=[MANY])
    complete: list[Message] = [
        {"type": "lifespan.startup.complete"},
        {"type": "lifespan.shutdown.complete", "extra": 1},
    ]
    assert lifespan(asgi.app, asgi) == complete


def test_everything_is_stored_before_shutdown_is_complete(asgi: AsgiCall, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    asgi.around(alive)

    def flush(timeout: float = 5.0) -> bool:
        events.append("flush")
        return True

    monkeypatch.setattr(asgi.keeper, "flush", flush)
    messages = [message["type"] for message in lifespan(asgi.app, asgi)]
    assert (events, messages[-1]) == (["flush"], "lifespan.shutdown.complete")
    monkeypatch.undo()


def test_an_application_without_lifespan_says_so_itself(asgi: AsgiCall) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http", "no lifespan here"

    asgi.around(app)
    with pytest.raises(AssertionError, match="no lifespan here"):
        lifespan(asgi.app, asgi)


class Whole:
    """What looks like a framework's application."""

    def add_middleware(self, middleware: Any) -> None: ...

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await alive(scope, receive, send)


@pytest.mark.parametrize("app", [alive, Whole()], ids=["inside a stack", "around an application"])
def test_a_middleware_may_be_called_as_any_application_may(asgi: AsgiCall, app: Any) -> None:
    middleware: Any = driver.UsageMiddleware(app, keeper=asgi.keep())
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asgi.run(middleware(http_scope(), receiver(), send))
    asgi.run(middleware(http_scope(), receive=receiver(), send=send))
    asgi.run(middleware(scope=http_scope(), receive=receiver(), send=send))
    assert [message.get("status") for message in sent] == [200, None] * 3
    assert len(asgi.fresh()) == 3


# -- wrong options ----------------------------------------------------------------------------------------------------


def test_a_wrong_option_fails_the_start_with_its_sentence(asgi: AsgiCall) -> None:
    app: Any = driver.UsageMiddleware(alive, polices=[])  # type: ignore[call-arg]
    (message,) = lifespan(app, asgi)
    assert message["type"] == "lifespan.startup.failed"
    assert message["message"] == "ConfigurationError: there is no option 'polices': did you mean 'policies'?"


def test_a_wrong_option_is_raised_by_every_request_and_keeps_none_of_them(asgi: AsgiCall) -> None:
    app: Any = driver.UsageMiddleware(alive, routes=["/api*"], store="memory://")
    depths: list[int] = []
    for _ in range(3):
        with pytest.raises(ConfigurationError, match="write '/api/\\*'") as caught:
            asgi.run(asgi.exchange(http_scope(), receiver(), app=app))
        depths.append(len(caught.traceback))
        del caught
    assert depths[0] == depths[2], "the traceback, and with it every request, is kept"


def test_what_is_no_application_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"write app.add_middleware\(UsageMiddleware, "):
        driver.UsageMiddleware("app")  # type: ignore[arg-type]


def test_an_application_of_the_other_kind_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"for Flask write from usagekeeper\.flask import UsageMiddleware"):
        driver.UsageMiddleware(lambda environ, start_response: [])  # type: ignore[arg-type, misc]


def test_keeper_and_options_together_are_refused(asgi: AsgiCall) -> None:
    app: Any = driver.UsageMiddleware(alive, keeper=asgi.keep(), policies=[MANY])
    (message,) = lifespan(app, asgi)
    assert "give either keeper= or options, not both: put policies into UsageKeeper" in message["message"]


def test_a_middleware_that_nobody_keeps_is_given_back(asgi: AsgiCall) -> None:
    app: Any = driver.UsageMiddleware(alive, keeper=asgi.keep())
    asgi.run(asgi.exchange(http_scope(), receiver(), app=app))
    seen = weakref.ref(app)
    del app
    gc.collect()
    assert seen() is None


# -- nothing outlives a request ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [["9/minute"], ["1/minute"]], ids=["served", "refused"])
def test_what_a_server_starts_with_the_last_message_keeps_no_request(asgi: AsgiCall, limits: list[str]) -> None:
    """The timer of a connection that stays open copies the context."""
    contexts: list[contextvars.Context] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            contexts.append(contextvars.copy_context())

    asgi.around(sending(START, LAST), policies=[Policy("p", limits=limits)])
    for _ in range(2):
        asgi.run(asgi.app(http_scope("GET", "/api/x"), receiver(), send))
    assert [context.get(current) for context in contexts] == [None, None]


def test_a_request_leaves_nothing_that_the_garbage_collector_counts(asgi: AsgiCall) -> None:
    async def nowhere(message: Message) -> None: ...

    async def many(times: int) -> None:
        for _ in range(times):
            await asgi.app(http_scope("GET", "/api/x", headers), pull, nowhere)

    async def counted() -> int:
        await many(100)
        before = gc.get_count()[0]
        await many(100)
        return gc.get_count()[0] - before

    headers = [("referer", "http://h/"), ("authorization", "x y")]
    pull = receiver()
    asgi.around(sending(START, LAST), policies=[Policy("p", limits=["100000/day"])])
    asgi.app.record = lambda encoded: None  # type: ignore[attr-defined]
    gc.disable()
    try:
        assert asgi.run(counted()) < 50
    finally:
        gc.enable()
