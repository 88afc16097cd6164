"""What a handler sees of its own request, and what it may add."""

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from tests.helpers import (
    CLIENT,
    AsgiCall,
    Call,
    Environ,
    Message,
    Received,
    Reply,
    StartResponse,
    WsgiCall,
    http_scope,
    receiver,
)
from usagekeeper import Header, Policy, QuotaExceeded, Usage, UsageError, current_usage
from usagekeeper.decisions import Decision

P = Policy("p", identity=Header("X-Customer"), limits=["10/minute", "4/second"], cost=2)
ANNE = {"X-Customer": "anne"}


def seen(call: Call[Any], look: Any, **options: Any) -> Any:
    """What *look* returns inside a handler."""
    found: list[Any] = []

    def handler(request: Received) -> Reply:
        found.append(look(current_usage()))
        return Reply()

    call.behind(handler, **{"policies": [P], **options})
    call(headers=ANNE)
    (one,) = found
    return one


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_handler_knows_who_is_asking(call: Call[Any]) -> None:
    assert seen(call, lambda usage: (usage.watched, usage.subject)) == (True, "anne")


def test_without_policies_the_subject_is_the_default_strategys(call: Call[Any]) -> None:
    assert seen(call, lambda usage: usage.subject, policies=[]) == CLIENT


def test_a_handler_knows_what_is_left_of_the_tightest_limit(call: Call[Any]) -> None:
    assert seen(call, lambda usage: (usage.remaining, usage.renews_at)) == (2, call.clock() + 0.5)


def test_without_limits_nothing_is_left_or_renewed(call: Call[Any]) -> None:
    assert seen(call, lambda usage: (usage.remaining, usage.renews_at), policies=[]) == (None, None)


def test_shadow_limits_are_not_told_to_handlers(call: Call[Any]) -> None:
    dark = Policy("dark", limits=["3/minute"], mode="shadow")
    assert seen(call, lambda usage: usage.remaining, policies=[dark]) is None


def idle(usage: Usage) -> None:
    assert (usage.watched, usage.subject, usage.remaining, usage.renews_at) == (False, None, None, None)
    usage.charge(5)
    usage.note(a=1)
    usage.identify("anne")
    usage.error_code = "E"
    assert usage.error_code is None


def test_outside_a_request_usage_is_idle() -> None:
    idle(current_usage())


@pytest.mark.parametrize("options", [{"enabled": False}, {"whitelist": ["*"]}, {"routes": ["/other"]}], ids=str)
def test_in_an_unwatched_request_usage_is_idle(call: Call[Any], options: Any) -> None:
    if "routes" in options:
        options = {**options, "policies": []}
    assert seen(call, idle, **options) is None
    assert call.recorded() == []


def test_usage_is_idle_again_after_each_request(call: Call[Any]) -> None:
    call.behind()
    for leave_after in (None, 1):
        call(leave_after=leave_after)
        idle(current_usage())


# -- adding -----------------------------------------------------------------------------------------------------------


def recorded(call: Call[Any], act: Any, **options: Any) -> Any:
    """The record of a request in whose handler *act* was called."""
    seen(call, act, **options)
    return call.last.record


@pytest.mark.parametrize(
    ("amounts", "units"),
    [
        ([5], 7),
        ([1, 2, 3], 8),
        ([0], 2),
        ([0.1, 0.2], Decimal("2.3")),
        ([Decimal("0.000001")], Decimal("2.000001")),
    ],
)
def test_what_a_handler_charges_is_added_to_the_cost(call: Call[Any], amounts: list[Any], units: Any) -> None:
    def act(usage: Usage) -> None:
        for amount in amounts:
            usage.charge(amount)

    assert recorded(call, act).units == units


@pytest.mark.parametrize(
    "amount",
    [-1, -0.5, True, False, None, "5", float("nan"), float("inf"), Decimal("NaN"), Decimal("-1"), 1e308, 2**53, [1]],
)
def test_a_senseless_amount_is_refused_and_charges_nothing(call: Call[Any], amount: Any) -> None:
    def act(usage: Usage) -> None:
        with pytest.raises(UsageError, match="an amount is"):
            usage.charge(amount)

    assert recorded(call, act).units == 2


