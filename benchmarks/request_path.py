"""What the middleware adds to a request, stage by stage, in process: Starlette, FastAPI and Flask.

Rows 1-4, 9-13 of the targets. No server and no socket: a fresh scope or environ a call, answers thrown away.
"""

from __future__ import annotations

import gc
import io
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.timing import best, best_async, effort, figure, report
from usagekeeper import Header, Policy, Rate, UsageKeeper, asgi, wsgi

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]
WsgiApp = Callable[[dict[str, Any], Any], Iterable[bytes]]

HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64) bench"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"x-customer", b"client-7"),
    (b"referer", b"https://example.org/page"),
    (b"x-request-id", b"6f1c2d"),
]
PATH = "/api/items/7"
LIMITS = [Rate(10**6, "minute"), Rate(10**7, "hour"), Rate(10**8, "day")]


def starlette_app() -> AsgiApp:
    """One route, JSON."""

    async def item(request: Request) -> JSONResponse:
        return JSONResponse({"id": 7, "name": "seven"})

    return Starlette(routes=[Route("/api/items/{item_id}", item)])


def fastapi_app() -> AsgiApp:
    """One route, JSON."""
    app = FastAPI(openapi_url=None)

    @app.get("/api/items/{item_id}")
    async def item(item_id: int) -> dict[str, object]:
        return {"id": item_id, "name": "seven"}

    return app


def flask_app() -> WsgiApp:
    """One route, JSON."""
    app = Flask("bench")

    @app.get("/api/items/<int:item_id>")
    def item(item_id: int) -> dict[str, object]:
        return {"id": item_id, "name": "seven"}

    return app.wsgi_app


def keeper(limits: list[Rate], *, patterns: int = 0, **options: Any) -> UsageKeeper:
    """One policy with *limits* and, if asked, many other patterns around it."""
    others = [f"/other/{number}/{{name}}/x" for number in range(patterns)]
    policy = Policy("default", routes=["/api/*", *others], identity=Header("X-Customer"), limits=limits)
    settings: dict[str, Any] = {"store": "memory://", "counters": "memory://", "whitelist": ["GET /health"]}
    return UsageKeeper(routes=["*"], policies=[policy], **(settings | options))


def discarding(middleware: Any) -> Any:
    """*middleware* with its records thrown away after they were encoded: what the request path costs by itself."""
    middleware.record = lambda encoded: None
    return middleware


def unrecorded(middleware: Any) -> Any:
    """*middleware* without records."""
    middleware.close_ticket = lambda *_: b""
    return discarding(middleware)


async def receive() -> dict[str, Any]:
    """An empty body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def swallow(message: Any) -> None:
    """A server that sends nowhere."""


def asgi_call(app: AsgiApp, path: str = PATH, send: Any = swallow) -> Callable[[], Awaitable[None]]:
    """One request with a scope of its own."""

    def call() -> Awaitable[None]:
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
            "scheme": "http", "path": path, "raw_path": b"", "query_string": b"", "root_path": "",
            "headers": HEADERS, "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 8000), "state": {},
        }  # fmt: skip
        return app(scope, receive, send)

    return call


def wsgi_call(app: WsgiApp) -> Callable[[], None]:
    """One request with an environ of its own."""
    base = {
        "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": PATH, "QUERY_STRING": "", "REMOTE_ADDR": "127.0.0.1",
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http", "wsgi.errors": io.StringIO(), "wsgi.multithread": False,
        "wsgi.multiprocess": False, "wsgi.run_once": False,
        **{f"HTTP_{name.decode().upper().replace('-', '_')}": value.decode() for name, value in HEADERS},
    }  # fmt: skip

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        return swallowed.append

    def call() -> None:
        body = app({**base, "wsgi.input": io.BytesIO()}, start)
        swallowed.extend(body)
        swallowed.clear()
        close = getattr(body, "close", None)
        if close is not None:
            close()

    swallowed: list[bytes] = []
    return call


class Noop:
    """The least that a middleware can cost."""

    def __init__(self, app: AsgiApp) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def stages(app: AsgiApp, folder: Path) -> dict[str, Callable[[], Awaitable[None]]]:
    """From nothing to everything."""
    sqlite = f"sqlite:///{folder}/counters.db"
    four = [*LIMITS, Rate(10**9, "day", "fixed", name="quota")]
    built = {
        "bare": app,
        "no-op": Noop(app),
        "whitelisted": asgi.UsageMiddleware(app, keeper=keeper(LIMITS, whitelist=["GET /api/*"])),
        "3 limits, no headers, no record": unrecorded(asgi.UsageMiddleware(app, keeper=keeper(LIMITS, headers="none"))),
        "3 limits + headers, no record": unrecorded(asgi.UsageMiddleware(app, keeper=keeper(LIMITS))),
        "record only": discarding(asgi.UsageMiddleware(app, keeper=keeper([]))),
        "full: 4 limits + headers + record": discarding(asgi.UsageMiddleware(app, keeper=keeper(four))),
        "full, SQLite counters": discarding(asgi.UsageMiddleware(app, keeper=keeper(four, counters=sqlite))),
    }
    return {name: asgi_call(one) for name, one in built.items()}


def flask_stages(folder: Path) -> dict[str, Callable[[], None]]:
    """The same on Flask."""
    app, sqlite = flask_app(), f"sqlite:///{folder}/flask.db"
    four = [*LIMITS, Rate(10**9, "day", "fixed", name="quota")]
    built = {
        "bare": app,
        "whitelisted": wsgi.UsageMiddleware(app, keeper=keeper(LIMITS, whitelist=["GET /api/*"])),
        "3 limits + headers, no record": unrecorded(wsgi.UsageMiddleware(app, keeper=keeper(LIMITS))),
        "full: 4 limits + headers + record": discarding(wsgi.UsageMiddleware(app, keeper=keeper(four))),
        "full, SQLite counters": discarding(wsgi.UsageMiddleware(app, keeper=keeper(four, counters=sqlite))),
    }
    return {name: wsgi_call(one) for name, one in built.items()}


async def tiny(scope: Any, receive: Any, send: Any) -> None:
    """A raw ASGI application."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello"})


