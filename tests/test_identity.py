"""Strategies: who a request is from, on both drivers, and what is refused because nobody can tell."""

import asyncio
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import CLIENT, AsgiCall, Call, Pairs, WsgiCall, http_scope
from usagekeeper import (
    Body,
    ClientAddress,
    ConfigurationError,
    Cookie,
    Everyone,
    FirstOf,
    Header,
    Host,
    PathParam,
    Policy,
    Query,
    Request,
    UsageKeeper,
)
from usagekeeper.exchange import AsgiRequest
from usagekeeper.identity import Identity, strategy
from usagekeeper.proxies import client_of
from usagekeeper.records import digest
from usagekeeper.sources import LARGEST_BODY, Rejection

JSON: Pairs = [("content-type", "application/json")]
FORM: Pairs = [("content-type", "application/x-www-form-urlencoded")]
ACME: Pairs = [("x-customer", "acme")]


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    yield one
    one.close()


def limited(call: Call[Any], identity: Identity, **options: Any) -> None:
    """Put the callers' application behind one policy with this strategy."""
    routes = ["/api/*", "/users/{id}/*", "/teams/:team"]
    call.behind(policies=[Policy("p", routes=routes, identity=identity, limits=["5/minute"], **options)])


def answer(value: str | None) -> Callable[[Request], str | None]:
    return lambda request: value


async def awaited(request: Request) -> str | None:
    await asyncio.sleep(0)
    return request.header("X-Customer")


async def partly(prefix: str, request: Request) -> str:
    return prefix + str(request.header("X-Customer"))


class Lookup:
    """A callable object that waits."""

    async def __call__(self, request: Request) -> str | None:
        return await awaited(request)


# -- what is found ----------------------------------------------------------------------------------------------------

FOUND = [
    pytest.param(Header("X-Customer"), "/api/x", ACME, None, "acme", id="header"),
    pytest.param(Header("x-cUSTOMER"), "/api/x", ACME, None, "acme", id="header names have no case"),
    pytest.param(Header("X-Customer"), "/api/x", [("x-customer", "Acme")], None, "Acme", id="header values have one"),
    pytest.param(Header("X-Customer"), "/api/x", [("x-customer", "caf\xc3\xa9")], None, "café", id="header in UTF-8"),
    pytest.param(Header("X-Customer"), "/api/x", [("x-customer", "caf\xe9")], None, "café", id="header in Latin-1"),
    pytest.param(Header("X-Customer"), "/api/x", [("x-customer", "x" * 256)], None, "x" * 256, id="longest header"),
    pytest.param(Header("Content-Type"), "/api/x", [("content-type", "a/b")], None, "a/b", id="content-type"),
    pytest.param(Query("customer"), "/api/x?customer=acme", (), None, "acme", id="query"),
    pytest.param(Query("customer"), "/api/x?a=1&customer=a%2Cb&b", (), None, "a,b", id="query may hold a comma"),
    pytest.param(Query("customer"), "/api/x?%63ustomer=caf%C3%A9+1", (), None, "café 1", id="query is decoded"),
    pytest.param(Query("customer"), "/api/x?Customer=b&customer=acme", (), None, "acme", id="query names are exact"),
    pytest.param(PathParam("id"), "/users/42/x", (), None, "42", id="path parameter in braces"),
    pytest.param(PathParam("id"), "//users//42/", (), None, "42", id="path parameter behind slashes"),
    pytest.param(PathParam("id"), "/users/caf%C3%A9/x", (), None, "café", id="path parameter is decoded"),
    pytest.param(PathParam("team"), "/teams/red", (), None, "red", id="path parameter with a colon"),
    pytest.param(Host(), "/api/x", [("host", "API.Example.com")], None, "api.example.com", id="host"),
    pytest.param(Host(), "/api/x", [("host", "example.com:8000")], None, "example.com", id="host and port"),
    pytest.param(Host(), "/api/x", [("host", "example.com.:8000")], None, "example.com", id="host, dot and port"),
    pytest.param(Host(), "/api/x", [("host", "[2001:DB8::1]:80")], None, "[2001:db8::1]", id="host is IPv6"),
    pytest.param(Body("user"), "/api/x", JSON, b'{"user": "ann"}', "ann", id="json"),
    pytest.param(Body("user.id"), "/api/x", JSON, b'{"user": {"id": 42}}', "42", id="json number, nested"),
    pytest.param(
        Body("user"),
        "/api/x",
        [("content-type", "Application/vnd.api+JSON; charset=utf-8")],
        b'{"user": "caf\xc3\xa9"}',
        "café",
        id="json by suffix",
    ),
    pytest.param(Body("user"), "/api/x", FORM, b"a=1&user=ann+b", "ann b", id="form"),
    pytest.param(Body("user.id"), "/api/x", FORM, b"user.id=7", "7", id="form field with a dot"),
    pytest.param(Body("user"), "/api/x", JSON, [b'{"us', b'er": "ann"}'], "ann", id="body in chunks"),
    pytest.param(answer("acme"), "/api/x", (), None, "acme", id="callable"),
    pytest.param(awaited, "/api/x", ACME, None, "acme", id="async callable"),
    pytest.param(Lookup(), "/api/x", ACME, None, "acme", id="async object"),
    pytest.param(functools.partial(partly, "org-"), "/api/x", ACME, None, "org-acme", id="async partial"),
    pytest.param(FirstOf(Query("c"), Header("X-Customer")), "/api/x?c=q", ACME, None, "q", id="the first of two"),
    pytest.param(FirstOf(Query("c"), Header("X-Customer")), "/api/x", ACME, None, "acme", id="the second of two"),
    pytest.param(FirstOf(FirstOf(Query("c")), awaited), "/api/x", ACME, None, "acme", id="first of, nested and async"),
    pytest.param(FirstOf(awaited, Query("c")), "/api/x?c=q", (), None, "q", id="async one finds nobody"),
]


