"""What clients are told: headers that parsers understand, refusals that say when to come back."""

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import http_sf
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.helpers import Answer, AsgiCall, Call, Down, Received, Reply, WsgiCall
from usagekeeper import Decision, Header, Policy, Rate
from usagekeeper.decisions import HeaderForm, HeaderStyle, quoted, refuse, tightest
from usagekeeper.limits import LimitSet
from usagekeeper.rates import Algorithm
from usagekeeper.values import SECOND, Charge, Mode, Spends, Words

NOW: Final = 1_700_000_000 * SECOND
ALGORITHMS: Final[tuple[Algorithm, ...]] = ("gcra", "fixed", "sliding")
LEGACY: Final = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
OURS: Final = {"ratelimit", "ratelimit-policy", *LEGACY}


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    yield one
    one.close()


Items = list[tuple[str, dict[str, int]]]


def parsed(value: str | bytes) -> Items:
    """A header as a structured-field list of strings with whole parameters, by a parser that is not ours."""
    items: Any = http_sf.parse(value.encode() if isinstance(value, str) else value, tltype="list")
    for name, parameters in items:
        assert type(name) is str
        assert all(type(number) is int for number in parameters.values())
    found: Items = items
    return found


def legacy(answer: Answer) -> tuple[int, ...]:
    return tuple(int(answer.one(name)) for name in LEGACY)


def told(headers: list[tuple[bytes, bytes]]) -> dict[str, bytes]:
    assert len({name for name, _ in headers}) == len(headers)
    return {name.decode(): value for name, value in headers}


# -- names ------------------------------------------------------------------------------------------------------------

any_name = st.text(st.characters(exclude_categories=[]), min_size=1, max_size=100)


@given(policy=any_name, name=any_name)
def test_attack_name_headers_are_structured_fields_whatever_the_names(policy: str, name: str) -> None:
    assume(name != f"{policy}-minute")
    limits = LimitSet("default", policy, [Rate(5, "minute"), Rate(7, "hour", name=name)])
    headers = told(HeaderForm([limits], "both").raw([(0,) * limits.size], NOW))
    assert [tuple(parameters) for _, parameters in parsed(headers["ratelimit-policy"])] == [("q", "w")] * 2
    assert [tuple(parameters) for _, parameters in parsed(headers["ratelimit"])] == [("r", "t")] * 2


HOSTILE: Final = 'a"b\\c\r\nX-Injected: 1\x00é%d%s%'


def test_attack_name_a_hostile_name_injects_no_header(call: Call[Any]) -> None:
    call.behind(policies=[Policy(HOSTILE, limits=["1/minute"])])
    for answer in (call(), call()):
        assert set(answer.names) - {"content-type", "content-length", "retry-after"} == OURS
        name = 'a"b\\c%0D%0AX-Injected: 1%00%C3%A9%d%s%-minute'
        assert parsed(answer.one("ratelimit")) == [(name, {"r": 0, "t": 60})]
        assert parsed(answer.one("ratelimit-policy")) == [(name, {"q": 1, "w": 60})]


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("default", '"default"'),
        ('"', r'"\""'),
        ("\\", r'"\\"'),
        ("é", '"%C3%A9"'),
        ("\r\n\x00\x7f", '"%0D%0A%00%7F"'),
        ("\ud800", '"%3F"'),
        ("50%", '"50%"'),
    ],
    ids=ascii,
)
def test_a_name_is_quoted(name: str, field: str) -> None:
    assert quoted(name) == field