def test_charges_of_a_free_answer_are_free(call: Call[Any]) -> None:
    def handler(request: Received) -> Reply:
        current_usage().charge(5)
        return Reply(500)

    call.behind(handler, policies=[P])
    assert call(headers=ANNE).record.units == 0


def test_notes_are_kept_on_the_record_without_secrets(call: Call[Any]) -> None:
    def act(usage: Usage) -> None:
        usage.note(model="large", pages=3)
        usage.note(pages=4, password="hunter2", nested={"Authorization": "Bearer x", "list": [{"api_key": "k"}]})

    assert recorded(call, act).metadata == {
        "model": "large",
        "pages": 4,
        "password": "REDACTED",
        "nested": {"Authorization": "REDACTED", "list": [{"api_key": "REDACTED"}]},
    }


def test_notes_are_copied_when_they_are_made(call: Call[Any]) -> None:
    def act(usage: Usage) -> None:
        mine = {"a": [1]}
        usage.note(mine=mine)
        mine["a"].append(2)

    assert recorded(call, act).metadata == {"mine": {"a": [1]}}


def test_notes_of_any_type_break_no_response(call: Call[Any]) -> None:
    endless: list[Any] = []
    endless.append(endless)

    def act(usage: Usage) -> None:
        usage.note(
            a=object, b=b"\xff", c={1: 2}, d={3}, e=2**100, f="\ud800", g=endless, h=float("inf"), i=Decimal("1.5")
        )

    record = recorded(call, act)
    assert call.last.status == 200
    assert sorted(record.metadata) == list("abcdefghi")


def test_too_many_notes_are_refused_to_the_handler(call: Call[Any]) -> None:
    def act(usage: Usage) -> None:
        with pytest.raises(UsageError, match="at most 64 notes"):
            usage.note(**{f"n{at}": at for at in range(65)})
        usage.note(one=1)

    assert recorded(call, act).metadata == {"one": 1}


def test_the_subject_may_be_named_late_and_decides_nothing_again(call: Call[Any]) -> None:
    def act(usage: Usage) -> Any:
        usage.identify("acct_42")
        return usage.subject

    assert seen(call, act) == "acct_42"
    record = call.last.record
    assert (record.subject, record.subject_kind) == ("acct_42", "subject")
    assert call.left(P, "anne", "subject") == [8, 2]
    assert call.left(P, "acct_42", "subject") == [10, 4]


@pytest.mark.parametrize("subject", ["", None, 7, "x" * 257, b"anne"])
def test_a_senseless_subject_is_refused_to_the_handler(call: Call[Any], subject: Any) -> None:
    def act(usage: Usage) -> None:
        with pytest.raises(UsageError, match="a subject is a text"):
            usage.identify(subject)

    assert recorded(call, act).subject == "anne"


def test_an_error_code_is_kept_on_the_record(call: Call[Any]) -> None:
    def act(usage: Usage) -> None:
        usage.error_code = "DNS_RESOLUTION_FAILED"
        assert current_usage().error_code == "DNS_RESOLUTION_FAILED"

    assert recorded(call, act).error_code == "DNS_RESOLUTION_FAILED"


@pytest.mark.parametrize("code", [7, "x" * 257, b"E"])
def test_a_senseless_error_code_is_refused_to_the_handler(call: Call[Any], code: Any) -> None:
    def act(usage: Usage) -> None:
        with pytest.raises(UsageError, match="an error code is a text"):
            usage.error_code = code

    assert recorded(call, act).error_code is None


def test_what_is_added_by_a_handler_that_fails_is_kept(call: Call[Any]) -> None:
    def handler(request: Received) -> Reply:
        current_usage().note(step="two")
        current_usage().error_code = "E"
        raise LookupError

    call.behind(handler, policies=[P])
    with pytest.raises(LookupError):
        call(headers=ANNE)
    (record,) = call.last.records
    assert (record.metadata, record.error_code) == ({"step": "two"}, "E")


def test_what_is_added_in_a_stream_is_kept(call: Call[Any]) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(3):
            current_usage().charge(1)
            yield b"x"
        current_usage().note(chunks=3)

    call.behind(lambda request: Reply(body=body()), policies=[P])
    record = call(headers=ANNE).record
    assert (record.units, record.metadata) == (5, {"chunks": 3})


