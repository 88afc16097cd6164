"""Verifying tokens: what may be configured, and that nothing a client or an issuer sends makes it raise."""

import json
import os
import sys
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.tokens import (
    AUDIENCE,
    ISSUER,
    NOW,
    SECRET,
    b64,
    by_key,
    claims,
    jwk,
    key_set,
    private,
    private_pem,
    public,
    sealed,
    secretly,
    signed,
)  # fmt: skip
from usagekeeper import BearerClaim, ConfigurationError, FirstOf, Header, UsageKeeper
from usagekeeper.identity import strategy
from usagekeeper.jwks import KeySetError, read_keys
from usagekeeper.jwt import EARLY, EXPIRED, INVALID, REMEMBERED, Verifier
from usagekeeper.sources import Rejection
from usagekeeper.testing import ManualClock

URL = "https://login.example.org/keys"


def verifier(**options: Any) -> Verifier:
    return Verifier(by_key(**options), clock=ManualClock(), timer=time.monotonic_ns)


# -- what may be configured -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param({"algorithms": ["none"]}, "'none'.*each is one of", id="none"),
        pytest.param({"algorithms": []}, "is a list such as", id="no algorithm"),
        pytest.param({"algorithms": "ES256"}, "is a list such as", id="text for a list"),
        pytest.param({"algorithms": ["HS256", "RS256"]}, "mixes HMAC and public keys", id="both kinds"),
        pytest.param({"algorithms": ["HS256"]}, "needs a secret", id="public key as a secret"),
        pytest.param({"algorithms": ["HS256"], "key": "ssh-rsa AAAA"}, "needs a secret", id="SSH key as a secret"),
        pytest.param({"algorithms": ["HS256"], "key": json.dumps(jwk())}, "no key for HS256", id="JWK as a secret"),
        pytest.param({"algorithms": ["HS256"], "key": "short"}, "has 5 bytes, and HS256 needs 32", id="short secret"),
        pytest.param(
            {"algorithms": ["HS512"], "key": "x" * 63}, "63 bytes, and HS512 needs 64", id="shorter than hash"
        ),
        pytest.param({"algorithms": ["RS256"]}, "no key for RS256", id="key of another kind"),
        pytest.param({"algorithms": ["ES384"]}, "no key for ES384", id="another curve"),
        pytest.param({"algorithms": ["ES256K"]}, "no key for ES256K|does not fit", id="curve of the same size"),
        pytest.param({"algorithms": ["ES256", "RS256"]}, "no key for RS256", id="one of two fits"),
        pytest.param({"key": private_pem()}, "is a private key", id="private key"),
        pytest.param({"key": "nonsense"}, "no key for ES256", id="no key"),
        pytest.param({"key": ""}, "PEM text or a secret", id="empty key"),
        pytest.param({"key": 5}, "not a int", id="number for a key"),
        pytest.param({"key": None}, "needs key= or jwks_url=", id="neither"),
        pytest.param({"key": public(), "jwks_url": URL}, "one of them", id="both"),
        pytest.param({"jwks_url": URL, "algorithms": ["HS256"]}, "needs a secret", id="published secret"),
        pytest.param({"jwks_url": URL, "issuer": None}, "needs issuer=", id="key set without an issuer"),
        pytest.param({"jwks_url": URL, "audience": None}, "needs audience=", id="key set without an audience"),
        pytest.param({"jwks_url": "http://login.example.org/"}, "is https://", id="plain http"),
        pytest.param({"jwks_url": "https://u:hidden@login.example.org/"}, "without user", id="password"),
        pytest.param({"jwks_url": "file:///etc/passwd"}, "is https://", id="file"),
        pytest.param({"jwks_url": "https://[::1/"}, "is https://", id="no URL"),
        pytest.param({"jwks_url": "https://a b/"}, "is https://", id="space"),
        pytest.param({"jwks_url": "http://127.0.0.1.evil.test/"}, "is https://", id="looks like the loopback"),
        pytest.param({"issuer": ""}, "issuer=", id="empty issuer"),
        pytest.param({"issuer": [ISSUER, 5]}, "issuer=", id="number for an issuer"),
        pytest.param({"audience": []}, "audience=", id="no audience at all"),
        pytest.param({"claim": ""}, "needs a name", id="no claim"),
        pytest.param({"cookie": ""}, "needs a name", id="no cookie"),
        pytest.param({"leeway": -1}, "between 0 and 300", id="negative leeway"),
        pytest.param({"leeway": 301}, "between 0 and 300", id="wide leeway"),
        pytest.param({"leeway": True}, "between 0 and 300", id="leeway of truth"),
    ],
)
def test_a_wrong_claim_is_told_at_the_start(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as told:
        UsageKeeper(store="memory://", identity=by_key(**options))
    assert not any(secret in str(told.value) for secret in ("hidden", "BEGIN", "short", "x" * 9))


@pytest.mark.parametrize("missing", ["algorithms", "issuer", "audience"])
def test_what_must_be_said_has_no_default(missing: str) -> None:
    options: dict[str, Any] = {"key": public(), "algorithms": ["ES256"], "issuer": ISSUER, "audience": AUDIENCE}
    with pytest.raises(TypeError, match=missing):
        BearerClaim("sub", **{name: value for name, value in options.items() if name != missing})


FORM = {"identityFieldName": "sub", "identityFieldLocation": "bearer_token", "jwtSecret": SECRET,
        "jwtAlgorithms": ["HS256"], "jwtIssuer": ISSUER, "jwtAudience": AUDIENCE}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        pytest.param({"jwtSecret": None}, "names no key.*jwksUrl", id="no key"),
        pytest.param({"jwtAlgorithms": None}, "lacks jwtAlgorithms", id="no algorithms"),
        pytest.param({"jwtIssuer": None, "jwtAudience": None}, "lacks jwtIssuer, jwtAudience", id="nobody"),
        pytest.param({"jwksUrl": URL}, "names no key", id="two keys"),
        pytest.param({"other": 1}, "names no key", id="unknown word"),
        pytest.param({"jwtAlgorithms": ["RS256"]}, "jwtSecret is for HMAC", id="secret for public keys"),
        pytest.param({"jwtSecret": None, "jwtPublicKey": public()}, "is no secret", id="public key for HMAC"),
        pytest.param(
            {"identityFieldLocation": "cookie", "identityFieldName": "[technique=jwt]s"}, "names no cookie", id="cookie"
        ),
        pytest.param(
            {"identityFieldLocation": "cookie", "identityFieldName": "[technique=jwt]s[pick=sub]", "jwtSecret": None},
            "names no key", id="unverified cookie",
        ),
    ],
)  # fmt: skip
def test_a_declared_claim_without_what_verifies_it_is_told(more: dict[str, Any], sentence: str) -> None:
    form = {name: value for name, value in {**FORM, **more}.items() if value is not None}
    with pytest.raises(ConfigurationError, match=sentence) as told:
        UsageKeeper(store="memory://", identity=form)
    assert SECRET not in str(told.value)
    assert "BEGIN" not in str(told.value)