@pytest.mark.parametrize(
    ("limit", "name", "quota", "window"),
    [
        ("5/second", "default-second", 5, 1),
        ("5/minute", "default-minute", 5, 60),
        ("100/hour", "default-hour", 100, 3600),
        ("1000/day", "default-day", 1000, 86_400),
        ("20/10 seconds", "default-10-second", 20, 10),
        ("20/60 seconds", "default-60-second", 20, 60),
        ("9/7 days", "default-7-day", 9, 7 * 86_400),
        (Rate(5, 90), "default-90-second", 5, 90),
        (Rate(5, 120), "default-2-minute", 5, 120),
        (Rate(5, "minute", name="burst"), "burst", 5, 60),
        (Rate(5, "hour", algorithm="fixed"), "default-hour", 5, 3600),
        (Rate(5, "hour", algorithm="sliding"), "default-hour", 5, 3600),
    ],
    ids=str,
)
def test_a_limit_is_named_after_policy_and_window(limit: str | Rate, name: str, quota: int, window: int) -> None:
    limits = LimitSet("default", "default", Policy("default", limits=[limit]).rates())
    headers = told(HeaderForm([limits], "ietf").raw([(0,) * limits.size], NOW))
    assert parsed(headers["ratelimit-policy"]) == [(name, {"q": quota, "w": window})]


def test_the_headers_read_as_the_documentation_shows_them(call: Call[Any]) -> None:
    call.behind(policies=[Policy("default", limits=["5/minute"])])
    answers = [call() for _ in range(5)]
    assert answers[-1].one("ratelimit-policy") == '"default-minute";q=5;w=60'
    assert answers[-1].one("ratelimit") == '"default-minute";r=0;t=12'
    assert legacy(answers[-1]) == (5, 0, round(call.clock()) + 60)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_largest_limit_is_a_structured_field(algorithm: Algorithm) -> None:
    count = 10**10 if algorithm == "gcra" else 10**15 - 1
    limits = LimitSet("default", "p", [Rate(count, "366 days", algorithm=algorithm)])
    for value in told(HeaderForm([limits], "ietf").raw([(0,) * limits.size], NOW)).values():
        assert parsed(value)


# -- which limits -----------------------------------------------------------------------------------------------------


def listed(answer: Answer) -> list[str]:
    names = [name for name, _ in parsed(answer.one("ratelimit"))]
    assert names == [name for name, _ in parsed(answer.one("ratelimit-policy"))]
    return names


def test_limits_are_listed_in_order_of_declaration(call: Call[Any]) -> None:
    one, other = Policy("one", limits=["9/day", "5/minute"]), Policy("other", limits=["7/hour"])
    call.behind(policies=[one, other])
    assert listed(call()) == ["one-day", "one-minute", "other-hour"]


def test_soft_limits_are_listed_and_shadow_ones_never(call: Call[Any]) -> None:
    modes: tuple[Mode, ...] = ("shadow", "soft", "enforce")
    call.behind(policies=[Policy(mode, mode=mode, limits=["2/minute"]) for mode in modes])
    assert [listed(call()) for _ in range(3)] == [["soft-minute", "enforce-minute"]] * 3


def test_shadow_policies_alone_are_not_told(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", mode="shadow", limits=["1/minute"])])
    assert all(OURS.isdisjoint(call().names) for _ in range(3))


def test_at_most_ten_limits_are_listed(call: Call[Any]) -> None:
    policies = [Policy(f"p{n:02}", limits=["99/minute"]) for n in range(12)]
    call.behind(policies=policies)
    assert listed(call()) == [f"p{n:02}-minute" for n in range(10)]


def test_the_older_headers_speak_of_a_limit_beyond_the_ten(call: Call[Any]) -> None:
    policies = [Policy(f"p{n:02}", limits=["99/minute"]) for n in range(11)]
    call.behind(policies=[*policies, Policy("last", limits=["2/minute"])])
    assert legacy(call()) == (2, 1, round(call.clock()) + 30)
    call()
    refused = call()
    assert json.loads(refused.body)["violated-policies"] == ["last-minute"]
    assert legacy(refused)[0] == 2


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"policies": [Policy("p")]}, id="without limits"),
        pytest.param({"policies": [Policy("p", routes=["/other"], limits=["1/day"])]}, id="for another route"),
        pytest.param({"policies": [Policy("p", limits=["1/day"])], "whitelist": ["/api/x"]}, id="left alone"),
        pytest.param({"policies": [Policy("p", limits=["1/day"])], "exempt": lambda request: True}, id="exempt"),
        pytest.param({"policies": [Policy("p", limits=["1/day"], exempt=lambda request: True)]}, id="exempt by policy"),
        pytest.param({"policies": [Policy("p", limits=["1/day"])], "enabled": False}, id="switched off"),
        pytest.param({"policies": [Policy("p", limits=["1/day"])], "counters": Down()}, id="counters unreachable"),
    ],
)
def test_where_no_limit_was_asked_nothing_is_told(call: Call[Any], options: dict[str, Any]) -> None:
    call.behind(**options)
    assert [OURS.isdisjoint(call().names) for _ in range(2)] == [True, True]


