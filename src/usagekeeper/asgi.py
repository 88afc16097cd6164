"""The ASGI driver: `UsageMiddleware` for FastAPI, Starlette and any other ASGI application. Imports no framework."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import Token
from typing import TYPE_CHECKING, Any, Final

from usagekeeper import websocket
from usagekeeper.config import Options
from usagekeeper.decisions import RAW_HEADER_NAMES
from usagekeeper.discovery import discover, own_root, takes
from usagekeeper.engine import Engine
from usagekeeper.errors import ConfigurationError, QuotaExceeded, StoreUnavailable
from usagekeeper.exchange import AsgiRequest, Refusal, asgi_place, byte_length
from usagekeeper.keeper import UsageKeeper, keeper_of
from usagekeeper.policies import RoutePlan, ask
from usagekeeper.sources import LARGEST_BODY, Lack
from usagekeeper.ticket import Ticket
from usagekeeper.usage import current
from usagekeeper.values import Operation, Spends

if TYPE_CHECKING:
    from typing import Unpack

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOG: Final = logging.getLogger("usagekeeper")
_MOST_MESSAGES: Final = 256
"""Messages of a body that are kept as they came."""


class _NoKeeper:
    """Stands for the keeper that a wrong option has prevented: it never starts."""

    epoch = None


class UsageMiddleware:
    """Watches, limits and records the requests of an ASGI *app*.

    ``app.add_middleware(UsageMiddleware, routes=[...], policies=[...])``, or ``UsageMiddleware(app, keeper=keeper)``.
    Responses pass through untouched but for the rate-limit headers; exceptions are raised on as they are. A wrong
    option fails the server's start (`lifespan.startup.failed`) and, where there is no lifespan, every request.
    """

    keeper: UsageKeeper | None
    engine: Engine

    def __new__(cls, app: App | None = None, **_: Any) -> UsageMiddleware:
        """Around a whole application, the sibling that notices being added to it as if it were a class."""
        outermost = cls is UsageMiddleware and (hasattr(app, "add_middleware") or own_root(app))
        return super().__new__(_AroundApplication if outermost else cls)

    def __init__(self, app: App, *, keeper: UsageKeeper | None = None, **options: Unpack[Options]) -> None:
        self.app = app
        self.keeper = None
        self._current: UsageKeeper | _NoKeeper = _NoKeeper()
        self._epoch: object = self  # the epoch of no keeper
        self._error: ConfigurationError | None = None
        if not callable(app):
            raise ConfigurationError(f"UsageMiddleware wraps an ASGI application, not {app!r}: {_RIGHT_LINE}")
        if takes(app, 2) and not takes(app, 3):
            raise ConfigurationError(
                f"usagekeeper.asgi is for ASGI applications, and {app!r} is called as WSGI asks:"
                " for Flask write from usagekeeper.flask import UsageMiddleware, for others from usagekeeper.wsgi"
            )
        try:
            self._attach(keeper_of(keeper, options))
        except ConfigurationError as error:  # said by lifespan and by every request: servers swallow it here
            self._error = error

    def _attach(self, keeper: UsageKeeper) -> None:
        self.keeper = self._current = keeper
        self.engine = keeper.engine()
        self._price = self.engine.price
        self.close_ticket = self.engine.close
        self.mark = keeper.mark
        self.clock = keeper.now
        self.timer = keeper.timer
        self._apply: Any = keeper.counters.async_half().apply
        self.record = keeper.recorder.record
        self._discovered = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        if self._epoch is not self._current.epoch:
            self._prepare(scope)
        method, path, root = scope["method"], scope["path"], scope.get("root_path", "")
        if root:
            path, root = asgi_place(scope)
        plan = self.find(method, path, root)
        if plan is None or self.mark in scope:
            await self.app(scope, receive, send)
            return
        scope[self.mark] = True
        mounted = scope.get("route") if root else None
        pairs = scope["headers"]
        headers = dict(pairs)
        request = AsgiRequest(method, path, scope, headers, len(headers) != len(pairs))
        at, began = self.clock() // 1000, self.timer()
        watched = _Watched(plan, request, at, began, driver=self, forward=send, pull=receive)
        watched.token = current.set(watched)
        try:
            if (later := self.admit(watched)) is not None:
                await later
            if watched.refusal is None:
                await self.app(scope, watched.receive, watched.send)
                route = scope.get("route")
                if route is not None and route is not plan.routed and route is not mounted:
                    self.engine.agrees(plan, route, getattr(route, "path_format", None))
            else:
                await watched.refuse(watched.refusal)
        except QuotaExceeded as error:
            if watched.status:
                watched.failed(error)
                raise
            await watched.refuse(self.engine.exceeded(watched, error.decision))
        except BaseException as error:
            watched.failed(error)
            raise
        finally:
            if not watched.closed:
                watched.status = watched.status or 499  # said nothing: that the client left is why applications do
                watched.close(aborted=True)
            try:  # noqa: SIM105  suppress() takes 0.2 us
                current.reset(watched.token)
            except ValueError:  # the garbage collector ends what a stopped loop has left, in no context of ours
                pass

    def admit(self, ticket: Ticket) -> Awaitable[None] | None:
        """Price *ticket*, charge it and decide. Returns what has to be awaited for that, as a rule nothing."""
        if ticket.plan.gathers:
            return self._admit_later(ticket)
        operation = self._price(ticket)
        if ticket.lacks is not None:
            return self._admit_later(ticket)
        if operation is None:
            return None
        try:
            spends = self._apply(operation)
        except StoreUnavailable:
            self.engine.outage(ticket)
            return None
        if spends.__class__ is not Spends:
            return self._charged(ticket, spends)
        ticket.spends = spends
        if spends.refused:
            self.engine.decide(ticket, spends)
        return None

    async def _admit_later(self, ticket: Ticket) -> None:
        """`admit` where something has to be known first: the body, an asynchronous strategy's word, keys."""
        await _gather(ticket)
        operation = self.engine.price_again(ticket)
        if ticket.lacks is not None:
            operation = await _fetch(self.engine, ticket, ticket.lacks)
        if operation is None:
            return
        try:
            answer = self._apply(operation)
        except StoreUnavailable:
            self.engine.outage(ticket)
        else:
            await self._charged(ticket, answer)

    async def _charged(self, ticket: Ticket, answer: Spends | Awaitable[Spends]) -> None:
        try:
            spends = answer if isinstance(answer, Spends) else await answer
        except StoreUnavailable:
            self.engine.outage(ticket)
        else:
            self.engine.decide(ticket, spends)

    def _prepare(self, scope: Scope) -> None:
        """Take up work in this process, and learn the application's routes."""
        keeper = self.keeper
        if keeper is None:
            # A new one each time: an exception that is raised again keeps every frame, and so every request.
            raise ConfigurationError(str(self._error or _RIGHT_LINE)) from self._error
        keeper.start()
        epoch = keeper.epoch
        self.find: Callable[[str, str, str], RoutePlan | None] = self.engine.find if keeper.enabled else _nothing
        self._epoch = epoch
        if not self._discovered:
            self._discovered = True
            self.engine.install(discover((scope.get("app"), self.app)))

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lifespan, WebSockets, and whatever is neither: passed through."""
        if scope["type"] == "websocket":
            if self._epoch is not self._current.epoch:
                self._prepare(scope)
            await websocket.serve(self, scope, receive, send)
        elif scope["type"] != "lifespan":
            await self.app(scope, receive, send)
        elif self._error is not None:
            await _fail_startup(self._error, receive, send)
        else:
            await self.app(scope, receive, functools.partial(self._lifespan, send))

    async def _lifespan(self, send: Send, message: Message) -> None:
        """Write what is buffered before the server may go."""
        if message["type"].startswith("lifespan.shutdown") and self.keeper is not None:
            self.keeper.flush()
        await send(message)


_FILES: Final = ("http.response.pathsend", "http.response.zerocopysend")


class _Watched(Ticket):
    """A ticket that passes the response on, and closes itself just before the last body message leaves."""

    driver: UsageMiddleware = None  # type: ignore[assignment]
    forward: Send = None  # type: ignore[assignment]
    pull: Receive = None  # type: ignore[assignment]
    token: Token[Ticket | None] = None  # type: ignore[assignment]

    def send(self, message: Message) -> Awaitable[None]:
        """The `send` given to the application."""
        kind = message["type"]
        if kind == "http.response.body":
            body = message.get("body", b"")
            self.bytes_out += len(body) if body.__class__ is bytes else byte_length(body)
            if not message.get("more_body", False):
                if not self.closed:
                    self.close()
                return self._last(message)
        elif kind == "http.response.start":
            message = self._start(message)
        elif kind in _FILES and not self.closed:
            self._file(message)
        return self.forward(message)

    async def _last(self, message: Message) -> None:
        """Pass the last message on with nobody in the context.

        Servers start the timer of a connection that stays open here, and a timer keeps a copy of the context: with the
        request in it every idle connection would keep one, and the garbage collector would go through them all.
        """
        apart = None
        try:
            current.reset(self.token)
        except (ValueError, RuntimeError):  # a task of the application's has a context of its own, or comes too late
            apart = current.set(None)
        try:
            await self.forward(message)
        finally:
            if apart is None:
                self.token = current.set(self)
            else:
                current.reset(apart)

    def _start(self, message: Message) -> Message:
        """The beginning of the response, with our headers. The application may use its message and its list again:
        they are copied, never changed."""
        self.status = message["status"]
        self.started = self.driver.timer()
        headers = message.get("headers", ())
        if headers.__class__ is not list:  # any iterable is allowed, and may be one that is read once
            message = {**message, "headers": (headers := list(headers))}
        told = _by_name(headers)
        self.length, self.mimetype = told.get(b"content-length"), told.get(b"content-type")
        form, spends = self.form, self.spends
        if form is None or spends is None or self.refusal is not None:
            return message
        ours = form.raw(spends.rows, spends.now, charged=True)
        if not RAW_HEADER_NAMES.isdisjoint(told):
            ours = [pair for pair in ours if pair[0] not in told]
        return {**message, "headers": headers + ours}

    def _file(self, message: Message) -> None:
        """The server sends a file: the message tells how much of it, or its length was announced."""
        announced = int(self.length) if self.length and self.length.isdigit() and len(self.length) < 19 else 0
        self.bytes_out += message.get("count") or max(announced - self.bytes_out, 0)
        if not message.get("more_body", False):
            self.close()

    async def receive(self) -> Message:
        """The `receive` given to the application."""
        message = await self.pull()
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
        return message

    async def refuse(self, refusal: Refusal) -> None:
        """Answer in the application's place, without the detour over `send`: a flood of refusals has to be cheap."""
        told = dict(refusal.headers)
        self.status, self.started = refusal.status, self.driver.timer()
        self.length, self.mimetype = told[b"content-length"], told[b"content-type"]
        await self.forward({"type": "http.response.start", "status": refusal.status, "headers": refusal.headers})
        body = b"" if self.request.method == "HEAD" else refusal.body
        self.bytes_out = len(body)
        self.close()
        await self._last({"type": "http.response.body", "body": body})

    def failed(self, error: BaseException) -> None:
        """The application raised, or was cancelled because the client left."""
        if not self.closed:
            self.raised(error)
            if not self.status:
                self.status = 500 if isinstance(error, Exception) else 499

    def close(self, *, aborted: bool = False) -> None:
        """Make the record. Nothing that goes wrong here reaches the client."""
        self.closed = True
        driver = self.driver
        try:
            driver.record(driver.close_ticket(self, driver.timer(), aborted))
        except Exception:  # a callable of the user such as charge_on
            _LOG.exception("a usage record could not be made")