def test_a_claim_never_shows_its_key() -> None:
    identity = by_key(key=SECRET, algorithms=["HS256"])
    assert SECRET not in repr(identity)
    with pytest.raises(ConfigurationError, match="verified by a keeper") as told:
        strategy(FirstOf(identity)).sources(lambda request: None)
    assert SECRET not in str(told.value)


def test_equal_claims_share_their_keys() -> None:
    assert by_key(jwks_url=URL) == by_key(jwks_url=URL, issuer=[ISSUER])
    keeper = UsageKeeper(store="memory://", identity=FirstOf(by_key(jwks_url=URL), Header("X"), by_key(jwks_url=URL)))
    assert len(keeper._verifiers) == 1


@pytest.mark.parametrize("module", ["jwt", "httpx"])
def test_an_extra_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=r'pip install "usagekeeper\[jwt'):
        verifier(jwks_url=URL)


# -- what is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("EC", "ES256"), ("P-384", "ES384"), ("RSA", "RS256"), ("RSA", "PS512"), ("Ed25519", "EdDSA")],
)
def test_every_kind_of_public_key_verifies(name: str, algorithm: str) -> None:
    assert verifier(key=public(name), algorithms=[algorithm])(signed(name, algorithm)) == "anne"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_every_kind_of_secret_verifies(algorithm: str) -> None:
    assert verifier(key=SECRET.encode(), algorithms=[algorithm])(secretly(algorithm)) == "anne"


@pytest.mark.parametrize(
    ("said", "subject"),
    [
        pytest.param({"sub": 7}, "7", id="whole number"),
        pytest.param({"sub": "x" * 256}, "x" * 256, id="256 characters"),
        pytest.param({"sub": "müller 顧客"}, "müller 顧客", id="any letters"),
        pytest.param({"aud": ["other", AUDIENCE]}, "anne", id="one of several audiences"),
        pytest.param({"exp": NOW + 0.5, "nbf": NOW}, "anne", id="fraction of a second"),
        pytest.param({"nbf": NOW + 1}, EARLY, id="early"),
        pytest.param({"exp": NOW}, EXPIRED, id="late"),
    ],
)
def test_what_a_token_says(said: dict[str, Any], subject: object) -> None:
    assert verifier()(signed(**said)) == subject


def test_clocks_may_differ_by_the_leeway() -> None:
    lenient = verifier(leeway=30)
    assert [lenient(signed(exp=NOW - 29)), lenient(signed(exp=NOW - 30))] == ["anne", EXPIRED]
    assert [lenient(signed(nbf=NOW + 30)), lenient(signed(nbf=NOW + 31))] == ["anne", EARLY]


def test_whose_key_is_its_own_issuer_may_say_so_and_then_names_no_audience() -> None:
    own = verifier(issuer=None, audience=None)
    assert own(signed(iss=None, aud=None)) == "anne"
    assert own(signed()) == INVALID


