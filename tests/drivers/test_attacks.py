"""Attacks that other limiters fell for, each against both drivers. The numbers of the advisories say where."""

import asyncio
import threading
import tracemalloc
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route as StarletteRoute

from tests.helpers import (
    CLIENT,
    AsgiCall,
    Call,
    Message,
    Received,
    Reply,
    WsgiCall,
    hello,
    http_scope,
    receiver,
    wsgi_environ,
)
from usagekeeper import Body, ClientAddress, Cookie, FirstOf, Header, Policy, Query, Rate, current_usage
from usagekeeper.counters.sqlite import SqliteCounters

ONE = Policy("one", limits=["1/minute"])
SECRET = b"the protected resource"


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Client-IP", "CF-Connecting-IP", "True-Client-IP", "Client-IP"],
)
def test_attack_1_rotating_a_forwarded_address_changes_nothing_without_trusted_proxies(
    call: Call[Any], header: str
) -> None:
    """CVE-2025-59152, CVE-2026-110724."""
    call.behind(policies=[ONE])
    values = [f"for=192.0.2.{n}" if header == "Forwarded" else f"192.0.2.{n}" for n in range(5)]
    assert [call(headers={header: value}).status for value in values] == [200, 429, 429, 429, 429]


def test_attack_1_rotating_the_left_most_address_changes_nothing_behind_a_trusted_proxy(call: Call[Any]) -> None:
    call.behind(policies=[ONE], trusted_proxies=1)
    values = [f"198.51.100.{n}, 192.0.2.1" for n in range(3)]
    assert [call(headers={"X-Forwarded-For": value}).status for value in values] == [200, 429, 429]


def test_attack_1_a_peer_that_is_no_trusted_proxy_cannot_speak_for_another(call: Call[Any]) -> None:
    call.behind(policies=[ONE], trusted_proxies=["10.0.0.0/8"])
    values = [f"192.0.2.{n}" for n in range(3)]
    assert [call(headers={"X-Forwarded-For": value}).status for value in values] == [200, 429, 429]


def test_attack_3_clients_of_mapped_addresses_do_not_share_one_count(call: Call[Any]) -> None:
    """CVE-2026-30827: masking ::ffff:0:0/96 by a prefix puts all of IPv4 into one bucket."""
    call.behind(policies=[ONE])
    clients = [f"::ffff:192.0.2.{n}" for n in range(4)]
    assert [call(client=client).status for client in clients] == [200] * 4


def test_attack_3_a_mapped_form_gives_no_second_budget(call: Call[Any]) -> None:
    """GHSA-5847-rm3g-23mw."""
    call.behind(policies=[ONE])
    mapped = [f"::ffff:{CLIENT}", f"::FFFF:{CLIENT}", "::ffff:cb00:7109", f"::ffff:{CLIENT}%1"]
    forms = [CLIENT, *mapped, f"64:ff9b::{CLIENT}"]
    assert [call(client=form).status for form in forms] == [200] + [429] * 5


def test_attack_4_rotating_through_an_ipv6_network_gives_no_new_budget(call: Call[Any]) -> None:
    call.behind(policies=[ONE])
    clients = [f"2001:db8:0:7:{n:x}::{n:x}" for n in range(6)]
    assert [call(client=client).status for client in clients] == [200] + [429] * 5


# -- hosts and paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["example.org/health?", "example.org/health#", "x@y/health", "/health", "a, b"])
def test_attack_5_a_forged_host_moves_no_request_to_another_path(call: Call[Any], host: str) -> None:
    """CVE-2026-48710."""
    call.behind(policies=[ONE], whitelist=["/health", "/health/*"])
    headers = {"Host": host, "X-Forwarded-Host": host, "X-Original-URL": "/health", "X-Rewrite-URL": "/health"}
    assert call.statuses(2, headers=headers) == [200, 429]


FORMS: dict[str, list[str]] = {
    "attack_7 slashes and parameters": [
        "/api/x", "//api/x", "/api//x", "///api///x", "/api/x/", "/api/x//", "/api/x;v=1", "/api;v=1/x",
    ],
    "attack_8 encodings": [
        "/api/%78", "/%61pi/x", "/api%2fx", "/api%2Fx", "/%2fapi/x", "/api/./x", "/api/y/../x", "/y/../api/x",
        "/api/%2e/x", "/api/y/%2e%2e/x", "/./api/x", "/../api/x", "/api/%2578", "/api\\x",
    ],
    "attack_9 white space at the end": [
        "/api/x%0a", "/api/x%0d", "/api/x%0d%0a", "/api/x%00", "/api/x%20", "/api/x%09", "/api/x%7f", "/api/x%0a/",
        "/api/x/%0a", "/api/x%e2%80%8b", "/api/x%c0%af",
    ],
    "attack_10 fragments and queries": ["/api/x%23fragment", "/api/x%3fquery", "/api/x?query"],
    "attack_12 capitals and dots": ["/api/x.", "/api/X", "/API/x"],
}  # fmt: skip