def scaling() -> dict[str, Callable[[], Awaitable[None]]]:
    """Rows 10 and 11 on a raw application: what does not grow with patterns and limits."""
    many = [Rate(10**6 + number, "minute", name=f"limit-{number}") for number in range(20)]
    paths = iter(range(10**9))

    def unique(patterns: int) -> Callable[[], Awaitable[None]]:
        middleware = discarding(asgi.UsageMiddleware(tiny, keeper=keeper(LIMITS, patterns=patterns)))

        def call() -> Awaitable[None]:
            one: Awaitable[None] = asgi_call(middleware, f"/api/items/{next(paths)}")()
            return one

        return call

    return {
        "raw": asgi_call(tiny),
        "1 pattern, unique paths": unique(0),
        "1,000 patterns, unique paths": unique(1000),
        "1 limit": asgi_call(discarding(asgi.UsageMiddleware(tiny, keeper=keeper(many[:1])))),
        "20 limits": asgi_call(discarding(asgi.UsageMiddleware(tiny, keeper=keeper(many)))),
    }


def refused(app: AsgiApp) -> dict[str, Callable[[], Awaitable[None]]]:
    """Row 12: a refused request against a served one."""
    limits = [Rate(1, "day", "fixed"), *LIMITS[:2]]
    return {
        "bare": asgi_call(app),
        "refused": asgi_call(discarding(asgi.UsageMiddleware(app, keeper=keeper(limits)))),
    }


def kept(app: AsgiApp) -> int:
    """Row 13: containers that 10,000 requests leave behind."""
    import asyncio

    middleware = discarding(asgi.UsageMiddleware(app, keeper=keeper(LIMITS)))  # the memory store keeps its records
    call = asgi_call(middleware)

    async def run(times: int) -> None:
        for _ in range(times):
            await call()

    async def count() -> int:
        await run(1000)
        gc.collect()
        before = len(gc.get_objects())
        await run(10_000)
        return len(gc.get_objects()) - before

    gc.disable()
    try:
        return asyncio.run(count())
    finally:
        gc.enable()


def main() -> None:
    """Print every table."""
    how, arguments = effort(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for name, app in (("Starlette", starlette_app()), ("FastAPI", fastapi_app())):
            report(name, best_async(stages(app, Path(folder)), how), "bare", style=arguments.style)
        report("Flask", best(flask_stages(Path(folder)), how), "bare", style=arguments.style)
    report("What does not grow", best_async(scaling(), how), "raw", style=arguments.style)
    report("Refused, Starlette", best_async(refused(starlette_app()), how), "bare", style=arguments.style)
    figure("containers kept by 10,000 requests", kept(tiny), ".0f", style=arguments.style)


if __name__ == "__main__":
    main()
