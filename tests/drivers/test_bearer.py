"""Verified identity, as both protocols carry it: who is let through, who is refused, and what a refusal tells."""

import asyncio
import hmac
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers import AsgiCall, Call, Pairs, WsgiCall, http_scope, receiver
from tests.tokens import (
    AUDIENCE,
    ISSUER,
    NOW,
    SECRET,
    Issuer,
    b64,
    bearer,
    by_key,
    claims,
    issuing,
    jwk,
    key_set,
    private,
    public,
    sealed,
    secretly,
    signed,
)  # fmt: skip
from usagekeeper import BearerClaim, ClientAddress, FirstOf, Header, Policy
from usagekeeper.jwks import COOL_DOWN, GRACE, LARGEST, LIFETIME

INVALID = 'Bearer error="invalid_token", error_description='


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing(jwk()) as one:
        yield one


def behind(call: Call[Any], identity: Any, **more: Any) -> Policy:
    policy = Policy("p", identity=identity, limits=["2/minute"], **more)
    call.behind(policies=[policy])
    return policy


def refused(call: Call[Any], token: str) -> None:
    answer = call(headers=bearer(token))
    assert (answer.status, answer.record.reason, answer.record.subject) == (401, "invalid-token", None)
    assert answer.one("www-authenticate").startswith(INVALID)


# -- let through ------------------------------------------------------------------------------------------------------


def test_a_claim_of_a_verified_token_is_the_subject(call: Call[Any]) -> None:
    behind(call, by_key())
    assert [call(headers=bearer(signed())).status for _ in range(3)] == [200, 200, 429]
    assert call(headers=bearer(signed(sub="bob"))).record.subject == "bob"


def test_the_scheme_is_written_in_any_case(call: Call[Any]) -> None:
    behind(call, by_key())
    assert call(headers={"authorization": f"bEARER {signed()}"}).record.subject == "anne"


def test_a_token_in_a_cookie_is_verified_too(call: Call[Any]) -> None:
    behind(call, by_key(cookie="session"))
    assert call(headers={"Cookie": f"a=b; session={signed()}"}).record.subject == "anne"
    assert call(headers={"Cookie": "session=forged"}).status == 401
    assert call(headers={"Cookie": f"session={signed()}; session={signed()}"}).status == 400
    assert call(headers=bearer(signed())).status == 401


@pytest.mark.parametrize("field", ["sub", "[technique=jwt]session[pick=sub]"])
def test_the_declarative_form_is_verified(call: Call[Any], field: str) -> None:
    cookie = field != "sub"
    form = {
        "identityFieldName": field, "identityFieldLocation": "cookie" if cookie else "bearer_token",
        "jwtSecret": SECRET, "jwtAlgorithms": ["HS256"], "jwtIssuer": ISSUER, "jwtAudience": AUDIENCE,
    }  # fmt: skip
    behind(call, form)
    good, forged = secretly(), secretly(secret="x" * 64)
    wire = [{"Cookie": f"session={token}"} if cookie else bearer(token) for token in (good, forged)]
    assert [call(headers=headers).status for headers in wire] == [200, 401]


# -- absent -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic YTpi"}], ids=["nothing", "another scheme"])
def test_without_a_token_the_request_is_refused_and_told_how(call: Call[Any], headers: dict[str, str]) -> None:
    behind(call, by_key())
    answer = call(headers=headers)
    assert (answer.status, answer.one("www-authenticate"), answer.record.reason) == (401, "Bearer", "missing-identity")


def test_a_policy_may_still_limit_the_address_or_let_through(call: Call[Any]) -> None:
    behind(call, by_key(), on_missing_identity="address")
    assert call.statuses(3) == [200, 200, 429]
    behind(call, by_key(), on_missing_identity="allow")
    assert call.statuses(3) == [200, 200, 200]


def test_first_of_does_for_nobody_what_its_last_strategy_does(call: Call[Any]) -> None:
    behind(call, FirstOf(Header("X-Customer"), by_key()))
    assert call().status == 401
    behind(call, FirstOf(by_key(), Header("X-Customer")))
    assert call.statuses(3) == [200, 200, 429]


# -- attacks ----------------------------------------------------------------------------------------------------------