def fastapi_app() -> Any:
    app = FastAPI()

    @app.get("/api/x")
    def protected() -> str:
        return SECRET.decode()

    return app


def starlette_app() -> Any:
    async def protected(request: Any) -> PlainTextResponse:
        return PlainTextResponse(SECRET.decode())

    return Starlette(routes=[StarletteRoute("/api/x", protected)])


def flask_app(**options: Any) -> Any:
    app = Flask("attacked")
    app.url_map.strict_slashes = options.get("strict_slashes", True)
    app.add_url_rule("/api/x", view_func=lambda: SECRET, endpoint="protected")
    return app.wsgi_app


SERVED: pytest.MarkDecorator = pytest.mark.parametrize(
    ("make", "protocol"),
    [
        pytest.param(fastapi_app, "asgi", id="fastapi"),
        pytest.param(starlette_app, "asgi", id="starlette"),
        pytest.param(flask_app, "wsgi", id="flask"),
        pytest.param(lambda: flask_app(strict_slashes=False), "wsgi", id="flask, lenient about slashes"),
    ],
)


@pytest.fixture
def framework(protocol: str, make: Any, asgi: AsgiCall, wsgi: WsgiCall) -> tuple[Call[Any], Any]:
    """The caller that speaks to a framework's application, and the application."""
    wsgi.validated = False
    call: Call[Any] = asgi if protocol == "asgi" else wsgi
    return call, make()


@SERVED
@pytest.mark.parametrize("pattern", ["/api/x", "/api/*", "GET /api/{name}"])
@pytest.mark.parametrize("forms", FORMS.values(), ids=list(FORMS))
def test_whatever_a_framework_serves_as_a_protected_route_is_limited_as_it(
    framework: Any, pattern: str, forms: list[str]
) -> None:
    """CVE-2026-2880, CVE-2026-33804, CVE-2026-33808, and the newline that Starlette's regexes forgive."""
    call, app = framework
    call.around(app, policies=[Policy("p", routes=[pattern], limits=["1/minute"])])
    assert call.status("GET", "/api/x") == 200
    assert [target for target in forms if call.status("GET", target) == 200 and SECRET in call.last.body] == []


@SERVED
def test_attack_7_nothing_is_exempt_but_the_whitelisted_path_itself(framework: Any) -> None:
    call, app = framework
    call.around(app, policies=[ONE], whitelist=["GET /api/x"])
    assert call.statuses(3, "GET", "/api/x") == [200, 200, 200]
    assert call.statuses(2, "GET", "/other") == [404, 429]
    forms = [target for group in FORMS.values() for target in group]
    others = [target for target in forms if target not in ("/api/x", "/api/%78", "/%61pi/x", "/api/x?query")]
    # A decoded slash is a slash by the time an application is asked, in all of them.
    assert [target for target in others if call.status("GET", target) != 429] == ["/api%2fx", "/api%2Fx"]


@pytest.mark.parametrize("target", ["//api/x", "/api/x%0a", "/api/x/", "/api//x", "/api/./x", "/api/x%00"])
def test_a_path_is_protected_generously_and_exempted_strictly(call: Call[Any], target: str) -> None:
    call.behind(policies=[Policy("p", routes=["/api/x"], limits=["2/minute"])], whitelist=["/health"])
    assert [call("GET", one).status for one in ("/api/x", target, target)] == [200, 200, 429]
    call.behind(policies=[ONE], whitelist=["/api/x"])
    assert call.statuses(3, "GET", "/api/x") == [200, 200, 200]
    assert call.statuses(2, "GET", target) == [200, 429]


@pytest.mark.parametrize("target", ["/health/../api/x", "/health/..%2fapi/x", "/health/%2e%2e/api/x", "//health"])
def test_attack_8_a_whitelisted_prefix_exempts_nothing_that_leaves_it(call: Call[Any], target: str) -> None:
    call.behind(policies=[ONE], whitelist=["/health/*"])
    assert call.statuses(2, "GET", target) == [200, 429]