@pytest.mark.parametrize(("identity", "target", "headers", "body", "subject"), FOUND)
def test_a_strategy_names_the_subject(
    call: Call[Any], identity: Identity, target: str, headers: Pairs, body: bytes | None, subject: str
) -> None:
    limited(call, identity)
    record = call("POST", target, headers, body=body).record
    assert (record.subject, record.subject_kind, record.outcome) == (subject, "subject", "allowed")


@pytest.mark.parametrize(
    ("location", "target", "headers", "body", "subject"),
    [
        ("headers", "/api/x", [("userid", "u1")], None, "u1"),
        ("query", "/api/x?userId=u1", (), None, "u1"),
        ("query_params", "/api/x?userId=u1", (), None, "u1"),
        ("body", "/api/x", JSON, b'{"userId": "u1"}', "u1"),
        ("cookie", "/api/x", [("cookie", "userId=u1")], None, "digest:" + digest(b"u1")),
        ("path_params", "/users/u1/x", (), None, "u1"),
    ],
)
def test_the_declarative_form_is_a_strategy(
    call: Call[Any], location: str, target: str, headers: Pairs, body: bytes | None, subject: str
) -> None:
    name = "id" if location == "path_params" else "userId"
    limited(call, {"identityFieldName": name, "identityFieldLocation": location})
    assert call("POST", target, headers, body=body).record.subject == subject


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256))
def test_a_text_that_a_client_names_is_the_subject_unchanged(text: str) -> None:
    asked = sought(Body("user"), body=json.dumps({"user": text}).encode(), headers=JSON)
    assert asked == text


@pytest.mark.parametrize("cookies", ["a=1; session=s3cret; b=2", 'session="s3cret"'], ids=["among others", "quoted"])
def test_a_cookie_is_a_subject_by_its_digest_alone(call: Call[Any], cookies: str) -> None:
    limited(call, Cookie("session"))
    assert call(headers=[("cookie", cookies)]).record.subject == "digest:" + digest(b"s3cret")


