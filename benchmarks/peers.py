"""What peers add to a request, and what we add for the same work, in process: FastAPI, Starlette and Flask.

Rows 1-5 of the targets. Each case lives in a process of its own, because some peers change the whole process (a global
tracer, threads, patched classes); the processes take turns, so that all cases, the bare application too, share one run.
Before a case is timed it has to show that it does its work: headers, a refusal once any of its limits is exhausted, a
counter or a record that moved. No case opens a connection: what would leave the process is handed to a stub.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from http import HTTPStatus
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.request_path import (
    PATH,
    asgi_call,
    discarding,
    fastapi_app,
    flask_app,
    starlette_app,
    unrecorded,
    wsgi_call,
)
from benchmarks.timing import Effort, Style, effort, table
from usagekeeper import Policy, Rate, RecordQuery, UsageKeeper, asgi, wsgi

WINDOWS = ("minute", "hour", "day")
AMPLE = (10**6, 10**7, 10**8)
"""What no run exhausts, a minute, an hour and a day."""
FEW = 3
PATIENCE = 300.0
"""Seconds after which a process is taken for stuck."""


class Reply(NamedTuple):
    """What a client would see; names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


Ask = Callable[[str], Reply]


class Built(NamedTuple):
    """An application with something around it."""

    app: Any
    proof: Callable[[Ask], bool] | None = None
    """Sends a request and tells whether it was counted or recorded."""


class Case(NamedTuple):
    """One way to do some work."""

    work: str
    who: str
    build: Callable[[Sequence[int]], Built]
    limits: int = 0
    """How many limits it is given: so many amounts are passed to `build`, one a window."""
    tells: str = ""
    """The header that says what remains, where it has to tell."""

    @property
    def name(self) -> str:
        return f"{self.work}: {self.who}" if self.who else self.work


# -- ours -------------------------------------------------------------------------------------------------------------


def ours(app: Callable[[], Any], records: str = "none", quota: bool = False, **options: Any) -> Any:
    """A builder of *app* behind our middleware with its default identity, the address of the client.

    *records* are "none", "dropped" once they are encoded, or "stored" by the default store, SQLite. A *quota* is one
    limit more. Without `counters` in *options* the counters are those in memory.
    """

    def build(amounts: Sequence[int]) -> Built:
        limits = [Rate(amount, window) for amount, window in zip(amounts, WINDOWS, strict=False)]
        if quota:
            limits.append(Rate(10**9, "day", "fixed", name="quota"))
        folder = Path(tempfile.mkdtemp())
        settings: dict[str, Any] = {"store": "memory://", "counters": "memory://"}
        if records == "stored":
            settings["store"] = f"sqlite:///{folder}/usage.db"
        policies = [Policy("default", routes=["/api/*"], limits=limits)]
        keeper = UsageKeeper(routes=["/api/*"], policies=policies, **(settings | options))
        inner = app()
        driver = asgi.UsageMiddleware if hasattr(inner, "router") else wsgi.UsageMiddleware
        middleware: Any = driver(getattr(inner, "wsgi_app", inner), keeper=keeper)
        if records == "stored":
            return Built(middleware, lambda ask: _stored(keeper, ask))
        if records == "dropped":
            return Built(discarding(middleware), lambda ask: _encoded(middleware, ask))
        return Built(unrecorded(middleware))

    return build


def _stored(keeper: UsageKeeper, ask: Ask) -> bool:
    ask(PATH)
    return keeper.flush() and any(record.status == HTTPStatus.OK for record in keeper.store.read(RecordQuery()))


def _encoded(middleware: Any, ask: Ask) -> bool:
    kept: list[bytes] = []
    dropped, middleware.record = middleware.record, kept.append
    ask(PATH)
    middleware.record = dropped
    return len(kept) == 1 and len(kept[0]) > 100


# -- limiters of ASGI applications ------------------------------------------------------------------------------------


def _rates(amounts: Sequence[int]) -> list[str]:
    return [f"{amount}/{window}" for amount, window in zip(amounts, WINDOWS, strict=False)]


def _slowapi(app: Any, limiter: Any) -> Any:
    from slowapi import _rate_limit_exceeded_handler
    from slowapi.errors import RateLimitExceeded

    app.state.limiter = limiter
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    return app