def test_several_issuers_and_audiences_may_be_expected() -> None:
    either = verifier(issuer=[ISSUER, "b"], audience=["x", "y"])
    assert [either(signed(iss="b", aud="y")), either(signed(iss="c", aud="y"))] == ["anne", INVALID]


def test_another_claim_may_be_the_subject() -> None:
    said: dict[str, Any] = {"https://example.org/tenant": "shop"}
    assert verifier(claim="https://example.org/tenant")(signed(**said)) == "shop"


def test_remembered_tokens_are_bounded() -> None:
    small = verifier(key=SECRET, algorithms=["HS256"])
    for n in range(2 * REMEMBERED + 10):
        small._recent[n.to_bytes(16)] = "x", 0.0
        if n % REMEMBERED == REMEMBERED - 1:
            assert small(secretly(jti=str(n))) == "anne"
    assert len(small._recent) + len(small._older) <= 2 * REMEMBERED + 10


# -- whatever comes ---------------------------------------------------------------------------------------------------

ONE = verifier()
MEMBERS = st.sampled_from(["alg", "kid", "crit", "b64", "kty", "n", "e", "crv", "x", "y", "use", "key_ops", "keys"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(MEMBERS, inner),
    max_leaves=12,
)


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
@example("..")
@example("\ud800.\ud800.\ud800")
def test_no_text_makes_the_verifier_raise(text: str) -> None:
    assert ONE(text) == INVALID


@given(JSON | st.binary(), st.binary(max_size=80), st.sampled_from(["ES256", "none", "HS256", "RS256"]))
def test_no_header_makes_the_verifier_raise(header: Any, rest: bytes, algorithm: str) -> None:
    if isinstance(header, dict):
        header = {"alg": algorithm, **header}
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    assert isinstance(ONE(f"{b64(raw)}.{b64(rest)}.{b64(rest)}"), Rejection)


@given(JSON | st.dictionaries(st.sampled_from(["sub", "iss", "aud", "exp", "nbf"]), JSON))
def test_no_signed_claims_make_the_verifier_raise(said: Any) -> None:
    payload = {**claims(), **said} if isinstance(said, dict) else said
    found = ONE(sealed(payload, private(), "ES256", {}))
    assert isinstance(found, Rejection) or 0 < len(found) <= 256


MANY_KINDS = verifier(jwks_url=URL, algorithms=["RS256", "PS256", "ES256", "ES256K", "EdDSA"])
MEMBER = st.text("AQAB_-x", max_size=60) | st.text() | st.integers() | st.none()
KEY = st.fixed_dictionaries(
    {"kid": st.text(max_size=2), "kty": st.sampled_from(["RSA", "EC", "OKP", "oct"])},
    optional=dict.fromkeys(("n", "e", "x", "y", "d", "k", "alg"), MEMBER)
    | {"crv": st.sampled_from(["P-256", "secp256k1", "Ed25519", "Ed448", "P-0"]), "use": MEMBER, "key_ops": JSON},
)


@given(st.binary() | JSON.map(json.dumps).map(str.encode) | st.lists(KEY).map(lambda keys: key_set(*keys)))
@example(b"[" * 100_000)
@example(key_set({"kid": "a", "kty": "RSA", "n": "AQAB", "e": "AA"}))
def test_no_document_makes_reading_a_key_set_raise_anything_but_its_refusal(document: bytes) -> None:
    try:
        table = MANY_KINDS._table(document)
    except KeySetError:
        return
    assert len(table) <= 5 * len(read_keys(document))


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        pytest.param([jwk()], {("EC", "ES256")}, id="curve"),
        pytest.param([jwk("RSA")], {("RSA", "RS256"), ("RSA", "PS256")}, id="whatever fits"),
        pytest.param([jwk("RSA", alg="PS256")], {("RSA", "PS256")}, id="what it is for"),
        pytest.param([jwk(use="enc")], set(), id="for encryption"),
        pytest.param([jwk(key_ops=["sign"])], set(), id="for signing alone"),
        pytest.param([jwk(), jwk("EC2", kid="EC")], set(), id="one name for two keys"),
        pytest.param([jwk("P-384")], set(), id="another curve"),
        pytest.param([jwk(kid=None), jwk(kid=7)], set(), id="no name"),
        pytest.param([{**jwk(), "d": "AA"}], {("EC", "ES256")}, id="the private half is not read"),
    ],
)
def test_a_key_set_offers(keys: list[Any], found: set[Any]) -> None:
    assert set(MANY_KINDS._table(key_set(*keys))) == found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_waits_for_no_fetch_of_its_parent() -> None:
    one = verifier(jwks_url=URL)
    keys = one._keys
    assert keys is not None
    keys._board()
    keys._lock.acquire()
    assert keys.under_way()
    one.drop()
    assert not keys.under_way()
    assert not keys._lock.locked()