def test_a_policy_whose_subject_is_missing_is_not_told(call: Call[Any]) -> None:
    lenient = Policy("named", identity=Header("X-A"), limits=["5/minute"], on_missing_identity="allow")
    call.behind(policies=[lenient, Policy("all", limits=["9/minute"])])
    assert listed(call()) == ["all-minute"]
    assert listed(call(headers=[("x-a", "1")])) == ["named-minute", "all-minute"]


STYLES = [
    pytest.param("both", OURS, id="both"),
    pytest.param("ietf", {"ratelimit", "ratelimit-policy"}, id="ietf"),
    pytest.param("legacy", set(LEGACY), id="legacy"),
    pytest.param("none", set(), id="none"),
]


@pytest.mark.parametrize(("style", "names"), STYLES)
def test_the_style_decides_which_headers_are_sent(call: Call[Any], style: HeaderStyle, names: set[str]) -> None:
    call.behind(policies=[Policy("p", limits=["1/minute"])], headers=style)
    served, refused = call(), call()
    assert OURS.intersection(served.names) == names
    assert OURS.intersection(refused.names) == names
    assert refused.one("retry-after") == "60"


def test_a_header_that_the_application_set_is_left_alone(call: Call[Any]) -> None:
    own = (("content-type", "text/plain"), ("ratelimit", '"own";r=1'), ("x-ratelimit-limit", "7"))
    call.behind(lambda received: Reply(headers=own), policies=[Policy("p", limits=["5/minute"])])
    answer = call()
    assert (answer.one("ratelimit"), answer.one("x-ratelimit-limit")) == ('"own";r=1', "7")
    assert answer.one("x-ratelimit-remaining") == "4"


# -- what they say ----------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """Limits of several policies, and rows as counters may hold them."""

    sets: list[LimitSet]
    rows: list[Words]
    now: int

    def charges(self, cost: int) -> list[Charge]:
        return [Charge(limits, "someone", cost) for limits in self.sets]


def begins_soon(limits: LimitSet, row: Words, now: int) -> bool:
    """Whether a row is of a window that begins within a second, as another process with a faster clock writes it."""
    firsts = [sum(limits.sizes[:position]) for position in range(limits.count)]
    windows = [
        (rate.period, row[at]) for rate, at in zip(limits.rates, firsts, strict=True) if rate.algorithm != "gcra"
    ]
    return any(0 < window * period - now <= SECOND for period, window in windows)


counts = st.integers(1, 50)
windows = st.integers(1, 4000)


@st.composite
def cases(draw: st.DrawFn, *, most: int = 4, wild: bool = True) -> Case:
    now = NOW + draw(st.integers(0, 10**9))
    sets, rows = [], []
    for position in range(draw(st.integers(1, 3))):
        rates = [
            Rate(draw(counts), draw(windows), draw(st.sampled_from(ALGORITHMS)), name=f"p{position}-{n}")
            for n in range(draw(st.integers(1, most)))
        ]
        limits = LimitSet("default", f"p{position}", rates, mode=draw(st.sampled_from(["enforce", "soft"])))
        row: Words = (0,) * limits.size
        for moment in sorted(draw(st.lists(st.integers(now - 10**8, now), max_size=3))):
            row = limits.allocate(row, moment, draw(counts)) or row
        if wild:
            row = limits.force(row, now, draw(counts)) if draw(st.booleans()) else row
            row = [word + draw(st.sampled_from([0, 0, 1, SECOND, 10**12])) for word in row]
            assume(not begins_soon(limits, row, now))
        sets.append(limits)
        rows.append(row)
    return Case(sets, rows, now)