@pytest.mark.parametrize(
    ("identity", "target", "headers"),
    [
        pytest.param(Header("X-API-Key"), "/api/x", [("x-api-key", "s3cret" * 99)], id="header"),
        pytest.param(Header("Authorization"), "/api/x", [("authorization", "s3cret" * 99)], id="authorization"),
        pytest.param(Query("api_key"), "/api/x?api_key=" + "s3cret" * 99, (), id="query"),
    ],
)
def test_a_secret_of_any_length_is_a_subject_by_its_digest(
    call: Call[Any], identity: Identity, target: str, headers: Pairs
) -> None:
    limited(call, identity)
    assert call(target=target, headers=headers).record.subject == "digest:" + digest(b"s3cret" * 99)


def test_everyone_is_one_subject_that_no_client_can_name(call: Call[Any]) -> None:
    limited(call, Everyone())
    assert [call(client=f"203.0.113.{n}").status for n in range(7)] == [200] * 5 + [429] * 2
    assert sought(Header("X-Customer"), headers=[("x-customer", "")]) is None


def test_a_client_address_is_an_address_and_no_subject(call: Call[Any]) -> None:
    limited(call, FirstOf(Header("X-Customer"), ClientAddress()))
    record = call().record
    assert (record.subject, record.subject_kind) == (CLIENT, "address")


def test_a_subject_that_looks_like_an_address_does_not_spend_what_that_address_has(call: Call[Any]) -> None:
    limited(call, FirstOf(Header("X-Customer"), ClientAddress()))
    assert call.statuses(6, headers=[("x-customer", CLIENT)])[-1] == 429
    assert call().status == 200


def test_a_policy_without_a_strategy_uses_the_default_one(call: Call[Any]) -> None:
    own = Policy("own", identity=Query("c"), limits=["9/minute"])
    call.behind(identity=Header("X-Customer"), policies=[Policy("p", limits=["1/minute"]), own])
    assert call.statuses(2, target="/api/x?c=q", headers=ACME) == [200, 429]
    assert call(target="/api/x?c=q", headers=[("x-customer", "other")]).record.subject == "other"


def test_a_subject_is_one_subject_by_whatever_strategy_it_was_found(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", identity=FirstOf(Query("c"), Header("X-Customer")), limits=["1/minute"])])
    assert [call.status(target="/api/x?c=acme"), call.status(headers=ACME)] == [200, 429]


def test_an_address_prefix_can_be_chosen(call: Call[Any]) -> None:
    limited(call, ClientAddress(prefix=48))
    assert call(client="2001:db8:1:2::3").record.subject == "2001:db8:1::/48"


# -- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "target", "headers", "body"),
    [
        pytest.param(Header("X-Customer"), "/api/x", (), None, id="no header"),
        pytest.param(Header("X-Customer"), "/api/x", [("x-customer", "")], None, id="empty header"),
        pytest.param(Query("c"), "/api/x?C=1&cc=2", (), None, id="no parameter"),
        pytest.param(Query("c"), "/api/x?c=&d", (), None, id="empty parameter"),
        pytest.param(Query("c"), "/api/x?c", (), None, id="parameter without a value"),
        pytest.param(Cookie("c"), "/api/x", [("cookie", "C=1; cc=2; c")], None, id="no cookie"),
        pytest.param(PathParam("nobody"), "/users/42/x", (), None, id="no such path parameter"),
        pytest.param(Body("user"), "/api/x", JSON, None, id="no body"),
        pytest.param(Body("user"), "/api/x", JSON, b"", id="empty body"),
        pytest.param(Body("user"), "/api/x", JSON, b'{"user": null}', id="null"),
        pytest.param(Body("user"), "/api/x", JSON, b'{"user": ""}', id="empty text"),
        pytest.param(Body("user.id"), "/api/x", JSON, b'{"user": "ann"}', id="nothing below a text"),
        pytest.param(Body("user"), "/api/x", JSON, b'[["user", "ann"]]', id="pairs are no object"),
        pytest.param(Body("user"), "/api/x", JSON, b'{"user": ', id="broken json"),
        pytest.param(Body("user"), "/api/x", JSON, b"[" * 60_000, id="bottomless json"),
        pytest.param(Body("user"), "/api/x", JSON, b'{"user": ' + b"9" * 5000 + b"}", id="endless number"),
        pytest.param(Body("user"), "/api/x", JSON, b"\xff\xfe\xfd", id="no text at all"),
        pytest.param(Body("user"), "/api/x", [("content-type", "text/plain")], b'{"user": "ann"}', id="plain text"),
        pytest.param(Body("user"), "/api/x", (), b'{"user": "ann"}', id="body of no type"),
        pytest.param(answer(None), "/api/x", (), None, id="callable without an answer"),
        pytest.param(answer(""), "/api/x", (), None, id="callable with an empty answer"),
        pytest.param(awaited, "/api/x", (), None, id="async callable without an answer"),
    ],
)
def test_without_an_identity_the_address_is_limited(
    call: Call[Any], identity: Identity, target: str, headers: Pairs, body: bytes | None
) -> None:
    limited(call, identity)
    record = call("POST", target, headers, body=body).record
    assert (record.subject, record.subject_kind, record.status) == (CLIENT, "address", 200)


