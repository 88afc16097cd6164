"""Where the middleware stands among others: what docs/placement.md says of each, on both sides of ours."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, abort, session
from flask import Response as FlaskResponse
from flask import request as flask_request
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from werkzeug.datastructures import HeaderSet
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.helpers import CLIENT, AsgiCall, WsgiCall
from usagekeeper import EXPOSED_HEADERS, Header, PathParam, Policy, UsageKeeper, current_usage
from usagekeeper.asgi import UsageMiddleware as AsgiMiddleware
from usagekeeper.flask import UsageMiddleware
from usagekeeper.wsgi import UsageMiddleware as WsgiMiddleware

ONE = Policy("one", identity=Header("X-Customer"), limits=["1/minute"])
ORIGIN = {"Origin": "https://shop.example"}
PREFLIGHT = {**ORIGIN, "Access-Control-Request-Method": "GET"}
PAGE = (Path(__file__).parent.parent.parent / "docs/placement.md").read_text()
BOTH = pytest.mark.parametrize("outside", [True, False], ids=["ours outside", "ours inside"])


class Late(Exception):
    """What an application has a handler for."""


async def endpoint(request: Request) -> Response:
    if "fail" in request.query_params:
        raise ZeroDivisionError
    if "late" in request.query_params:
        raise Late
    if request.scope.get("user"):
        current_usage().identify(request.user.display_name)
    if "session" in request.scope and "account" in request.session:
        current_usage().identify(request.session["account"])
    if "login" in request.query_params:
        request.session["account"] = "acct_1"
    return PlainTextResponse("x" * 2000)


def stack(call: AsgiCall, other: Middleware, outside: bool, *, handlers: Any = None, **options: Any) -> UsageKeeper:
    """An application with ours and one *other* middleware."""
    call.keeper = call.keep(**{"policies": [ONE], **options})
    ours = Middleware(AsgiMiddleware, keeper=call.keeper)
    layers = [ours, other] if outside else [other, ours]
    call.app = Starlette(routes=[Route("/api/x", endpoint)], middleware=layers, exception_handlers=handlers)
    return call.keeper


def plain(call: AsgiCall, **options: Any) -> None:
    call.keeper = call.keep(policies=[ONE])
    layers = [Middleware(AsgiMiddleware, keeper=call.keeper)]
    call.app = Starlette(routes=[Route("/api/x", endpoint)], middleware=layers, **options)


# -- Starlette --------------------------------------------------------------------------------------------------------


def test_what_is_added_last_is_outermost(asgi: AsgiCall) -> None:
    app = Starlette(routes=[Route("/api/x", endpoint)])
    app.add_middleware(AsgiMiddleware, keeper=asgi.keep(policies=[ONE]))
    app.add_middleware(CORSMiddleware, allow_origins=["*"], expose_headers=[*EXPOSED_HEADERS])
    asgi.app = app
    answers = [asgi(headers=ORIGIN) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429]
    assert {answer.one("access-control-allow-origin") for answer in answers} == {"*"}


CORS = Middleware(CORSMiddleware, allow_origins=[ORIGIN["Origin"]], expose_headers=[*EXPOSED_HEADERS])


@BOTH
def test_a_browser_can_read_a_refusal_only_where_cors_is_outside(asgi: AsgiCall, outside: bool) -> None:
    stack(asgi, CORS, outside)
    first, refused = asgi(headers=ORIGIN), asgi(headers=ORIGIN)
    assert (first.status, refused.status) == (200, 429)
    assert first.one("access-control-allow-origin") == ORIGIN["Origin"]
    assert refused.all("access-control-allow-origin") == ([] if outside else [ORIGIN["Origin"]])


def test_every_header_of_ours_is_exposed_on_answers_and_on_refusals(asgi: AsgiCall) -> None:
    stack(asgi, CORS, outside=False)
    for status in (200, 429):
        answer = asgi(headers=ORIGIN)
        ours = {name for name in answer.names if "ratelimit" in name or name == "retry-after"}
        exposed = {name.strip().lower() for name in answer.one("access-control-expose-headers").split(",")}
        assert (answer.status, ours <= exposed) == (status, True)
    assert exposed == ours == {name.lower() for name in EXPOSED_HEADERS}


@BOTH
def test_attack_preflight_a_preflight_is_never_charged_and_reaches_us_only_where_ours_is_outside(
    asgi: AsgiCall, outside: bool
) -> None:
    stack(asgi, CORS, outside)
    preflights = [asgi("OPTIONS", headers=PREFLIGHT) for _ in range(3)]
    assert [(answer.status, len(answer.records)) for answer in preflights] == [(200, int(outside))] * 3
    assert asgi.statuses(2) == [200, 429]


@BOTH
def test_bytes_are_counted_as_they_pass_us(asgi: AsgiCall, outside: bool) -> None:
    stack(asgi, Middleware(GZipMiddleware, minimum_size=500), outside)
    answer = asgi(headers={"Accept-Encoding": "gzip"})
    assert gzip.decompress(answer.body) == b"x" * 2000
    assert answer.record.bytes_out == (len(answer.body) if outside else 2000)


@BOTH
def test_a_refusal_is_compressed_only_where_gzip_is_outside(asgi: AsgiCall, outside: bool) -> None:
    stack(asgi, Middleware(GZipMiddleware, minimum_size=1), outside)
    refused = [asgi(headers={"Accept-Encoding": "gzip"}) for _ in range(2)][1]
    assert refused.status == 429
    assert refused.all("content-encoding") == ([] if outside else ["gzip"])


class Backend(AuthenticationBackend):
    """Knows a user by a token."""

    async def authenticate(self, conn: Any) -> Any:
        token = conn.headers.get("Authorization")
        if token != "Bearer good":
            raise AuthenticationError("who is it?")
        return AuthCredentials(), SimpleUser("acct_42")


AUTH = Middleware(AuthenticationMiddleware, backend=Backend())
GOOD = {"Authorization": "Bearer good", "X-Customer": "acme"}


@BOTH
def test_failed_logins_are_limited_and_recorded_only_where_ours_is_outside(asgi: AsgiCall, outside: bool) -> None:
    stack(asgi, AUTH, outside)
    answers = [asgi(headers={"X-Customer": "acme"}) for _ in range(2)]
    assert [answer.status for answer in answers] == ([400, 429] if outside else [400, 400])
    assert [len(answer.records) for answer in answers] == [int(outside)] * 2


@BOTH
def test_an_authenticated_user_is_identified_by_the_handler_on_either_side(asgi: AsgiCall, outside: bool) -> None:
    stack(asgi, AUTH, outside)
    assert asgi(headers=GOOD).record.subject == "acct_42"


@BOTH
def test_what_is_outside_ours_sees_no_request_of_ours(asgi: AsgiCall, outside: bool) -> None:
    seen: list[bool] = []

    class Looking(Backend):
        async def authenticate(self, conn: Any) -> Any:
            seen.append(current_usage().watched)
            current_usage().identify("acct_7")

    async def nobody(request: Request) -> Response:
        return PlainTextResponse("ok")

    stack(asgi, Middleware(AuthenticationMiddleware, backend=Looking()), outside)
    asgi.app.routes[0].app = Route("/api/x", nobody).app  # type: ignore[attr-defined]
    answer = asgi(headers={"X-Customer": "acme"})
    assert (seen, answer.record.subject) == (([True], "acct_7") if outside else ([False], "acme"))


@BOTH
def test_the_account_of_a_session_is_identified_on_either_side(asgi: AsgiCall, outside: bool) -> None:
    stack(asgi, Middleware(SessionMiddleware, secret_key="s"), outside)
    cookie = asgi("GET", "/api/x?login").one("set-cookie").partition(";")[0]
    answer = asgi(headers={"Cookie": cookie, "X-Customer": "acme"})
    assert (answer.status, answer.record.subject) == (200, "acct_1")


@BOTH
def test_a_foreign_host_is_recorded_and_charged_only_where_ours_is_outside(asgi: AsgiCall, outside: bool) -> None:
    stack(asgi, Middleware(TrustedHostMiddleware, allowed_hosts=["api.example"]), outside)
    answers = [asgi(headers={"Host": "evil.example"}) for _ in range(2)]
    assert [answer.status for answer in answers] == ([400, 429] if outside else [400, 400])
    assert [len(answer.records) for answer in answers] == [int(outside)] * 2


FORWARDED = {"X-Forwarded-For": "198.51.100.7"}


@pytest.mark.parametrize(
    ("outside", "trusted", "client"),
    [(False, None, "198.51.100.7"), (False, 1, "198.51.100.7"), (True, None, CLIENT), (True, 1, "198.51.100.7")],
)
def test_the_client_behind_a_proxy_is_seen_where_the_header_is_read_before_us_or_by_us(
    asgi: AsgiCall, outside: bool, trusted: int | None, client: str
) -> None:
    stack(asgi, Middleware(ProxyHeadersMiddleware, trusted_hosts=[CLIENT]), outside, trusted_proxies=trusted)
    assert asgi(headers=FORWARDED).record.subject == client


def test_an_unhandled_exception_is_recorded_as_500_and_its_answer_has_no_headers_of_ours(asgi: AsgiCall) -> None:
    plain(asgi)
    with pytest.raises(ZeroDivisionError):
        asgi("GET", "/api/x?fail")
    assert (asgi.last.status, asgi.last.all("ratelimit")) == (500, [])
    assert (asgi.last.record.status, asgi.last.record.exception) == (500, "ZeroDivisionError")


async def late(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "late"}, 418)


def test_the_answer_of_an_exception_handler_is_an_answer_like_any_other(asgi: AsgiCall) -> None:
    plain(asgi, exception_handlers={Late: late})
    answer = asgi("GET", "/api/x?late")
    assert (answer.status, answer.record.status, answer.record.exception) == (418, 418, None)
    assert answer.all("ratelimit")


def test_a_handler_of_all_exceptions_answers_outside_ours(asgi: AsgiCall) -> None:
    plain(asgi, exception_handlers={Exception: late})
    with pytest.raises(ZeroDivisionError):
        asgi("GET", "/api/x?fail")
    assert (asgi.last.status, asgi.last.all("ratelimit")) == (418, [])
    assert (asgi.last.record.status, asgi.last.record.exception) == (500, "ZeroDivisionError")


def test_around_the_whole_application_the_answer_to_an_exception_is_what_the_client_saw(asgi: AsgiCall) -> None:
    asgi.around(Starlette(routes=[Route("/api/x", endpoint)]), policies=[ONE])
    with pytest.raises(ZeroDivisionError):
        asgi("GET", "/api/x?fail")
    assert (asgi.last.status, asgi.last.record.status, asgi.last.record.exception) == (500, 500, None)
    assert asgi.last.all("ratelimit")


# -- Flask ------------------------------------------------------------------------------------------------------------


def shop(call: WsgiCall, **options: Any) -> Flask:
    """A Flask application with ours around it, and a hook as extensions for CORS have one."""
    app = Flask(__name__)
    app.secret_key = "s"
    call.keeper = call.keep(**{"policies": [ONE], **options})
    UsageMiddleware(app, keeper=call.keeper)

    @app.get("/api/x")
    def read() -> str:
        if "fail" in flask_request.args:
            raise ZeroDivisionError
        if "late" in flask_request.args:
            abort(418)
        if "login" in flask_request.args:
            session["account"] = "acct_1"
        if "account" in session:
            current_usage().identify(session["account"])
        return "ok"

    @app.after_request
    def cors(response: FlaskResponse) -> FlaskResponse:
        response.access_control_allow_origin = "https://shop.example"
        response.access_control_expose_headers = HeaderSet(EXPOSED_HEADERS)
        return response

    call.app = app
    return app


def test_a_hook_of_flask_exposes_our_headers_on_answers_and_never_sees_a_refusal(wsgi: WsgiCall) -> None:
    shop(wsgi)
    first, refused = wsgi(headers=ORIGIN), wsgi(headers=ORIGIN)
    assert {name.strip() for name in first.one("access-control-expose-headers").split(",")} == {*EXPOSED_HEADERS}
    assert (refused.status, refused.all("access-control-allow-origin")) == (429, [])


def test_the_wrapper_of_the_page_makes_refusals_readable(wsgi: WsgiCall) -> None:
    (block,) = [one for one in PAGE.split("```python\n") if "def readable(" in one]
    names: dict[str, Any] = {"EXPOSED_HEADERS": EXPOSED_HEADERS}
    exec(block.partition("\n\n\nshop =")[0], names)
    app = shop(wsgi)
    app.wsgi_app = names["readable"](app.wsgi_app, "https://shop.example")  # type: ignore[method-assign]
    for status in (200, 429):
        answer = wsgi(headers=ORIGIN)
        assert (answer.status, answer.one("access-control-allow-origin")) == (status, "https://shop.example")
        assert "Retry-After" in answer.one("access-control-expose-headers")


@pytest.mark.parametrize(
    ("outside", "trusted", "client"),
    [(False, None, "198.51.100.7"), (False, 1, "198.51.100.7"), (True, None, CLIENT), (True, 1, "198.51.100.7")],
)
def test_what_wraps_wsgi_app_last_is_outermost(wsgi: WsgiCall, outside: bool, trusted: int | None, client: str) -> None:
    app = Flask(__name__)
    keeper = wsgi.keep(policies=[ONE], trusted_proxies=trusted)
    if outside:
        app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    UsageMiddleware(app, keeper=keeper)
    if not outside:
        app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    wsgi.app = app
    assert wsgi(headers=FORWARDED).record.subject == client


def test_flask_answers_an_exception_inside_ours(wsgi: WsgiCall) -> None:
    shop(wsgi)
    failed = wsgi("GET", "/api/x?fail", {"X-Customer": "a"})
    assert (failed.status, failed.record.status, failed.record.exception) == (500, 500, "ZeroDivisionError")
    assert failed.all("ratelimit")
    late = wsgi("GET", "/api/x?late", {"X-Customer": "b"})
    assert (late.status, late.record.status, late.record.exception) == (418, 418, None)


def test_the_account_of_a_flask_session_is_identified(wsgi: WsgiCall) -> None:
    shop(wsgi)
    cookie = wsgi("GET", "/api/x?login", {"X-Customer": "a"}).one("set-cookie").partition(";")[0]
    assert wsgi(headers={"Cookie": cookie, "X-Customer": "b"}).record.subject == "acct_1"


def behind_a_dispatcher(call: WsgiCall, pattern: str, around: bool) -> None:
    shop_app, front = Flask("shop"), Flask("front")
    shop_app.add_url_rule("/items/<int:item>", view_func=lambda item: "item")
    keeper = call.keep(policies=[Policy("p", routes=[pattern], limits=["1/minute"])])
    if not around:
        UsageMiddleware(shop_app, keeper=keeper)
    mounted = DispatcherMiddleware(front, {"/shop": shop_app})
    call.app = WsgiMiddleware(mounted, keeper=keeper) if around else mounted


@pytest.mark.parametrize(
    ("around", "pattern", "statuses"),
    [
        (True, "/shop/items/*", [200, 429]),
        (True, "/items/*", [200, 200]),
        (False, "/shop/items/*", [200, 429]),
        (False, "/items/*", [200, 429]),
    ],
)
def test_around_a_dispatcher_patterns_hold_the_prefix_and_inside_either_will_do(
    wsgi: WsgiCall, around: bool, pattern: str, statuses: list[int]
) -> None:
    behind_a_dispatcher(wsgi, pattern, around)
    assert wsgi.statuses(2, target="/shop/items/7") == statuses


@pytest.mark.parametrize(("around", "prefix"), [(True, "/shop"), (False, "")])
def test_records_have_the_templates_of_flask_with_the_prefix_around_the_dispatcher(
    wsgi: WsgiCall, around: bool, prefix: str
) -> None:
    behind_a_dispatcher(wsgi, "/shop/items/*", around)
    assert wsgi(target="/shop/items/7").record.route == f"{prefix}/items/<int:item>"


def test_what_is_not_found_below_a_dispatcher_is_no_route_of_the_front(wsgi: WsgiCall) -> None:
    behind_a_dispatcher(wsgi, "/shop/*", around=True)
    assert wsgi(target="/shop/nothing").record.route == "/shop/<path>"


def test_a_path_parameter_is_found_below_a_dispatcher(wsgi: WsgiCall) -> None:
    shop = Flask("shop")
    shop.add_url_rule("/of/<tenant>", view_func=lambda tenant: tenant)
    keeper = wsgi.keep(policies=[Policy("p", identity=PathParam("tenant"), limits=["9/minute"])])
    wsgi.app = WsgiMiddleware(DispatcherMiddleware(Flask("front"), {"/shop": shop}), keeper=keeper)
    assert wsgi(target="/shop/of/acme").record.subject == "acme"
