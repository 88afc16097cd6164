"""What a handler sees and says of its own request, on both drivers."""

import asyncio
import contextvars
import json
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import CLIENT, AsgiCall, Call, Down, Received, Reply, WsgiCall
from usagekeeper import Decision, Header, Policy, QuotaExceeded, Usage, UsageError, UsageRecord, current_usage
from usagekeeper.records import REDACTED
from usagekeeper.usage import amount_of


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    yield one
    one.close()


def doing(call: Call[Any], act: Callable[[Usage], object], status: int = 200, **options: Any) -> UsageRecord:
    """The record of a request whose handler does *act*."""

    def handler(received: Received) -> Reply:
        act(current_usage())
        return Reply(status)

    options.setdefault("policies", [Policy("p", limits=["5/minute", "100/hour"])])
    call.behind(handler, **options)
    return call().record


def asked(call: Call[Any], ask: Callable[[Usage], Any], **options: Any) -> Any:
    """What *ask* says within a handler."""
    answers: list[Any] = []
    doing(call, lambda usage: answers.append(ask(usage)), **options)
    return answers[0]


# -- what it sees -----------------------------------------------------------------------------------------------------


def test_a_handler_sees_who_asks(call: Call[Any]) -> None:
    assert asked(call, lambda usage: (usage.watched, usage.subject)) == (True, CLIENT)


def test_a_handler_sees_what_is_left_of_the_tightest_limit(call: Call[Any]) -> None:
    assert asked(call, lambda usage: usage.remaining) == 4


def test_a_handler_sees_when_the_tightest_limit_is_whole_again(call: Call[Any]) -> None:
    assert asked(call, lambda usage: usage.renews_at) == call.clock() + 12


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"policies": []}, id="without policies"),
        pytest.param({"policies": [Policy("p")]}, id="without limits"),
        pytest.param({"policies": [Policy("p", mode="shadow", limits=["5/minute"])]}, id="in shadow"),
        pytest.param({"policies": [Policy("p", limits=["5/minute"])], "counters": Down()}, id="in an outage"),
        pytest.param({"policies": [Policy("p", limits=["5/minute"])], "exempt": lambda request: True}, id="exempt"),
    ],
)
def test_without_limits_nothing_is_left_and_nothing_renews(call: Call[Any], options: dict[str, Any]) -> None:
    assert asked(call, lambda usage: (usage.remaining, usage.renews_at), **options) == (None, None)


def test_a_soft_limit_is_seen_with_nothing_left(call: Call[Any]) -> None:
    left: list[int | None] = []
    soft = Policy("p", mode="soft", limits=["2/minute"])
    doing(call, lambda usage: left.append(usage.remaining), policies=[soft])
    call.statuses(3)
    assert left == [1, 0, 0, 0]


def test_two_handles_are_of_one_request(call: Call[Any]) -> None:
    def act(usage: Usage) -> None:
        usage.note(one=1)
        current_usage().note(other=2)

    assert doing(call, act).metadata == {"one": 1, "other": 2}


def test_a_thread_with_the_context_sees_its_request(call: Call[Any]) -> None:
    def act(usage: Usage) -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=[lambda: current_usage().note(thread=True)])
        thread.start()
        thread.join()

    assert doing(call, act).metadata == {"thread": True}


def test_a_thread_without_the_context_sees_nothing(call: Call[Any]) -> None:
    seen: list[bool] = []

    def act(usage: Usage) -> None:
        thread = threading.Thread(target=lambda: seen.append(current_usage().watched), **bare)
        thread.start()
        thread.join()

    bare: dict[str, Any] = {"context": contextvars.Context()} if sys.version_info >= (3, 14) else {}
    doing(call, act)
    assert seen == [False]


def test_a_task_sees_its_request() -> None:
    call = AsgiCall()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def work() -> None:
            current_usage().note(task=True)
            await current_usage().acharge(2)

        await asyncio.gather(asyncio.create_task(work()))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    call.around(app)
    record = call().record
    assert (record.metadata, record.units) == ({"task": True}, 3)
    call.close()