def whole(microseconds: int) -> int:
    return -(-microseconds // SECOND)


@given(case=cases())
def test_both_spellings_say_the_same(case: Case) -> None:
    form = HeaderForm(case.sets, "both")
    raw = [(name.decode(), value.decode()) for name, value in form.raw(case.rows, case.now)]
    assert [(name.lower(), value) for name, value in form.text(case.rows, case.now)] == raw


@given(case=cases())
def test_headers_say_what_the_limits_read(case: Case) -> None:
    spends = [spend for limits, row in zip(case.sets, case.rows, strict=True) for spend in limits.read(row, case.now)]
    rates = [rate for limits in case.sets for rate in limits.rates]
    headers = told(HeaderForm(case.sets, "both").raw(case.rows, case.now))
    # A rate of several units a second is told as "in a second", also where nothing is missing.
    quick = [rate.algorithm == "gcra" and rate.spacing <= SECOND for rate in rates]
    times = [1 if often else whole(spend.more_after) for spend, often in zip(spends, quick, strict=True)]
    expected = [{"r": spend.remaining, "t": time} for spend, time in zip(spends, times, strict=True)]
    assert [parameters for _, parameters in parsed(headers["ratelimit"])] == expected[:10]
    assert all(whole(spend.more_after) <= time for spend, time in zip(spends, times, strict=True))


@given(case=cases())
def test_the_older_headers_speak_of_the_smallest_remaining(case: Case) -> None:
    spends = [spend for limits, row in zip(case.sets, case.rows, strict=True) for spend in limits.read(row, case.now)]
    least = min(spends, key=lambda spend: spend.remaining)
    headers = told(HeaderForm(case.sets, "legacy").raw(case.rows, case.now))
    expected = (least.limit, least.remaining, whole(case.now + least.reset_after))
    assert tuple(int(headers[name]) for name in LEGACY) == expected
    assert tightest(case.charges(1), Spends(case.now, False, [True] * len(case.rows), case.rows)) == least


def test_a_window_that_a_faster_clock_began_is_told_until_it_ends() -> None:
    begins = NOW // (60 * SECOND) * 60 * SECOND
    limits = LimitSet("default", "p", [Rate(1, "minute", "fixed")])
    row, now = (begins // (60 * SECOND), 1), begins - SECOND // 2
    headers = told(HeaderForm([limits], "both").raw([row], now))
    assert parsed(headers["ratelimit"]) == [("p-minute", {"r": 0, "t": 61})]
    assert int(headers["x-ratelimit-reset"]) == begins // SECOND + 60


@given(case=cases(wild=False), cost=st.integers(0, 5))
def test_what_was_charged_a_moment_ago_is_told_like_anything_else(case: Case, cost: int) -> None:
    rows = [limits.allocate(row, case.now, cost) for limits, row in zip(case.sets, case.rows, strict=True)]
    charged = [row for row in rows if row is not None]
    assume(len(charged) == len(rows))
    form = HeaderForm(case.sets, "both")
    assert form.raw(charged, case.now, charged=True) == form.raw(charged, case.now)
    assert form.text(charged, case.now, charged=True) == form.text(charged, case.now)


@given(case=cases(), cost=st.integers(1, 60))
def test_a_refusal_tells_the_longest_wait(case: Case, cost: int) -> None:
    enforced = [limits for limits in case.sets if limits.mode == "enforce"]
    fits = [limits.allocate(row, case.now, cost) is not None for limits, row in zip(case.sets, case.rows, strict=True)]
    assume(any(not fit and limits in enforced for limits, fit in zip(case.sets, fits, strict=True)))
    decision, longest = refuse(case.charges(cost), Spends(case.now, True, fits, case.rows), "someone")
    headers = told(HeaderForm(case.sets, "both").refused(case.rows, case.now, longest))
    times = {name: parameters["t"] for name, parameters in parsed(headers["ratelimit"])}
    if decision.retry_after is None:
        assert longest.limit < cost
    else:
        assert decision.retry_after >= max(1, whole(longest.retry_after or 0))
        assert all(decision.retry_after >= times.get(name, 0) for name in decision.violated)
    expected = (longest.limit, longest.remaining, whole(case.now + longest.reset_after))
    assert tuple(int(headers[name]) for name in LEGACY) == expected


@given(case=cases(most=1, wild=False), cost=st.integers(1, 60))
def test_waiting_as_told_is_enough(case: Case, cost: int) -> None:
    limits, row = case.sets[0], case.rows[0]
    assume(limits.mode == "enforce" and limits.allocate(row, case.now, cost) is None)
    decision, _ = refuse([Charge(limits, "someone", cost)], Spends(case.now, True, [False], [row]), None)
    if decision.retry_after is None:
        assert cost > limits.rates[0].count
        return
    assert limits.allocate(row, case.now + decision.retry_after * SECOND, cost) is not None


@pytest.mark.parametrize(
    ("passed", "retry_after"),
    [(0.0, "60"), (0.001, "60"), (0.999, "60"), (1.0, "59"), (1.5, "59"), (58.999, "2"), (59.0, "1"), (59.999, "1")],
)
def test_retry_after_is_rounded_up(call: Call[Any], passed: float, retry_after: str) -> None:
    call.behind(policies=[Policy("p", limits=["1/minute"])])
    call()
    call.clock.advance(passed)
    refused = call()
    assert (refused.status, refused.one("retry-after")) == (429, retry_after)


@pytest.mark.parametrize("limit", ["1000/second", "8/second"])
def test_retry_after_is_never_zero(call: Call[Any], limit: str) -> None:
    call.behind(policies=[Policy("p", limits=[limit], cost=int(limit.partition("/")[0]))])
    call()
    assert (call().status, call.last.one("retry-after")) == (429, "1")


def test_a_refusal_of_two_limits_speaks_of_the_longer_wait(call: Call[Any]) -> None:
    call.behind(policies=[Policy("short", limits=["1/minute"]), Policy("long", limits=["1/hour"])])
    call()
    refused = call()
    assert (refused.one("retry-after"), refused.one("x-ratelimit-limit")) == ("3600", "1")
    assert legacy(refused)[2] == round(call.clock()) + 3600
    assert json.loads(refused.body)["violated-policies"] == ["short-minute", "long-hour"]


def test_a_request_that_can_never_fit_is_not_told_to_wait(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["5/minute"], cost=6)])
    refused = call()
    assert (refused.status, refused.all("retry-after")) == (429, [])
    assert "costs more than the limit p-minute of 5 ever allows" in json.loads(refused.body)["detail"]


