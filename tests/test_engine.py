"""The rules at work: which requests are watched, what they are called, what they cost and what is kept of them."""

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers import CLIENT, AsgiCall, Call, Down, Received, Reply, WsgiCall, asgi_application, http_scope
from usagekeeper import ConfigurationError, Header, PathParam, Policy, Rate, Request, UsageKeeper, asgi
from usagekeeper.engine import Engine
from usagekeeper.exchange import AsgiRequest
from usagekeeper.policies import METHODS, OTHER, RoutePlan
from usagekeeper.records import decode
from usagekeeper.routes import Template
from usagekeeper.ticket import Ticket

CUSTOMER = Header("X-Customer")
ACME = [("x-customer", "acme")]


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    yield one
    one.close()


def rules(**options: Any) -> Engine:
    return UsageKeeper(store="memory://", **options).engine()


def names(plan: RoutePlan | None) -> list[str] | None:
    """The policies of a plan; None when the request is not watched."""
    return None if plan is None else [line.name for line in plan.lines]


# -- which requests ---------------------------------------------------------------------------------------------------

WATCHED = [
    ("GET", "/api/x", ["all", "get"]),
    ("HEAD", "/api/x", ["all", "get"]),
    ("POST", "/api/x", ["all", "post"]),
    ("QUERY", "/api/x", ["all"]),
    ("BREW", "/api/x", ["all"]),
    ("_OTHER", "/api/x", ["all"]),
    ("", "/api/x", ["all"]),
    ("GET", "//api//x", ["all", "get"]),
    ("GET", "/api/x/", ["all", "get"]),
    ("GET", "/api/x\n", ["all", "get"]),
    ("GET", "/api/../api/x", ["all", "get"]),
    ("GET", "/API/x", None),
    ("GET", "/apix", None),
    ("GET", "/api/health", None),
    ("HEAD", "/api/health", None),
    ("POST", "/api/health", ["all", "post"]),
    ("GET", "/api//health", ["all", "get"]),
    ("GET", "/api/health/", ["all", "get"]),
    ("GET", "/api/health\x00", ["all", "get"]),
    ("GET", "/api/x/../health", ["all", "get"]),
    ("GET", "/other", None),
]


@pytest.mark.parametrize(("method", "path", "expected"), WATCHED, ids=ascii)
def test_protection_is_generous_and_exemption_strict(method: str, path: str, expected: list[str] | None) -> None:
    policies = [Policy("all"), Policy("get", routes=["GET /api/*"]), Policy("post", routes=["POST /api/*"])]
    engine = rules(routes=["/api/*"], whitelist=["GET /api/health"], policies=policies)
    for _ in range(2):  # the second answer is a remembered one
        assert names(engine.find(method, path)) == expected


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
@pytest.mark.parametrize("method", ["get", "Get", "gET"])
def test_a_method_in_another_case_dodges_no_policy(call: Call[Any], method: str) -> None:
    call.behind(policies=[Policy("p", routes=["GET /api/x"], limits=["1/minute"])])
    assert [call.status("GET"), call.status(method)] == [200, 429]


def test_without_routes_everything_is_watched() -> None:
    engine = rules()
    assert [names(engine.find("GET", path)) for path in ("/", "/a/b", "*", "")] == [[]] * 4


def test_without_policies_everything_watched_is_recorded_and_nothing_limited(call: Call[Any]) -> None:
    call.behind(routes=["/api/*"])
    assert call.statuses(20) == [200] * 20
    assert len(call.recorded()) == 20


def test_the_whitelist_beats_every_policy(call: Call[Any]) -> None:
    call.behind(whitelist=["/api/x"], policies=[Policy("p", limits=["1/minute"])])
    assert call.statuses(3) == [200] * 3
    assert call.recorded() == []


def test_an_exempt_request_is_recorded_and_costs_nothing(call: Call[Any]) -> None:
    policy = Policy("p", limits=["1/minute"])
    call.behind(policies=[policy], exempt=lambda request: request.header("X-Probe") is not None)
    records = [call(headers=[("x-probe", "1")]).record for _ in range(3)]
    assert [(record.status, record.units, record.subject) for record in records] == [(200, 0, CLIENT)] * 3
    assert call.left(policy) == [1]