def test_attack_10_an_absolute_target_and_a_fragment_fall_under_the_same_patterns(asgi: AsgiCall) -> None:
    """CVE-2026-112362. uvicorn with h11 hands the whole target over as the path."""
    asgi.behind(policies=[Policy("p", routes=["/api/*"], limits=["1/minute"])])
    assert asgi("GET", "/api/x").status == 200
    assert asgi("GET", "http://evil.example/api/x").status == 429
    assert asgi("GET", "/api/x#/health").status == 429


def test_attack_12_patterns_are_text_in_small_and_capital_letters(call: Call[Any]) -> None:
    """CVE-2024-6866, CVE-2026-25479: neither is a regular expression, and no letter is another."""
    policy = Policy("p", routes=["/api/v1.0/x+"], limits=["1/minute"])
    call.behind(policies=[policy], whitelist=["/health.txt"])
    others = ["/api/v1x0/x+", "/api/v1.0/xx", "/API/v1.0/x+", "/api/V1.0/x+", "/api/v1.0/x"]
    assert [call.statuses(2, "GET", target) for target in others] == [[200, 200]] * len(others)
    assert call.statuses(2, "GET", "/api/v1.0/x+") == [200, 429]
    assert [len(call("GET", target).records) for target in ("/health.txt", "/healthxtxt", "/HEALTH.txt")] == [0, 1, 1]


# -- methods ----------------------------------------------------------------------------------------------------------


def test_attack_13_head_counts_as_get(call: Call[Any]) -> None:
    call.behind(policies=[Policy("reads", routes=["GET /api/*"], limits=["2/minute"])])
    assert [call(method).status for method in ("GET", "HEAD", "HEAD", "GET")] == [200, 200, 429, 429]


@pytest.mark.parametrize("method", ["QUERY", "PROPFIND", "FOO", "X" * 4096, "GET\x00", "G-E.T", "_OTHER"])
@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_attack_13_odd_methods_are_limited_by_policies_for_any_method(call: Call[Any], method: str) -> None:
    """CVE-2023-43810, CVE-2023-45142: methods are made up to fill memory with labels."""
    call.behind(policies=[ONE])
    answers = [call(method) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429]
    assert answers[0].record.method == ("QUERY" if method == "QUERY" else "_OTHER")


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
@pytest.mark.parametrize("method", ["get", "Get", "gET", "head"])
def test_attack_13_a_method_in_small_letters_is_limited_as_the_method(wsgi: WsgiCall, method: str) -> None:
    """Werkzeug makes capitals of it, so Flask serves `get` as GET."""
    wsgi.around(flask_app(), policies=[Policy("reads", routes=["GET /api/*"], limits=["1/minute"])])
    assert [wsgi("GET", "/api/x").status, wsgi(method, "/api/x").status] == [200, 429]


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_attack_13_a_header_overrides_no_method(call: Call[Any], header: str) -> None:
    call.behind(policies=[Policy("writes", routes=["POST /api/*"], limits=["1/minute"])])
    assert call.statuses(2, "POST", headers={header: "GET"}) == [200, 429]
    assert call.statuses(2, "GET", headers={header: "POST"}) == [200, 200]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_attack_14_a_request_for_a_websocket_is_limited_as_the_get_that_it_is(call: Call[Any], method: str) -> None:
    """CVE-2026-32594, GHSA-m4h2-mjfm-mp55: what asks for an upgrade went past the limit."""
    call.behind(policies=[Policy("reads", routes=["GET /api/*"], limits=["1/minute"])])
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    assert [call("GET").status, call(method, headers=upgrade).status] == [200, 429]