def test_attack_23_a_verified_name_cannot_be_burnt_by_who_only_knows_it(call: Call[Any]) -> None:
    """loopover #9469."""
    behind(call, FirstOf(by_key(), Header("X-Customer")), on_missing_identity="reject")
    for _ in range(5):
        call(headers=bearer(sealed(claims(), private("EC2"), "ES256", {"kid": "EC"})))
    assert call(headers=bearer(signed())).status == 200


@pytest.mark.parametrize("wire", ["two headers", "joined", "joined after another scheme"])
def test_attack_24_two_tokens_are_refused_and_not_chosen_from(call: Call[Any], wire: str) -> None:
    """eclipse-edc #3607, GHSA-xgm2-5f3f-mvvc."""
    behind(call, FirstOf(by_key(), ClientAddress()))
    one, two = f"Bearer {signed()}", f"Bearer {signed(sub='bob')}"
    sent: dict[str, Pairs] = {
        "two headers": [("Authorization", one), ("authorization", two)],
        "joined": [("Authorization", f"{one}, {two}")],
        "joined after another scheme": [("Authorization", f"Basic YTpi,{one}")],
    }
    answer = call(headers=sent[wire])
    assert (answer.status, answer.record.reason) == (400, "ambiguous-identity")
    assert answer.one("www-authenticate") == 'Bearer error="invalid_request"'


