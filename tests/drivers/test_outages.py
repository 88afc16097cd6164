"""Counters that do not answer: what each policy says then, and what is told and kept."""

import json
from typing import Any

import pytest

from tests.helpers import Call, Down, Received, Reply
from usagekeeper import Header, Policy, UsageError
from usagekeeper.errors import StoreUnavailable

P = Policy("p", limits=["1/minute"])


@pytest.fixture
def down() -> Down:
    return Down()


def test_by_default_requests_pass_unmetered_and_unannounced(call: Call[Any], down: Down) -> None:
    call.behind(policies=[P], counters=down)
    answers = [call() for _ in range(3)]
    assert [(answer.status, answer.names, answer.record.outcome) for answer in answers] == [
        (200, ["content-type"], "unmetered")
    ] * 3
    assert down.asked == 3


def test_a_keeper_may_deny(call: Call[Any], down: Down) -> None:
    served: list[Received] = []

    def handler(request: Received) -> Reply:
        served.append(request)
        return Reply()

    call.behind(handler, policies=[P], counters=down, on_outage="deny")
    answer = call()
    assert (answer.status, answer.one("retry-after"), served) == (503, "1", [])
    assert answer.one("content-type") == "application/problem+json"
    assert json.loads(answer.body) == {
        "type": "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
        "title": "Temporary reduced capacity",
        "status": 503,
        "detail": "Usage cannot be counted at the moment.",
    }
    record = answer.record
    assert (record.outcome, record.reason, record.units, record.violated) == ("refused", "counters-unavailable", 0, ())
    assert not any(name.startswith(("ratelimit", "x-ratelimit")) for name in answer.names)


@pytest.mark.parametrize(
    ("keeper", "policy", "status"),
    [("allow", "deny", 503), ("deny", "allow", 200), ("deny", None, 503), ("allow", None, 200)],
)
def test_a_policy_overrides_its_keeper(call: Call[Any], down: Down, keeper: Any, policy: Any, status: int) -> None:
    call.behind(policies=[Policy("p", limits=["1/minute"], on_outage=policy)], counters=down, on_outage=keeper)
    assert call().status == status


def test_one_policy_that_denies_is_enough(call: Call[Any], down: Down) -> None:
    strict = Policy("strict", routes=["POST *"], limits=["1/minute"], on_outage="deny")
    call.behind(policies=[P, strict], counters=down)
    assert [call(method).status for method in ("GET", "POST")] == [200, 503]


def test_a_policy_that_does_not_charge_this_request_does_not_deny_it(call: Call[Any], down: Down) -> None:
    strict = Policy("strict", limits=["1/minute"], on_outage="deny", exempt=lambda request: True)
    call.behind(policies=[P, strict], counters=down)
    assert call().status == 200


def test_a_shadow_policy_never_denies(call: Call[Any], down: Down) -> None:
    dark = Policy("dark", limits=["1/minute"], on_outage="deny", mode="shadow")
    call.behind(policies=[P, dark], counters=down)
    assert call().status == 200


def test_what_needs_no_counters_is_not_touched(call: Call[Any], down: Down) -> None:
    named = Policy("named", identity=Header("X-Customer"), limits=["1/minute"], on_missing_identity="reject")
    call.behind(
        policies=[Policy("free", routes=["/free"]), Policy("paid", routes=["/paid"], limits=["1/minute"]), named],
        whitelist=["/health"],
        counters=down,
        on_outage="deny",
    )
    assert call("GET", "/health").status == 200
    assert call("GET", "/paid").status == 401
    assert down.asked == 0


def test_the_answer_to_an_outage_is_the_users_to_word(call: Call[Any], down: Down) -> None:
    call.behind(policies=[P], counters=down, on_outage="deny", on_refusal=lambda decision: {"why": decision.reason})
    answer = call()
    assert (answer.status, json.loads(answer.body)) == (503, {"why": "counters-unavailable"})


def test_counting_goes_on_when_the_counters_are_back(call: Call[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = call.keep(policies=[P])
    up = keeper.counters.apply
    states = iter([True, False, True])

    def flapping(operation: Any) -> Any:
        if next(states):
            return up(operation)
        raise StoreUnavailable("gone for a moment")

    monkeypatch.setattr(keeper.counters, "apply", flapping)
    call.behind(keeper=keeper)
    assert call.statuses(3) == [200, 200, 429]


def test_an_outage_of_the_application_is_not_taken_for_one_of_the_counters(call: Call[Any]) -> None:
    def handler(request: Received) -> Reply:
        raise StoreUnavailable("the application's own")

    call.behind(handler, policies=[P])
    with pytest.raises(StoreUnavailable, match="own"):
        call()
    assert (call.last.records[0].status, call.last.records[0].outcome) == (500, "allowed")


def test_errors_that_are_no_outage_are_not_hidden(call: Call[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = call.keep(policies=[P])

    def broken(operation: Any) -> Any:
        raise UsageError("a bug")

    monkeypatch.setattr(keeper.counters, "apply", broken)
    call.behind(keeper=keeper)
    with pytest.raises(UsageError, match="a bug"):
        call()
    assert len(call.last.records) == 1


def test_a_store_that_does_not_answer_costs_no_request(call: Call[Any]) -> None:
    class Unreachable:
        def append(self, records: Any) -> int:
            raise StoreUnavailable("no store")

        def read(self, query: Any) -> Any:
            return iter(())

        def purge(self, before: int, *, limit: int = 1000) -> int:
            return 0

        def close(self) -> None: ...

        def drop(self) -> None: ...

    keeper = call.keep(policies=[P], store=Unreachable(), counters="memory://")
    call.behind(keeper=keeper)
    call._keepers.remove(keeper)
    assert call.statuses(2) == [200, 429]
    assert keeper.recorder.figures().buffered == 2
    keeper.recorder.drop()