# -- identities -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite"])
def counters(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return "memory://" if request.param == "memory" else SqliteCounters(tmp_path / "counts.db", deadline=20)


def test_attack_22_no_two_subjects_and_policies_make_one_key(call: Call[Any], counters: Any) -> None:
    """CVE-2026-25480: separators and canonicalisation make keys collide."""
    names = ["a", "a:b", "a/b", "a b", "A", "ä", "a\u0308", "a\x00b"]
    policies = [
        Policy(name, routes=[f"/{at}"], identity=lambda request: request.query_values("v")[0], limits=["1/minute"])
        for at, name in enumerate(names)
    ]
    call.behind(policies=policies, counters=counters)
    values = ["b", ":b", "b:c", "%00", "subject", "x" * 250, "x" * 251, "%C3%A4", "a%CC%88", "address", "127.0.0.1"]
    targets = [f"/{at}?v={value}" for at in range(len(names)) for value in values]
    assert [call.status("GET", target) for target in targets] == [200] * len(targets)
    assert [call.status("GET", target) for target in targets] == [429] * len(targets)


def test_attack_22_an_address_cannot_be_named_as_a_subject(call: Call[Any], counters: Any) -> None:
    call.behind(policies=[Policy("p", identity=Header("X-Customer"), limits=["1/minute"])], counters=counters)
    assert [call(headers={"X-Customer": CLIENT}).status for _ in range(2)] == [200, 429]
    assert call().status == 200


def test_attack_23_a_client_that_invents_subjects_is_bounded_by_its_address(call: Call[Any]) -> None:
    by_value = Policy("by-value", identity=Header("X-Customer"), limits=["5/minute"])
    call.behind(policies=[by_value, Policy("by-address", identity=ClientAddress(), limits=["3/minute"])])
    assert [call(headers={"X-Customer": f"made-up-{n}"}).status for n in range(5)] == [200, 200, 200, 429, 429]


def test_attack_23_a_client_beyond_its_address_limit_burns_nobody_elses_units(call: Call[Any]) -> None:
    by_value = Policy("by-value", identity=Header("X-Customer"), limits=["9/minute"])
    call.behind(policies=[by_value, Policy("by-address", identity=ClientAddress(), limits=["2/minute"])])
    call.statuses(50, headers={"X-Customer": "victim"})
    assert call.left(by_value, "victim", "subject") == [7]


def test_attack_24_the_values_of_identities_are_compared_exactly(call: Call[Any]) -> None:
    """GHSA-xgm2-5f3f-mvvc."""
    call.behind(policies=[Policy("p", identity=Header("X-Customer"), limits=["1/minute"])])
    values = ["anne", "Anne", "anne;", "anne\t", "\u0430nne".encode().decode("latin-1")]
    assert [call(headers={"X-Customer": value}).status for value in values] == [200] * 5


def test_attack_24_underscores_do_not_smuggle_a_second_header(call: Call[Any]) -> None:
    """A server of WSGI cannot tell X_Customer from X-Customer; several values are refused then."""
    call.behind(policies=[Policy("p", identity=Header("X-Customer"), limits=["1/minute"])])
    answer = call(headers=[("X-Customer", "anne"), ("X_Customer", "bob")])
    assert (answer.status, answer.records[0].subject) in [(200, "anne"), (400, None)]


# -- races ------------------------------------------------------------------------------------------------------------

HUNDRED = Policy("hundred", limits=[Rate(100, "day", algorithm="fixed"), Rate(500, "hour")], on_outage="deny")


def bare_status(wsgi: WsgiCall) -> int:
    """One request whose server has no state of its own, so that many may be driven at once."""
    statuses: list[int] = []

    def start_response(status: str, *_: Any) -> Any:
        statuses.append(int(status[:3]))

    body: Any = wsgi.app(wsgi_environ(), start_response)
    list(body)
    body.close()
    return statuses[0]


def test_attack_28_a_thousand_tasks_at_once_never_pass_the_limit(asgi: AsgiCall, counters: Any) -> None:
    """litellm's check-then-add, CVE-2026-77633."""
    statuses: list[int] = []

    async def send(message: Message) -> None:
        if "status" in message:
            statuses.append(message["status"])
        await asyncio.sleep(0)

    async def all_at_once() -> None:
        await asyncio.gather(*(asgi.app(http_scope(), receiver(), send) for _ in range(1000)))

    asgi.behind(policies=[HUNDRED], counters=counters)
    asgi.run(all_at_once())
    assert (statuses.count(200), statuses.count(429)) == (100, 900)
    assert len(asgi.recorded()) == 1000


def test_attack_28_a_thousand_requests_of_many_threads_never_pass_the_limit(wsgi: WsgiCall, counters: Any) -> None:
    wsgi.validated = False
    wsgi.behind(policies=[HUNDRED], counters=counters)
    with ThreadPoolExecutor(32) as threads:
        statuses = list(threads.map(lambda _: bare_status(wsgi), range(1000)))
    assert (statuses.count(200), statuses.count(429)) == (100, 900)
    assert len(wsgi.recorded()) == 1000


def test_routes_are_learnt_while_other_threads_already_ask() -> None:
    """A path that is asked for just then must not keep the label of before."""
    app = flask_app()
    call = WsgiCall()
    call.validated = False
    call.around(app, policies=[ONE], whitelist=["/never"])
    engine: Any = call.app.engine  # type: ignore[attr-defined]
    table = engine._table
    ask = table.match

    def slow(path: str, *more: Any) -> Any:
        found = ask(path, *more)
        table.match = ask
        call.app._prepare()  # type: ignore[attr-defined]  # what another thread does at this very moment
        return found

    table.match = slow
    engine.find("GET", "/api/x")
    assert call("GET", "/api/x").record.route == "/api/x"
    assert engine.find("GET", "/api/x").label == "/api/x"
    call.close()


# -- sizes ------------------------------------------------------------------------------------------------------------

MEGABYTE = 1 << 20


def test_attack_18_streams_in_both_directions_are_never_held(call: Call[Any]) -> None:
    """CVE-2024-47874, CVE-2023-30798, CVE-2025-54121, CVE-2026-92284."""
    piece = b"x" * MEGABYTE

    def body() -> Iterator[bytes]:
        for _ in range(1024):
            yield piece

    class Flowing:
        """1 GB that is made when it is read."""

        left = 1024

        def read(self, size: int = -1) -> bytes:
            self.left -= 1
            return piece if self.left >= 0 else b""

    if call.protocol == "asgi":

        async def app(scope: Any, receive: Any, send: Any) -> None:
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for chunk in body():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body"})

        async def receive() -> Message:
            flowing.left -= 1
            return {"type": "http.request", "body": piece, "more_body": flowing.left > 0}

        async def send(message: Message) -> None: ...

        def drive() -> None:
            scope = http_scope("POST", "/", [("transfer-encoding", "chunked")])
            call.run(call.app(scope, receive, send))  # type: ignore[attr-defined]

    else:

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:  # type: ignore[misc]
            while environ["wsgi.input"].read(MEGABYTE):
                pass
            start_response("200 OK", [])
            return body()

        def drive() -> None:
            environ = {**wsgi_environ("POST", "/", [("transfer-encoding", "chunked")]), "wsgi.input": flowing}
            served = call.app(environ, lambda *args: lambda data: None)
            for _ in served:
                pass
            served.close()

    flowing = Flowing()
    if isinstance(call, WsgiCall):
        call.validated = False
    call.around(app, policies=[Policy("p", limits=["9/minute"])])
    tracemalloc.start()
    try:
        drive()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTE
    (record,) = call.fresh()
    assert (record.bytes_in, record.bytes_out) == (1024 * MEGABYTE, 1024 * MEGABYTE)


def test_attack_17_hostile_headers_make_no_large_record(call: Call[Any]) -> None:
    call.behind(policies=[ONE])
    names = ["User-Agent", "Referer", "Origin", "Traceparent", "X-Request-Id", "Host", "Authorization", "Content-Type"]
    call("GET", "/" + "p" * 60_000 + "?" + "q" * 60_000, dict.fromkeys(names, "h" * 60000))
    figures = call.keeper.recorder.figures()
    (record,) = call.recorded()
    assert figures.undecodable == 0
    text = [value for value in (getattr(record, name) for name in record.__struct_fields__) if isinstance(value, str)]
    assert max(map(len, text)) <= 2048


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_attack_34_no_planted_secret_is_found_in_any_file_or_log(
    call: Call[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """CVE-2023-30610, and what flask-api-usage stores."""
    planted: list[str] = []

    def secret() -> str:
        planted.append(f"planted{uuid.uuid4().hex}")
        return planted[-1]

    def handler(request: Received) -> Reply:
        usage = current_usage()
        usage.note(password=secret(), deep=[{"apiKey": secret(), "x": {"Set-Cookie": secret()}}], access_token=secret())
        return Reply(headers=[("content-type", "text/plain"), ("set-cookie", f"s={secret()}")])

    policies = [
        Policy("key", identity=Header("X-API-Key"), limits=["900/minute"]),
        Policy("auth", identity=Header("Authorization"), limits=["900/minute"]),
        Policy("cookie", identity=Cookie("session"), limits=["900/minute"]),
        Policy("query", identity=Query("api_key"), limits=["900/minute"]),
        Policy("field", identity=Body("password"), limits=["900/minute"]),
        Policy("first", identity=FirstOf(Header("X-Auth-Token"), Cookie("sid")), limits=["900/minute"]),
        Policy("small", routes=["/small"], limits=["1/minute"]),
    ]
    call.behind(handler, policies=policies, store=f"sqlite:///{tmp_path}/usage.db")
    for path in ("/api/x", "/small", "/small"):
        for scheme in ("Basic", "Bearer", "Unknown", ""):
            headers = [
                ("Authorization", f"{scheme} {secret()}".strip()),
                ("Proxy-Authorization", f"Basic {secret()}"),
                ("Cookie", f"session={secret()}; sid={secret()}"),
                ("X-API-Key", secret()),
                ("X-Auth-Token", secret()),
                ("X-CSRF-Token", secret()),
                ("Referer", f"https://user:{secret()}@example.org/?token={secret()}&ok=1#access_token={secret()}"),
                ("Content-Type", "application/json"),
            ]
            names = [
                "api_key",
                "token",
                "access%5Ftoken",
                "Password",
                "X-Amz-Signature",
                "sig",
                "code",
                "client_secret",
            ]
            query = "&".join(f"{name}={secret()}" for name in names)
            body = b'{"password": "%s", "other": "%s"}' % (secret().encode(), secret().encode())
            call("POST", f"{path}?plain=1&{query}", headers, body=body)
    call.keeper.close()
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    said = caplog.text + "".join(capfd.readouterr())
    assert b"plain=1" in written
    assert [one for one in planted if one.encode() in written or one in said] == []


@pytest.mark.parametrize(
    "query",
    [
        "user[password]=SECRET",
        "user.password=SECRET",
        "a=1;token=SECRET",
        "apikey[]=SECRET",
        "token=a=SECRET",
        "PassWord=SECRET",
    ],
)
def test_attack_34_a_secret_under_an_unusual_name_stays_out_of_records(call: Call[Any], query: str) -> None:
    call.behind()
    assert "SECRET" not in call("GET", f"/?{query}").record.query


# -- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["gcra", "fixed", "sliding"])
@pytest.mark.parametrize("step", [-3600, -1, -86_400 * 400])
def test_attack_clock_a_clock_that_steps_back_grants_nothing_and_locks_nobody_out(
    call: Call[Any], counters: Any, algorithm: Any, step: float
) -> None:
    call.behind(policies=[Policy("p", limits=[Rate(3, "minute", algorithm=algorithm)])], counters=counters)
    call.clock.advance(30)
    assert call.statuses(4) == [200, 200, 200, 429]
    call.clock.advance(step)
    assert call.statuses(2) == [429, 429]
    call.clock.advance(121)
    assert call.statuses(4) == [200, 200, 200, 429]


def test_attack_clock_times_of_a_clock_that_steps_back_break_no_record(call: Call[Any]) -> None:
    def handler(request: Received) -> Reply:
        call.clock.advance(-3600)
        return Reply()

    call.behind(handler, policies=[ONE])
    assert call().status == 200
    assert len(call.recorded()) == 1


# -- being there twice ------------------------------------------------------------------------------------------------


def test_attack_twice_a_middleware_that_was_added_twice_counts_once(call: Call[Any]) -> None:
    """What express-rate-limit calls a double count."""
    keeper = call.keep(policies=[Policy("p", limits=["3/minute"])])
    call.app = call.middleware(call.middleware(call.application(hello), keeper), keeper)
    assert call.statuses(4) == [200, 200, 200, 429]
    assert len(call.recorded()) == 4


def test_attack_twice_a_client_cannot_pretend_that_it_was_counted_already(call: Call[Any]) -> None:
    call.behind(policies=[ONE])
    headers = {call.keeper.mark: "1", "usagekeeper": "1", "X-Usagekeeper": "1"}
    assert call.statuses(2, headers=headers) == [200, 429]


def test_many_threads_that_start_at_once_take_up_work_once(wsgi: WsgiCall, monkeypatch: pytest.MonkeyPatch) -> None:
    wsgi.validated = False
    wsgi.behind(policies=[Policy("p", limits=[Rate(10, "day", algorithm="fixed")])])
    statuses: list[int] = []
    together = threading.Barrier(16)

    def drive() -> None:
        together.wait(10)
        statuses.append(bare_status(wsgi))

    threads = [threading.Thread(target=drive) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (statuses.count(200), statuses.count(429), len(wsgi.recorded())) == (10, 6, 16)