def slowapi_middleware(app: Callable[[], Any]) -> Any:
    """A builder of *app* with slowapi's ASGI middleware and default limits."""

    def build(amounts: Sequence[int]) -> Built:
        from slowapi import Limiter
        from slowapi.middleware import SlowAPIASGIMiddleware
        from slowapi.util import get_remote_address

        limits: list[Any] = list(_rates(amounts))
        one = _slowapi(app(), Limiter(get_remote_address, default_limits=limits, headers_enabled=True))
        one.add_middleware(SlowAPIASGIMiddleware)
        return Built(one)

    return build


def slowapi_fastapi(amounts: Sequence[int]) -> Built:
    """slowapi's decorator; its headers need the endpoint to take a response."""
    from slowapi import Limiter
    from slowapi.util import get_remote_address

    limiter: Any = Limiter(get_remote_address, headers_enabled=True)

    async def item(request: Request, response: Response, item_id: int) -> dict[str, object]:
        return {"id": item_id, "name": "seven"}

    app = FastAPI(openapi_url=None)
    app.get("/api/items/{item_id}")(limiter.limit(";".join(_rates(amounts)))(item))
    return Built(_slowapi(app, limiter))


def slowapi_starlette(amounts: Sequence[int]) -> Built:
    """slowapi's decorator around an endpoint of Starlette."""
    from slowapi import Limiter
    from slowapi.util import get_remote_address

    limiter: Any = Limiter(get_remote_address, headers_enabled=True)

    async def item(request: Request) -> JSONResponse:
        return JSONResponse({"id": 7, "name": "seven"})

    limited = limiter.limit(";".join(_rates(amounts)))(item)
    return Built(_slowapi(Starlette(routes=[Route("/api/items/{item_id}", limited)]), limiter))


def fastapi_limiter(amounts: Sequence[int]) -> Built:
    """A dependency for each limit, each with a log in memory, as its README has it. Tells nothing in headers."""
    from fastapi_limiter.depends import RateLimiter
    from pyrate_limiter import Duration, Limiter
    from pyrate_limiter import Rate as PyrateRate

    lengths = (Duration.MINUTE, Duration.HOUR, Duration.DAY)
    dependencies = [
        Depends(RateLimiter(limiter=Limiter(PyrateRate(amount, length))))
        for amount, length in zip(amounts, lengths, strict=False)
    ]
    app = FastAPI(openapi_url=None)

    @app.get("/api/items/{item_id}", dependencies=dependencies)
    async def item(item_id: int) -> dict[str, object]:
        return {"id": item_id, "name": "seven"}

    return Built(app)


def asgi_ratelimit(app: Callable[[], Any]) -> Any:
    """A builder of *app* behind asgi-ratelimit with its memory backend; tells nothing in headers."""

    async def authenticate(scope: Any) -> tuple[str, str]:
        return scope["client"][0], "default"

    def build(amounts: Sequence[int]) -> Built:
        from ratelimit import RateLimitMiddleware, Rule
        from ratelimit.backends.simple import MemoryBackend

        rule = Rule(zone="api", **dict(zip(WINDOWS, amounts, strict=False)))
        return Built(RateLimitMiddleware(app(), authenticate, MemoryBackend(), {r"^/api/": [rule]}))

    return build