def test_attack_preflight_a_preflight_is_never_limited(call: Call[Any]) -> None:
    policy = Policy("p", limits=["1/minute"])
    call.behind(policies=[policy])
    preflight = [("origin", "https://a.com"), ("access-control-request-method", "POST")]
    answers = [call("OPTIONS", headers=preflight) for _ in range(3)]
    assert [(answer.status, answer.record.units) for answer in answers] == [(200, 0)] * 3
    assert call.left(policy) == [1]


def test_other_options_requests_are_limited(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["1/minute"])])
    assert call.statuses(2, "OPTIONS") == [200, 429]


def test_a_method_override_is_ignored(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", routes=["POST /api/x"], limits=["1/minute"])])
    assert call.statuses(3, "POST", headers=[("x-http-method-override", "GET")]) == [200, 429, 429]
    assert call.statuses(3, "GET", headers=[("x-http-method-override", "POST")]) == [200] * 3


def test_a_keeper_that_is_switched_off_does_nothing(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["1/minute"])], enabled=False)
    assert call.statuses(3) == [200] * 3
    assert call.recorded() == []


def test_a_policy_out_of_reach_is_told_with_what_is_watched() -> None:
    with pytest.raises(ConfigurationError, match=r"'p' is for POST /api/x, and none of these is watched: .*GET /api/x"):
        rules(routes=["GET /api/x"], policies=[Policy("p", routes=["POST /api/x"])])


@pytest.mark.parametrize(
    ("watched", "route"),
    [
        ("*", "/a"),
        ("/a/*", "*"),
        ("/a/*", "/a"),
        ("/a/:id", "/a/b"),
        ("/a/*/c", "/a/{id}/c"),
        ("GET /a", "HEAD /a"),
        ("GET /a", "* /a"),
    ],
)
def test_a_policy_within_reach_is_accepted(watched: str, route: str) -> None:
    assert rules(routes=[watched], policies=[Policy("p", routes=[route])]).lines


# -- what they are called ---------------------------------------------------------------------------------------------


def test_a_request_is_labelled_with_the_most_specific_pattern(call: Call[Any]) -> None:
    call.behind(routes=["/api/*"], policies=[Policy("p", routes=["/api/users/{id}"]), Policy("q")])
    labels = [call(target=target).record.route for target in ("/api/users/5", "/api/users/5/x", "/api")]
    assert labels == ["/api/users/{id}", "/api/*", "/api/*"]


def test_an_unmatched_request_has_no_label(call: Call[Any]) -> None:
    call.behind()
    assert call().record.route is None


def test_a_refused_request_has_the_label_of_the_framework() -> None:
    engine = rules(policies=[Policy("p", routes=["/items/*"], limits=["1/minute"])])
    engine.install([Template("/items/<int:id>", None, ("items", "5"))])
    plan = engine.find("GET", "/items/5")
    assert plan is not None
    assert plan.label == "/items/<int:id>"


@pytest.mark.parametrize("pattern", ["/users/{id}", "/mounted/users/{id}"], ids=["below the mount", "with the mount"])
def test_a_path_parameter_is_found_below_a_mount(pattern: str) -> None:
    engine = rules(policies=[Policy("p", routes=[pattern], identity=PathParam("id"), limits=["5/minute"])])
    plan = engine.find("GET", "/users/42", "/mounted")
    assert plan is not None
    scope = http_scope(target="/mounted/users/42", root_path="/mounted")
    ticket = Ticket(plan, AsgiRequest("GET", "/users/42", scope, {}, False), 0, 0)
    engine.price(ticket)
    assert ticket.subject == "42"


@pytest.mark.parametrize(
    ("method", "recorded"), [*((method, method) for method in sorted(METHODS)), ("A" * 4096, OTHER)]
)
def test_a_method_is_recorded_when_http_knows_it(method: str, recorded: str) -> None:
    engine = rules()
    plan = engine.find(method, "/")
    assert plan is not None
    request = AsgiRequest(method, "/", http_scope(method), {}, False)
    assert decode(engine.close(Ticket(plan, request, 0, 0), 0)).method == recorded


# -- what is kept of them ---------------------------------------------------------------------------------------------


