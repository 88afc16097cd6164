"""What a client is told, and that nothing else of the application's headers changes."""

import json
from collections.abc import Mapping
from typing import Any

import http_sf
import pytest

from tests.helpers import CLIENT, Answer, AsgiCall, Call, Received, Reply
from usagekeeper import Decision, Header, Policy, Rate

OURS = ("ratelimit-policy", "ratelimit", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
FIVE = Policy("default", limits=["5/minute", "100/hour"])


def ours(answer: Answer) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers if name.lower() in OURS}


def fields(value: str) -> list[tuple[str, dict[str, int]]]:
    """The members of a list (RFC 9651, 3.1), each with its parameters."""
    members: Any = http_sf.parse(value.encode("ascii"), tltype="list")
    return list(members)


# -- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "names"),
    [("both", OURS), ("ietf", OURS[:2]), ("legacy", OURS[2:]), ("none", ())],
    ids=["both", "ietf", "legacy", "none"],
)
def test_the_form_of_the_headers_is_an_option(call: Call[Any], style: Any, names: tuple[str, ...]) -> None:
    call.behind(policies=[FIVE], headers=style)
    answers = [call() for _ in range(6)]
    assert answers[0].names == ["content-type", *names]
    assert answers[5].names == ["content-type", "content-length", "retry-after", *names]


def test_a_served_request_is_told_of_every_limit(call: Call[Any]) -> None:
    call.behind(policies=[FIVE])
    now = int(call.clock())
    assert ours(call()) == {
        "ratelimit-policy": '"default-minute";q=5;w=60, "default-hour";q=100;w=3600',
        "ratelimit": '"default-minute";r=4;t=12, "default-hour";r=99;t=36',
        "x-ratelimit-limit": "5",
        "x-ratelimit-remaining": "4",
        "x-ratelimit-reset": str(now + 12),
    }


def test_a_refused_request_is_told_when_to_come_back(call: Call[Any]) -> None:
    call.behind(policies=[FIVE])
    call.statuses(5)
    answer = call()
    now = int(call.clock())
    assert ours(answer) == {
        "ratelimit-policy": '"default-minute";q=5;w=60, "default-hour";q=100;w=3600',
        "ratelimit": '"default-minute";r=0;t=12, "default-hour";r=95;t=36',
        "x-ratelimit-limit": "5",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": str(now + 60),
    }
    assert answer.one("retry-after") == "12"


def test_retry_after_is_never_earlier_than_what_the_other_headers_say(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=[Rate(3, "7 seconds"), Rate(4, "11 seconds", algorithm="sliding")])])
    for step in range(200):
        call.clock.advance(0.37 * (step % 5))
        answer = call()
        if answer.status == 429:
            waits = [item[1]["t"] for item in fields(answer.one("ratelimit"))]
            assert int(answer.one("retry-after")) >= min(waits)


def test_limits_of_several_policies_are_listed_in_order_of_declaration_ten_at_most(call: Call[Any]) -> None:
    policies = [Policy(f"p{n}", limits=["9/minute", "90/hour"]) for n in range(6)]
    call.behind(policies=policies)
    listed = [item[0] for item in fields(call().one("ratelimit"))]
    assert listed == [f"p{n}-{unit}" for n in range(5) for unit in ("minute", "hour")]


def test_shadow_limits_are_never_told(call: Call[Any]) -> None:
    call.behind(policies=[Policy("dark", limits=["1/minute"], mode="shadow"), Policy("light", limits=["5/minute"])])
    assert call().one("ratelimit") == '"light-minute";r=4;t=12'


@pytest.mark.parametrize(
    "name",
    ['quo"te', "back\\slash", "é€😀", "per%cent", "a,b;c=d", "two\r\nlines: x", "\x00", " ", "%s%d%(x)s", "\ud800"],
)
def test_attack_name_any_policy_name_makes_valid_structured_fields(call: Call[Any], name: str) -> None:
    call.behind(policies=[Policy(name, limits=["2/minute"])])
    for answer in [call() for _ in range(3)]:
        for header in ("ratelimit", "ratelimit-policy"):
            ((listed, parameters),) = fields(answer.one(header))
            assert listed.isascii()
            assert listed.isprintable()
            assert set(parameters) <= {"r", "t", "q", "w"}


# -- the application's own --------------------------------------------------------------------------------------------

HOSTILE: list[tuple[str, str]] = [
    ("content-type", "text/html; charset=utf-8"),
    ("set-cookie", "a=1; Path=/"),
    ("x-empty", ""),
    ("set-cookie", "b=2, with a comma; Path=/"),
    ("x-latin", "\xe9\xff"),
    ("vary", "accept"),
    ("vary", "cookie"),
    ("set-cookie", "a=1; Path=/"),
]


def test_headers_pass_byte_for_byte_in_order_and_ours_come_last(call: Call[Any]) -> None:
    call.behind(lambda request: Reply(headers=HOSTILE), policies=[FIVE])
    for answer in [call(), call()]:
        assert answer.headers[: len(HOSTILE)] == HOSTILE
        assert [name.lower() for name, _ in answer.headers[len(HOSTILE) :]] == list(OURS)


def test_headers_of_an_unlimited_answer_are_the_applications_alone(call: Call[Any]) -> None:
    call.behind(lambda request: Reply(headers=HOSTILE))
    assert call().headers == HOSTILE


