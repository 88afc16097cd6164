"""What is explained of a request is what the drivers do with it, and explaining charges nothing."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.helpers import AsgiCall, Call, Down, WsgiCall
from usagekeeper import Body, ClientAddress, ConfigurationError, Header, PathParam, Policy, Rate, UsageError
from usagekeeper.inspection.explain import Explanation, Question, explain
from usagekeeper.inspection.locate import locate

CLIENT = "203.0.113.9"
CUSTOMER = Header("X-Customer")


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    module = ModuleType("served")
    monkeypatch.setitem(sys.modules, "served", module)
    behind = one.behind

    def named(*arguments: Any, **options: Any) -> None:
        behind(*arguments, **options)
        module.app = one.app  # type: ignore[attr-defined]

    monkeypatch.setattr(one, "behind", named)
    yield one
    one.close()


def told(method: str, target: str, **more: Any) -> Explanation:
    return explain(locate("served:app"), Question(method=method, target=target, address=CLIENT, **more))


async def tenant_of(request: Any) -> str | None:
    found: str | None = request.header("X-Tenant")
    return found


RULES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "address": {"policies": [Policy("p", limits=["2/minute"])]},
    "customer": {"policies": [Policy("p", identity=CUSTOMER, limits=["2/minute", "3/hour"])]},
    "several": {
        "policies": [Policy("p", identity=CUSTOMER, limits=["3/minute"]), Policy("a", limits=["2/minute"], cost=2)]
    },
    "rejecting": {"policies": [Policy("p", identity=CUSTOMER, limits=["2/minute"], on_missing_identity="reject")]},
    "allowing": {"policies": [Policy("p", identity=Header("X"), limits=["1/minute"], on_missing_identity="allow")]},
    "shadow-and-soft": {
        "policies": [Policy("p", limits=["1/minute"], mode="shadow"), Policy("s", limits=["1/minute"], mode="soft")]
    },
    "white": {"whitelist": ["GET /api/x"], "policies": [Policy("p", limits=["1/minute"])]},
    "elsewhere": {"routes": ["/web/*"]},
    "exempt": {"exempt": lambda request: True, "policies": [Policy("p", limits=["1/minute"])]},
    "exempt-of-one": {"policies": [Policy("p", limits=["1/minute"], exempt=lambda request: True)]},
    "too-dear": {"policies": [Policy("p", limits=["5/minute"], cost=9)]},
    "windows": {"policies": [Policy("p", limits=[Rate(2, "minute", "fixed"), Rate(3, "hour", "sliding")])]},
    "asked": {"policies": [Policy("p", identity=tenant_of, limits=["1/minute"])]},
    "path": {"policies": [Policy("p", routes=["/{tenant}/*"], identity=PathParam("tenant"), limits=["1/minute"])]},
    "down": {"counters": Down(), "policies": [Policy("p", limits=["1/minute"])]},
    "down-and-denying": {"counters": Down(), "on_outage": "deny", "policies": [Policy("p", limits=["1/minute"])]},
    "off": {"enabled": False, "policies": [Policy("p", limits=["1/minute"])]},
    "old-headers": {"headers": "legacy", "policies": [Policy("p", limits=["2/minute"])]},
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "headers",
    [(), (("X-Customer", "acme"),), (("X-Customer", "a,b"),), (("X-Tenant", "t"),)],
    ids=["bare", "named", "twice", "tenant"],
)
def test_it_says_beforehand_what_is_answered_then(name: str, headers: Any, call: Call[Any]) -> None:
    call.behind(**RULES[name])
    for _ in range(3):
        said = told("GET", "/api/x", headers=headers)
        status = call.status("GET", "/api/x", headers, client=CLIENT)
        assert said.allowed == (status == 200), said
        assert status in (200, said.status)
        ours = {key.lower(): value for key, value in said.headers if key.lower() != "content-length"}
        got = {key.lower(): value for key, value in call.last.headers}
        assert {key: got.get(key) for key in ours} == ours
        assert {key for key in got if "ratelimit" in key} <= ours.keys()


@pytest.mark.parametrize("name", ["address", "customer", "several", "shadow-and-soft"])
def test_explaining_charges_nothing(name: str, call: Call[Any]) -> None:
    call.behind(**RULES[name])
    first = told("GET", "/api/x", headers=[("X-Customer", "acme")])
    assert [told("GET", "/api/x", headers=[("X-Customer", "acme")]) for _ in range(5)] == [first] * 5
    assert call.recorded() == []


def test_subject_source_key_and_standing_are_told(call: Call[Any]) -> None:
    call.behind(application="shop", policies=[Policy("p", identity=CUSTOMER, limits=["2/minute"])])
    (ruling,) = told("GET", "/api/x", headers=[("X-Customer", "acme")]).rulings
    assert (ruling.subject, ruling.source) == ("acme", 'Header("X-Customer")')
    assert ruling.key == ("shop", "p", "subject", "enforce", "acme")
    assert [(one.limit, one.remaining, one.count, one.fits) for one in ruling.standing] == [("p-minute", 2, 2, True)]


def test_a_fallback_names_what_found_nothing(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", identity=CUSTOMER, limits=["2/minute"])])
    (ruling,) = told("GET", "/api/x").rulings
    assert (ruling.subject, ruling.source) == (CLIENT, 'ClientAddress(), because Header("X-Customer") found nothing')


def test_a_secret_identity_is_told_as_its_digest(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", identity=Header("X-API-Key"), limits=["2/minute"])])
    assert "sk_live_1" not in str(told("GET", "/api/x", headers=[("X-API-Key", "sk_live_1")]))


@pytest.mark.parametrize(
    ("method", "target", "canonical", "watched", "why"),
    [
        pytest.param("GET", "/api/health", "/api/health", False, "whitelisted by GET /api/health", id="plain"),
        pytest.param("GET", "//api/health", "/api/health", True, "not exempt although /api/health", id="slashes"),
        pytest.param("GET", "/api/./health", "/api/./health", True, "not exempt although", id="dots"),
        pytest.param("GET", "/api/%68ealth", "/api/health", False, "whitelisted", id="escaped"),
        pytest.param("POST", "/api/health", "/api/health", True, "is whitelisted for GET alone", id="method"),
        pytest.param("GET", "/web", "/web", False, "no pattern of routes= matches", id="elsewhere"),
        pytest.param("GET", "/api/x%0a", "/api/x", True, "", id="newline"),
    ],
)
def test_which_pattern_matched_and_why_not_is_told(
    method: str, target: str, canonical: str, watched: bool, why: str, call: Call[Any]
) -> None:
    call.behind(routes=["/api/*"], whitelist=["GET /api/health"])
    said = told(method, target)
    assert (said.canonical, said.watched) == (canonical, watched)
    assert why in said.why


def test_a_body_that_names_the_subject_is_read(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", identity=Body("user.id"), limits=["2/minute"])])
    assert told("POST", "/api/x", body=b'{"user": {"id": 7}}').subject == "7"
    assert told("POST", "/api/x", body=b" " * 70_000).status == 413


def test_a_forwarded_address_is_believed_of_a_trusted_proxy_alone(call: Call[Any]) -> None:
    call.behind(trusted_proxies=["203.0.113.0/24"], policies=[Policy("p", identity=ClientAddress(), limits=["2/hour"])])
    assert told("GET", "/", headers=[("X-Forwarded-For", "198.51.100.1")]).client == "198.51.100.1"


def test_a_callable_that_raises_is_told(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", identity=lambda request: 1 / 0, limits=["2/hour"])])
    with pytest.raises(UsageError, match="a callable of the application raised ZeroDivisionError"):
        told("GET", "/")


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        pytest.param({"target": "/", "method": "G ET"}, "'G ET' is no method: write one word such as GET", id="method"),
        pytest.param({"target": "/", "method": ""}, "'' is no method", id="no-method"),
        pytest.param({"target": "api"}, "a path begins with a slash, not 'api': write '/api'", id="no-slash"),
        pytest.param({"target": "/", "address": "me"}, "'me' is no address: write --from 203.0.113.7", id="address"),
    ],
)
def test_a_question_that_makes_no_sense_is_told(question: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Question(**{"method": "GET", **question})
