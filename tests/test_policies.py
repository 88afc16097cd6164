"""Policies: what is limited, for whom, what a request costs and which answers cost anything."""

from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import product
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import AsgiCall, Call, Down, Reply, WsgiCall
from usagekeeper import ConfigurationError, Everyone, Header, Policy, Rate, Request, UsageKeeper
from usagekeeper.counters import Counters, open_counters
from usagekeeper.limits import LimitSet
from usagekeeper.policies import paying
from usagekeeper.values import CHECK, Charge, Mode, Operation

NOW = 1_700_000_000_000_000


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    yield one
    one.close()


# -- wrong policies ---------------------------------------------------------------------------------------------------


def test_a_policy_needs_no_more_than_a_name() -> None:
    policy = Policy("default")
    assert (policy.routes, policy.limits, policy.cost, policy.mode) == (("*",), (), 1, "enforce")
    assert (policy.identity, policy.on_missing_identity, policy.on_outage, policy.exempt) == (None,) * 4
    assert policy.charge_on == "<500"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "needs a name"),
    ({"name": 5}, "needs a name"),
    ({"name": None}, "needs a name"),
    ({"name": "x" * 101}, "up to 100 characters"),
    ({"routes": "/api/*"}, "routes is a list"),
    ({"routes": {"url": "/api/*"}}, "routes is a list"),
    ({"routes": []}, "routes is a list"),
    ({"routes": None}, "routes is a list"),
    ({"routes": 5}, "routes is a list"),
    ({"routes": ["/api*"]}, "write '/api/\\*'"),
    ({"limits": "5/minute"}, "limits is a list"),
    ({"limits": Rate(5, "minute")}, "limits is a list"),
    ({"limits": 5}, "limits is a list"),
    ({"limits": None}, "limits is a list"),
    ({"limits": lambda subject: ["5/minute"]}, "limits is a list"),
    ({"limits": [5]}, "5 is not a limit"),
    ({"limits": ["soon"]}, "'soon' is not a limit"),
    ({"limits": ["0/minute"]}, "from 1"),
    ({"limits": ["5/week"]}, "calendar quotas are not in this version"),
    ({"limits": ["5/2 weeks"]}, "calendar quotas are not in this version"),
    ({"limits": ["5/month"]}, "calendar quotas are not in this version"),
    ({"limits": ["5/quarter"]}, "calendar quotas are not in this version"),
    ({"limits": ["5 per year"]}, "calendar quotas are not in this version"),
    ({"limits": ["5/minute", "6/minute"]}, "two limits called 'p-minute'"),
    ({"limits": ["5/minute", Rate(6, "hour", name="p-minute")]}, "two limits called 'p-minute'"),
    ({"limits": [Rate(5, 60), Rate(6, "60 seconds")]}, "two limits over the same window"),
    ({"mode": "strict"}, "mode is one of 'enforce', 'shadow', 'soft'"),
    ({"mode": None}, "mode is one of"),
    ({"on_missing_identity": "ignore"}, "on_missing_identity is one of 'address', 'reject', 'allow'"),
    ({"on_outage": "panic"}, "on_outage is one of 'allow', 'deny'"),
    ({"charge_on": "<600"}, "charge_on is"),
    ({"charge_on": "5"}, "charge_on is"),
    ({"charge_on": ""}, "charge_on is"),
    ({"charge_on": 500}, "charge_on is"),
    ({"charge_on": "3xx-2xx"}, "charge_on is"),
    ({"charge_on": "<100"}, "charge_on is"),
    ({"identity": 5}, "no identity strategy"),
    ({"identity": Header("")}, "needs a name"),
    ({"exempt": "/health"}, "exempt is"),
    *(({"cost": cost}, "whole number of units from 0") for cost in (-1, 1.5, 1.0, nan, inf, 1e308, True, "1", None)),
    ({"cost": Decimal(1)}, "whole number of units from 0"),
    ({"cost": 2**53}, "whole number of units from 0"),
]


def named(options: dict[str, Any]) -> str:
    return " ".join(f"{name}={'callable' if callable(value) else ascii(value)[:40]}" for name, value in options.items())