# -- bodies -----------------------------------------------------------------------------------------------------------

DECISIONS = [
    pytest.param(Decision(429, "quota-exceeded", "d", violated=("a",)), "quota-exceeded", id="429"),
    pytest.param(Decision(503, "counters-unavailable", "d"), "temporary-reduced-capacity", id="503"),
]


@pytest.mark.parametrize(("decision", "kind"), DECISIONS)
def test_a_refusal_has_the_problem_type_of_the_draft(decision: Decision, kind: str) -> None:
    problem = decision.problem()
    assert problem["type"] == f"https://iana.org/assignments/http-problem-types#{kind}"
    assert (problem["status"], problem["detail"]) == (decision.status, "d")
    assert problem["title"] == kind.replace("-", " ").capitalize()


@pytest.mark.parametrize("status", [400, 401, 402, 403, 413])
def test_other_refusals_are_blank_problems_with_a_reason(status: int) -> None:
    problem = Decision(status, "some-reason", "A sentence.").problem()
    expected = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": "A sentence."}
    assert problem == {**expected, "reason": "some-reason"}


def test_a_refusal_is_a_problem_document(call: Call[Any]) -> None:
    call.behind(policies=[Policy("default", limits=["1/minute"])])
    call()
    refused = call()
    assert json.loads(refused.body) == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota exceeded",
        "status": 429,
        "detail": "The limit default-minute of 1 is used up.",
        "violated-policies": ["default-minute"],
    }
    assert refused.one("content-type") == "application/problem+json"
    assert refused.one("content-length") == str(len(refused.body))