class ThrottledMiddleware:
    """The least ASGI middleware around throttled-py's asynchronous limiter: one `Throttled` a limit, one by one.

    throttled-py itself has decorators only. Its default algorithm, the token bucket; the three headers it documents.
    """

    def __init__(self, app: Any, amounts: Sequence[int]) -> None:
        from throttled.asyncio import MemoryStore, Throttled

        store = MemoryStore()
        self.app = app
        self.throttles = [
            Throttled(quota=f"{amount}/{window[0]}", store=store, key_prefix=window)
            for amount, window in zip(amounts, WINDOWS, strict=False)
        ]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one scope."""
        key = scope["client"][0]
        least: Any = None
        for throttle in self.throttles:
            result = await throttle.limit(key)
            if result.limited:
                wait = str(result.state.retry_after).encode()
                start = {"type": "http.response.start", "status": 429, "headers": [(b"retry-after", wait)]}
                await send(start)
                await send({"type": "http.response.body", "body": b"Rate limit exceeded"})
                return
            if least is None or result.state.remaining < least.remaining:
                least = result.state
        told = [
            (b"ratelimit-limit", b"%d" % least.limit),
            (b"ratelimit-remaining", b"%d" % least.remaining),
            (b"ratelimit-reset", b"%d" % least.reset_after),
        ]

        async def telling(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *told]}
            await send(message)

        await self.app(scope, receive, telling)


def throttled(app: Callable[[], Any]) -> Any:
    """A builder of *app* behind throttled-py."""
    return lambda amounts: Built(ThrottledMiddleware(app(), amounts))


# -- limiters of Flask ------------------------------------------------------------------------------------------------


def bare_flask() -> Any:
    """The `Flask` object that `flask_app` hands out the entry of."""
    return flask_app().__self__  # type: ignore[attr-defined]


def flask_limiter(amounts: Sequence[int]) -> Built:
    """flask-limiter with default limits, headers and its memory storage."""
    from flask_limiter import Limiter
    from flask_limiter.util import get_remote_address

    app = bare_flask()
    limits: list[Any] = list(_rates(amounts))
    Limiter(get_remote_address, app=app, default_limits=limits, storage_uri="memory://", headers_enabled=True)
    return Built(app.wsgi_app)


# -- recorders --------------------------------------------------------------------------------------------------------


def prometheus(app: Callable[[], Any]) -> Any:
    """A builder of *app* with prometheus-fastapi-instrumentator, metrics exposed, as its README has it."""

    def total(ask: Ask) -> float:
        lines = [line for line in ask("/metrics").body.decode().splitlines() if line.startswith("http_requests_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if "/api/items" in line)

    def counts(ask: Ask) -> bool:
        before = total(ask)
        ask(PATH)
        return total(ask) == before + 1

    def build(amounts: Sequence[int]) -> Built:
        from prometheus_fastapi_instrumentator import Instrumentator

        one = app()
        Instrumentator().instrument(one).expose(one)
        return Built(one, counts)

    return build


def opentelemetry(**options: Any) -> Any:
    """A builder of FastAPI with OpenTelemetry's instrumentation, the SDK, a batch processor and a null exporter.

    The provider is given, not global: a global one would make FastAPI instrument itself too. Traces only.
    """

    def build(amounts: Sequence[int]) -> Built:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

        class Dropping(SpanExporter):  # type: ignore[misc, unused-ignore]
            spans = 0

            def export(self, spans: Any) -> Any:
                self.spans += len(spans)
                return SpanExportResult.SUCCESS

        exporter, provider, app = Dropping(), TracerProvider(), fastapi_app()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        FastAPIInstrumentor.instrument_app(app, tracer_provider=provider, **options)

        def exports(ask: Ask) -> bool:
            ask(PATH)
            return provider.force_flush() and exporter.spans > 0

        return Built(app, exports)

    return build


def apitally(app: Callable[[], Any], entry: Callable[[Any], Any] = lambda one: one) -> Any:
    """A builder of *app* with apitally as its README has it; what it would post is read and thrown away."""

    def build(amounts: Sequence[int]) -> Built:
        import apitally as client
        import requests
        from apitally.shared import activation

        posted: list[tuple[str, int]] = []

        def post(self: Any, url: str, data: Any = None, **_: Any) -> Any:
            posted.append((url.rpartition("/")[2], len(data.read())))
            answer = requests.Response()
            answer.status_code = 200
            return answer

        requests.Session.post = post
        one = app()
        client.init(one, write_token="apt_" + 24 * "0", env="dev")

        def posts(ask: Ask) -> bool:
            ask(PATH)
            activation.export_worker.run_cycle(None, final=True)
            return {"traces", "metrics"} <= {signal for signal, size in posted if size}

        return Built(entry(one), posts)

    return build


class UsageRailServer:
    """Stands for usagerail's server: one customer with one limit a minute and no quota; keeps what is reported."""

    def __init__(self, amount: int) -> None:
        self.rows: list[Any] = []
        limits = {"per_second": None, "per_minute": amount}
        customer = {"consumer": "c1", "external_id": "client-7", "status": "active", "rate_limits": limits}
        settings = {"app_id": "a1", "mode": "test", "integration": "sdk", "hash_key": None, "unit_mode": "requests"}
        self.page = {
            "cursor": "1", "full": True, "has_more": False, "keys": [], "removed_keys": [], "active_instances": 1,
            "app": {**settings, "rate_limit_mode": "per_instance", "routes": []},
            "consumers": [{**customer, "quota_behavior": None, "quota_version": 0}],
        }  # fmt: skip

    def _answer(self, value: dict[str, Any]) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        future.set_result(value)
        return future

    def sync(self, cursor: str | None, timeout_ms: float | None = None) -> Future[dict[str, Any]]:
        """The rules."""
        return self._answer(self.page)

    def ingest(self, request: dict[str, Any], timeout_ms: float | None = None) -> Future[dict[str, Any]]:
        """The counts."""
        self.rows.append(request)
        return self._answer({})

    def verify_key(self, request: dict[str, Any], timeout_ms: float | None = None) -> Future[dict[str, Any]]:
        """Never asked: the customer is told by a function."""
        raise AssertionError(f"a key to verify: {request}")

    def leases(self, request: dict[str, Any], timeout_ms: float | None = None) -> Future[dict[str, Any]]:
        """Never asked: there is no quota."""
        raise AssertionError(f"a lease of a quota: {request}")


