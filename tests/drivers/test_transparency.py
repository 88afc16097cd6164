"""Any application behaves behind the middleware as it does alone: the same messages and errors, in the same order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.helpers import (
    AsgiApp,
    AsgiCall,
    Environ,
    Message,
    StartResponse,
    WsgiApp,
    WsgiCall,
    http_scope,
    wsgi_environ,
)
from usagekeeper import Body, Policy, current_usage

OURS = {"ratelimit-policy", "ratelimit", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}
POLICIES: Mapping[str, list[Policy]] = {
    "nothing": [],
    "limits": [Policy("p", limits=["9000/minute", "90000/hour"])],
    "body": [Policy("p", identity=Body("user"), limits=["9000/minute"])],
}


class Boom(Exception):
    """Raised by the application."""


class Gone(Exception):
    """Raised by the server when the client has left."""


class Act(NamedTuple):
    """What an application does."""

    status: int
    headers: list[tuple[str, str]]
    chunks: list[bytes]
    raises_after: int | None
    """So many steps; 0 is before the response."""
    shape: str
    leaves_after: int | None
    """The client, so many chunks."""


NAMES = st.sampled_from(["content-type", "set-cookie", "x-a", "content-length", "ratelimit", "x-ratelimit-limit"])
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=8)
ACTS = st.builds(
    Act,
    status=st.sampled_from([200, 201, 204, 304, 404, 429, 500]),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=6),
    chunks=st.lists(st.binary(max_size=5), max_size=5),
    raises_after=st.none() | st.integers(0, 5),
    shape=st.sampled_from(["list", "generator", "late", "write", "unended"]),
    leaves_after=st.none() | st.integers(0, 3),
)
PIECES = {"json": b'{"user": "anne"}', "nothing": b"", "much": b"x" * 40_000}
UPLOADS = st.lists(st.sampled_from(sorted(PIECES)), max_size=3)
KINDS = st.sampled_from(sorted(POLICIES))


def told(headers: Iterable[tuple[str, str]], act: Act) -> list[tuple[str, str]]:
    """The headers of the application; what follows them has to be ours, and nothing that it said itself."""
    pairs = list(headers)
    own = pairs[: len(act.headers)]
    added = {name.lower() for name, _ in pairs[len(own) :]}
    assert added <= OURS - {name for name, _ in own}
    return own


# -- ASGI -------------------------------------------------------------------------------------------------------------


def asgi_acting(act: Act, log: list[Any]) -> AsgiApp:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        def step(at: int) -> None:
            if act.raises_after == at:
                raise Boom

        while True:
            message = await receive()
            log.append(("received", message.get("body"), message.get("more_body")))
            if not message.get("more_body"):
                break
        step(0)
        raw = [(name.encode(), value.encode("latin-1")) for name, value in act.headers]
        await send({"type": "http.response.start", "status": act.status, "headers": raw})
        for at, chunk in enumerate(act.chunks, 1):
            step(at)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            log.append(("sent", at))
        if act.shape != "unended":
            await send({"type": "http.response.body"})
        step(len(act.chunks) + 1)

    return app


async def drive_asgi(app: AsgiApp, act: Act, pieces: list[bytes], log: list[Any]) -> None:
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    waiting = iter(messages)
    seen = 0

    async def receive() -> Message:
        return next(waiting)

    async def send(message: Message) -> None:
        nonlocal seen
        kept = dict(message)
        if "headers" in kept:
            text = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in kept["headers"]]
            kept["headers"] = told(text, act)
        elif seen == act.leaves_after:
            raise Gone
        else:
            seen += 1
        log.append(kept)

    headers = [("content-type", "application/json"), ("transfer-encoding", "chunked")]
    try:
        await app(http_scope("POST", "/", headers), receive, send)
    except (Boom, Gone) as error:
        log.append(type(error))


def test_an_asgi_application_behaves_as_alone_and_makes_one_record(asgi: AsgiCall) -> None:
    keepers = {kind: asgi.keep(policies=policies) for kind, policies in POLICIES.items()}

    @settings(max_examples=80)
    @given(act=ACTS, upload=UPLOADS, kind=KINDS)
    def holds(act: Act, upload: list[str], kind: str) -> None:
        assume(kind != "body" or upload.count("much") < 2)  # which is refused
        pieces = [PIECES[name] for name in upload]
        alone: list[Any] = []
        behind: list[Any] = []
        asgi.around(asgi_acting(act, behind), keeper=keepers[kind])
        asgi.run(drive_asgi(asgi_acting(act, alone), act, pieces, alone))
        asgi.run(drive_asgi(asgi.app, act, pieces, behind))
        (record,) = asgi.fresh()
        assert behind == alone
        # A record is made before the last message, which may fail to leave.
        given_up = [one for one in alone if one in (Boom, Gone)]
        sent = [one for one in alone if isinstance(one, dict) and one["type"] == "http.response.body"]
        ended = bool(sent) and not sent[-1].get("more_body")
        assert record.aborted is not (ended or (given_up == [Gone] and len(sent) == len(act.chunks)))
        assert record.bytes_in == sum(map(len, pieces))

    holds()


# -- WSGI -------------------------------------------------------------------------------------------------------------


def wsgi_acting(act: Act, log: list[Any]) -> WsgiApp:
    def step(at: int) -> None:
        if act.raises_after == at:
            raise Boom

    def stream(start: Any) -> Iterator[bytes]:
        try:
            if start is not None:
                step(0)
                start(f"{act.status} X", list(act.headers))
            for at, chunk in enumerate(act.chunks, 1):
                step(at)
                yield chunk
                log.append(("taken", at))
            step(len(act.chunks) + 1)
        finally:
            log.append("closed")

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        source = environ["wsgi.input"]
        log.append(("read", source.read(10), source.readline(), list(source)))
        if act.shape == "late":
            return stream(start_response)
        step(0)
        write = start_response(f"{act.status} X", list(act.headers))
        if act.shape == "write":
            for at, chunk in enumerate(act.chunks, 1):
                step(at)
                write(chunk)
            return []
        return list(act.chunks) if act.shape == "list" else stream(None)

    return app


def drive_wsgi(app: WsgiApp, act: Act, pieces: list[bytes], log: list[Any]) -> None:
    def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        log.append((status, told(headers, act)))
        return lambda data: log.append(("written", data))

    headers = [("content-type", "application/json"), ("transfer-encoding", "chunked")]
    try:
        body: Any = app(wsgi_environ("POST", "/", headers, pieces), start_response)
        log.append(("length", len(body) if hasattr(body, "__len__") else None))
        try:
            for at, chunk in enumerate(body):
                if act.leaves_after == at:
                    break
                log.append(("seen", chunk))
        finally:
            if hasattr(body, "close"):
                body.close()
    except Boom as error:
        log.append(type(error))


def test_a_wsgi_application_behaves_as_alone_and_makes_one_record(wsgi: WsgiCall) -> None:
    wsgi.validated = False
    keepers = {kind: wsgi.keep(policies=policies) for kind, policies in POLICIES.items()}

    @settings(max_examples=80)
    @given(act=ACTS, upload=UPLOADS, kind=KINDS)
    def holds(act: Act, upload: list[str], kind: str) -> None:
        assume(kind != "body" or upload.count("much") < 2)  # which is refused
        pieces = [PIECES[name] for name in upload]
        alone: list[Any] = []
        behind: list[Any] = []
        wsgi.around(wsgi_acting(act, behind), keeper=keepers[kind])
        drive_wsgi(wsgi_acting(act, alone), act, pieces, alone)
        drive_wsgi(wsgi.app, act, pieces, behind)
        (record,) = wsgi.fresh()
        assert behind == alone
        assert record.bytes_in == sum(map(len, pieces))
        assert record.exception in (None, "Boom")
        assert not current_usage().watched

    holds()


def test_the_figures_are_those_of_the_messages() -> None:
    """The properties above compare logs; this is what one looks like."""
    log: list[Any] = []
    act = Act(200, [("x-a", "1")], [b"ab", b"c"], None, "generator", None)
    asyncio.run(drive_asgi(asgi_acting(act, log), act, [b"in"], log))
    assert log == [
        ("received", b"in", True),
        ("received", b"", False),
        {"type": "http.response.start", "status": 200, "headers": [("x-a", "1")]},
        {"type": "http.response.body", "body": b"ab", "more_body": True},
        ("sent", 1),
        {"type": "http.response.body", "body": b"c", "more_body": True},
        ("sent", 2),
        {"type": "http.response.body"},
    ]