@pytest.mark.parametrize(
    ("options", "sentence"), [pytest.param(options, told, id=named(options)) for options, told in WRONG]
)
def test_a_wrong_policy_is_told_at_once_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as told:
        UsageKeeper(store="memory://", policies=[Policy(**{"name": "p", **options})])
    assert "\n" not in str(told.value)


def test_two_policies_of_one_name_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError, match="two policies are called 'p'"):
        UsageKeeper(store="memory://", policies=[Policy("p"), Policy("q"), Policy("p", routes=["/x"])])


def test_a_policy_for_no_watched_route_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"'p'.*none of these is watched"):
        UsageKeeper(store="memory://", routes=["/api/*"], policies=[Policy("p", routes=["/other"])])


def test_limits_over_one_window_may_stand_together_by_name(call: Call[Any]) -> None:
    units = Rate(100, "minute", name="units", cost=40)
    call.behind(policies=[Policy("p", limits=["5/minute", units])])
    assert call.statuses(3) == [200, 200, 429]


# -- which requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "method", "target", "limited"),
    [
        ("*", "GET", "/", True),
        ("/api/*", "GET", "/api", True),
        ("/api/*", "GET", "/api/a/b", True),
        ("/api/*", "GET", "/apis", False),
        ("/api/*", "GET", "/API/x", False),
        ("/api/v1.0", "GET", "/api/v1x0", False),
        ("/api/:id", "GET", "/api/5", True),
        ("/api/:id", "GET", "/api/5/6", False),
        ("POST /api/x", "POST", "/api/x", True),
        ("POST /api/x", "GET", "/api/x", False),
        ("GET /api/x", "HEAD", "/api/x", True),
        ("HEAD /api/x", "GET", "/api/x", False),
        ("* /api/x", "PATCH", "/api/x", True),
    ],
)
def test_a_policy_limits_what_its_routes_cover(
    call: Call[Any], route: str, method: str, target: str, limited: bool
) -> None:
    call.behind(policies=[Policy("p", routes=[route], limits=["1/minute"])])
    assert call.statuses(2, method, target) == [200, 429 if limited else 200]


def test_every_policy_that_matches_applies(call: Call[Any]) -> None:
    wide, narrow = Policy("wide", limits=["3/minute"]), Policy("narrow", routes=["/api/x"], limits=["1/minute"])
    call.behind(policies=[wide, narrow])
    assert call.statuses(2) == [200, 429]
    assert call.statuses(3, target="/api/y") == [200, 200, 429]


def test_a_refusal_charges_no_limit_at_all(call: Call[Any]) -> None:
    roomy, tight = Policy("roomy", limits=["9/minute"]), Policy("tight", limits=["1/minute", "5/hour"])
    call.behind(policies=[roomy, tight])
    call.statuses(4)
    assert (call.left(roomy), call.left(tight)) == ([8], [0, 4])


def test_a_policy_may_name_its_own_subject(call: Call[Any]) -> None:
    named = Policy("named", identity=Header("X-Customer"), limits=["1/minute"])
    call.behind(policies=[named, Policy("all", identity=Everyone(), limits=["3/minute"])])
    assert [call(headers=[("x-customer", name)]).status for name in "abca"] == [200, 200, 200, 429]


@pytest.mark.parametrize("path", ["/health", "/api/x"], ids=["exempt", "not exempt"])
def test_an_exempt_request_is_recorded_and_never_charged(call: Call[Any], path: str) -> None:
    policy = Policy("p", limits=["1/minute"], exempt=lambda request: request.path == "/health")
    call.behind(policies=[policy])
    assert call.statuses(3, target=path) == ([200] * 3 if path == "/health" else [200, 429, 429])
    assert len(call.recorded()) == 3


# -- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "statuses", "outcomes"),
    [
        ("enforce", [200, 200, 429, 429], ["allowed", "allowed", "refused", "refused"]),
        ("shadow", [200, 200, 200, 200], ["allowed", "allowed", "shadow", "shadow"]),
        ("soft", [200, 200, 200, 200], ["allowed", "allowed", "soft", "soft"]),
    ],
)
def test_the_mode_says_what_a_limit_does(call: Call[Any], mode: Mode, statuses: list[int], outcomes: list[str]) -> None:
    call.behind(policies=[Policy("p", mode=mode, limits=["2/minute"])])
    answers = [call() for _ in range(4)]
    assert [answer.status for answer in answers] == statuses
    assert [answer.record.outcome for answer in answers] == outcomes
    assert [answer.record.violated for answer in answers] == [(), (), ("p-minute",), ("p-minute",)]


