"""Whose token is this: JSON Web Tokens (RFC 7519), verified as RFC 8725 asks.

Only a token that is signed by one of our keys, with one of our algorithms, for us and not expired names a subject; what
the token says of itself chooses among the keys and algorithms that are ours and never adds to them. The subject is the
claim, however its token is written. Tokens are in no message and in no exception.
"""

from __future__ import annotations

import base64
import json
import math
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeGuard

from usagekeeper.bearer import HMAC, BearerClaim
from usagekeeper.errors import ConfigurationError
from usagekeeper.jwks import Jwk, Keys, Table, read_keys
from usagekeeper.sources import LONGEST, Rejection

LARGEST_TOKEN: Final = 8192
"""Characters of a token; larger ones are refused unread."""
REMEMBERED: Final = 2048
"""Verified tokens in each of two generations."""
_SMALLEST_RSA, _LARGEST_RSA = 2048, 8192  # bits: below is broken (RFC 7518, 3.3), above takes too long to verify
_SHORTEST_SECRET: Final = {"HS256": 32, "HS384": 48, "HS512": 64}  # bytes, RFC 7518, 3.2

_TOKEN: Final = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_BROKEN: Final = (ValueError, TypeError, KeyError, NotImplementedError)
"""What PyJWT lets through of a key that is none."""
_VALUE: Final = re.compile(r"[A-Za-z0-9_-]{1,1400}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _invalid(detail: str) -> Rejection:
    challenge = f'Bearer error="invalid_token", error_description="{detail}"'
    return Rejection(401, "invalid-token", detail, challenge)


INVALID: Final = _invalid("The bearer token is not valid.")
TOO_LARGE: Final = _invalid(f"The bearer token is longer than {LARGEST_TOKEN} characters.")
EXPIRED: Final = _invalid("The bearer token has expired.")
EARLY: Final = _invalid("The bearer token is not valid yet.")
NAMELESS: Final = _invalid("The bearer token does not name an acceptable subject.")
UNAVAILABLE: Final = Rejection(503, "identity-unavailable", "Who sent this request cannot be verified at the moment.")


class Verifier:
    """The subject that a token names, or why it is not accepted: ``verifier(token)``. Raises nothing.

    *clock* is in epoch seconds, *timer* in nanoseconds. Verified tokens are remembered by a digest under a key of this
    process, so that looking one up tells nothing by its timing; each until it expires, all until a key set is fetched.
    """

    def __init__(self, claim: BearerClaim, *, clock: Callable[[], float], timer: Callable[[], int]) -> None:
        self._claim = claim.claim
        self._leeway = claim.leeway
        self._issuers = _names(claim.issuer)
        self._audiences = _names(claim.audience)
        self._clock = clock
        self._timer = timer
        self._jwt, self._unsupported = _library()
        self._algorithms = tuple(claim.algorithms)
        self._jws = self._jwt.PyJWS(algorithms=list(self._algorithms))
        self._keys: Keys | None = None
        self._single: Mapping[str, Any] = {}
        if claim.jwks_url is not None:
            self._keys = Keys(claim.jwks_url, self._table, timer)
        elif claim.key is not None:
            self._single = {name: self._prepared(name, claim.key) for name in self._algorithms}
        self._digest = blake2b(key=secrets.token_bytes(32), digest_size=16)
        self._of: Table = {}
        """The key set that the remembered tokens were verified with."""
        self._recent: dict[bytes, tuple[str, float]] = {}
        self._older: dict[bytes, tuple[str, float]] = {}

    def drop(self) -> None:
        """In a forked child: forget what belongs to the parent."""
        if self._keys is not None:
            self._keys.drop()

    def __call__(self, token: str) -> str | Rejection:
        """The subject of *token*."""
        if len(token) > LARGEST_TOKEN:
            return TOO_LARGE
        keys = self._keys
        if keys is not None:
            now = self._timer()
            if not keys.fresh(now) and (lacking := self._stale(keys, now)) is not None:
                return lacking
            if keys.table is not self._of:
                self._recent, self._older, self._of = {}, {}, keys.table
        hasher = self._digest.copy()
        hasher.update(token.encode("utf-8", "surrogatepass"))
        name = hasher.digest()
        recent = self._recent
        known = recent.get(name) or self._older.get(name)
        if known is not None:
            return known[0] if self._clock() < known[1] else EXPIRED
        return self._verify(token, name, recent)

    def _stale(self, keys: Keys, now: int) -> Rejection | None:
        """What is to be done about keys that are absent or old; None: go on with those of before."""
        usable = keys.usable(now)
        if keys.may_ask(now) or (not usable and keys.under_way()):
            return self._unavailable(keys, now)._replace(lacks=keys)
        return None if usable else self._unavailable(keys, now)

    @staticmethod
    def _unavailable(keys: Keys, now: int) -> Rejection:
        return UNAVAILABLE._replace(retry_after=keys.retry_after(now))

    def _verify(self, token: str, name: bytes, recent: dict[bytes, tuple[str, float]]) -> str | Rejection:
        header = _header(token)
        if header is None or "crit" in header or "b64" in header or "alg" not in header:
            return INVALID
        algorithm = header["alg"]
        if algorithm not in self._algorithms:
            return INVALID
        key = self._key(header.get("kid"), algorithm)
        if isinstance(key, Rejection):
            return key
        try:
            payload = self._jws.decode_complete(token, key, algorithms=[algorithm])["payload"]
            claims = json.loads(payload.decode())
        except (self._jwt.PyJWTError, ValueError, RecursionError):
            return INVALID
        found = self._subject(claims) if isinstance(claims, dict) else INVALID
        if isinstance(found, str):
            if len(recent) >= REMEMBERED:
                self._older, self._recent = recent, {}
                recent = self._recent
            ends: float = claims["exp"]
            recent[name] = found, ends + self._leeway
        return found

    def _key(self, kid: object, algorithm: str) -> Any:
        """Our key of that name for that algorithm, or the refusal."""
        keys = self._keys
        if keys is None:
            return self._single[algorithm]
        if not isinstance(kid, str):
            return INVALID
        key = keys.table.get((kid, algorithm))
        if key is not None:
            return key
        now = self._timer()
        if keys.may_ask(now) or keys.under_way():
            return INVALID._replace(lacks=keys)
        return self._unavailable(keys, now) if keys.silent() else INVALID

    # -- claims ---------------------------------------------------------------------------------------------------

    def _subject(self, claims: Mapping[str, Any]) -> str | Rejection:
        refused = self._untimely(claims)
        if refused is not None:
            return refused
        if self._issuers is not None and not _is_one(claims.get("iss"), self._issuers):
            return INVALID
        audience = claims.get("aud")
        if not isinstance(audience, list):
            audience = [] if audience is None else [audience]
        if self._audiences is None:
            if audience:  # RFC 7519, 4.1.3: whoever is not named must refuse
                return INVALID
        elif not any(_is_one(one, self._audiences) for one in audience):
            return INVALID
        return _subject(claims.get(self._claim))

    def _untimely(self, claims: Mapping[str, Any]) -> Rejection | None:
        now, leeway = self._clock(), self._leeway
        ends, begins = claims.get("exp"), claims.get("nbf", 0)
        if not _is_time(ends) or not _is_time(begins):
            return INVALID
        if ends + leeway <= now:
            return EXPIRED
        return EARLY if begins - leeway > now else None

    # -- keys -----------------------------------------------------------------------------------------------------

    def _prepared(self, algorithm: str, key: str | bytes) -> Any:
        """The one key of the application, checked when it starts. Messages never show it."""
        raw = key.encode() if isinstance(key, str) else key
        if algorithm in HMAC and raw.lstrip().startswith((b"-----BEGIN", b"ssh-", b"ecdsa-")):
            raise ConfigurationError(
                f"BearerClaim(key=) is a public key or certificate, and {algorithm} needs a secret: whoever knows the"
                ' public key could sign with it. For a public key write algorithms=["RS256"]'
            )
        try:
            prepared = self._jws.get_algorithm_by_name(algorithm).prepare_key(key)
        except (*_BROKEN, self._jwt.PyJWTError, self._unsupported) as error:
            raise ConfigurationError(f"BearerClaim(key=) is no key for {algorithm} ({type(error).__name__})") from None
        if algorithm in HMAC:
            if len(raw) < _SHORTEST_SECRET[algorithm]:
                raise ConfigurationError(
                    f"BearerClaim(key=) has {len(raw)} bytes, and {algorithm} needs {_SHORTEST_SECRET[algorithm]}"
                    " (RFC 7518, 3.2): make one with secrets.token_urlsafe(64)"
                )
            return prepared
        if hasattr(prepared, "private_bytes"):
            raise ConfigurationError("BearerClaim(key=) is a private key: give its public half, which is all it takes")
        if not _fits(algorithm, prepared):
            raise ConfigurationError(
                f"BearerClaim(key=) does not fit {algorithm}: wrong curve, or a size not from 2048 to 8192 bits"
            )
        return prepared

    def _table(self, document: bytes) -> Table:
        """The keys of a set that are for our algorithms; a name that stands for two keys is left out."""
        table: dict[tuple[str, str], Any] = {}
        twice = set()
        for jwk in read_keys(document):
            for algorithm in self._algorithms:
                kid = jwk.get("kid")
                key = self._made(jwk, algorithm) if _meant(jwk, algorithm) else None
                if not isinstance(kid, str) or key is None:
                    continue
                if (kid, algorithm) in table:
                    twice.add((kid, algorithm))
                table[kid, algorithm] = key
        return {place: key for place, key in table.items() if place not in twice}

    def _made(self, jwk: Jwk, algorithm: str) -> Any:
        public = {name: jwk[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in jwk}
        if not all(isinstance(value, str) and _VALUE.fullmatch(value) for value in public.values()):
            return None
        try:
            key = self._jws.get_algorithm_by_name(algorithm).from_jwk(public)
        except (*_BROKEN, self._jwt.PyJWTError, self._unsupported):
            return None
        return key if _fits(algorithm, key) else None


_KINDS: Final = {"R": "RSA", "P": "RSA", "E": "EC"}
_CURVES: Final = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1", "ES256K": "secp256k1"}


def _meant(jwk: Jwk, algorithm: str) -> bool:
    """Whether the set offers this key for that algorithm (RFC 7517, section 4)."""
    kind = "OKP" if algorithm == "EdDSA" else _KINDS[algorithm[0]]
    operations = jwk.get("key_ops")
    return (
        jwk.get("kty") == kind
        and jwk.get("alg") in (None, algorithm)
        and jwk.get("use") in (None, "sig")
        and (operations is None or (isinstance(operations, list) and "verify" in operations))
    )


def _fits(algorithm: str, key: Any) -> bool:
    """Whether a public key is of the curve or of a size for *algorithm*."""
    if algorithm in _CURVES:
        return bool(key.curve.name == _CURVES[algorithm])
    return algorithm == "EdDSA" or bool(_SMALLEST_RSA <= key.key_size <= _LARGEST_RSA)


def _header(token: str) -> dict[str, Any] | None:
    """What the token says of itself, unverified; None where it is no token."""
    found = _TOKEN.fullmatch(token)
    if found is None or len(found[1]) % 4 == 1:
        return None
    try:
        header = json.loads(base64.urlsafe_b64decode(found[1] + "=" * (-len(found[1]) % 4)).decode())
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _names(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    return None if given is None else (given,) if isinstance(given, str) else tuple(given)


def _is_one(value: object, names: Sequence[str]) -> bool:
    return isinstance(value, str) and value in names


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 and math.isfinite(value)


def _subject(value: object) -> str | Rejection:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**LONGEST:
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST or _SURROGATE.search(value):
        return NAMELESS
    return value


def _library() -> tuple[Any, type[Exception]]:
    try:
        import jwt
        import jwt.algorithms
    except ImportError:
        raise ConfigurationError('BearerClaim verifies with PyJWT: pip install "usagekeeper[jwt]"') from None
    if not jwt.algorithms.has_crypto:
        raise ConfigurationError('BearerClaim needs cryptography: pip install "usagekeeper[jwt]"')
    from cryptography.exceptions import UnsupportedAlgorithm  # a curve that this OpenSSL was built without

    return jwt, UnsupportedAlgorithm
