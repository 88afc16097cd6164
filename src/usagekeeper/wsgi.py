"""The WSGI driver: `UsageMiddleware` for any WSGI application; Flask's sugar builds on it. Imports no framework."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from usagekeeper.config import Options
from usagekeeper.decisions import HEADER_NAMES
from usagekeeper.discovery import discover, takes
from usagekeeper.engine import Engine
from usagekeeper.errors import ConfigurationError, QuotaExceeded, StoreUnavailable
from usagekeeper.exchange import Refusal, Request, WsgiRequest, as_text, wsgi_path
from usagekeeper.keeper import UsageKeeper, keeper_of
from usagekeeper.policies import RoutePlan, ask
from usagekeeper.sources import LARGEST_BODY, Found, Lack
from usagekeeper.ticket import Ticket
from usagekeeper.usage import current
from usagekeeper.values import Operation

if TYPE_CHECKING:
    from typing import Unpack

Environ = MutableMapping[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
App = Callable[[Any, Any], Iterable[bytes]]

_LOG: Final = logging.getLogger("usagekeeper")


class UsageMiddleware:
    """Watches, limits and records the requests of a WSGI *app*.

    ``app = UsageMiddleware(app, routes=[...], policies=[...])``, or ``keeper=``. Responses pass through untouched but
    for the rate-limit headers, never buffered; exceptions are raised on as they are. Raises `ConfigurationError` at
    once when an option is wrong.
    """

    keeper: UsageKeeper
    engine: Engine

    def __init__(self, app: App, *, keeper: UsageKeeper | None = None, **options: Unpack[Options]) -> None:
        if not callable(app):
            raise ConfigurationError(
                f"UsageMiddleware wraps a WSGI application, not {app!r}:"
                " write app = UsageMiddleware(app, policies=[...])"
            )
        if takes(app, 3) and not takes(app, 2):
            raise ConfigurationError(
                f"usagekeeper.wsgi is for WSGI applications, and {app!r} is called as ASGI asks:"
                " write from usagekeeper.asgi import UsageMiddleware"
            )
        self.app = app
        self._attach(keeper_of(keeper, options))

    def _attach(self, keeper: UsageKeeper) -> None:
        self.keeper = keeper
        self.engine = keeper.engine()
        self._price = self.engine.price
        self.close_ticket = self.engine.close
        self._mark = keeper.mark
        self._clock = keeper.now
        self.timer = keeper.timer
        self._apply = keeper.counters.apply
        self.record = keeper.recorder.record
        self._epoch: object = self  # the epoch of no keeper
        self._discovered = False

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if self.keeper.epoch is not self._epoch:
            self._prepare()
        method = environ["REQUEST_METHOD"]
        path = wsgi_path(environ)
        plan = self._find(method, path, environ.get("SCRIPT_NAME", ""))
        if plan is None or self._mark in environ:
            return self.app(environ, start_response)
        environ[self._mark] = True
        request = WsgiRequest(method, path, environ)
        watched = _Watched(plan, request, self._clock() // 1000, self.timer(), driver=self, forward=start_response)
        watched.outer = current.get()
        current.set(watched)  # until the response is closed: generators run after this call
        try:
            if request.has_body:
                environ["wsgi.input"] = watched.input = _CountedInput(environ["wsgi.input"])
            if plan.gathers:
                _gather(watched, environ)
            operation = self._price(watched)
            if watched.lacks is not None:
                operation = _fetch(watched, watched.lacks)
            if operation is not None:
                try:
                    spends = self._apply(operation)
                except StoreUnavailable:
                    self.engine.outage(watched)
                else:
                    watched.spends = spends
                    if spends.refused:
                        self.engine.decide(watched, spends)
            if watched.refusal is None:
                return watched.passing(self.app(environ, watched.start), environ)
            return watched.passing(_refuse(watched, watched.refusal), environ)
        except QuotaExceeded as error:
            if not watched.status:
                return watched.passing(_refuse(watched, self.engine.exceeded(watched, error.decision)), environ)
            watched.failed(error)
            watched.leave()
            raise
        except BaseException as error:
            watched.failed(error)
            watched.leave()
            raise

    def _prepare(self) -> None:
        """Take up work in this process, and learn the application's routes."""
        keeper = self.keeper
        keeper.start()
        epoch = keeper.epoch
        self._find: Callable[[str, str, str], RoutePlan | None] = self.engine.find if keeper.enabled else _nothing
        self._epoch = epoch
        if not self._discovered:
            self._discovered = True
            self.engine.install(discover((self.app,)))