def test_a_served_request_is_recorded_in_full(call: Call[Any]) -> None:
    call.behind(routes=["/api/*"], policies=[Policy("p", identity=CUSTOMER, limits=["5/minute"], cost=2)])
    headers = [*ACME, ("host", "h"), ("user-agent", "ua"), ("referer", "http://r/"), ("origin", "http://o")]
    record = call("POST", "/api/x?a=1", [*headers, ("x-request-id", "r1")], body=b"12345").record
    assert (record.application, record.method, record.scheme, record.host) == ("default", "POST", "http", "h")
    assert (record.path, record.query, record.route) == ("/api/x", "a=1", "/api/*")
    assert (record.subject, record.subject_kind, record.policies, record.units) == ("acme", "subject", ("p",), 2)
    assert (record.outcome, record.reason, record.violated, record.aborted) == ("allowed", None, (), False)
    assert (record.status, record.bytes_in, record.bytes_out, record.request_length) == (200, 5, 2, 5)
    assert (record.user_agent, record.referer, record.origin) == ("ua", "http://r/", "http://o")
    assert (record.remote_address, record.request_id, record.response_mimetype) == (CLIENT, "r1", "text/plain")
    assert (record.at, record.duration, record.exception) == (round(call.clock() * 1_000_000), 0, None)


def test_a_refused_request_is_recorded_with_its_reason(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", identity=CUSTOMER, limits=["1/minute", "9/hour"])])
    call(headers=ACME)
    record = call(headers=ACME).record
    assert (record.outcome, record.reason, record.status) == ("refused", "quota-exceeded", 429)
    assert (record.violated, record.policies, record.units) == (("p-minute",), ("p",), 0)
    assert (record.subject, record.bytes_out) == ("acme", len(call.last.body))


@pytest.mark.parametrize(
    ("limits", "violated"),
    [
        (["1/minute", "9/hour"], ("p-minute",)),
        (["9/minute", "1/hour"], ("p-hour",)),
        (["1/minute", "1/hour"], ("p-minute", "p-hour")),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["enforce", "shadow", "soft"])
def test_only_the_limits_that_were_passed_are_named(
    call: Call[Any], mode: Any, limits: list[str], violated: tuple[str, ...]
) -> None:
    call.behind(policies=[Policy("p", mode=mode, limits=limits)])
    assert [call().record.violated for _ in range(2)] == [(), violated]


def test_soft_outweighs_shadow_in_the_outcome(call: Call[Any]) -> None:
    call.behind(policies=[Policy("a", mode="shadow", limits=["1/day"]), Policy("b", mode="soft", limits=["1/hour"])])
    call()
    assert (call().record.outcome, call.last.record.violated) == ("soft", ("a-day", "b-hour"))


def test_an_uncounted_request_is_recorded_as_such(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["1/minute"])], counters=Down())
    assert [call().record.outcome for _ in range(2)] == ["unmetered"] * 2


def test_a_request_costs_one_unit_where_no_policy_says_otherwise(call: Call[Any]) -> None:
    call.behind()
    assert call().record.units == 1


def test_units_are_those_of_the_first_policy_that_charged(call: Call[Any]) -> None:
    skipped = Policy("a", identity=CUSTOMER, limits=["9/minute"], cost=7, on_missing_identity="allow")
    call.behind(policies=[skipped, Policy("b", limits=["9/minute"], cost=3)])
    assert (call().record.units, call(headers=ACME).record.units) == (3, 7)


def test_the_policy_that_charged_decides_whether_an_answer_costs(call: Call[Any]) -> None:
    skipped = Policy("a", identity=CUSTOMER, limits=["9/minute"], on_missing_identity="allow", charge_on="always")
    charged = Policy("b", limits=["9/minute"], cost=3, charge_on="2xx")
    call.behind(lambda received: Reply(404), policies=[skipped, charged])
    assert call().record.units == 0


def test_an_exception_is_recorded_and_costs_nothing(call: Call[Any]) -> None:
    def handler(received: Received) -> Reply:
        raise KeyError("secret detail")

    call.behind(handler, policies=[Policy("p", limits=["9/minute"])])
    with pytest.raises(KeyError):
        call()
    record = call.last.record
    assert (record.exception, record.status, record.units) == ("KeyError", 500, 0)
    assert "secret detail" not in repr(record)