def test_dropping_the_identity_does_not_drop_the_limit(call: Call[Any]) -> None:
    limited(call, Header("X-Customer"))
    assert call.statuses(6) == [200] * 5 + [429]


def test_without_an_identity_a_strict_policy_answers_401_and_how_to_say_who_one_is(call: Call[Any]) -> None:
    limited(call, Header("X-Customer"), on_missing_identity="reject")
    refused = call()
    assert (refused.status, refused.record.reason, refused.record.units) == (401, "missing-identity", 0)
    assert refused.one("www-authenticate").startswith("ApiKey realm=")


def test_without_an_identity_a_lenient_policy_lets_through_unlimited(call: Call[Any]) -> None:
    limited(call, Header("X-Customer"), on_missing_identity="allow")
    assert call.statuses(9) == [200] * 9
    assert call().record.subject is None
    assert call.statuses(6, headers=ACME)[-1] == 429


def test_clients_of_a_unix_socket_share_one_count(call: Call[Any]) -> None:
    limited(call, ClientAddress())
    assert call.statuses(6, client=None) == [200] * 5 + [429]


# -- what nobody can tell ---------------------------------------------------------------------------------------------

AMBIGUOUS = [
    pytest.param(Header("X-Customer"), "/api/x", [*ACME, ("X-Customer", "b")], None, id="header twice"),
    pytest.param(Header("X-Customer"), "/api/x", [*ACME, *ACME], None, id="the same header twice"),
    pytest.param(Header("X-Customer"), "/api/x", [("x-customer", "a,b")], None, id="header joined"),
    pytest.param(Header("X-API-Key"), "/api/x", [("x-api-key", "a"), ("x-api-key", "b")], None, id="key twice"),
    pytest.param(Host(), "/api/x", [("host", "a.com"), ("host", "b.com")], None, id="host twice"),
    pytest.param(Host(), "/api/x", [("host", "a.com,b.com")], None, id="host joined"),
    pytest.param(Query("c"), "/api/x?c=a&c=b", (), None, id="parameter twice"),
    pytest.param(Query("c"), "/api/x?c=&c=b", (), None, id="parameter twice, once empty"),
    pytest.param(Query("c"), "/api/x?c=a&%63=b", (), None, id="parameter in two spellings"),
    pytest.param(Cookie("c"), "/api/x", [("cookie", "c=a; c=b")], None, id="cookie twice"),
    pytest.param(Body("user"), "/api/x", JSON, b'{"user": "a", "user": "b"}', id="json member twice"),
    pytest.param(Body("user"), "/api/x", JSON, rb'{"user": "a", "\u0075ser": "b"}', id="json member in two spellings"),
    pytest.param(Body("a.b"), "/api/x", JSON, b'{"a": {"b": "x"}, "a": {"b": "y"}}', id="json parent twice"),
    pytest.param(Body("user"), "/api/x", FORM, b"user=a&user=b", id="form field twice"),
]


