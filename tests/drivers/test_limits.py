"""What is limited, for whom, how often, and what a refusal leaves behind."""

from itertools import permutations
from typing import Any

import pytest

from tests.helpers import CLIENT, Call, Received, Reply
from usagekeeper import Everyone, Header, Policy, Rate
from usagekeeper.errors import ConfigurationError
from usagekeeper.exchange import Request

ANNE = {"X-Customer": "anne"}
BOB = {"X-Customer": "bob"}
CUSTOMER = Header("X-Customer")
TWO = Policy("two", identity=CUSTOMER, limits=["2/minute"])


# -- a limit ----------------------------------------------------------------------------------------------------------


def test_third_request_against_a_limit_of_two_is_refused(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    assert call.statuses(4, headers=ANNE) == [200, 200, 429, 429]


def test_subjects_do_not_share_counts(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    assert [call(headers=who).status for who in (ANNE, ANNE, ANNE, BOB)] == [200, 200, 429, 200]


def test_methods_and_paths_of_one_policy_share_its_count(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    asked = [("GET", "/api/x"), ("POST", "/api/y"), ("DELETE", "/")]
    assert [call(method, path, ANNE).status for method, path in asked] == [200, 200, 429]


def test_a_unit_comes_back_with_time(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    assert call.statuses(3, headers=ANNE) == [200, 200, 429]
    call.clock.advance(30)
    assert call.statuses(2, headers=ANNE) == [200, 429]


def test_after_retry_after_the_request_fits(call: Call[Any]) -> None:
    call.behind(policies=[Policy("odd", limits=["7/hour", Rate(3, "10 minutes", algorithm="sliding")])])
    for _ in range(20):
        answer = call()
        if answer.status == 429:
            call.clock.advance(int(answer.one("retry-after")))
            assert call().status == 200


def test_the_application_never_sees_a_refused_request(call: Call[Any]) -> None:
    served: list[str] = []

    def handler(request: Received) -> Reply:
        served.append(request.path)
        return Reply()

    call.behind(handler, policies=[TWO])
    call.statuses(5, headers=ANNE)
    assert len(served) == 2


@pytest.mark.parametrize("algorithm", ["gcra", "fixed", "sliding"])
def test_a_refusal_changes_no_counter(call: Call[Any], algorithm: Any) -> None:
    policy = Policy("p", limits=[Rate(2, "minute", algorithm=algorithm), Rate(9, "hour", algorithm=algorithm)])
    call.behind(policies=[policy])
    call.statuses(2)
    before = call.left(policy)
    assert call.statuses(5) == [429] * 5
    assert call.left(policy) == before == [0, 7]


def test_limits_of_several_policies_are_charged_all_or_none(call: Call[Any]) -> None:
    narrow = Policy("narrow", identity=CUSTOMER, limits=["1/minute"])
    wide = Policy("wide", limits=["5/minute", "9/hour"])
    call.behind(policies=[wide, narrow])
    assert [call(headers=who).status for who in (ANNE, ANNE, ANNE, BOB)] == [200, 429, 429, 200]
    assert call.left(wide) == [3, 7]
    assert call.left(narrow, "anne", "subject") == [0]


def test_several_policies_are_one_trip_to_the_counters(call: Call[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trips: list[int] = []
    keeper = call.keep(
        policies=[Policy("a", limits=["9/hour", "5/minute"]), Policy("b", identity=CUSTOMER, limits=["9/day"])]
    )
    ask = keeper.counters.apply

    def counted(operation: Any) -> Any:
        trips.append(len(operation.charges))
        return ask(operation)

    monkeypatch.setattr(keeper.counters, "apply", counted)
    call.behind(keeper=keeper)
    call(headers=ANNE)
    assert trips == [2]


def test_a_global_limit_is_shared_by_everyone(call: Call[Any]) -> None:
    call.behind(policies=[Policy("all", identity=Everyone(), limits=["2/minute"])])
    assert [call(headers=who).status for who in (ANNE, BOB, ANNE)] == [200, 200, 429]


def test_two_limits_of_one_policy_hold_both(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["2/second", "3/minute"])])
    assert call.statuses(3) == [200, 200, 429]
    call.clock.advance(1)
    assert call.statuses(2) == [200, 429]


# -- which requests ---------------------------------------------------------------------------------------------------


def test_without_policies_everything_is_recorded_and_nothing_limited(call: Call[Any]) -> None:
    call.behind()
    answers = [call("GET", f"/{n}") for n in range(5)]
    assert [answer.status for answer in answers] == [200] * 5
    assert [answer.record.subject for answer in answers] == [CLIENT] * 5
    assert not any(name.startswith(("ratelimit", "x-ratelimit")) for answer in answers for name in answer.names)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("GET", "/", id="another path"),
        pytest.param("GET", "/apikeys", id="only begins like the pattern"),
        pytest.param("POST", "/api/x", id="another method"),
    ],
)
def test_unwatched_requests_pass_untouched_and_unrecorded(call: Call[Any], method: str, path: str) -> None:
    call.behind(routes=["GET /api/*"], policies=[TWO])
    for _ in range(5):
        answer = call(method, path, ANNE)
        assert (answer.status, answer.names, answer.records) == (200, ["content-type"], [])


def test_whitelisted_requests_pass_untouched_and_unrecorded(call: Call[Any]) -> None:
    call.behind(policies=[TWO], whitelist=["GET /api/health", "/metrics/*"])
    for path in ("/api/health", "/metrics", "/metrics/a/b"):
        for answer in (call("GET", path, ANNE) for _ in range(3)):
            assert (answer.status, answer.names, answer.records) == (200, ["content-type"], [])
    assert call.statuses(3, "POST", "/api/health", headers=ANNE) == [200, 200, 429]


def test_exempt_requests_are_recorded_and_never_charged(call: Call[Any]) -> None:
    call.behind(policies=[TWO], exempt=lambda request: request.header("X-Probe") == "1")
    answers = [call(headers={**ANNE, "X-Probe": "1"}) for _ in range(4)]
    assert {(answer.status, answer.record.outcome, answer.record.units) for answer in answers} == {(200, "allowed", 0)}
    assert answers[0].record.subject == "anne"
    assert call.left(TWO, "anne", "subject") == [2]


def test_what_one_policy_exempts_another_still_charges(call: Call[Any]) -> None:
    lenient = Policy("lenient", limits=["1/minute"], exempt=lambda request: request.method == "PUT")
    strict = Policy("strict", limits=["2/minute"])
    call.behind(policies=[lenient, strict])
    assert call.statuses(3, "PUT") == [200, 200, 429]
    assert (call.left(lenient), call.left(strict)) == ([1], [0])


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_order_of_patterns_and_policies_does_not_matter(call: Call[Any], order: tuple[int, ...]) -> None:
    policies = [
        Policy("all", limits=["3/minute"]),
        Policy("writes", routes=["POST /api/*"], limits=["2/minute"]),
        Policy("one", routes=["/api/{id}"], limits=["4/minute"]),
    ]
    routes = ["GET /api/*", "POST /api/*", "/other/*"]
    whitelist = ["/api/health", "GET /api/{id}/status", "* /internal/*"]
    call.behind(
        policies=[policies[at] for at in order],
        routes=[routes[at] for at in order],
        whitelist=[whitelist[at] for at in order],
    )
    assert call.statuses(3, "POST", "/api/7") == [200, 200, 429]
    assert call.statuses(2, "GET", "/api/7") == [200, 429]
    assert call.statuses(4, "GET", "/api/7/status") == [200] * 4
    assert call.statuses(4, "PUT", "/elsewhere") == [200] * 4


def test_a_switched_off_keeper_only_passes_through(call: Call[Any]) -> None:
    call.behind(policies=[TWO], enabled=False)
    for answer in (call(headers=ANNE) for _ in range(4)):
        assert (answer.status, answer.names, answer.records) == (200, ["content-type"], [])


def test_attack_preflight_preflights_are_never_limited(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    asked = {**ANNE, "Origin": "https://example.org", "Access-Control-Request-Method": "PUT"}
    answers = [call("OPTIONS", "/api/x", asked) for _ in range(4)]
    assert {(answer.status, answer.record.units) for answer in answers} == {(200, 0)}
    assert call.left(TWO, "anne", "subject") == [2]


def test_options_that_are_no_preflight_are_limited(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    assert call.statuses(3, "OPTIONS", headers=ANNE) == [200, 200, 429]


# -- modes ------------------------------------------------------------------------------------------------------------


def test_a_shadow_policy_never_refuses_and_tells_what_it_would_have_done(call: Call[Any]) -> None:
    call.behind(policies=[Policy("dark", limits=["2/minute"], mode="shadow")])
    answers = [call() for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [answer.record.outcome for answer in answers] == ["allowed", "allowed", "shadow"]
    assert answers[2].record.violated == ("dark-minute",)
    assert answers[2].names == ["content-type"]


def test_shadow_charges_live_on_counters_of_their_own(call: Call[Any]) -> None:
    dark = Policy("p", limits=["2/minute"], mode="shadow")
    call.behind(policies=[dark])
    call.statuses(2)
    light = Policy("p", limits=["2/minute"])
    assert (call.left(dark), call.left(light)) == ([0], [2])


def test_a_shadow_policy_is_not_charged_for_what_another_refuses(call: Call[Any]) -> None:
    dark = Policy("dark", limits=["9/minute"], mode="shadow")
    call.behind(policies=[dark, Policy("light", limits=["1/minute"])])
    assert call.statuses(4) == [200, 429, 429, 429]
    assert call.left(dark) == [8]


def test_a_soft_policy_counts_past_its_limit_and_flags_the_record(call: Call[Any]) -> None:
    call.behind(policies=[Policy("kind", limits=["2/minute"], mode="soft")])
    answers = [call() for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4
    assert [answer.record.outcome for answer in answers] == ["allowed", "allowed", "soft", "soft"]
    assert answers[3].record.violated == ("kind-minute",)
    assert answers[3].one("ratelimit") == '"kind-minute";r=0;t=30'


# -- costs ------------------------------------------------------------------------------------------------------------


def test_a_cost_is_charged_to_every_limit_but_those_with_their_own(call: Call[Any]) -> None:
    policy = Policy("p", limits=[Rate(10, "minute", cost=1), "100/hour"], cost=30)
    call.behind(policies=[policy])
    assert call.statuses(4) == [200, 200, 200, 429]
    assert call.left(policy) == [7, 10]


def test_a_callable_cost_prices_each_request(call: Call[Any]) -> None:
    policy = Policy("p", limits=["10/minute"], cost=lambda request: int(request.query_values("n")[0]))
    call.behind(policies=[policy])
    answers = [call("GET", f"/api/x?n={n}") for n in (4, 0, 5, 2, 1)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 200]
    assert [answer.record.units for answer in answers] == [4, 0, 5, 0, 1]


@pytest.mark.parametrize("cost", [-1, 1.5, True, None, "3", float("nan"), float("inf"), 2**53, 10**400, [1]])
def test_a_nonsense_cost_reaches_no_counter_and_no_application(call: Call[Any], cost: Any) -> None:
    served: list[Received] = []

    def handler(request: Received) -> Reply:
        served.append(request)
        return Reply()

    policy = Policy("p", limits=["10/minute"], cost=lambda request: cost)
    call.behind(handler, policies=[policy])
    with pytest.raises(ConfigurationError, match="cost of policy 'p' returned"):
        call()
    assert served == []
    assert call.left(policy) == [10]
    assert (call.last.records[0].status, call.last.records[0].exception) == (500, "ConfigurationError")


def test_a_cost_above_the_limit_is_refused_without_retry_after(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["10/minute"], cost=11)])
    answer = call()
    assert answer.status == 429
    assert "retry-after" not in answer.names
    assert b"costs more than the limit p-minute of 10 ever allows" in answer.body


def test_a_cost_of_nothing_passes_an_exhausted_limit(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["1/minute"], cost=lambda request: int(request.method == "POST"))])
    assert call.statuses(2, "POST") == [200, 429]
    assert call.statuses(3, "GET") == [200, 200, 200]


@pytest.mark.parametrize(
    ("charge_on", "units"),
    [
        pytest.param("<500", {200: 3, 404: 3, 500: 0, 503: 0}, id="below 500"),
        pytest.param("2xx", {200: 3, 302: 0, 404: 0, 500: 0}, id="2xx"),
        pytest.param("2xx-3xx", {200: 3, 302: 3, 404: 0, 500: 0}, id="2xx-3xx"),
        pytest.param("always", {200: 3, 404: 3, 500: 3}, id="always"),
        pytest.param(lambda status: status == 404, {200: 0, 404: 3, 500: 0}, id="callable"),
    ],
)
def test_charge_on_tells_which_answers_cost(call: Call[Any], charge_on: Any, units: dict[int, int]) -> None:
    call.behind(
        lambda request: Reply(int(request.query)),
        policies=[Policy("p", limits=["100/minute"], cost=3, charge_on=charge_on)],
    )
    assert {status: call("GET", f"/api/x?{status}").record.units for status in units} == units


def test_rates_keep_what_free_answers_were_charged(call: Call[Any]) -> None:
    call.behind(lambda request: Reply(500), policies=[TWO])
    assert call.statuses(3, headers=ANNE) == [500, 500, 429]


def test_a_charge_on_that_raises_does_not_reach_the_client(call: Call[Any], caplog: pytest.LogCaptureFixture) -> None:
    call.behind(policies=[Policy("p", limits=["2/minute"], charge_on=lambda status: bool(1 // 0))])
    answer = call()
    assert (answer.status, answer.body) == (200, b"ok")
    assert "ZeroDivisionError" in caplog.text


# -- what is asked of callables ---------------------------------------------------------------------------------------


def test_callables_see_the_request_as_it_was_sent(call: Call[Any]) -> None:
    seen: list[tuple[Any, ...]] = []

    def look(request: Request) -> int:
        seen.append((
            request.method, request.path, request.query, request.scheme, request.peer, request.header("X-One"),
            request.header("x-two"), request.query_values("a"), request.cookie_values("c"), request.has_body,
        ))  # fmt: skip
        return 1

    call.behind(policies=[Policy("p", limits=["9/minute"], cost=look)])
    headers = [("X-One", "1"), ("X-Two", "a"), ("X-Two", "b"), ("Cookie", "c=7; d=8")]
    call("POST", "/api/%C3%A9%2F?a=1&a=2&b=%20", headers, body=b"body")
    (row,) = seen
    two = row[6].replace(", ", ",")  # servers of WSGI join repeated headers as they like
    assert (*row[:6], two, *row[7:]) == (
        "POST", "/api/é/", "a=1&a=2&b=%20", "http", CLIENT, "1", "a,b", ["1", "2"], ["7"], True,
    )  # fmt: skip


def test_an_exempt_that_raises_is_raised_to_the_server_and_recorded(call: Call[Any]) -> None:
    call.behind(policies=[TWO], exempt=lambda request: bool(1 // 0))
    with pytest.raises(ZeroDivisionError):
        call(headers=ANNE)
    (record,) = call.last.records
    assert (record.status, record.exception, record.aborted) == (500, "ZeroDivisionError", True)