def usagerail(app: Callable[[], Any]) -> Any:
    """A builder of *app* with usagerail, which limits and counts; its customer is named by a header."""

    def customer(request: Any) -> Any:
        return request.headers.get("x-customer")

    def build(amounts: Sequence[int]) -> Built:
        from usagerail import create_engine

        server = UsageRailServer(amounts[0])
        engine = create_engine(app_key="bench", auth="custom", consumer=customer, transport=server, flush_on_exit=False)
        one = app()
        if hasattr(one, "wsgi_app"):
            from usagerail.flask import UsageRail

            UsageRail(one, engine=engine)
            entry = one.wsgi_app
        else:
            from usagerail.fastapi import UsageRailMiddleware

            one.add_middleware(UsageRailMiddleware, app_key="bench", auth="custom", engine=engine)
            entry = one

        def counts(ask: Ask) -> bool:
            ask(PATH)
            engine._meter.flush()
            return "client-7" in repr(server.rows) and "items" in repr(server.rows)

        return Built(entry, counts)

    return build


# -- the tables -------------------------------------------------------------------------------------------------------


def _cases(app: Callable[[], Any], peers: Sequence[Case]) -> list[Case]:
    """The bare application, then for each work ours and the *peers* of it."""
    two, remaining = "counters and store in SQLite", "x-ratelimit-remaining"
    mine = [
        Case("1 limit", "usagekeeper", ours(app, headers="none"), 1),
        Case("1 limit + headers", "usagekeeper", ours(app), 1, remaining),
        Case("3 limits", "usagekeeper", ours(app, headers="none"), 3),
        Case("3 limits + headers", "usagekeeper", ours(app), 3, remaining),
        Case("record", "usagekeeper, dropped once encoded", ours(app, "dropped")),
        Case("record", "usagekeeper, into SQLite", ours(app, "stored")),
        Case("1 limit + record", "usagekeeper, into SQLite", ours(app, "stored", headers="none"), 1),
        Case("4 limits + headers + record", "usagekeeper, dropped once encoded", ours(app, "dropped", quota=True), 3,
             remaining),
        Case("4 limits + headers + record", f"usagekeeper, {two}",
             ours(app, "stored", quota=True, counters="auto"), 3, remaining),
    ]  # fmt: skip
    works = list(dict.fromkeys(case.work for case in mine))
    compared = {case.work for case in peers} | {works[-1]}
    both = [case for case in [*mine, *peers] if case.work in compared]
    return [
        Case("bare", "", lambda amounts: Built(flask_app() if app is bare_flask else app())),
        *sorted(both, key=lambda case: works.index(case.work)),
    ]


def tables() -> dict[str, list[Case]]:
    """Every case of every framework; nothing of a peer is imported before its case is built."""
    x, ietf = "x-ratelimit-remaining", "ratelimit-remaining"

    def everywhere(app: Callable[[], Any], slowapi_decorator: Any) -> list[Case]:
        return [
            Case("1 limit", "asgi-ratelimit", asgi_ratelimit(app), 1),
            Case("1 limit + headers", "slowapi, ASGI middleware", slowapi_middleware(app), 1, x),
            Case("1 limit + headers", "slowapi, decorator", slowapi_decorator, 1, x),
            Case("1 limit + headers", "throttled-py, own ASGI middleware", throttled(app), 1, ietf),
            Case("3 limits", "asgi-ratelimit", asgi_ratelimit(app), 3),
            Case("3 limits + headers", "slowapi, ASGI middleware", slowapi_middleware(app), 3, x),
            Case("3 limits + headers", "slowapi, decorator", slowapi_decorator, 3, x),
            Case("3 limits + headers", "throttled-py, own ASGI middleware", throttled(app), 3, ietf),
            Case("record", "prometheus-fastapi-instrumentator", prometheus(app)),
            Case("record", "apitally", apitally(app)),
            Case("1 limit + record", "usagerail", usagerail(app), 1),
        ]

    of_fastapi = [
        Case("1 limit", "fastapi-limiter", fastapi_limiter, 1),
        Case("3 limits", "fastapi-limiter", fastapi_limiter, 3),
        Case("record", "OpenTelemetry", opentelemetry()),
        Case("record", "OpenTelemetry, no spans of send and receive", opentelemetry(exclude_spans=["receive", "send"])),
    ]
    of_flask = [
        Case("1 limit + headers", "flask-limiter", flask_limiter, 1, x),
        Case("3 limits + headers", "flask-limiter", flask_limiter, 3, x),
        Case("record", "apitally", apitally(bare_flask, lambda one: one.wsgi_app)),
        Case("1 limit + record", "usagerail", usagerail(bare_flask), 1),
    ]
    return {
        "FastAPI": _cases(fastapi_app, [*everywhere(fastapi_app, slowapi_fastapi), *of_fastapi]),
        "Starlette": _cases(starlette_app, everywhere(starlette_app, slowapi_starlette)),
        "Flask": _cases(bare_flask, of_flask),
    }