def test_attack_25_secrets_are_compared_by_a_digest_whose_key_nobody_knows(
    call: Call[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2026-23996: a token that was seen is found by a keyed digest, a signature by compare_digest."""
    compared: list[int] = []
    real = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    behind(call, by_key(key=SECRET, algorithms=["HS256"]))
    token = secretly()
    assert [call(headers=bearer(token)).status, call(headers=bearer(token[:-3] + "AAA")).status] == [200, 401]
    verifier = next(iter(call.keeper._verifiers.values()))
    assert [len(name) for name in verifier._recent] == [16]
    assert not any(token.encode()[:16] in name for name in verifier._recent)
    assert set(compared) == {32}


def unsigned(algorithm: str) -> str:
    return f"{b64(json.dumps({'alg': algorithm, 'kid': 'EC'}).encode())}.{b64(json.dumps(claims()).encode())}."


FORGED = {
    "unsigned": lambda: unsigned("none"),
    "unsigned in capitals": lambda: unsigned("NONE") + "AA",
    "no algorithm": lambda: sealed(claims(), private(), "ES256", {"alg": None}),
    "a list of algorithms": lambda: sealed(claims(), private(), "ES256", {"alg": ["ES256"]}),
    "the public key as a secret": lambda: sealed(
        claims(), public(), "HS256", {"kid": "EC"}
    ),
    "another algorithm of the same key": lambda: sealed(claims(), private("RSA"), "PS256", {"kid": "RSA"}),
    "somebody else's key": lambda: sealed(claims(), private("EC2"), "ES256", {"kid": "EC"}),
    "its own key inside": lambda: sealed(claims(), private("EC2"), "ES256", {"kid": "EC", "jwk": jwk("EC2")}),
    "its own key by address": lambda: sealed(
        claims(), private("EC2"), "ES256", {"kid": "EC", "jku": "http://127.0.0.1:9/", "x5u": "http://127.0.0.1:9/"}
    ),
    "critical extension": lambda: signed(header={"crit": ["exp"], "exp": 1}),
    "critical extension that PyJWT knows": lambda: signed(header={"crit": ["b64"], "b64": True}),
    "empty list of critical extensions": lambda: signed(header={"crit": []}),
    "body that is not encoded": lambda: signed(header={"b64": False}),
    "list of issuers": lambda: signed(iss=[ISSUER]),
    "issuer within another": lambda: signed(iss=ISSUER + ".evil.test"),
    "no issuer": lambda: signed(iss=None),
    "another audience": lambda: signed(aud="other"),
    "no audience": lambda: signed(aud=None),
    "object for an audience": lambda: signed(aud={"api": 1}),
    "letters of the audience": lambda: signed(aud=["a", "p", "i"]),
    "expired": lambda: signed(exp=NOW),
    "no end": lambda: signed(exp=None),
    "text for an end": lambda: signed(exp=str(NOW + 600)),
    "truth for an end": lambda: signed(exp=True),
    "infinite end": lambda: signed(exp=float("inf")),
    "no number for an end": lambda: signed(exp=float("nan")),
    "end beyond counting": lambda: signed(exp=10**400),
    "not valid yet": lambda: signed(nbf=NOW + 1),
    "changed": lambda: signed()[:-4] + "AAAA",
    "two parts": lambda: signed().rpartition(".")[0],
    "four parts": lambda: signed() + ".AA",
    "padded": lambda: signed() + "=",
    "empty": lambda: "",
    "no JSON": lambda: sealed(b"\xff{", private(), "ES256", {"kid": "EC"}),
    "nested JSON": lambda: sealed(b"[" * 5000, private(), "ES256", {"kid": "EC"}),
    "list for claims": lambda: sealed([claims()], private(), "ES256", {"kid": "EC"}),
    "truth for a subject": lambda: signed(sub=True),
    "list for a subject": lambda: signed(sub=["anne"]),
    "fraction for a subject": lambda: signed(sub=1.5),
    "empty subject": lambda: signed(sub=""),
    "long subject": lambda: signed(sub="x" * 257),
    "long number": lambda: signed(sub=10**256),
    "half a character": lambda: signed(sub="\ud800"),
    "no subject": lambda: signed(sub=None),
    "too large": lambda: signed(more="x" * 8192),
}  # fmt: skip


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
@pytest.mark.parametrize("published", [False, True], ids=["key", "key set"])
def test_attack_26_what_is_not_signed_for_us_is_refused(
    call: Call[Any], issuer: Issuer, forged: Any, published: bool
) -> None:
    """CVE-2022-29217, CVE-2026-32597, CVE-2026-48523, CVE-2026-75509, CVE-2026-85394."""
    issuer.keys.append(jwk("RSA", alg="RS256"))
    behind(call, FirstOf(by_key(jwks_url=issuer.url) if published else by_key(), ClientAddress()))
    assert call(headers=bearer(signed())).status == 200
    refused(call, forged())
    assert issuer.asked == published


def test_attack_26_a_published_key_cannot_widen_the_list_of_algorithms(call: Call[Any], issuer: Issuer) -> None:
    secret = {"kty": "oct", "k": b64(SECRET.encode()), "kid": "oct"}
    issuer.keys = [jwk("RSA", alg="RS256"), secret, jwk("EC", alg="none"), jwk("EC2")]
    behind(call, by_key(jwks_url=issuer.url, algorithms=["PS256", "ES256"]))
    hidden = sealed(claims(), SECRET, "HS256", {"kid": "oct"})
    for token in (signed("RSA", "RS256"), signed("RSA", "PS256"), signed(), hidden):
        refused(call, token)
    assert call(headers=bearer(signed("EC2"))).status == 200


@pytest.mark.parametrize("kid", [None, 7, ["EC"], "", "ec"], ids=["none", "number", "list", "empty", "another case"])
def test_attack_26_the_name_of_a_published_key_must_match(call: Call[Any], issuer: Issuer, kid: Any) -> None:
    behind(call, by_key(jwks_url=issuer.url))
    header = {} if kid is None else {"kid": kid}
    refused(call, sealed(claims(), private(), "ES256", header))


def test_attack_27_the_subject_is_the_claim_however_the_token_is_written(call: Call[Any]) -> None:
    """CVE-2026-62995, CVE-2026-119284: whoever can write its token anew must not have a new limit."""
    behind(call, by_key(key=SECRET, algorithms=["HS256"]))
    tokens = [secretly(), secretly(jti="2"), secretly(exp=NOW + 7), sealed(claims(), SECRET, "HS256", {"kid": "x"})]
    assert [call(headers=bearer(token)).status for token in tokens] == [200, 200, 429, 429]
    refused(call, secretly()[:-1] + chr(ord(secretly()[-1]) + 1))


def test_attack_27_a_token_is_measured_before_it_is_read(call: Call[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    behind(call, by_key())
    monkeypatch.setattr("usagekeeper.jwt._header", lambda token: pytest.fail("it was read"))
    refused(call, "a" * 8193)


def test_a_refusal_echoes_nothing_of_the_token(call: Call[Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    behind(call, by_key())
    planted = "PLANTED" + "x" * 30
    for token in (planted, f"{planted}.{planted}.{planted}", signed(sub=True, planted=planted), signed(exp=1)):
        answer = call(headers=bearer(token))
        kept = f"{answer.headers} {answer.body!r} {answer.record} {caplog.text}"
        assert planted not in kept
        assert token not in kept
        assert answer.record.auth_scheme == "bearer"


# -- key sets ---------------------------------------------------------------------------------------------------------


def test_a_key_set_is_fetched_once_for_many_tokens(call: Call[Any], issuer: Issuer) -> None:
    behind(call, by_key(jwks_url=issuer.url))
    assert [call(headers=bearer(signed(sub=str(n)))).status for n in range(5)] == [200] * 5
    assert issuer.asked == 1


def test_nothing_is_fetched_before_a_token_comes(call: Call[Any], issuer: Issuer) -> None:
    behind(call, by_key(jwks_url=issuer.url))
    assert (call().status, issuer.asked) == (401, 0)


def test_a_flood_of_unknown_keys_is_one_fetch_in_a_cool_down(call: Call[Any], issuer: Issuer) -> None:
    behind(call, by_key(jwks_url=issuer.url))
    call(headers=bearer(signed()))
    for round_ in range(1, 3):
        call.clock.advance(COOL_DOWN)
        assert {call(headers=bearer(signed("EC2", header={"kid": str(n)}))).status for n in range(9)} == {401}
        assert issuer.asked == 1 + round_


def test_a_new_key_is_learnt_when_a_token_names_it(call: Call[Any], issuer: Issuer) -> None:
    behind(call, by_key(jwks_url=issuer.url))
    call(headers=bearer(signed()))
    issuer.keys.append(jwk("EC2"))
    call.clock.advance(COOL_DOWN)
    assert call(headers=bearer(signed("EC2"))).status == 200


def test_a_withdrawn_key_ends_with_the_lifetime_of_the_set_for_remembered_tokens_too(
    call: Call[Any], issuer: Issuer
) -> None:
    behind(call, by_key(jwks_url=issuer.url))
    token = signed(exp=NOW + 9 * LIFETIME)
    assert call(headers=bearer(token)).status == 200
    issuer.keys = [jwk("EC2")]
    call.clock.advance(LIFETIME - 1)
    assert call(headers=bearer(token)).status == 200
    call.clock.advance(1)
    refused(call, token)


def test_a_remembered_token_ends_when_it_expires(call: Call[Any]) -> None:
    behind(call, by_key())
    token = signed(exp=NOW + 60)
    assert call(headers=bearer(token)).status == 200
    call.clock.advance(60)
    refused(call, token)


def test_keys_are_used_on_while_the_issuer_is_down_for_an_hour(call: Call[Any], issuer: Issuer) -> None:
    behind(call, by_key(jwks_url=issuer.url))
    token = signed(exp=NOW + 9 * GRACE)
    call(headers=bearer(token))
    issuer.fails()
    call.clock.advance(LIFETIME)
    assert [call(headers=bearer(token)).status for _ in range(2)] == [200, 200]
    assert issuer.asked == 2
    call.clock.advance(GRACE)
    assert call(headers=bearer(token)).status == 503


ODD = {
    "failure": (500, {}, b""),
    "redirect": (302, {"Location": "/elsewhere"}, b""),
    "no JSON": (200, {}, b"<html>"),
    "no list": (200, {}, b'{"keys": 7}'),
    "no keys": (200, {}, b'{"keys": []}'),
    "too many keys": (200, {}, key_set(*[{"kid": str(n)} for n in range(101)])),
    "too large": (200, {}, b" " * (LARGEST + 1)),
    "compressed": (200, {"Content-Encoding": "gzip"}, b"{}"),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_an_issuer_that_was_never_understood_is_503(call: Call[Any], issuer: Issuer, odd: Any) -> None:
    issuer.answer = lambda: odd
    behind(call, FirstOf(by_key(jwks_url=issuer.url), ClientAddress()))
    answer = call(headers=bearer(signed()))
    assert (answer.status, answer.record.reason) == (503, "identity-unavailable")
    assert answer.one("retry-after") == str(COOL_DOWN)
    assert json.loads(answer.body)["reason"] == "identity-unavailable"
    assert (call(headers=bearer(signed())).status, issuer.asked) == (503, 1)
    issuer.answer = lambda: (200, {}, key_set(jwk()))
    call.clock.advance(COOL_DOWN)
    assert call(headers=bearer(signed())).status == 200


def test_a_shadow_policy_is_counted_and_refuses_nobody(call: Call[Any], issuer: Issuer) -> None:
    policy = behind(call, by_key(jwks_url=issuer.url), mode="shadow")
    assert call(headers=bearer(signed())).record.subject == "anne"
    assert call.left(policy, "anne", "subject") == [1]
    call.clock.advance(LIFETIME + GRACE)
    issuer.fails()
    assert call(headers=bearer(signed(exp=NOW + 9 * GRACE))).status == 200


def test_records_name_the_subject_where_no_policy_applies(call: Call[Any], issuer: Issuer) -> None:
    call.behind(identity=by_key(jwks_url=issuer.url))
    assert call(headers=bearer(signed())).record.subject == "anne"
    assert call(headers=bearer("forged")).status == 200


def test_each_policy_may_have_an_issuer_of_its_own(call: Call[Any], issuer: Issuer) -> None:
    with issuing(jwk()) as other:
        claims_ = [by_key(jwks_url=issuer.url), by_key("tenant", jwks_url=other.url)]
        call.behind(policies=[Policy(f"p{n}", identity=one, limits=["2/minute"]) for n, one in enumerate(claims_)])
        assert call(headers=bearer(signed(tenant="shop"))).status == 200
        assert (issuer.asked, other.asked) == (1, 1)


def test_an_async_callable_and_a_key_set_go_together(call: Call[Any], issuer: Issuer) -> None:
    async def nobody(request: Any) -> None: ...

    behind(call, FirstOf(nobody, by_key(jwks_url=issuer.url)))
    assert call(headers=bearer(signed())).record.subject == "anne"
    assert call(headers=bearer("forged")).status == 401


def test_requests_that_come_together_share_one_fetch(asgi: AsgiCall, issuer: Issuer) -> None:
    asgi.behind(policies=[Policy("p", identity=by_key(jwks_url=issuer.url), limits=["9/minute"])])
    statuses: list[int] = []

    async def one() -> None:
        async def send(message: Any) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        headers = list(bearer(signed()).items())
        await asgi.app(http_scope(headers=headers), receiver(), send)

    async def all_() -> None:
        await asyncio.gather(*[one() for _ in range(5)])

    asgi.run(all_())
    assert (statuses, issuer.asked) == ([200] * 5, 1)


def test_a_client_that_leaves_does_not_end_the_fetch_of_the_others(asgi: AsgiCall, issuer: Issuer) -> None:
    asgi.behind(policies=[Policy("p", identity=by_key(jwks_url=issuer.url), limits=["9/minute"])])
    statuses: list[int] = []

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    async def both() -> None:
        headers = list(bearer(signed()).items())
        first, second = (
            asyncio.ensure_future(asgi.app(http_scope(headers=headers), receiver(), send)) for _ in range(2)
        )
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first, second])

    asgi.run(both())
    assert (statuses, issuer.asked) == ([200], 1)


def test_a_known_key_is_answered_without_leaving_the_turn_of_the_loop(asgi: AsgiCall, issuer: Issuer) -> None:
    asgi.behind(policies=[Policy("p", identity=by_key(jwks_url=issuer.url), limits=["9/minute"])])
    asgi(headers=bearer(signed()))

    async def send(message: Any) -> None: ...

    exchange = asgi.app(http_scope(headers=list(bearer(signed(sub="bob")).items())), receiver(), send)
    with pytest.raises(StopIteration):
        exchange.send(None)


def test_keys_over_https_are_checked_against_the_certificates_of_the_system(wsgi: WsgiCall) -> None:
    identity = BearerClaim(
        "sub", jwks_url="https://127.0.0.1:1/keys", algorithms=["ES256"], issuer=ISSUER, audience=AUDIENCE
    )
    behind(wsgi, identity)
    assert wsgi(headers=bearer(signed())).status == 503