def test_what_a_shadow_policy_counted_is_nothing_when_it_is_enforced(call: Call[Any]) -> None:
    counters = open_counters("memory://")
    call.behind(policies=[Policy("p", mode="shadow", limits=["2/minute"])], counters=counters)
    call.statuses(9)
    call.behind(policies=[Policy("p", limits=["2/minute"])], counters=counters)
    assert call.statuses(3) == [200, 200, 429]


def test_a_soft_policy_counts_past_its_limit(call: Call[Any]) -> None:
    counters = open_counters("memory://")
    call.behind(policies=[Policy("p", mode="soft", limits=[Rate(2, "minute", "fixed")])], counters=counters)
    call.statuses(5)
    raised = Policy("p", limits=[Rate(6, "minute", "fixed")])
    call.behind(policies=[raised], counters=counters)
    assert call.left(raised) == [1]


def test_shadow_and_soft_policies_are_not_charged_by_a_refusal(call: Call[Any]) -> None:
    shadow = Policy("shadow", mode="shadow", limits=["9/minute"])
    soft = Policy("soft", mode="soft", limits=["9/minute"])
    call.behind(policies=[shadow, soft, Policy("tight", limits=["1/minute"])])
    call.statuses(4)
    assert (call.left(shadow), call.left(soft)) == ([8], [8])


# -- what a request costs ---------------------------------------------------------------------------------------------


def test_the_cost_is_charged_to_every_limit_but_those_with_their_own(call: Call[Any]) -> None:
    policy = Policy("p", limits=["100/minute", Rate(100, "hour", cost=1), Rate(100, "day", cost=0)], cost=7)
    call.behind(policies=[policy])
    call()
    assert call.left(policy) == [93, 99, 100]
    assert call.last.record.units == 7


def test_the_cost_may_depend_on_the_request(call: Call[Any]) -> None:
    policy = Policy("p", limits=["100/minute"], cost=lambda request: len(request.query_values("id")))
    call.behind(policies=[policy])
    assert [call(target=target).record.units for target in ("/api/x?id=1&id=2", "/api/x")] == [2, 0]
    assert call.left(policy) == [98]


def test_a_request_that_costs_nothing_passes_an_empty_limit(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["1/minute"], cost=lambda request: int("pay" in request.query))])
    assert [call(target=f"/api/x?{query}").status for query in ("pay", "", "pay")] == [200, 200, 429]


@pytest.mark.parametrize("cost", [-1, 1.5, nan, inf, 1e308, True, "1", None, Decimal(1), 2**53], ids=repr)
def test_a_wrong_cost_of_a_callable_charges_nothing(call: Call[Any], cost: Any) -> None:
    def costs(request: Request) -> int:
        wrong: int = cost
        return wrong

    policy = Policy("p", limits=["9/minute"], cost=costs)
    call.behind(policies=[policy])
    with pytest.raises(ConfigurationError, match="cost of policy 'p' returned is a whole number"):
        call()
    assert call.left(policy) == [9]


CHARGED = [
    ("<500", {200: 1, 302: 1, 404: 1, 499: 1, 500: 0, 503: 0}),
    ("< 400", {200: 1, 399: 1, 400: 0, 500: 0}),
    ("2xx", {200: 1, 299: 1, 300: 0, 404: 0}),
    ("2xx-3xx", {200: 1, 399: 1, 400: 0, 500: 0}),
    (" 2XX ", {202: 1, 404: 0}),
    ("always", {200: 1, 404: 1, 500: 1, 599: 1}),
    (lambda status: status == 418, {418: 1, 200: 0}),
]


@pytest.mark.parametrize(("charge_on", "units"), CHARGED, ids=[str(case[0]) for case in CHARGED[:-1]] + ["callable"])
def test_charge_on_says_which_answers_cost(
    call: Call[Any], charge_on: str | Callable[[int], bool], units: dict[int, int]
) -> None:
    policy = Policy("p", limits=["99/minute"], charge_on=charge_on)
    call.behind(lambda received: Reply(int(received.query)), policies=[policy])
    assert {status: call(target=f"/?{status}").record.units for status in units} == units


