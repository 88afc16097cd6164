"""One small application in two protocols, and callers that drive it in process without any test client.

A test writes a handler, a plain function of what was received; `AsgiCall` and `WsgiCall` put it behind the middleware
of their protocol, speak as a server would, check what a server would check, and hand back what a client would see.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote, unquote_to_bytes
from uuid import UUID
from weakref import WeakSet
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from usagekeeper import RecordQuery, UsageKeeper, UsageRecord, asgi, wsgi
from usagekeeper.errors import StoreUnavailable
from usagekeeper.limits import LimitSet
from usagekeeper.policies import Policy
from usagekeeper.testing import ManualClock
from usagekeeper.values import CHECK, Charge, Operation, Spend, Spends

if TYPE_CHECKING:
    from typing import Unpack

    from usagekeeper.config import Options

Pairs = Sequence[tuple[str, str]]
TEXT: Pairs = (("content-type", "text/plain"),)
CLIENT = "203.0.113.9"
PATIENCE = 30.0
"""Seconds after which something that should have happened is taken for broken, on any machine."""


class Received(NamedTuple):
    """A request as the application received it."""

    method: str
    path: str
    query: str
    body: bytes


class Reply(NamedTuple):
    """What a handler answers. A list is sent as it is; any other iterable is a stream whose end is not announced."""

    status: int = 200
    headers: Pairs = TEXT
    body: Iterable[bytes] = (b"ok",)


Handler = Callable[[Received], Reply]


def hello(request: Received) -> Reply:
    """The least that an application does."""
    return Reply()


class Answer(NamedTuple):
    """What a client sees of one exchange, and what was recorded of it."""

    status: int
    headers: list[tuple[str, str]]
    chunks: list[bytes]
    records: list[UsageRecord]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def record(self) -> UsageRecord:
        (record,) = self.records
        return record

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]

    def one(self, name: str) -> str:
        (value,) = self.all(name)
        return value

    @property
    def names(self) -> list[str]:
        return [name.lower() for name, _ in self.headers]


class Unfinished(Exception):
    """The application returned before its response was complete."""


Application = TypeVar("Application")


class Call(Generic[Application]):
    """``call.behind(handler, policies=[...])``, then ``call("GET", "/api/x")`` as often as it takes."""

    protocol: str

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.seen: list[str] = []
        """What happened in which order; the callers write "seen <chunk>"."""
        self._known: set[UUID] = set()
        self._keepers: list[UsageKeeper] = []
        self.keeper: UsageKeeper
        self.app: Application
        """What the server is given."""
        self.last = Answer(0, [], [], [])
        """The latest exchange, also when it raised."""

    def behind(
        self, handler: Handler = hello, *, keeper: UsageKeeper | None = None, **options: Unpack[Options]
    ) -> None:
        """Put *handler* behind a middleware with these options."""
        self.around(self.application(handler), keeper=keeper, **options)

    def around(self, app: Application, *, keeper: UsageKeeper | None = None, **options: Unpack[Options]) -> None:
        """Put *app*, written in the protocol itself, behind a middleware."""
        self.keeper = keeper or self.keep(**options)
        self.app = self.middleware(app, self.keeper)

    def keep(self, **options: Unpack[Options]) -> UsageKeeper:
        """A keeper on this call's clock, closed when the test ends."""
        options.setdefault("store", "memory://")
        options.setdefault("clock", self.clock)
        keeper = UsageKeeper(**options)
        self._keepers.append(keeper)
        return keeper

    def application(self, handler: Handler) -> Application:
        """*handler* in the protocol."""
        raise NotImplementedError

    def middleware(self, app: Application, keeper: UsageKeeper) -> Application:
        """The middleware of the protocol around *app*."""
        raise NotImplementedError

    def __call__(
        self,
        method: str = "GET",
        target: str = "/api/x",
        headers: Mapping[str, str] | Pairs = (),
        *,
        body: bytes | Sequence[bytes] | None = None,
        client: str | None = CLIENT,
        leave_after: int | None = None,
    ) -> Answer:
        """Drive one request. A list as *body* is sent in chunks; the client leaves after so many of the answer's."""
        try:
            self._ask(method, target, headers, body, client, leave_after)
        finally:
            self.last.records.extend(self.fresh())
        return self.last

    def status(
        self,
        method: str = "GET",
        target: str = "/api/x",
        headers: Mapping[str, str] | Pairs = (),
        *,
        body: bytes | Sequence[bytes] | None = None,
        client: str | None = CLIENT,
    ) -> int:
        """The status of one request; what was recorded of it is left to the next look."""
        self._ask(method, target, headers, body, client, None)
        return self.last.status

    def _ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | Pairs,
        body: bytes | Sequence[bytes] | None,
        client: str | None,
        leave_after: int | None,
    ) -> None:
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        if body is not None:
            chunked = not isinstance(body, bytes)
            pairs.append(("transfer-encoding", "chunked") if chunked else ("content-length", str(len(body))))
        pieces = [body] if isinstance(body, bytes) else list(body or ())
        self.last = Answer(0, [], [], [])
        self._drive(method, target, pairs, pieces, client, leave_after)

    def _drive(
        self,
        method: str,
        target: str,
        headers: list[tuple[str, str]],
        pieces: list[bytes],
        client: str | None,
        leave_after: int | None,
    ) -> None:
        raise NotImplementedError

    def _sees(self, chunk: bytes) -> None:
        if chunk:
            self.last.chunks.append(chunk)
            self.seen.append(f"seen {chunk.decode('latin-1')}")

    def _starts(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.last = self.last._replace(status=status, headers=headers)

    def fresh(self) -> list[UsageRecord]:
        """The records that no earlier call has seen."""
        new = [record for record in self.recorded() if record.id not in self._known]
        self._known.update(record.id for record in new)
        return new

    def recorded(self) -> list[UsageRecord]:
        """Every record of every keeper of this call."""
        found: list[UsageRecord] = []
        for keeper in self._keepers:
            assert keeper.flush()
            found += keeper.store.read(RecordQuery())
        return found

    def statuses(self, count: int, method: str = "GET", target: str = "/api/x", **more: Any) -> list[int]:
        """The statuses of *count* equal requests."""
        statuses = [self.status(method, target, **more) for _ in range(count)]
        self.fresh()
        return statuses

    def left(self, policy: Policy, subject: str = CLIENT, kind: str = "address") -> list[int]:
        """Units left of each limit of *policy*, by asking without charging."""
        limits = LimitSet(self.keeper.application, policy.name, policy.rates(), kind=kind, mode=policy.mode)
        now = round(self.clock() * 1_000_000)
        spends = self.keeper.counters.apply(Operation([Charge(limits, subject, 1)], now, CHECK))
        standing: list[Spend] = limits.read(spends.rows[0], now)
        return [spend.remaining for spend in standing]

    def close(self) -> None:
        for keeper in self._keepers:
            keeper.close()
        wrong = [keeper for keeper in self._keepers if keeper.disagreements]
        assert not wrong, "a framework chose another route than the label says"


# -- ASGI -------------------------------------------------------------------------------------------------------------

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
T = TypeVar("T")


_RUNNERS: WeakSet[asyncio.Runner] = WeakSet()


def close_loops() -> None:
    """Close what a failed test has left open: else it is the trouble of whichever test runs when it is collected."""
    for runner in list(_RUNNERS):
        runner.close()


class AsgiCall(Call[AsgiApp]):
    """Speaks as an ASGI server does."""

    protocol = "asgi"

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        _RUNNERS.add(self._runner)
        self.sent: list[Message] = []
        """The messages of the latest exchange."""

    def application(self, handler: Handler) -> AsgiApp:
        return asgi_application(handler)

    def middleware(self, app: AsgiApp, keeper: UsageKeeper) -> AsgiApp:
        return asgi.UsageMiddleware(app, keeper=keeper)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What *coroutine* returns; one that waits for what never comes fails."""

        async def bounded() -> T:
            async with asyncio.timeout(PATIENCE):
                return await coroutine

        return self._runner.run(bounded())

    def _drive(
        self,
        method: str,
        target: str,
        headers: list[tuple[str, str]],
        pieces: list[bytes],
        client: str | None,
        leave_after: int | None,
    ) -> None:
        scope = http_scope(method, target, headers, client)
        self.run(self._until_left(self.exchange(scope, receiver(pieces), leave_after=leave_after), leave_after))

    @staticmethod
    async def _until_left(exchange: Coroutine[Any, Any, None], leave_after: int | None) -> None:
        """A server cancels what it runs for a client that has left."""
        try:
            await exchange
        except asyncio.CancelledError:
            if leave_after is None:
                raise

    async def exchange(
        self, scope: Scope, receive: Receive, *, app: AsgiApp | None = None, leave_after: int | None = None
    ) -> None:
        """One exchange, checked as a strict server would."""
        sent: list[Message] = []
        self.sent = sent
        left = leave_after

        async def send(message: Message) -> None:
            nonlocal left
            kind = message["type"]
            assert kind.startswith("http.response."), kind
            if kind == "http.response.start":
                assert not any(one["type"] == kind for one in sent), "the response was started twice"
                raw = list(message.get("headers", ()))
                assert all(type(name) is bytes and type(value) is bytes for name, value in raw), raw
                text = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
                self._starts(message["status"], text)
            if kind == "http.response.body":
                assert self.last.status, "a body came before the response was started"
                assert not _ended(sent), "a body came after the last one"
                if left == 0:
                    raise asyncio.CancelledError
                left = None if left is None else left - 1
                self._sees(bytes(message.get("body", b"")))
            sent.append(message)

        await (app or self.app)(scope, receive, send)
        if not _ended(sent):
            raise Unfinished

    def close(self) -> None:
        super().close()
        self._runner.close()


def _ended(sent: list[Message]) -> bool:
    """Whether the latest exchange has had its last body message."""
    return any(
        message["type"] == "http.response.pathsend"
        or (message["type"] in ("http.response.body", "http.response.zerocopysend") and not message.get("more_body"))
        for message in sent
    )


def http_scope(
    method: str = "GET", target: str = "/api/x", headers: Pairs = (), client: str | None = CLIENT, **more: Any
) -> Scope:
    """A scope as uvicorn makes it of a request line and headers."""
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": None if client is None else (client, 50_000),
        "server": ("127.0.0.1", 80),
        **more,
    }


def receiver(pieces: Sequence[bytes] = ()) -> Receive:
    """A `receive` that gives a body in *pieces*, then that the client has gone."""
    last = max(len(pieces) - 1, 0)
    messages: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": at < last} for at, piece in enumerate(pieces or (b"",))
    ]
    messages.append({"type": "http.disconnect"})
    messages.reverse()

    async def receive() -> Message:
        return messages.pop() if len(messages) > 1 else messages[0]

    return receive


def asgi_application(handler: Handler) -> AsgiApp:
    """*handler* as an ASGI application."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        query = scope["query_string"].decode("latin-1")
        reply = handler(Received(scope["method"], scope["path"], query, body))
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        if isinstance(reply.body, list | tuple):
            chunks = reply.body or (b"",)
            for at, chunk in enumerate(chunks, 1):
                await send({"type": "http.response.body", "body": chunk, "more_body": at < len(chunks)})
            return
        with _Closing(reply.body) as stream:
            for chunk in stream:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


class _Closing:
    """`contextlib.closing`, for iterables that may have nothing to close."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self.body = body

    def __enter__(self) -> Iterable[bytes]:
        return self.body

    def __exit__(self, *_: object) -> None:
        getattr(self.body, "close", lambda: None)()


# -- WSGI -------------------------------------------------------------------------------------------------------------

Environ = dict[str, Any]


class StartResponse(Protocol):
    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]: ...


WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]


class WsgiCall(Call[WsgiApp]):
    """Speaks as a WSGI server does, through `wsgiref.validate` on both sides of the middleware."""

    protocol = "wsgi"
    validated = True
    """Switched off where a test is about what the validator hides: lengths and file wrappers."""

    def application(self, handler: Handler) -> WsgiApp:
        return wsgi_application(handler)

    def middleware(self, app: WsgiApp, keeper: UsageKeeper) -> WsgiApp:
        return wsgi.UsageMiddleware(self._checked(app), keeper=keeper)

    def _checked(self, app: WsgiApp) -> WsgiApp:
        return validator(app) if self.validated else app

    def _drive(
        self,
        method: str,
        target: str,
        headers: list[tuple[str, str]],
        pieces: list[bytes],
        client: str | None,
        leave_after: int | None,
    ) -> None:
        self.exchange(wsgi_environ(method, target, headers, pieces, client), leave_after=leave_after)

    def exchange(self, environ: Environ, *, leave_after: int | None = None) -> None:
        """One exchange, checked as a strict server would."""
        body = self._checked(self.app)(environ, self.start_response)
        left = leave_after
        with _Closing(body):
            for chunk in body:
                assert self.last.status, "a body came before start_response"
                self._sees(chunk)
                left = None if left is None else left - 1
                if left == 0:
                    return

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        """The server's."""
        try:
            if exc_info and self.last.chunks:
                raise exc_info[1].with_traceback(exc_info[2])
        finally:
            exc_info_given = exc_info is not None
            exc_info = None  # no circle of frames and tracebacks
        assert exc_info_given or not self.last.status, "start_response was called twice"
        self._starts(int(status[:3]), list(headers))
        return self._sees


def wsgi_environ(
    method: str = "GET",
    target: str = "/api/x",
    headers: Pairs = (),
    pieces: Sequence[bytes] = (),
    client: str | None = CLIENT,
) -> Environ:
    """An environ as gunicorn makes it of a request line and headers; repeated headers are joined with commas."""
    path, _, query = target.partition("?")
    environ: Environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "wsgi.input": io.BytesIO(b"".join(pieces)),
        "wsgi.input_terminated": True,
    }
    for name, value in headers:
        key = name.upper().replace("-", "_")
        key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    if client is not None:
        environ["REMOTE_ADDR"] = client
    setup_testing_defaults(environ)
    return environ


def wsgi_application(handler: Handler) -> WsgiApp:
    """*handler* as a WSGI application."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body = b"".join(iter(lambda: environ["wsgi.input"].read(8192), b""))
        path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
        reply = handler(Received(environ["REQUEST_METHOD"], path, environ["QUERY_STRING"], body))
        start_response(f"{reply.status} Status", list(reply.headers))
        return reply.body

    return app


# -- counters that fail -----------------------------------------------------------------------------------------------


class Down:
    """Counters that do not answer."""

    def __init__(self) -> None:
        self.asked = 0

    def apply(self, operation: Operation) -> Spends:
        self.asked += 1
        raise StoreUnavailable("the counters do not answer")

    def close(self) -> None: ...

    def drop(self) -> None: ...

    def async_half(self) -> AsyncDown:
        return AsyncDown(self)


class AsyncDown:
    def __init__(self, counters: Down) -> None:
        self._counters = counters

    async def apply(self, operation: Operation) -> Spends:
        return self._counters.apply(operation)
