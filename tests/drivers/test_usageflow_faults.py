"""Faults that were shown in a peer, UsageFlow, by the number under which they were noted: none of them is ours."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from flask import Flask

from tests.helpers import AsgiCall, Call, Pairs, Received, Reply, WsgiCall
from usagekeeper import Body, Cookie, Header, PathParam, Policy, Rate, current_usage
from usagekeeper.errors import ConfigurationError
from usagekeeper.flask import UsageMiddleware as FlaskMiddleware
from usagekeeper.routes import RouteTable

ONE = Policy("one", limits=["1/minute"])


@pytest.mark.parametrize("path", ["/health", "/metrics", "/ready"])
def test_u1_every_pattern_of_a_list_is_tried(call: Call[Any], path: str) -> None:
    call.behind(policies=[ONE], whitelist=["GET /health", "GET /metrics", "GET /ready"])
    assert call.statuses(2, "GET", path) == [200, 200]


@pytest.mark.parametrize("whitelist", [["* /internal/*", "GET /health"], ["GET /health", "* /internal/*"]])
def test_u2_the_order_of_a_list_does_not_matter(call: Call[Any], whitelist: list[str]) -> None:
    call.behind(policies=[ONE], whitelist=whitelist)
    assert call.statuses(2, "GET", "/health") == call.statuses(2, "PUT", "/internal/x") == [200, 200]


@pytest.mark.parametrize(
    ("pattern", "path", "limited"),
    [
        ("/api/*/admin", "/api/7/admin", True),
        ("/api/*/admin", "/api/7/8/admin", False),
        ("/api/:id", "/api/7", True),
        ("/api/{id}", "/api/7", True),
        ("/api/{id}", "/api/7/8", False),
        ("/api/*", "/api", True),
        ("/api/*", "/apikeys/secret", False),
        ("/a/*", "/a/../secret", True),
        ("/secret", "/a/../secret", True),
    ],
)
def test_u3_one_grammar_of_patterns(call: Call[Any], pattern: str, path: str, limited: bool) -> None:
    call.behind(policies=[Policy("p", routes=[pattern], limits=["1/minute"])])
    assert call.statuses(2, "GET", path) == [200, 429 if limited else 200]


@pytest.mark.parametrize("pattern", ["/api*", "*.json", "/api/**", "api/x", "/api/{id", "/api/<id>", "/a//b"])
def test_u3_a_pattern_outside_the_grammar_is_an_error(call: Call[Any], pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="write '"):
        call.behind(routes=[pattern])


# U4: `call` runs every test of this folder on both adapters. Here the frameworks themselves.


def fastapi_app() -> FastAPI:
    app, router, inner = FastAPI(), APIRouter(prefix="/v1"), APIRouter(prefix="/users")
    mounted = FastAPI()

    @inner.get("/{user_id}")
    def user(user_id: str) -> str:
        return user_id

    @mounted.get("/items/{item}")
    def item(item: str) -> str:
        return item

    router.include_router(inner)
    app.include_router(router)
    app.mount("/shop", mounted)
    return app


def flask_app() -> Any:
    app = Flask("faulty")
    app.add_url_rule("/v1/users/<user_id>", view_func=lambda user_id: user_id, endpoint="user")
    return app.wsgi_app


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/users/7", "/v1/users/{user_id}"),
        ("/shop/items/7", "/shop/items/{item}"),
        ("/nowhere/7", None),
        ("/v1/users/7/8", None),
    ],
)
def test_u6_included_and_mounted_routers_have_their_whole_template(
    asgi: AsgiCall, path: str, route: str | None
) -> None:
    asgi.around(fastapi_app(), policies=[Policy("p", limits=["1/minute"])])
    answers = [asgi("GET", path) for _ in range(2)]
    assert [answer.status for answer in answers] == [200 if route else 404, 429]
    assert [answer.record.route for answer in answers] == [route, route]


def test_u5_what_matches_no_route_has_no_label_of_its_own(wsgi: WsgiCall) -> None:
    wsgi.validated = False
    wsgi.around(flask_app())
    assert {wsgi("GET", f"/made/up/{n}").record.route for n in range(5)} == {None}
    assert wsgi("GET", "/v1/users/7").record.route == "/v1/users/<user_id>"


@pytest.mark.parametrize("routes", [None, []], ids=["absent", "empty"])
def test_u5_without_a_list_everything_is_watched(call: Call[Any], routes: Any) -> None:
    call.behind(routes=routes)
    assert call("GET", "/anything").record.path == "/anything"


def test_u6_a_framework_that_cannot_be_read_costs_labels_and_no_request(
    asgi: AsgiCall, caplog: pytest.LogCaptureFixture
) -> None:
    app = fastapi_app()

    class Moved(FastAPI):
        routes: Any = None

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, send)

    asgi.around(Moved.__new__(Moved), policies=[Policy("p", routes=["/v1/*"], limits=["2/minute"])])
    assert asgi.statuses(3, "GET", "/v1/users/7") == [200, 200, 429]
    assert "cannot read the routes" in caplog.text


@pytest.mark.parametrize("pattern", ["/v1/users/{user_id}", "/v1/*"], ids=["named by the pattern", "by the framework"])
def test_u7_a_path_parameter_is_an_identity_before_routing(asgi: AsgiCall, wsgi: WsgiCall, pattern: str) -> None:
    policy = Policy("p", routes=[pattern], identity=PathParam("user_id"), limits=["1/minute"])
    asgi.around(fastapi_app(), policies=[policy])
    wsgi.validated = False
    wsgi.around(flask_app(), policies=[policy])
    calls: list[Call[Any]] = [asgi, wsgi]
    for call in calls:
        answers = [call("GET", f"/v1/users/{who}") for who in ("anne", "anne", "bob")]
        assert [answer.status for answer in answers] == [200, 429, 200]
        assert answers[0].record.subject == "anne"


def test_u8_a_missing_identity_never_means_no_limit(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", identity=Header("X-API-Key"), limits=["1/minute"])])
    assert call.statuses(3, headers={"X-API-Key": "k"}) == [200, 429, 429]
    assert call.statuses(3) == [200, 429, 429]


def test_u9_a_refusal_is_429_with_retry_after(call: Call[Any]) -> None:
    call.behind(policies=[ONE])
    answer = [call(), call()][1]
    assert (answer.status, answer.one("retry-after")) == (429, "60")


def test_u11_parts_of_keys_do_not_run_together(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", identity=Body("user"), limits=["1/minute"])])

    def ask(value: bytes) -> int:
        return call("POST", "/", {"Content-Type": "application/json"}, body=b'{"user": %s}' % value).status

    values = [b'"a b"', b'"a"', b'"b"', b'"null"', b'"true"', b'"1"', b"2"]
    assert [ask(value) for value in values] == [200] * len(values)
    assert [ask(value) for value in (b"1", b'"2"')] == [429, 429]
    assert [ask(value) for value in (b"true", b'{"a": 1}', b"[1]", b"1.0")] == [400] * 4


@pytest.mark.parametrize(
    ("cookies", "known"),
    [
        ("session=1", True),
        ("a=2; session=1", True),
        ('session="1"', True),
        ("SESSION=1", False),
        ("cookie.session=1", False),
        ("xsession=1", False),
        ("session", False),
    ],
)
def test_u12_the_names_of_cookies_are_exact(call: Call[Any], cookies: str, known: bool) -> None:
    call.behind(policies=[Policy("p", identity=Cookie("session"), limits=["1/minute"])])
    assert call(headers={"Cookie": cookies}).record.subject_kind == ("subject" if known else "address")


def test_u13_secret_headers_are_in_no_record(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", identity=Header("X-API-Key"), limits=["9/minute"])])
    names = ["Authorization", "Proxy-Authorization", "Cookie", "X-API-Key"]
    answer = call("GET", "/?api_key=hunter2", {name: f"{name} hunter2" for name in names})
    assert "hunter2" not in repr(answer.record)
    assert answer.record.query == "api_key=REDACTED"


def test_u14_two_cookies_stay_two(call: Call[Any]) -> None:
    cookies = [("content-type", "text/plain"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]
    call.behind(lambda request: Reply(headers=cookies), policies=[ONE])
    assert call().all("set-cookie") == ["a=1", "b=2"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (
            [("Content-Type", "multipart/form-data; boundary=b")],
            b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n',
        ),
        ([("Content-Type", "application/x-www-form-urlencoded")], b"user=anne&x=1"),
        ([("Content-Type", "application/json")], b'{"user": "anne"}'),
        ([], b""),
    ],
    ids=["multipart", "form", "json", "empty"],
)
def test_u15_uploads_never_run_dry(call: Call[Any], headers: Pairs, body: bytes) -> None:
    got: list[bytes] = []

    def handler(request: Received) -> Reply:
        got.append(request.body)
        return Reply()

    call.behind(handler, policies=[Policy("p", identity=Body("user"), limits=["900/minute"])])
    for _ in range(40):  # its pool of connections had fewer
        assert call.status("POST", "/", headers, body=body) == 200
    assert set(got) == {body}


@pytest.mark.parametrize(("cost", "left"), [(0, 10), (1, 9), (10, 0)])
def test_u16_what_is_metered_is_what_is_charged(call: Call[Any], cost: int, left: int) -> None:
    policy = Policy("p", limits=[Rate(10, "hour")], cost=lambda request: cost)
    call.behind(policies=[policy])
    assert call().record.units == cost
    assert call.left(policy) == [left]


def test_u17_nothing_stays_open_when_the_handler_fails_or_the_client_leaves(call: Call[Any]) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x"

    def handler(request: Received) -> Reply:
        if request.query == "fails":
            raise LookupError
        return Reply(body=endless())

    policy = Policy("p", limits=["10/minute"])
    call.behind(handler, policies=[policy])
    with pytest.raises(LookupError):
        call("GET", "/?fails")
    call("GET", "/", leave_after=2)
    assert [record.aborted for record in call.recorded()] == [True, True]
    assert call.left(policy) == [8]


def test_u18_an_identity_lifts_no_limit_of_an_endpoint(call: Call[Any]) -> None:
    call.behind(policies=[ONE, Policy("p", identity=Header("X-Customer"), limits=["9/minute"])])
    assert [call(headers={"X-Customer": str(n)}).status for n in range(3)] == [200, 429, 429]


def test_u19_head_counts_as_get(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", routes=["GET /api/*"], limits=["1/minute"])])
    assert [call("GET").status, call("HEAD").status] == [200, 429]


def test_u20_a_store_that_hangs_holds_up_no_request(call: Call[Any]) -> None:
    release, reached = threading.Event(), threading.Event()

    class Hanging:
        kept = 0

        def append(self, records: Any) -> int:
            reached.set()
            release.wait(30)
            self.kept += len(records)
            return len(records)

        def read(self, query: Any) -> Any:
            return iter(())

        def purge(self, before: int, *, limit: int = 1000) -> int:
            return 0

        def close(self) -> None: ...

        def drop(self) -> None: ...

    store = Hanging()
    keeper = call.keep(policies=[Policy("p", limits=["900/minute"])], store=store, counters="memory://")
    call.behind(keeper=keeper)
    assert call.status() == 200
    assert reached.wait(10)
    assert [call.status() for _ in range(50)] == [200] * 50
    release.set()
    assert keeper.flush()
    assert store.kept == 51


def test_u22_an_empty_list_replaces_what_was_there(call: Call[Any]) -> None:
    call.behind(policies=[ONE])
    assert call.statuses(2) == [200, 429]
    counters = call.keeper.counters
    call.behind(policies=[], counters=counters)
    assert call.statuses(2) == [200, 200]


def test_u23_repeated_values_of_a_query_are_kept(call: Call[Any]) -> None:
    seen: list[list[str]] = []
    policy = Policy("p", limits=["9/minute"], cost=lambda request: len(seen.append(request.query_values("a")) or "x"))  # type: ignore[func-returns-value]
    call.behind(policies=[policy])
    assert call("GET", "/?a=1&b=3&a=2").record.query == "a=1&b=3&a=2"
    assert seen == [["1", "2"]]


def test_u24_a_path_is_matched_at_most_once_a_request(call: Call[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    match = RouteTable.match

    def counted(self: RouteTable, path: str, root: str = "") -> Any:
        asked.append(path)
        return match(self, path, root)

    call.behind(policies=[Policy(f"p{n}", routes=[f"/api/{n}/*"], limits=["99/minute"]) for n in range(100)])
    call.status("GET", "/warm")
    monkeypatch.setattr(RouteTable, "match", counted)
    for n in range(20):
        call.status("GET", f"/api/{n}/x")
        call.status("GET", f"/api/{n}/x")
    assert len(asked) <= 20


def test_u26_nothing_is_printed(call: Call[Any], capfd: pytest.CaptureFixture[str]) -> None:
    call.behind(lambda request: Reply(500 if request.query else 200), policies=[ONE])
    for target in ("/", "/?a", "/"):
        call("GET", target)
    assert capfd.readouterr() == ("", "")


# -- Flask's own sugar ------------------------------------------------------------------------------------------------


def flask_behind(wsgi: WsgiCall, app: Flask, **options: Any) -> None:
    wsgi.validated = False
    wsgi.keeper = wsgi.keep(**options)
    FlaskMiddleware(app, keeper=wsgi.keeper)
    wsgi.app = app


def test_u4_flask_and_fastapi_come_to_the_same_verdicts(asgi: AsgiCall, wsgi: WsgiCall) -> None:
    options: dict[str, Any] = {
        "routes": ["GET /v1/*", "/other"],
        "whitelist": ["GET /v1/users/health"],
        "policies": [Policy("p", routes=["GET /v1/users/{id}"], limits=["2/minute"])],
    }
    flask = Flask("same")
    flask.add_url_rule("/v1/users/<user_id>", view_func=lambda user_id: user_id, endpoint="user")
    asgi.around(fastapi_app(), **options)
    flask_behind(wsgi, flask, **options)
    asked = ["/v1/users/7", "/v1/users/health", "/v1/users/7", "/nowhere", "/v1/users/8", "/v1/users/7", "/v1/none"]
    calls: list[Call[Any]] = [asgi, wsgi]
    verdicts = [[(call("GET", path).status, len(call.last.records)) for path in asked] for call in calls]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0] == [(200, 1), (200, 0), (200, 1), (404, 0), (429, 1), (429, 1), (404, 1)]


def test_o8_an_exception_that_flask_answers_is_recorded_with_its_class(wsgi: WsgiCall) -> None:
    app = Flask("failing")
    app.logger.disabled = True

    @app.get("/")
    def failing() -> str:
        current_usage().note(step=1)
        raise LookupError

    flask_behind(wsgi, app)
    record = wsgi("GET", "/").record
    assert (record.status, record.exception, record.metadata) == (500, "LookupError", {"step": 1})