@pytest.mark.parametrize("name", OURS)
def test_a_rate_limit_header_of_the_application_is_left_alone(call: Call[Any], name: str) -> None:
    own = [("content-type", "text/plain"), (name, "its own")]
    call.behind(lambda request: Reply(headers=own), policies=[FIVE])
    answer = call()
    assert answer.headers[:2] == own
    assert answer.names == ["content-type", name, *(other for other in OURS if other != name)]


def test_every_answer_of_an_application_that_uses_one_list_again_is_the_same(call: Call[Any]) -> None:
    reply = Reply(headers=[("content-type", "text/plain"), ("x-own", "1")])
    call.behind(lambda request: reply, policies=[FIVE], headers="ietf")
    assert [len(call().headers) for _ in range(3)] == [4, 4, 4]
    assert len(reply.headers) == 2


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_refusal_is_a_problem_that_names_the_violated_limits(call: Call[Any]) -> None:
    call.behind(policies=[Policy("a", limits=["1/minute", "1/hour"]), Policy("b", limits=["9/minute"])])
    answer = [call(), call()][1]
    assert answer.one("content-type") == "application/problem+json"
    assert answer.one("content-length") == str(len(answer.body))
    assert json.loads(answer.body) == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota exceeded",
        "status": 429,
        "detail": "The limit a-hour of 1 is used up.",
        "violated-policies": ["a-minute", "a-hour"],
    }


def test_a_refusal_is_recorded_with_its_reason_and_costs_nothing(call: Call[Any]) -> None:
    call.behind(policies=[Policy("a", limits=["1/minute"], cost=1)])
    answer = [call(), call()][1]
    record = answer.record
    assert (record.status, record.outcome, record.reason) == (429, "refused", "quota-exceeded")
    assert (record.violated, record.units, record.aborted) == (("a-minute",), 0, False)
    assert (record.subject, record.subject_kind, record.bytes_out) == (CLIENT, "address", len(answer.body))
    assert record.response_mimetype == "application/problem+json"


def test_a_refused_head_request_has_no_body(call: Call[Any]) -> None:
    call.behind(policies=[Policy("a", limits=["1/minute"])])
    get, head = [call("GET"), call("GET")][1], call("HEAD")
    assert (head.status, head.body) == (429, b"")
    assert head.one("content-length") == get.one("content-length")
    assert head.record.bytes_out == 0


@pytest.mark.parametrize(
    ("given", "content_type", "body"),
    [
        pytest.param(
            {"error": "slow down", "n": 1}, "application/json", b'{"error": "slow down", "n": 1}', id="mapping"
        ),
        pytest.param("später", "text/plain; charset=utf-8", "später".encode(), id="text"),
        pytest.param(b"\x00\xff", "application/octet-stream", b"\x00\xff", id="bytes"),
    ],
)
def test_on_refusal_makes_another_body(call: Call[Any], given: Any, content_type: str, body: bytes) -> None:
    decisions: list[Decision] = []

    def say(decision: Decision) -> Mapping[str, Any] | str | bytes:
        decisions.append(decision)
        return given  # type: ignore[no-any-return]

    call.behind(policies=[Policy("a", identity=Header("X-Customer"), limits=["1/minute"])], on_refusal=say)
    answer = [call(headers={"X-Customer": "anne"}) for _ in range(2)][1]
    assert (answer.status, answer.one("content-type"), answer.body) == (429, content_type, body)
    assert answer.one("content-length") == str(len(body))
    (decision,) = decisions
    assert (decision.status, decision.reason, decision.subject) == (429, "quota-exceeded", "anne")
    assert (decision.violated, decision.retry_after, decision.remaining) == (("a-minute",), 60, 0)
    assert decision.renews_at == call.clock() + 60


def test_an_on_refusal_that_raises_lets_nobody_through(call: Call[Any]) -> None:
    served: list[Received] = []

    def handler(request: Received) -> Reply:
        served.append(request)
        return Reply()

    def say(decision: Decision) -> str:
        raise KeyError(decision.reason)

    call.behind(handler, policies=[Policy("a", limits=["1/minute"])], on_refusal=say)
    call()
    with pytest.raises(KeyError):
        call()
    (record,) = call.last.records
    assert len(served) == 1
    assert (record.status, record.exception, record.outcome) == (500, "KeyError", "refused")


# -- ASGI alone -------------------------------------------------------------------------------------------------------


def test_one_message_used_for_all_answers_is_never_changed(asgi: AsgiCall) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
    body = {"type": "http.response.body", "body": b"ok"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start)
        await send(body)

    asgi.around(app, policies=[FIVE], headers="ietf")
    assert [len(asgi().headers) for _ in range(3)] == [3, 3, 3]
    assert start == {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
    assert body == {"type": "http.response.body", "body": b"ok"}


@pytest.mark.parametrize("limited", [True, False])
def test_headers_may_be_any_iterable(asgi: AsgiCall, limited: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pairs = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": iter(pairs)})
        await send({"type": "http.response.body", "body": b"ok"})

    asgi.around(app, policies=[FIVE] if limited else [], headers="ietf")
    answer = asgi()
    assert answer.names == ["content-type", "content-length", *(OURS[:2] if limited else ())]
    assert answer.record.response_length == 2


def test_a_start_without_headers_gets_ours(asgi: AsgiCall) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    asgi.around(app, policies=[FIVE], headers="ietf")
    assert asgi().names == list(OURS[:2])