# -- a case proves itself ---------------------------------------------------------------------------------------------


class Unproven(Exception):
    """A case does not do what it is measured for."""


def verify(case: Case, asking: Callable[[Any], Ask]) -> Built:
    """Build *case* with ample limits, after it has shown that it does its work."""
    for tight in range(case.limits):
        amounts = [FEW if number == tight else ample for number, ample in enumerate(AMPLE[: case.limits])]
        ask = asking(case.build(amounts).app)
        replies = [ask(PATH) for _ in range(FEW + 1)]
        statuses = [reply.status for reply in replies]
        if statuses != [200] * FEW + [429]:
            raise Unproven(f"{FEW} requests a {WINDOWS[tight]} were allowed, and the answers were {statuses}")
        remaining = [reply.headers.get(case.tells) for reply in replies[:FEW]]
        if case.tells and tight == 0 and remaining != ["2", "1", "0"]:
            raise Unproven(f"{case.tells} of {FEW} allowed requests: {remaining}")
    built = case.build(AMPLE[: case.limits])
    ask = asking(built.app)
    reply = ask(PATH)
    if reply.status != HTTPStatus.OK or b"seven" not in reply.body:
        raise Unproven(f"it answered {reply}")
    told = [name for name in reply.headers if "ratelimit" in name]
    if bool(told) != bool(case.tells):
        raise Unproven(f"the headers of an allowed request: {reply.headers}")
    if built.proof and not built.proof(ask):
        raise Unproven("nothing was counted or recorded")
    return built


def asgi_asking(runner: asyncio.Runner) -> Callable[[Any], Ask]:
    """How an ASGI application is asked."""

    def asking(app: Any) -> Ask:
        async def one(path: str) -> Reply:
            messages: list[Any] = []

            async def send(message: Any) -> None:
                messages.append(message)

            await asgi_call(app, path, send)()
            headers = {name.decode().lower(): value.decode() for name, value in messages[0]["headers"]}
            return Reply(messages[0]["status"], headers, b"".join(m.get("body", b"") for m in messages[1:]))

        return lambda path: runner.run(one(path))

    return asking


def wsgi_asking(app: Any) -> Ask:
    """How a WSGI application is asked."""

    def ask(path: str) -> Reply:
        from werkzeug.test import EnvironBuilder, run_wsgi_app

        environ = EnvironBuilder(path, headers=[("X-Customer", "client-7")]).get_environ()
        environ["REMOTE_ADDR"] = "127.0.0.1"
        chunks, status, headers = run_wsgi_app(app, environ, buffered=True)
        return Reply(int(status[:3]), {name.lower(): value for name, value in headers}, b"".join(chunks))

    return ask


# -- a process a case -------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """One repeat: microseconds a call by the clock, and of processor time in all threads."""

    wall: float
    cpu: float


def closed_network() -> list[object]:
    """From here on no connection can be opened in this process; returns those that were tried."""
    tried: list[object] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        tried.append(arguments[-1])
        raise OSError(f"no connection is opened here, not even to {arguments[-1]}")

    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, refuse)
    setattr(socket, "getaddrinfo", refuse)  # noqa: B010  the type of a function that never returns is another
    return tried