def test_requests_do_not_see_each_other(call: Call[Any]) -> None:
    def handler(received: Received) -> Reply:
        current_usage().note(path=received.path)
        return Reply()

    call.behind(handler)
    assert [call(target=f"/{name}").record.metadata for name in "ab"] == [{"path": "/a"}, {"path": "/b"}]


def test_after_its_request_a_handler_sees_nothing(call: Call[Any]) -> None:
    doing(call, lambda usage: None)
    assert not current_usage().watched


# -- outside a request ------------------------------------------------------------------------------------------------


def test_outside_a_request_there_is_nothing_to_see() -> None:
    usage = current_usage()
    seen = (usage.watched, usage.subject, usage.remaining, usage.renews_at, usage.error_code)
    assert seen == (False, None, None, None, None)


def test_outside_a_request_what_is_said_is_dropped() -> None:
    usage = current_usage()
    usage.charge(5)
    usage.note(model="large")
    usage.identify("acct_42")
    usage.error_code = "X"
    asyncio.run(usage.acharge(5))
    assert current_usage().error_code is None


@pytest.mark.parametrize("options", [{"whitelist": ["/api/x"]}, {"enabled": False}, {"routes": ["/other"]}], ids=str)
def test_in_an_unwatched_request_a_handler_is_outside(call: Call[Any], options: dict[str, Any]) -> None:
    watched: list[bool] = []

    def handler(received: Received) -> Reply:
        watched.append(current_usage().watched)
        return Reply()

    call.behind(handler, **options)
    assert (call().records, watched) == ([], [False])


# -- charging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amounts", "units"),
    [
        ([], 1),
        ([1], 2),
        ([5, 5], 11),
        ([0], 1),
        ([0.1, 0.2], Decimal("1.3")),
        ([Decimal("0.000001")], Decimal("1.000001")),
        ([2**53 - 1], 2**53),
        ([-0.0], 1),
    ],
    ids=str,
)
def test_what_a_handler_charges_is_added_to_the_cost(call: Call[Any], amounts: list[Any], units: Any) -> None:
    def act(usage: Usage) -> None:
        for amount in amounts:
            usage.charge(amount)

    assert doing(call, act).units == units


def test_a_charge_is_one_unit_unless_said_otherwise(call: Call[Any]) -> None:
    assert doing(call, lambda usage: usage.charge()).units == 2


def test_what_a_handler_charges_is_not_charged_to_rates(call: Call[Any]) -> None:
    policy = Policy("p", limits=["5/minute"])
    doing(call, lambda usage: usage.charge(4), policies=[policy])
    assert call.left(policy) == [4]


def test_the_headers_of_a_charged_request_speak_of_the_rate(call: Call[Any]) -> None:
    doing(call, lambda usage: usage.charge(50))
    assert call.last.one("x-ratelimit-remaining") == "4"


def test_a_charge_on_a_free_answer_costs_nothing(call: Call[Any]) -> None:
    assert doing(call, lambda usage: usage.charge(5), status=500).units == 0


REFUSED = [-1, -0.5, nan, inf, -inf, True, False, 1e308, 2**53, 10**400, "5", None, 1j, [1]]
DECIMALS = [Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal(-1), Decimal("1E+999999"), Decimal(2**53)]


@pytest.mark.parametrize("amount", [*REFUSED, *DECIMALS], ids=lambda amount: ascii(amount)[:20])
def test_an_amount_that_nobody_can_owe_is_refused_and_charges_nothing(call: Call[Any], amount: Any) -> None:
    def act(usage: Usage) -> None:
        with pytest.raises(UsageError, match="an amount is"):
            usage.charge(amount)
        with pytest.raises(UsageError, match="an amount is"):
            asyncio.run(usage.acharge(amount)) if call.protocol == "wsgi" else usage.charge(amount)

    assert doing(call, act).units == 1


@given(amount=st.floats(0, 2**53, exclude_max=True))
def test_a_float_is_charged_as_it_is_written(amount: float) -> None:
    assert amount_of(amount) == Decimal(repr(amount))


@given(amount=st.integers(0, 2**53 - 1))
def test_an_int_is_charged_as_it_is(amount: int) -> None:
    assert amount_of(amount) == amount