def test_a_refusal_of_head_has_no_body_and_its_length(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["1/minute"])])
    length = (call(), call())[1].one("content-length")
    refused = call("HEAD")
    assert (refused.status, refused.body, refused.one("content-length")) == (429, b"", length)


@pytest.mark.parametrize("name", [HOSTILE, "\ud800", "</script>"], ids=ascii)
def test_any_name_is_json(call: Call[Any], name: str) -> None:
    call.behind(policies=[Policy(name, limits=["1/minute"])])
    call()
    assert json.loads(call().body)["violated-policies"] == [f"{name}-minute"]


@pytest.mark.parametrize(
    ("body", "content_type", "sent"),
    [
        pytest.param({"error": "slow down"}, "application/json", b'{"error": "slow down"}', id="mapping"),
        pytest.param("zu schnell é", "text/plain; charset=utf-8", "zu schnell é".encode(), id="text"),
        pytest.param(b"\x00\xff", "application/octet-stream", b"\x00\xff", id="bytes"),
        pytest.param("", "text/plain; charset=utf-8", b"", id="nothing"),
    ],
)
def test_on_refusal_builds_another_body(call: Call[Any], body: Any, content_type: str, sent: bytes) -> None:
    call.behind(policies=[Policy("p", limits=["1/minute"])], on_refusal=lambda decision: body)
    call()
    refused = call()
    assert (refused.status, refused.body, refused.one("content-type")) == (429, sent, content_type)
    assert (refused.one("retry-after"), refused.one("content-length")) == ("60", str(len(sent)))


def test_on_refusal_is_given_the_decision(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["2/minute"])], on_refusal=lambda decision: {"at": decision.renews_at})
    call()
    call()
    assert json.loads(call().body) == {"at": call.clock() + 30}


def test_counters_that_do_not_answer_refuse_where_the_policy_says_so(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["9/minute"], on_outage="deny")], counters=Down())
    refused = call()
    assert (refused.status, refused.one("retry-after"), refused.record.reason) == (503, "1", "counters-unavailable")
    assert json.loads(refused.body)["type"].endswith("#temporary-reduced-capacity")


def test_only_a_401_says_how_to_authenticate(call: Call[Any]) -> None:
    named = Policy("p", identity=Header("X-A"), limits=["1/minute"], on_missing_identity="reject")
    call.behind(policies=[named])
    assert call().all("www-authenticate") == ['ApiKey realm="usage"']
    assert call(headers=[("x-a", "1,2")]).all("www-authenticate") == []
    assert [call(headers=[("x-a", "1")]).all("www-authenticate") for _ in range(2)] == [[], []]


def test_a_refused_request_does_not_reach_the_application(call: Call[Any]) -> None:
    reached: list[Received] = []

    def handler(received: Received) -> Reply:
        reached.append(received)
        return Reply()

    call.behind(handler, policies=[Policy("p", limits=["1/minute"])])
    assert (call.statuses(3), len(reached)) == ([200, 429, 429], 1)