def _by_name(headers: list[Any]) -> dict[bytes, bytes]:
    try:
        return dict(headers)
    except (TypeError, ValueError):  # names that servers take although nothing can be looked up by them
        return {bytes(name): bytes(value) for name, value in headers}


async def _gather(ticket: Ticket) -> None:
    """What must be known before pricing: the body, and what asynchronous strategies say."""
    plan, request = ticket.plan, ticket.request
    if plan.body and request.has_body and isinstance(ticket, _Watched):  # a WebSocket has none
        messages, request.body = await _read_body(ticket.pull)
        request.oversized = request.body is None
        ticket.pull = _replay(messages, ticket.pull)
    if plan.asks:
        request.positions = plan.positions  # pricing sets them too late for these
        ticket.found = [await ask(line, request) if line.asks else None for line in plan.lines]


async def _fetch(engine: Engine, ticket: Ticket, lacks: Lack | None) -> Operation | None:
    """The price, once what it lacks was fetched; each policy may lack something of its own."""
    operation = None
    for _ in ticket.plan.lines or (None,):
        if lacks is None:
            break
        await lacks.afetch()
        operation = engine.price_again(ticket)
        lacks = ticket.lacks
    return operation


async def _read_body(receive: Receive) -> tuple[list[Message], bytes | None]:
    """The messages of a body and the body itself, None when it is larger than an identity may be."""
    messages: list[Message] = []
    body = bytearray()
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            return messages, bytes(body)
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            return messages, None
        if not message.get("more_body", False):
            return messages, bytes(body)
        if len(messages) == _MOST_MESSAGES:  # where a body trickles in, its messages take 200 times its size
            messages = [{"type": "http.request", "body": bytes(body), "more_body": True}]


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """A `receive` that gives *messages* again before anything new."""
    kept = iter(messages)

    async def replayed() -> Message:
        for message in kept:
            return message
        return await receive()

    return replayed


