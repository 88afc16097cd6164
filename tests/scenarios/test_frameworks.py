"""Frameworks that the package has no word of its own for: the two drivers serve them all alike."""

import asyncio
import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers import AsgiCall, Call, Message, WsgiCall, http_scope, receiver
from usagekeeper import Policy, current_usage

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def litestar_app() -> Any:
    from litestar import Litestar, get
    from litestar.response import Stream

    @get("/api/{name:str}")
    async def item(name: str) -> str:
        current_usage().note(name=name)
        return "item"

    @get("/stream")
    async def stream() -> Stream:
        return Stream(iter([b"a" * 1000, b"b" * 1000]))

    @get("/failure")
    async def failure() -> str:
        raise LookupError("private words")

    return Litestar([item, stream, failure])


def quart_app() -> Any:
    from quart import Quart

    app = Quart("served")

    @app.get("/api/<name>")
    async def item(name: str) -> str:
        current_usage().note(name=name)
        return "item"

    @app.get("/stream")
    async def stream() -> Any:
        async def chunks() -> Any:
            yield b"a" * 1000
            yield b"b" * 1000

        return chunks()

    @app.get("/failure")
    async def failure() -> str:
        raise LookupError("private words")

    return app


def falcon_asgi_app() -> Any:
    import falcon
    import falcon.asgi

    class Item:
        async def on_get(self, request: Any, response: Any, name: str) -> None:
            current_usage().note(name=name)
            response.text = "item"

    class Stream:
        async def on_get(self, request: Any, response: Any) -> None:
            async def chunks() -> Any:
                yield b"a" * 1000
                yield b"b" * 1000

            response.stream = chunks()

    class Failure:
        async def on_get(self, request: Any, response: Any) -> None:
            raise LookupError("private words")

    app = falcon.asgi.App()
    for path, resource in {"/api/{name}": Item(), "/stream": Stream(), "/failure": Failure()}.items():
        app.add_route(path, resource)
    return app


def falcon_wsgi_app() -> Any:
    import falcon

    class Item:
        def on_get(self, request: Any, response: Any, name: str) -> None:
            current_usage().note(name=name)
            response.text = "item"

    class Stream:
        def on_get(self, request: Any, response: Any) -> None:
            response.stream = iter([b"a" * 1000, b"b" * 1000])

    class Failure:
        def on_get(self, request: Any, response: Any) -> None:
            raise LookupError("private words")

    app = falcon.App()
    for path, resource in {"/api/{name}": Item(), "/stream": Stream(), "/failure": Failure()}.items():
        app.add_route(path, resource)
    return app


def django_settings() -> None:
    import django  # type: ignore[import-untyped]
    from django.conf import settings  # type: ignore[import-untyped]
    from django.http import HttpResponse, StreamingHttpResponse  # type: ignore[import-untyped]
    from django.urls import path  # type: ignore[import-untyped]

    if settings.configured:
        return

    def item(request: Any, name: str) -> Any:
        current_usage().note(name=name)
        return HttpResponse("item")

    def stream(request: Any) -> Any:
        if hasattr(request, "scope"):

            async def chunks() -> Any:
                yield b"a" * 1000
                yield b"b" * 1000

            return StreamingHttpResponse(chunks())
        return StreamingHttpResponse([b"a" * 1000, b"b" * 1000])

    def failure(request: Any) -> Any:
        raise LookupError("private words")

    urls = [path("api/<name>", item), path("stream", stream), path("failure", failure)]
    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=type("Urls", (), {"urlpatterns": urls}), SECRET_KEY="test")
    django.setup()


def django_asgi_app() -> Any:
    django_settings()
    return importlib.import_module("django.core.handlers.asgi").ASGIHandler()


def django_wsgi_app() -> Any:
    django_settings()
    return importlib.import_module("django.core.handlers.wsgi").WSGIHandler()


def ended(sent: list[Message]) -> bool:
    return any(one["type"] == "http.response.body" and not one.get("more_body", False) for one in sent)


class StayingCall(AsgiCall):
    """A client that stays until it has its answer: these frameworks listen for one that leaves."""

    def _drive(self, method: str, target: str, headers: Any, pieces: Any, client: Any, leave_after: Any) -> None:
        first = receiver(pieces)
        received = 0

        async def receive() -> Message:
            nonlocal received
            received += 1
            while received > max(len(pieces), 1) and not ended(self.sent):
                await asyncio.sleep(0)
            return await first()

        self.run(self.exchange(http_scope(method, target, headers, client), receive))


