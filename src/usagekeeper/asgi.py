"""The ASGI driver: `UsageMiddleware` for FastAPI, Starlette and any other ASGI application. Imports no framework."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from usagekeeper.config import Options
from usagekeeper.decisions import RAW_HEADER_NAMES
from usagekeeper.discovery import discover
from usagekeeper.engine import Engine
from usagekeeper.errors import ConfigurationError, QuotaExceeded, StoreUnavailable
from usagekeeper.exchange import AsgiRequest, Refusal, asgi_path, byte_length
from usagekeeper.identity import LARGEST_BODY, Lack
from usagekeeper.keeper import UsageKeeper, keeper_of
from usagekeeper.policies import RoutePlan, ask
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
        outermost = cls is UsageMiddleware and hasattr(app, "add_middleware")
        return super().__new__(_AroundApplication if outermost else cls)

    def __init__(self, app: App, *, keeper: UsageKeeper | None = None, **options: Unpack[Options]) -> None:
        self.app = app
        self.keeper = None
        self._error: ConfigurationError | None = None
        if not callable(app):
            raise ConfigurationError(f"UsageMiddleware wraps an ASGI application, not {app!r}: {_RIGHT_LINE}")
        try:
            self._attach(keeper_of(keeper, options))
        except ConfigurationError as error:  # said by lifespan and by every request: servers swallow it here
            self._error = error

    def _attach(self, keeper: UsageKeeper) -> None:
        self.keeper = keeper
        self.engine = keeper.engine()
        self._mark = keeper.mark
        self._clock = keeper.now
        self.timer = keeper.timer
        self._find: Callable[[str, str, str], RoutePlan | None] = self.engine.find if keeper.enabled else _nothing
        self._apply = keeper.counters.async_half().apply
        self.record = keeper.recorder.record
        self._epoch: object = None
        self._discovered = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        keeper = self.keeper
        if keeper is None or keeper.epoch is not self._epoch or self._epoch is None:
            self._prepare(scope)
        method = scope["method"]
        path, root = scope["path"], scope.get("root_path", "")
        if root:
            path = asgi_path(scope)
        plan = self._find(method, path, root)
        if plan is None or self._mark in scope:
            await self.app(scope, receive, send)
            return
        scope[self._mark] = True
        pairs = scope["headers"]
        headers = dict(pairs)
        request = AsgiRequest(method, path, scope, headers, len(headers) != len(pairs))
        watched = _Watched(plan, request, self._clock() // 1000, self.timer(), driver=self, forward=send)
        token = current.set(watched)
        try:
            if request.has_body:
                receive = watched.counting(receive)
            if plan.asks or plan.body:
                receive = await _gather(watched, receive)
            operation = self.engine.price(watched)
            if watched.lacks is not None:
                operation = await _fetch(watched, watched.lacks)
            if operation is not None:
                try:
                    answer = self._apply(operation)
                    spends = answer if isinstance(answer, Spends) else await answer
                except StoreUnavailable:
                    self.engine.outage(watched)
                else:
                    watched.spends = spends
                    if spends.refused:
                        self.engine.decide(watched, spends)
            if watched.refusal is None:
                await self.app(scope, receive, watched.send)
            else:
                await _refuse(watched, watched.refusal)
        except QuotaExceeded as error:
            if watched.status:
                watched.failed(error)
                raise
            await _refuse(watched, self.engine.exceeded(watched, error.decision))
        except BaseException as error:
            watched.failed(error)
            raise
        finally:
            if not watched.closed:
                watched.status = watched.status or 499  # said nothing: that the client left is why applications do
                watched.close(aborted=True)
            try:  # noqa: SIM105  suppress() takes 0.2 us
                current.reset(token)
            except ValueError:  # the garbage collector ends what a stopped loop has left, in no context of ours
                pass

    def _prepare(self, scope: Scope) -> None:
        """Take up work in this process, and learn the application's routes."""
        keeper = self.keeper
        if keeper is None:
            # A new one each time: an exception that is raised again keeps every frame, and so every request.
            raise ConfigurationError(str(self._error or _RIGHT_LINE)) from self._error
        keeper.start()
        self._epoch = keeper.epoch
        if not self._discovered:
            self._discovered = True
            self.engine.install(discover((scope.get("app"), self.app)))

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lifespan and whatever is not HTTP: passed through."""
        if scope["type"] != "lifespan":
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

    def send(self, message: Message) -> Awaitable[None]:
        """The `send` given to the application."""
        kind = message["type"]
        if kind == "http.response.body":
            body = message.get("body", b"")
            self.bytes_out += len(body) if body.__class__ is bytes else byte_length(body)
            if not message.get("more_body", False) and not self.closed:
                self.close()
        elif kind == "http.response.start":
            message = self._started(message)
        elif kind in _FILES and not self.closed:
            self._sending(message)
        return self.forward(message)

    def _sending(self, message: Message) -> None:
        """The server sends a file: the message tells how much of it, or its length was announced."""
        announced = int(self.length) if self.length and self.length.isdigit() and len(self.length) < 19 else 0
        self.bytes_out += message.get("count") or max(announced - self.bytes_out, 0)
        if not message.get("more_body", False):
            self.close()

    def _started(self, message: Message) -> Message:
        self.status = message["status"]
        self.started = self.driver.timer()
        headers = message.get("headers", ())
        if headers.__class__ is not list:  # any iterable is allowed, and may be one that is read once
            message = {**message, "headers": (headers := list(headers))}
        taken = None
        for name, value in headers:
            if name == b"content-length":
                self.length = value
            elif name == b"content-type":
                self.mimetype = value
            elif name in RAW_HEADER_NAMES:
                taken = [*(taken or ()), name]
        form, spends = self.form, self.spends
        if form is None or spends is None or self.refusal is not None:
            return message
        ours = form.raw(spends.rows, spends.now, charged=True)
        if taken:
            ours = [pair for pair in ours if pair[0] not in taken]
        # The application may use its message and its list again: they are copied, never changed.
        return {**message, "headers": [*headers, *ours]}

    def counting(self, receive: Receive) -> Receive:
        """The `receive` given to the application when there is a body to count."""

        async def counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                self.bytes_in += len(message.get("body", b""))
            return message

        return counted

    def failed(self, error: BaseException) -> None:
        """The application raised, or was cancelled because the client left."""
        if not self.closed:
            self.exception = type(error).__name__
            if not self.status:
                self.status = 500 if isinstance(error, Exception) else 499

    def close(self, *, aborted: bool = False) -> None:
        """Make the record. Nothing that goes wrong here reaches the client."""
        self.closed = True
        driver = self.driver
        try:
            driver.record(driver.engine.close(self, driver.timer(), aborted=aborted))
        except Exception:  # a callable of the user such as charge_on
            _LOG.exception("a usage record could not be made")


async def _gather(watched: _Watched, receive: Receive) -> Receive:
    """What must be known before pricing: the body, and what asynchronous strategies say."""
    plan, request = watched.plan, watched.request
    if plan.body and request.has_body:
        messages, request.body = await _read_body(receive)
        request.oversized = request.body is None
        receive = _replay(messages, receive)
    if plan.asks:
        watched.found = [await ask(line, request) if line.asks else None for line in plan.lines]
    return receive


async def _fetch(watched: _Watched, lacks: Lack | None) -> Operation | None:
    """The price, once what it lacks was fetched; each policy may lack something of its own."""
    operation = None
    for _ in watched.plan.lines or (None,):
        if lacks is None:
            break
        await lacks.afetch()
        operation = watched.driver.engine.price_again(watched)
        lacks = watched.lacks
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


async def _refuse(watched: _Watched, refusal: Refusal) -> None:
    body = b"" if watched.request.method == "HEAD" else refusal.body
    await watched.send({"type": "http.response.start", "status": refusal.status, "headers": refusal.headers})
    await watched.send({"type": "http.response.body", "body": body})


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
        self.entry = _Entry(UsageMiddleware.__call__, self)

    __call__ = _EntryOf()


class _Misplaced:
    """Stands where an instance was given to add_middleware; says so at start and to every request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = ConfigurationError(f"add_middleware was given a UsageMiddleware that is already built: {_RIGHT_LINE}")
        if scope["type"] != "lifespan":
            raise error
        await _fail_startup(error, receive, send)