def _nothing(method: str, path: str, root: str) -> RoutePlan | None:
    """Stands for `Engine.find` in a keeper that is switched off."""
    return None


# -- a start that fails loudly ----------------------------------------------------------------------------------------

_RIGHT_LINE: Final = "write app.add_middleware(UsageMiddleware, routes=[...], policies=[...])"


async def _fail_startup(error: ConfigurationError, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})


class _Entry(functools.partial[Any]):
    """What calling a middleware around an application does: serve, or notice that it was added as if it were a class.

    Starlette builds its stack by calling ``add_middleware``'s first argument with the next application. A `partial` of
    the coroutine function still tells servers that this is an ASGI 3 application.
    """

    def __call__(self, scope: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) + len(kwargs) == 2 and kwargs.keys() <= {"receive", "send"}:
            return self.func(*self.args, scope, *args, **kwargs)
        return _Misplaced()


class _EntryOf:
    """Gives every instance of `_AroundApplication` its own entry as ``__call__``."""

    def __get__(self, instance: _AroundApplication | None, owner: type) -> Any:
        return UsageMiddleware.__call__ if instance is None else instance.entry


class _AroundApplication(UsageMiddleware):
    """A middleware around a whole application rather than inside its stack."""

    def __init__(self, app: App, *, keeper: UsageKeeper | None = None, **options: Unpack[Options]) -> None:
        super().__init__(app, keeper=keeper, **options)
        self.root = own_root(app)
        self.entry = _Entry(_AroundApplication.rooted if self.root else UsageMiddleware.__call__, self)

    async def rooted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope with the root that the application is about to put into it."""
        scope["root_path"] = self.root
        await UsageMiddleware.__call__(self, scope, receive, send)

    __call__ = _EntryOf()


class _Misplaced:
    """Stands where an instance was given to add_middleware; says so at start and to every request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = ConfigurationError(f"add_middleware was given a UsageMiddleware that is already built: {_RIGHT_LINE}")
        if scope["type"] != "lifespan":
            raise error
        await _fail_startup(error, receive, send)