class _Watched(Ticket):
    """A ticket that is the response on its way out: it closes itself before the last bytes leave."""

    driver: UsageMiddleware = None  # type: ignore[assignment]
    forward: StartResponse = None  # type: ignore[assignment]
    body: Any = None
    chunks: Iterator[bytes] | None = None
    expected: int = -1
    outer: Ticket | None = None
    input: _CountedInput | None = None

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        """The `start_response` given to the application; may come again with *exc_info* (PEP 3333)."""
        told = {name.lower(): value for name, value in headers}
        form, spends = self.form, self.spends
        if form is not None and spends is not None and self.refusal is None:
            ours = form.text(spends.rows, spends.now, charged=True)
            if not HEADER_NAMES.isdisjoint(told):
                ours = [pair for pair in ours if pair[0].lower() not in told]
            headers = [*headers, *ours]
        environ = self.request.environ  # type: ignore[attr-defined]
        # Flask takes its request out of the environ when it is done with it.
        rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
        if rule is not None and rule is not self.plan.routed and wsgi_path(environ) == self.request.path:
            self.driver.engine.agrees(self.plan, rule, rule.rule)  # not that of an application mounted elsewhere
        write = self.forward(status, headers, exc_info) if exc_info else self.forward(status, headers)
        self.status = int(status[:3])  # now, because the server raises what came too late
        self.started = self.driver.timer()
        self.length = told.get("content-length")
        self.mimetype = told.get("content-type")
        length = str(self.length)
        self.expected = int(length) if length.isdecimal() and len(length) < 19 else -1

        def counted(data: bytes) -> None:
            self._count(data)
            write(data)

        return counted

    def passing(self, body: Iterable[bytes], environ: Environ) -> Iterable[bytes]:
        """The response to hand to the server."""
        self.body = body
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper):
            return self._file(body)
        self.chunks = iter(body)
        return _Sized(self, len(body)) if hasattr(body.__class__, "__len__") else self  # type: ignore[arg-type]

    def _file(self, body: Any) -> Iterable[bytes]:
        """A file that the server may send by itself: the very object must reach it, so it reports by its `close`."""
        close = getattr(body, "close", None)
        self.body = None  # its new `close` refers to this

        def closed() -> None:
            try:
                if close is not None:
                    close()
            finally:
                if not self.closed:
                    self.bytes_out = max(0, self.expected)
                    self.finish()
                self.leave()

        body.close = closed
        self.forget()  # nothing of the application runs any more, and servers close in any thread
        served: Iterable[bytes] = body
        return served

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = next(self.chunks)  # type: ignore[arg-type]
        except StopIteration:
            if not self.closed:
                self.finish()
            raise
        except BaseException as error:
            self.failed(error)
            raise
        self._count(chunk)
        return chunk

    def _count(self, chunk: bytes) -> None:
        self.bytes_out += len(chunk)
        if self.bytes_out == self.expected and not self.closed:
            self.finish()

    def close(self) -> None:
        """Called once by the server, also when the client has left."""
        try:
            close = getattr(self.body, "close", None)
            if close is not None:
                close()
        finally:
            self.leave()

    def leave(self) -> None:
        """The exchange is over, one way or another."""
        if not self.closed:
            self.finish(aborted=True)
        self.forget()

    def forget(self) -> None:
        """Nobody's request is served in this thread any more, or the one around this."""
        if current.get() is self:  # not where a server closes in another thread, or reads several by turns
            outer, self.outer = self.outer, None
            current.set(None if outer is None or outer.closed else outer)

    def failed(self, error: BaseException) -> None:
        """The application raised."""
        if not self.closed:
            self.raised(error)
            if not self.status:
                self.status = 500

    def finish(self, *, aborted: bool = False) -> None:
        """Make the record. Nothing that goes wrong here reaches the client."""
        self.closed = True
        self.status = self.status or (499 if aborted else 500)
        if self.input is not None:
            self.bytes_in = self.input.size
        driver = self.driver
        try:
            driver.record(driver.close_ticket(self, driver.timer(), aborted))
        except Exception:  # a callable of the user such as charge_on
            _LOG.exception("a usage record could not be made")