def test_what_is_added_after_the_record_was_made_is_dropped(call: Call[Any]) -> None:
    late: list[Usage] = []

    def handler(request: Received) -> Reply:
        late.append(current_usage())
        return Reply()

    call.behind(handler)
    call()
    late[0].charge(5)
    late[0].note(a=1)
    assert [(record.units, record.metadata) for record in call.recorded()] == [(1, {})]


# -- a charge that was refused ----------------------------------------------------------------------------------------

DECISION = Decision(429, "quota-exceeded", "The prepaid units are used up.", "anne", ("prepaid",), 30, 0, 1.0)


def test_a_refused_charge_that_nobody_catches_is_the_answer(call: Call[Any]) -> None:
    def handler(request: Received) -> Reply:
        raise QuotaExceeded("no more", decision=DECISION)

    call.behind(handler, policies=[P])
    answer = call(headers=ANNE)
    assert (answer.status, answer.one("retry-after")) == (429, "30")
    assert b"The prepaid units are used up." in answer.body
    record = answer.record
    assert (record.outcome, record.violated, record.aborted, record.exception) == ("refused", ("prepaid",), False, None)


def test_a_refused_charge_in_the_middle_of_a_body_is_raised_on(call: Call[Any]) -> None:
    def body() -> Iterator[bytes]:
        yield b"half"
        raise QuotaExceeded("no more", decision=DECISION)

    call.behind(lambda request: Reply(body=body()), policies=[P])
    with pytest.raises(QuotaExceeded):
        call(headers=ANNE)
    (record,) = call.last.records
    assert (record.status, record.exception, record.aborted) == (200, "QuotaExceeded", True)


# -- tasks and threads ------------------------------------------------------------------------------------------------


async def answer(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def test_tasks_and_threads_of_a_handler_see_its_request(asgi: AsgiCall) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def charging() -> None:
            await asyncio.sleep(0)
            await current_usage().acharge(2)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(charging())
        await asyncio.to_thread(lambda: current_usage().charge(100))
        await answer(send)

    asgi.around(app)
    assert asgi().record.units == 111


def test_a_task_that_outlives_its_request_harms_nothing(asgi: AsgiCall) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def late() -> None:
            await ended.wait()
            current_usage().charge(5)
            current_usage().note(late=True)

        ended = asyncio.Event()
        tasks.append(asyncio.create_task(late()))
        await answer(send)
        ended.set()

    async def finish() -> None:
        await tasks[0]

    asgi.around(app)
    assert asgi().record.units == 1
    asgi.run(finish())
    assert asgi.fresh() == []


def test_background_work_still_knows_who_asked(asgi: AsgiCall) -> None:
    known: list[str | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send)
        known.append(current_usage().subject)

    asgi.around(app)
    asgi()
    assert known == [CLIENT]


def test_two_requests_of_one_loop_see_each_their_own(asgi: AsgiCall) -> None:
    meet = asyncio.Barrier(2)
    known: dict[str, str | None] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await meet.wait()
        known[scope["path"]] = current_usage().subject
        await meet.wait()
        await answer(send)

    async def both() -> None:
        async def send(message: Message) -> None: ...

        scopes = [http_scope("GET", f"/{who}", [("X-Customer", who)]) for who in ("a", "b")]
        await asyncio.gather(*(asgi.app(scope, receiver(), send) for scope in scopes))

    asgi.around(app, policies=[P])
    asgi.run(both())
    assert known == {"/a": "a", "/b": "b"}


def test_a_thread_started_by_hand_is_given_its_context(wsgi: WsgiCall) -> None:
    def handler(request: Received) -> Reply:
        threading.Thread(target=lambda: idle(current_usage())).start()
        with ThreadPoolExecutor(1) as pool:
            context = contextvars.copy_context()
            pool.submit(context.run, lambda: current_usage().charge(4)).result()
        return Reply()

    wsgi.behind(handler)
    assert wsgi().record.units == 5


def test_a_generator_of_wsgi_sees_its_request_to_its_end(wsgi: WsgiCall) -> None:
    known: list[str | None] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            known.append(current_usage().subject)
            yield b"a"
            known.append(current_usage().subject)
            yield b"b"
        finally:
            known.append(current_usage().subject)

    wsgi.around(app)
    wsgi(leave_after=1)
    assert known == [CLIENT, CLIENT]
    idle(current_usage())