@pytest.mark.parametrize(("identity", "target", "headers", "body"), AMBIGUOUS)
def test_attack_24_what_a_client_gives_twice_is_rejected_not_chosen_from(
    call: Call[Any], identity: Identity, target: str, headers: Pairs, body: bytes | None
) -> None:
    limited(call, identity)
    refused = call("POST", target, headers, body=body)
    assert (refused.status, refused.record.reason, refused.record.units) == (400, "ambiguous-identity", 0)


@pytest.mark.parametrize(
    ("identity", "target", "headers", "body"),
    [
        pytest.param(Header("X-Customer"), "/api/x", [("x-customer", "x" * 257)], None, id="long header"),
        pytest.param(Query("c"), "/api/x?c=" + "x" * 257, (), None, id="long parameter"),
        pytest.param(Body("user"), "/api/x", JSON, b'{"user": "' + b"x" * 257 + b'"}', id="long text in json"),
        pytest.param(Body("user"), "/api/x", JSON, b'{"user": true}', id="json truth"),
        pytest.param(Body("user"), "/api/x", JSON, b'{"user": 1.5}', id="json fraction"),
        pytest.param(Body("user"), "/api/x", JSON, b'{"user": ["a"]}', id="json list"),
        pytest.param(Body("user"), "/api/x", JSON, b'{"user": {"a": 1}}', id="json object"),
        pytest.param(Body("user"), "/api/x", JSON, rb'{"user": "a\ud800"}', id="half a character in json"),
        pytest.param(answer("a\udcff"), "/api/x", (), None, id="half a character of a callable"),
        pytest.param(answer("x" * 257), "/api/x", (), None, id="long answer of a callable"),
    ],
)
def test_what_is_no_identity_is_rejected(
    call: Call[Any], identity: Identity, target: str, headers: Pairs, body: bytes | None
) -> None:
    limited(call, identity)
    refused = call("POST", target, headers, body=body)
    assert (refused.status, refused.record.reason) == (400, "invalid-identity")


@pytest.mark.parametrize("headers", [[*ACME, ("x-customer", "b")], [("x-customer", "x" * 257)]], ids=["twice", "long"])
def test_first_of_refuses_what_is_unacceptable_and_does_not_pass_it_over(call: Call[Any], headers: Pairs) -> None:
    limited(call, FirstOf(Header("X-Customer"), ClientAddress()))
    assert call(headers=headers).status == 400


def test_a_rejected_request_never_reaches_the_application(call: Call[Any]) -> None:
    limited(call, Header("X-Customer"))
    refused = call(headers=[*ACME, *ACME])
    assert json.loads(refused.body)["status"] == 400
    assert b"ok" not in refused.chunks


@pytest.mark.parametrize("body", [b"x" * (LARGEST_BODY + 1), [b"x" * LARGEST_BODY, b"x"]], ids=["announced", "chunked"])
def test_attack_18_a_body_over_the_cap_is_refused(call: Call[Any], body: bytes) -> None:
    limited(call, Body("user"))
    refused = call("POST", headers=JSON, body=body)
    assert (refused.status, refused.record.reason) == (413, "body-too-large")


def test_a_body_up_to_the_cap_is_read(call: Call[Any]) -> None:
    limited(call, Body("user"))
    body = b'{"user": "ann"}'
    assert call("POST", headers=JSON, body=body.ljust(LARGEST_BODY)).record.subject == "ann"


def test_a_shadow_policy_rejects_nobody(call: Call[Any]) -> None:
    limited(call, Header("X-Customer"), mode="shadow")
    assert call(headers=[*ACME, *ACME]).status == 200


# -- attacks ----------------------------------------------------------------------------------------------------------


def test_attack_23_a_second_policy_on_the_address_bounds_whoever_changes_names(call: Call[Any]) -> None:
    by_name = Policy("name", identity=Header("X-Customer"), limits=["5/minute"])
    by_address = Policy("address", identity=ClientAddress(), limits=["20/minute"])
    call.behind(policies=[by_name, by_address])
    assert [call(headers=[("x-customer", f"c{n}")]).status for n in range(25)] == [200] * 20 + [429] * 5