class _Sized:
    """The same response where the application's has a length: servers derive Content-Length from it."""

    __slots__ = ("_length", "_watched", "close")

    def __init__(self, watched: _Watched, length: int) -> None:
        self._watched = watched
        self._length = length
        self.close = watched.close

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        return self._watched


class _CountedInput:
    """The request's body as the application reads it, counted."""

    __slots__ = ("_input", "size")

    def __init__(self, given: Any) -> None:
        self._input = given
        self.size = 0  # asked for in the end: a reference to the exchange would be a circle through the environ

    def _counted(self, data: bytes) -> bytes:
        self.size += len(data)
        return data

    def read(self, *size: int) -> bytes:
        """As the server's."""
        return self._counted(self._input.read(*size))

    def readline(self, *size: int) -> bytes:
        """As the server's."""
        return self._counted(self._input.readline(*size))

    def readlines(self, *hint: int) -> list[bytes]:
        """As the server's."""
        return [self._counted(line) for line in self._input.readlines(*hint)]

    def __iter__(self) -> Iterator[bytes]:
        return map(self._counted, iter(self._input))

    def __next__(self) -> bytes:
        return self._counted(next(self._input))

    def __getattr__(self, name: str) -> Any:
        given = getattr(self._input, name)
        if name not in ("read1", "readinto", "readinto1"):  # where a server has more ways to read
            return given

        def read(*into: Any) -> Any:
            got = given(*into)
            self.size += got if isinstance(got, int) else len(got or b"")
            return got

        return read


def _gather(watched: _Watched, environ: Environ) -> None:
    """What must be known before pricing: the body, and what asynchronous strategies say."""
    plan, request = watched.plan, watched.request
    if plan.body and request.has_body:
        _read_body(request, environ)
    if plan.asks:
        request.positions = plan.positions  # pricing sets them too late for these
        watched.found = asyncio.run(_ask(watched))


async def _ask(watched: _Watched) -> list[list[Found] | None]:
    return [await ask(line, watched.request) if line.asks else None for line in watched.plan.lines]


def _fetch(watched: _Watched, lacks: Lack | None) -> Operation | None:
    """The price, once what it lacks was fetched; each policy may lack something of its own."""
    operation = None
    for _ in watched.plan.lines or (None,):
        if lacks is None:
            break
        lacks.fetch()
        operation = watched.driver.engine.price_again(watched)
        lacks = watched.lacks
    return operation


def _read_body(request: Request, environ: Environ) -> None:
    """Read the body for a strategy, and put it back for the application."""
    announced = environ.get("CONTENT_LENGTH") or ""
    length = int(announced.lstrip("0")[:18] or "0") if announced.isdecimal() else None
    if length is None and not environ.get("wsgi.input_terminated"):  # reading on would wait for ever
        return
    given = environ["wsgi.input"]
    wanted = LARGEST_BODY + 1 if length is None else min(length, LARGEST_BODY + 1)
    body = _read(given, wanted)
    request.oversized = len(body) > LARGEST_BODY
    if request.oversized:
        environ["wsgi.input"] = io.BufferedReader(_Rest(body, given, None if length is None else length - len(body)))
    else:
        request.body = body
        environ["wsgi.input"] = io.BytesIO(body)


def _read(given: Any, wanted: int) -> bytes:
    pieces = []
    while wanted > 0 and (piece := given.read(wanted)):
        pieces.append(piece)
        wanted -= len(piece)
    return b"".join(pieces)


class _Rest(io.RawIOBase):
    """A body of which the beginning was read already; *left* is what may still be asked of the server."""

    def __init__(self, beginning: bytes, given: Any, left: int | None) -> None:
        self._beginning = io.BytesIO(beginning)
        self._given = given
        self._left = left

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, into: Any) -> int:
        """From what was read, then from the server."""
        piece = self._beginning.read(len(into))
        if not piece:
            wanted = len(into) if self._left is None else min(len(into), self._left)
            piece = self._given.read(wanted) if wanted else b""
            if self._left is not None:
                self._left -= len(piece)
        into[: len(piece)] = piece
        return len(piece)


def _refuse(watched: _Watched, refusal: Refusal) -> list[bytes]:
    phrase = HTTPStatus(refusal.status).phrase
    watched.start(f"{refusal.status} {phrase}", as_text(refusal.headers))
    return [] if watched.request.method == "HEAD" else [refusal.body]


def _nothing(method: str, path: str, root: str) -> RoutePlan | None:
    """Stands for `Engine.find` in a keeper that is switched off."""
    return None