def test_an_exceeded_quota_that_the_handler_leaves_to_us_is_the_429(call: Call[Any]) -> None:
    decision = Decision(429, "quota-exceeded", "Spent.", CLIENT, ("p-month",), 90, 0, 1.5)

    def handler(received: Received) -> Reply:
        raise QuotaExceeded("Spent.", decision=decision)

    call.behind(handler, policies=[Policy("p", limits=["9/minute"])])
    refused = call()
    assert (refused.status, refused.one("retry-after")) == (429, "90")
    assert json.loads(refused.body)["violated-policies"] == ["p-month"]
    assert (refused.record.outcome, refused.record.units, refused.record.exception) == ("refused", 0, None)


# -- saying -----------------------------------------------------------------------------------------------------------


def test_notes_are_kept_on_the_record(call: Call[Any]) -> None:
    assert doing(call, lambda usage: usage.note(model="large", pages=3)).metadata == {"model": "large", "pages": 3}


def test_a_later_note_replaces_an_earlier_one_of_its_name(call: Call[Any]) -> None:
    def act(usage: Usage) -> None:
        usage.note(model="small", pages=3)
        usage.note(model="large")

    assert doing(call, act).metadata == {"model": "large", "pages": 3}


def test_a_note_under_a_secret_name_is_replaced(call: Call[Any]) -> None:
    noted = doing(call, lambda usage: usage.note(api_key="s3cret", login={"Password": "s3cret", "name": "ann"}))
    assert noted.metadata == {"api_key": REDACTED, "login": {"Password": REDACTED, "name": "ann"}}


def test_a_request_has_at_most_64_notes_and_keeps_those_it_had(call: Call[Any]) -> None:
    def act(usage: Usage) -> None:
        usage.note(**{f"n{number}": number for number in range(64)})
        with pytest.raises(UsageError, match="at most 64 notes, not 65"):
            usage.note(n64=64)
        usage.note(n0="changed")

    metadata = doing(call, act).metadata
    assert (len(metadata), metadata["n0"]) == (64, "changed")


def test_an_error_code_is_kept_on_the_record(call: Call[Any]) -> None:
    def act(usage: Usage) -> None:
        usage.error_code = "DNS_RESOLUTION_FAILED"
        assert usage.error_code == "DNS_RESOLUTION_FAILED"

    assert doing(call, act).error_code == "DNS_RESOLUTION_FAILED"


def test_an_error_code_may_be_taken_back(call: Call[Any]) -> None:
    def act(usage: Usage) -> None:
        usage.error_code = "X"
        usage.error_code = None

    assert doing(call, act).error_code is None


@pytest.mark.parametrize("code", [5, b"X", "x" * 257], ids=lambda code: ascii(code)[:20])
def test_a_wrong_error_code_is_told(code: Any) -> None:
    with pytest.raises(UsageError, match="an error code is a text of up to 256 characters"):
        current_usage().error_code = code


def test_whom_a_handler_identifies_is_recorded(call: Call[Any]) -> None:
    def act(usage: Usage) -> None:
        usage.identify("acct_42")
        assert usage.subject == "acct_42"

    record = doing(call, act)
    assert (record.subject, record.subject_kind) == ("acct_42", "subject")


def test_identifying_decides_nothing_again(call: Call[Any]) -> None:
    policy = Policy("p", identity=Header("X-Customer"), limits=["5/minute"])
    doing(call, lambda usage: usage.identify("acct_42"), policies=[policy])
    assert (call.left(policy, "acct_42", "subject"), call.left(policy)) == ([5], [4])


@pytest.mark.parametrize("subject", ["", "x" * 257, None, 42, b"x"], ids=lambda subject: ascii(subject)[:20])
def test_a_wrong_subject_is_told(subject: Any) -> None:
    with pytest.raises(UsageError, match="a subject is a text of 1 to 256 characters"):
        current_usage().identify(subject)


def test_what_was_said_before_an_exception_is_recorded(call: Call[Any]) -> None:
    def handler(received: Received) -> Reply:
        current_usage().note(step="half")
        raise LookupError

    call.behind(handler)
    with pytest.raises(LookupError):
        call()
    assert (call.last.record.metadata, call.last.record.exception) == ({"step": "half"}, "LookupError")
