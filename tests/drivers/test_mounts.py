"""Applications below a prefix: every run of a handler is charged, by patterns with the prefix and without it."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tests.helpers import AsgiCall, Call, WsgiCall
from usagekeeper import Policy, UsageKeeper
from usagekeeper.asgi import UsageMiddleware as AsgiMiddleware
from usagekeeper.flask import UsageMiddleware as FlaskMiddleware
from usagekeeper.wsgi import UsageMiddleware as WsgiMiddleware

TARGETS = [
    "/shop/api/x", "/api/x", "//shop/api/x", "/shop//api/x", "/shop/api//x", "/shop/api/x/", "/shop/api/x%0a",
    "/shop%2fapi/x", "/%73hop/api/x", "/shop/shop/api/x", "/shop/../shop/api/x", "/shop/%2e%2e/api/x", "/shop/./api/x",
    "/shop;v/api/x", "/shop/api/x;v", "/SHOP/api/x", "/shop/health/../api/x", "/shop/health%2f..%2fapi/x", "/shopapi/x",
    "/shop/api/x%00", "/shop%0a/api/x", "/shop/api/x?a", "/shop/api/x#health", "/shop/shop/../api/x",
]  # fmt: skip

Ran = Callable[[], None]
Made = Callable[[UsageKeeper, Ran], Any]


def starlette_app(ran: Ran) -> Starlette:
    async def x(request: Any) -> PlainTextResponse:
        ran()
        return PlainTextResponse("x")

    return Starlette(routes=[Route("/api/x", x)])


def flask_app(ran: Ran) -> Flask:
    app = Flask("mounted")

    @app.get("/api/x")
    def x() -> str:
        ran()
        return "x"

    return app


def mounted_with_the_middleware_inside(keeper: UsageKeeper, ran: Ran) -> Any:
    inner = starlette_app(ran)
    inner.add_middleware(AsgiMiddleware, keeper=keeper)
    return Starlette(routes=[Mount("/shop", app=inner)])


def mounted_with_the_middleware_around(keeper: UsageKeeper, ran: Ran) -> Any:
    app = Starlette(routes=[Mount("/shop", app=starlette_app(ran))])
    app.add_middleware(AsgiMiddleware, keeper=keeper)
    return app


def with_a_root_path_of_the_server(keeper: UsageKeeper, ran: Ran) -> Any:
    app = FastAPI()
    app.add_middleware(AsgiMiddleware, keeper=keeper)
    app.add_api_route("/api/x", lambda: ran())

    async def served(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/shop"}, receive, send)

    return served


def around_a_root_path_of_the_application(keeper: UsageKeeper, ran: Ran) -> Any:
    app = FastAPI()
    app.root_path = "/shop"
    app.add_api_route("/api/x", lambda: ran())
    return AsgiMiddleware(app, keeper=keeper)


def around_layers_around_a_root_path_of_the_application(keeper: UsageKeeper, ran: Ran) -> Any:
    inner = around_a_root_path_of_the_application(keeper, ran).app
    return AsgiMiddleware(CORSMiddleware(GZipMiddleware(inner)), keeper=keeper)


def dispatched_with_the_middleware_inside(keeper: UsageKeeper, ran: Ran) -> Any:
    inner = flask_app(ran)
    FlaskMiddleware(inner, keeper=keeper)
    return DispatcherMiddleware(Flask("outer"), {"/shop": inner})


def dispatched_with_the_middleware_around(keeper: UsageKeeper, ran: Ran) -> Any:
    return WsgiMiddleware(DispatcherMiddleware(Flask("outer"), {"/shop": flask_app(ran)}), keeper=keeper)


INSIDE = [
    pytest.param(AsgiCall, mounted_with_the_middleware_inside, id="mount, inside"),
    pytest.param(AsgiCall, with_a_root_path_of_the_server, id="root_path"),
    pytest.param(AsgiCall, around_a_root_path_of_the_application, id="root_path of the application, around"),
    pytest.param(AsgiCall, around_layers_around_a_root_path_of_the_application, id="the same, around layers"),
    pytest.param(WsgiCall, dispatched_with_the_middleware_inside, id="dispatcher, inside"),
]
AROUND = [
    pytest.param(AsgiCall, mounted_with_the_middleware_around, id="mount, around"),
    pytest.param(WsgiCall, dispatched_with_the_middleware_around, id="dispatcher, around"),
]


def check(kind: type[Call[Any]], make: Made, pattern: str) -> None:
    """Ask for everything twice: as often as the handler ran, it was charged."""
    call = kind()
    runs: list[str] = []
    asked = ""
    policy = Policy("p", routes=[pattern], limits=["1000000/day"])
    call.keeper = call.keep(policies=[policy], whitelist=["/health", "/health/*", "/shop/health/*"])
    call.app = make(call.keeper, lambda: runs.append(asked))
    unpaid = []
    for asked in TARGETS:
        before = len(runs)
        charged = 1_000_000 - call.left(policy)[0]
        call.status("GET", asked)
        paid = 1_000_000 - call.left(policy)[0] - charged
        if len(runs) - before > paid:
            unpaid.append(asked)
    call.close()
    assert unpaid == []
    assert "/shop/api/x" in runs


@pytest.mark.parametrize("pattern", ["/api/x", "/shop/api/x", "/api/*", "/shop/*"])
@pytest.mark.parametrize(("kind", "make"), INSIDE)
def test_attack_11_a_middleware_below_a_prefix_is_not_dodged(kind: type[Call[Any]], make: Made, pattern: str) -> None:
    """CVE-2026-6556."""
    check(kind, make, pattern)


@pytest.mark.parametrize("pattern", ["/shop/api/x", "/shop/*", "/shop/{any}/x"])
@pytest.mark.parametrize(("kind", "make"), AROUND)
def test_attack_11_a_middleware_around_a_mount_is_not_dodged(kind: type[Call[Any]], make: Made, pattern: str) -> None:
    check(kind, make, pattern)