@given(below=st.integers(101, 599))
def test_charge_on_below_a_status_is_every_status_below(below: int) -> None:
    assert paying(f"<{below}") == frozenset(range(100, below))


def test_rates_are_not_given_back_for_a_free_answer(call: Call[Any]) -> None:
    call.behind(lambda received: Reply(500), policies=[Policy("p", limits=["2/minute"])])
    assert call.statuses(3) == [500, 500, 429]


# -- outages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("default", "own", "status"),
    [("allow", None, 200), ("deny", None, 503), ("allow", "deny", 503), ("deny", "allow", 200)],
)
def test_a_policy_overrides_what_an_outage_means(call: Call[Any], default: Any, own: Any, status: int) -> None:
    policy = Policy("p", limits=["9/minute"], on_outage=own)
    call.behind(policies=[policy], on_outage=default, counters=Down())
    assert call().status == status
    assert call.last.record.outcome == ("unmetered" if status == 200 else "refused")


def test_one_policy_that_denies_is_enough(call: Call[Any]) -> None:
    lenient, strict = Policy("a", limits=["9/minute"]), Policy("b", limits=["9/minute"], on_outage="deny")
    call.behind(policies=[lenient, strict], counters=Down())
    assert call().status == 503


# -- keys -------------------------------------------------------------------------------------------------------------

parts = st.sampled_from(["a", "b", ":", "/", "\x00", "subject", "address", "enforce", "é", "\ud800"])
part = st.lists(parts, max_size=4).map("".join)
places = st.tuples(part, part, st.sampled_from(["subject", "address"]), part)


def charge(counters: Counters, place: tuple[str, str, str, str], kind: Any = "allocate") -> int:
    """What is left to *place* (application, policy, kind, value) after one charge."""
    application, policy, of, value = place
    limits = LimitSet(application, policy, [Rate(9, "day")], kind=of)
    row = counters.apply(Operation([Charge(limits, value, 1)], NOW, kind)).rows[0]
    return limits.read(row, NOW)[0].remaining


@given(one=places, other=places)
def test_keys_are_equal_only_where_all_their_parts_are(
    one: tuple[str, str, str, str], other: tuple[str, str, str, str]
) -> None:
    counters = open_counters("memory://")
    charge(counters, one)
    assert (charge(counters, other, CHECK) == 8) == (one == other)


def test_keys_in_a_file_are_equal_only_where_all_their_parts_are(tmp_path: Path) -> None:
    counters = open_counters(f"sqlite:///{tmp_path}/counters.db")
    pieces = ("", "a", "aa", "a\x00a", "a:a", "a" * 60)
    for place in product(pieces, pieces, ("subject", "address"), pieces):
        assert charge(counters, place) == 8
    counters.close()


def test_a_changed_amount_keeps_what_was_used(tmp_path: Path, call: Call[Any]) -> None:
    options: dict[str, Any] = {"counters": f"sqlite:///{tmp_path}/counters.db"}
    call.behind(policies=[Policy("p", limits=[Rate(5, "hour", "fixed")])], **options)
    call.statuses(3)
    changed = Policy("p", limits=[Rate(9, "hour", "fixed")])
    call.behind(policies=[changed], **options)
    assert call.left(changed) == [6]


def test_a_reordered_list_keeps_its_counters(tmp_path: Path, call: Call[Any]) -> None:
    options: dict[str, Any] = {"counters": f"sqlite:///{tmp_path}/counters.db"}
    call.behind(policies=[Policy("p", limits=["5/minute", "9/hour"])], **options)
    call.statuses(3)
    turned = Policy("p", limits=["9/hour", "7/day", "5/minute"])
    call.behind(policies=[turned], **options)
    assert call.left(turned) == [6, 7, 2]


def test_applications_that_share_counters_share_limits_only_by_name(call: Call[Any]) -> None:
    counters = open_counters("memory://")
    policy = Policy("p", limits=["2/minute"])
    left = []
    for application in ("one", "other", "one"):
        call.behind(policies=[policy], counters=counters, application=application)
        call()
        left += call.left(policy)
    assert left == [1, 1, 0]