def test_a_client_that_leaves_in_the_middle_has_paid(call: Call[Any]) -> None:
    call.behind(
        lambda received: Reply(body=iter([b"a", b"b", b"c"])), policies=[Policy("p", limits=["9/minute"], cost=3)]
    )
    with contextlib.suppress(asyncio.CancelledError):
        call(leave_after=1)
    record = call.last.record
    assert (record.aborted, record.status, record.units) == (True, 200, 3)


@pytest.mark.parametrize("charge_on", ["<500", "2xx", "always"])
def test_a_client_that_leaves_before_the_answer_has_paid(charge_on: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    call = AsgiCall()
    call.around(app, policies=[Policy("p", limits=["9/minute"], cost=3, charge_on=charge_on)])
    with pytest.raises(asyncio.CancelledError):
        call()
    assert (call.last.record.aborted, call.last.record.units) == (True, 3)
    call.close()


def test_a_secret_in_the_path_is_not_recorded(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", routes=["/invite/{token}"], identity=PathParam("token"), limits=["9/minute"])])
    record = call(target="/invite/s3cret").record
    assert record.subject is not None
    assert record.subject.startswith("digest:")
    assert "s3cret" not in repr(record)


def test_durations_follow_the_clock_that_was_given(call: Call[Any]) -> None:
    def handler(received: Received) -> Reply:
        call.clock.advance(1.5)
        return Reply()

    call.behind(handler)
    assert (call().record.first_byte, call.last.record.duration) == (1_500_000, 1_500_000)


# -- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [-3600.0, -86_400.0 * 365])
@pytest.mark.parametrize(("algorithm", "wait"), [("gcra", 20), ("fixed", 60), ("sliding", 80)])
def test_a_clock_that_steps_back_grants_nothing_and_locks_nobody_out(
    call: Call[Any], step: float, algorithm: Any, wait: int
) -> None:
    call.behind(policies=[Policy("p", limits=[Rate(3, "minute", algorithm)])])
    call.statuses(4)
    call.clock.advance(step)
    assert call().status == 429
    call.clock.advance(wait)
    assert call().status == 200


# -- attacks ----------------------------------------------------------------------------------------------------------


def test_a_hostile_request_writes_nothing_into_the_log(call: Call[Any], caplog: pytest.LogCaptureFixture) -> None:
    call.behind(policies=[Policy("p", identity=CUSTOMER, limits=["1/minute"])])
    call()
    with caplog.at_level(logging.DEBUG, logger="usagekeeper"):
        for _ in range(2):
            call(
                target="/%0d%0aERROR%1b[31m?a=%0d%0a", headers=[("x-customer", "a\x1b[31m"), ("user-agent", "\x1b]0;")]
            )
        call(headers=[("x-customer", "a"), ("x-customer", "\x1b")])
    assert not re.search(r"[\x00-\x1f\x7f]", "".join(record.getMessage() for record in caplog.records))


def test_any_number_of_paths_is_remembered_in_bounds() -> None:
    engine = rules(policies=[Policy("p", routes=["/a/*"])])
    for number in range(10_000):
        assert engine.find("GET", f"/a/{number}") is not None
        assert engine.find(f"M{number}", "/a/1") is not None
    assert len(engine._recent) + len(engine._older) <= 2 * 2048


def test_a_long_path_is_not_remembered() -> None:
    engine = rules()
    assert engine.find("GET", "/" + "x" * 100_000) is not None
    assert not engine._recent


def test_an_inner_middleware_of_the_same_keeper_passes_through() -> None:
    call = AsgiCall()
    keeper = call.keep(policies=[Policy("p", limits=["2/minute"])])
    inner = asgi.UsageMiddleware(asgi_application(lambda received: Reply()), keeper=keeper)
    call.around(inner, keeper=keeper)
    assert call.statuses(3) == [200, 200, 429]
    assert len(call.recorded()) == 3
    assert len(call.last.all("ratelimit")) == 1
    call.close()


def test_a_callable_sees_the_request_as_it_was_sent(call: Call[Any]) -> None:
    seen: list[tuple[Any, ...]] = []

    def costs(request: Request) -> int:
        seen.append((request.method, request.path, request.query, request.peer, request.header("X-A")))
        return 1

    call.behind(policies=[Policy("p", limits=["9/minute"], cost=costs)])
    call("POST", "/api/caf%C3%A9?x=%31", [("x-a", "1")])
    assert seen == [("POST", "/api/café", "x=%31", CLIENT, "1")]