def serve(framework: str, name: str, folder: str, pipe: Connection) -> None:
    """The life of a case: prove it, say so ("" or the reason why not), then time as many calls as each message says."""
    tempfile.tempdir = folder
    tried = closed_network()
    case = next(case for case in tables()[framework] if case.name == name)
    with asyncio.Runner() as runner:
        asking = wsgi_asking if framework == "Flask" else asgi_asking(runner)
        try:
            app = verify(case, asking).app
        except Exception as error:  # whatever a peer raises is its reason
            pipe.send(f"{type(error).__name__}: {error}")
            return
        pipe.send("")
        while calls := pipe.recv():
            pipe.send(_wsgi_sample(app, calls) if framework == "Flask" else runner.run(_asgi_sample(app, calls)))
        status = asking(app)(PATH).status
        pipe.send(
            f"connections were tried: {tried}" if tried else "" if status == HTTPStatus.OK else f"ended: {status}"
        )


async def _asgi_sample(app: Any, calls: int) -> Sample:
    call = asgi_call(app)
    gc.collect()
    cpu, begin = time.process_time(), time.perf_counter()
    for _ in range(calls):
        await call()
    return _sample(calls, cpu, begin)


def _wsgi_sample(app: Any, calls: int) -> Sample:
    call = wsgi_call(app)
    gc.collect()
    cpu, begin = time.process_time(), time.perf_counter()
    for _ in range(calls):
        call()
    return _sample(calls, cpu, begin)


def _sample(calls: int, cpu: float, begin: float) -> Sample:
    wall = time.perf_counter() - begin
    return Sample(wall / calls * 1e6, (time.process_time() - cpu) / calls * 1e6)


class Worker:
    """A case in its process, seen from outside."""

    def __init__(self, framework: str, case: Case, folder: str) -> None:
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
        self.case = case
        self.samples: list[Sample] = []
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(framework, case.name, folder, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.failure = self._heard()

    def _heard(self) -> Any:
        if not self.pipe.poll(PATIENCE):
            return f"it said nothing for {PATIENCE:.0f} seconds"
        try:
            return self.pipe.recv()
        except EOFError:
            return "its process has ended"

    def time(self, calls: int) -> None:
        """One repeat."""
        if not self.failure:
            self.pipe.send(calls)
            heard = self._heard()
            if isinstance(heard, Sample):
                self.samples.append(heard)
            else:
                self.failure = heard

    def end(self) -> None:
        """Ask for the last word, and end the process."""
        if not self.failure:
            self.pipe.send(0)
            self.failure = self._heard()
        self.process.kill()
        self.process.join()


def measure(framework: str, cases: Sequence[Case], how: Effort) -> list[Worker]:
    """All *cases* in turn."""
    with tempfile.TemporaryDirectory() as folder:
        workers = [Worker(framework, case, folder) for case in cases]
        for _ in range(how.repeats):
            for worker in workers:
                worker.time(how.calls)
        for worker in workers:
            worker.end()
    return workers


def rows(workers: Sequence[Worker]) -> dict[str, tuple[float | None, ...]]:
    """Each case against the bare one; a peer, too, against what ours adds for the same work.

    By the clock the best repeat counts. Processor time is the mean, as threads in the background work now and then.
    """
    figures = {
        worker.case: Sample(
            min(sample.wall for sample in worker.samples), statistics.fmean(sample.cpu for sample in worker.samples)
        )
        for worker in workers
        if worker.samples and not worker.failure
    }
    bare = next((sample for case, sample in figures.items() if case.work == "bare"), None)
    if bare is None:
        raise Unproven(f"the bare application was not measured: {[worker.failure for worker in workers[:1]]}")
    mine: dict[str, float] = {}
    found: dict[str, tuple[float | None, ...]] = {}
    for case, (wall, cpu) in figures.items():
        added, share = wall - bare.wall, None
        if case.who.startswith("usagekeeper"):
            mine[case.work] = added  # of two of ours the second does more: it is the one that peers are compared with
        elif added > 0 and mine.get(case.work, 0) > 0:
            share = mine[case.work] / added
        found[case.name] = (wall, added, wall / bare.wall, cpu - bare.cpu, share)
    return found


def show(framework: str, workers: Sequence[Worker], style: Style) -> None:
    """The table of one framework, and what could not be measured."""
    columns = {"us": ".1f", "added": "+.1f", "ratio": ".2f", "CPU added": "+.1f", "ours / peer": ".2f"}
    notes = [f"Not measured: {worker.case.name}. {worker.failure}" for worker in workers if worker.failure]
    table(framework, columns, rows(workers), notes=notes, style=style)


def main() -> None:
    """Print every table."""
    how, arguments = effort(__doc__)
    for framework, cases in tables().items():
        show(framework, measure(framework, cases, how), arguments.style)


if __name__ == "__main__":
    main()