def test_attack_6_the_forwarded_host_names_no_host(call: Call[Any]) -> None:
    limited(call, Host())
    record = call(headers=[("host", "a.com"), ("x-forwarded-host", "b.com"), ("forwarded", "host=c.com")]).record
    assert record.subject == "a.com"


def test_attack_24_subjects_are_compared_exactly(call: Call[Any]) -> None:
    limited(call, Header("X-Customer"))
    for name in ("acme", "Acme", "acme.", "acm\xc3\xa9", "acme\x7f"):
        assert call.statuses(5, headers=[("x-customer", name)]) == [200] * 5


def test_a_strategy_that_raises_is_the_applications_own_failure(call: Call[Any]) -> None:
    def broken(request: Request) -> str:
        raise KeyError("customer")

    limited(call, broken)
    with pytest.raises(KeyError):
        call()
    assert call.last.record.exception == "KeyError"


@pytest.mark.parametrize("value", [5, b"acme", True, ["acme"]], ids=repr)
def test_a_callable_that_returns_no_text_is_told(value: Any) -> None:
    with pytest.raises(TypeError, match="it returns a text or None"):
        sought(lambda request: value)


# -- wrong strategies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "sentence"),
    [
        pytest.param(5, "no identity strategy", id="number"),
        pytest.param("X-Customer", "no identity strategy", id="text"),
        pytest.param(Header, "no identity strategy", id="class"),
        pytest.param(Header(""), "needs a name", id="no name"),
        pytest.param(Header(" "), "needs a name", id="blank name"),
        pytest.param(Header("X-Customer\r\nX"), "needs a name", id="header injected"),
        pytest.param(Header("X Customer"), "names no header", id="header with a space"),
        pytest.param(Header("顧客"), "names no header", id="header beyond Latin-1"),
        pytest.param(Query(5), "needs a name", id="number for a name"),  # type: ignore[arg-type]
        pytest.param(Cookie(""), "needs a name", id="cookie"),
        pytest.param(PathParam(""), "needs a name", id="path parameter"),
        pytest.param(Body(""), "needs a name", id="body field"),
        pytest.param(ClientAddress(prefix=8), "between 32 and 128", id="wide prefix"),
        pytest.param(ClientAddress(prefix=129), "between 32 and 128", id="narrow prefix"),
        pytest.param(ClientAddress(prefix=True), "between 32 and 128", id="prefix of truth"),
        pytest.param(FirstOf(Header("X"), 5), "no identity strategy", id="within first of"),  # type: ignore[arg-type]
        pytest.param({}, "identityFieldLocation", id="empty form"),
        pytest.param({"identityFieldName": "u"}, "identityFieldLocation", id="form without a location"),
        pytest.param({"identityFieldName": "u", "identityFieldLocation": "x"}, "path_params", id="unknown location"),
        pytest.param(
            {"identityFieldName": "u", "identityFieldLocation": "bearer_token"}, "jwksUrl", id="unverified token"
        ),
        pytest.param(
            {"identityFieldName": "u", "identityFieldLocation": "headers", "x": "y"}, "one of", id="form with more"
        ),
        pytest.param({"identityFieldName": " ", "identityFieldLocation": "query"}, "needs a name", id="form, no name"),
    ],
)
def test_a_wrong_strategy_is_told_at_once(identity: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        UsageKeeper(store="memory://", identity=identity)


def test_first_of_nothing_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError, match="FirstOf"):
        FirstOf()


def test_strategies_are_values() -> None:
    assert Header("X-Customer") == Header("X-Customer")
    assert len({FirstOf(Header("A"), ClientAddress()), FirstOf(Header("A"), ClientAddress()), Everyone(), Host()}) == 3


# -- the shortest way to ask a strategy ------------------------------------------------------------------------------


def sought(identity: Identity, *, headers: Pairs = (), body: bytes | None = None) -> str | Rejection | None:
    """What a strategy finds in a request, asked without any driver."""
    scope = http_scope(headers=headers)
    request = AsgiRequest("POST", "/", scope, dict(scope["headers"]), False)
    request.body = body
    for source in strategy(identity).sources(client_of(None)):
        value = source.read(request)
        if value is not None:
            return value
    return None