@pytest.fixture(
    params=[
        pytest.param((StayingCall, litestar_app), id="litestar"),
        pytest.param((StayingCall, quart_app), id="quart"),
        pytest.param((StayingCall, falcon_asgi_app), id="falcon, asgi"),
        pytest.param((WsgiCall, falcon_wsgi_app), id="falcon, wsgi"),
        pytest.param((StayingCall, django_asgi_app), id="django, asgi"),
        pytest.param((WsgiCall, django_wsgi_app), id="django, wsgi"),
    ]
)
def served(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    """A framework's application behind the middleware."""
    kind, make = request.param
    call: Call[Any] = kind()
    if isinstance(call, WsgiCall):
        call.validated = False
    limited = Policy("p", routes=["/api/{name}", "/failure"], limits=["2/minute"])
    call.around(make(), whitelist=["/api/free"], policies=[limited])
    yield call
    call.close()


def test_requests_are_allowed_refused_and_recorded(served: Call[Any]) -> None:
    answers = [served("GET", "/api/x") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.body for answer in answers[:2]] == [b"item", b"item"]
    assert [answer.one("x-ratelimit-remaining") for answer in answers] == ["1", "0", "0"]
    told = [(answer.record.outcome, answer.record.units, answer.record.bytes_out) for answer in answers]
    assert told == [("allowed", 1, 4), ("allowed", 1, 4), ("refused", 0, len(answers[2].body))]
    labels = {answer.record.route for answer in answers}
    assert labels in ({"/api/{name}"}, {"/api/<name>"}), "our own pattern, where the framework's are not known"


def test_a_handler_sees_its_usage(served: Call[Any]) -> None:
    assert served("GET", "/api/x").record.metadata == {"name": "x"}


def test_what_is_whitelisted_leaves_no_trace_and_what_is_unknown_does(served: Call[Any]) -> None:
    assert served.statuses(3, "GET", "/api/free") == [200, 200, 200]
    assert served.recorded() == []
    answer = served("GET", "/nowhere/at/all")
    assert (answer.status, answer.record.status, answer.record.route) == (404, 404, None)


def test_a_stream_is_counted_as_it_passes(served: Call[Any]) -> None:
    answer = served("GET", "/stream")
    assert (answer.status, answer.body) == (200, b"a" * 1000 + b"b" * 1000)
    assert len(answer.chunks) >= 2, "nothing is put together"
    assert (answer.record.bytes_out, answer.record.aborted) == (2000, False)


def test_a_handler_that_raises_is_recorded_and_costs_nothing(
    served: Call[Any], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = served("GET", "/failure")
    assert answer.status == 500
    assert (answer.record.status, answer.record.units) == (500, 0)


@pytest.mark.parametrize("target", ["//api/x", "/api/x/", "/api//x", "/api/x%0a", "/api/./x", "/api/x;v"])
def test_no_spelling_reaches_a_limited_handler_for_free(served: Call[Any], target: str) -> None:
    assert served.statuses(2) == [200, 200]
    served.status("GET", target)
    assert served.last.body != b"item"


ROOTED = [
    "/shop/api/x", "/api/x", "/shopapi/x", "/x/shop/api/x", "/x/shopapi/x", "//shop/api/x", "/api/free/shop/api/x",
    "/api/y/shop/api/x", "/shop/shop/api/x", "/shop/x/shop/api/x", "/%2fshop/api/x", "/ashop/api/x", "/shop%2fapi/x",
]  # fmt: skip


def below_shop(call: Call[Any]) -> None:
    """Serve as a server does that was told of a prefix, and leaves the path as the client sent it."""
    app = call.app

    async def rooted_asgi(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/shop"}, receive, send)

    def rooted_wsgi(environ: Any, start_response: Any) -> Any:
        return app({**environ, "SCRIPT_NAME": "/shop"}, start_response)

    call.app = rooted_asgi if call.protocol == "asgi" else rooted_wsgi


def test_attack_11_no_path_that_is_served_below_a_prefix_is_free(served: Call[Any]) -> None:
    """Litestar and Quart look for the prefix in places where the path does not begin with it."""
    below_shop(served)
    free = []
    for target in ROOTED:
        served.clock.advance(60)
        answer = served("GET", target)
        paid = [record.policies for record in answer.records] == [("p",)]
        if answer.body == b"item" and not paid:
            free.append(target)
    assert free == []
