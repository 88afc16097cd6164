"""Bearer claims: what a verified token has to say, as a value that is checked at the start. Verifies nothing itself."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from usagekeeper.errors import ConfigurationError
from usagekeeper.exchange import Many, Request, header_key
from usagekeeper.proxies import ClientOf
from usagekeeper.records import redact_url
from usagekeeper.sources import Found, Read, Rejection, Source, named, single

Verify = Callable[[str], "str | Rejection"]
"""The subject that a token names, or why it is not accepted."""


@dataclass(frozen=True, slots=True)
class BearerClaim:
    """A claim of a verified JSON Web Token: ``BearerClaim("sub", key=…, algorithms=["RS256"], issuer=…, audience=…)``.

    The token is that of ``Authorization: Bearer``, or of a *cookie*. *key* is a public key (PEM) or, for HMAC, a
    secret; *jwks_url* names a published key set instead. *algorithms* is a list without "none", of one kind: HMAC or
    public keys. *issuer* and *audience* are a text or a list of them; None is for *key* alone, whose holder is the only
    issuer and whose tokens name no audience. *leeway* is the seconds by which clocks may differ. A token must expire.
    Needs the extra `jwt`, and `http` for *jwks_url*.
    """

    claim: str
    _: KW_ONLY
    key: str | bytes | None = field(default=None, repr=False)
    jwks_url: str | None = None
    algorithms: Sequence[str]
    issuer: str | Sequence[str] | None
    audience: str | Sequence[str] | None
    cookie: str | None = None
    leeway: float = 0

    def __post_init__(self) -> None:
        named(self, self.claim)
        object.__setattr__(self, "algorithms", _algorithms(self.algorithms))
        for name in ("issuer", "audience"):
            object.__setattr__(self, name, _expected(name, getattr(self, name)))
        if (self.key is None) == (self.jwks_url is None):
            raise ConfigurationError(f"BearerClaim({self.claim!r}) needs key= or jwks_url=, one of them: {RIGHT_LINE}")
        if self.jwks_url is not None:
            self._check_url(self.jwks_url)
        elif not isinstance(self.key, str | bytes) or not self.key:
            raise ConfigurationError(f"BearerClaim(key=) is a PEM text or a secret, not a {type(self.key).__name__}")
        if self.cookie is not None:
            named(self, self.cookie)
        if isinstance(self.leeway, bool) or not isinstance(self.leeway, int | float) or not 0 <= self.leeway <= 300:
            raise ConfigurationError(f"BearerClaim(leeway=) is between 0 and 300 seconds, not {self.leeway!r}")

    def _check_url(self, url: str) -> None:
        if self.algorithms[0].startswith("HS"):
            raise ConfigurationError(
                f"BearerClaim(jwks_url=) publishes its keys, and {self.algorithms[0]} needs a secret: give key=,"
                ' or algorithms of public keys such as ["RS256"]'
            )
        if not isinstance(url, str) or not _fetchable(url):
            raise ConfigurationError(
                "BearerClaim(jwks_url=) is https:// without user or password (http:// on the loopback alone),"
                f" not {redact_url(str(url))!r}"
            )
        for name in ("issuer", "audience"):
            if getattr(self, name) is None:
                raise ConfigurationError(f"BearerClaim(jwks_url=) needs {name}=: a key set serves many applications")

    def verified(self, verify: Verify) -> Verified:
        """The strategy whose tokens *verify* reads."""
        return Verified(self, verify)


@dataclass(frozen=True, slots=True)
class Verified:
    """A bearer claim, and what verifies it."""

    claim: BearerClaim
    verify: Verify

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """One source."""
        absent = Rejection(401, "missing-identity", "This request does not say who it is from.", BEARER)
        read = _cookie_token(self.claim.cookie, self.verify) if self.claim.cookie else _bearer_token(self.verify)
        return (Source(read, "subject", absent=absent),)


def _bearer_token(verify: Verify) -> Read:
    _, raw, environ = header_key("authorization")

    def read(request: Request) -> Found:
        value = request.one(raw, environ)
        if value is None:
            return None
        # Servers join repeated headers with commas, some before we see them; no token holds one.
        if isinstance(value, Many) or _SECOND_BEARER.search(value):
            return _TWO_TOKENS
        scheme, _, token = value.partition(" ")
        return verify(token.strip(" ")) if scheme.lower() == "bearer" else None

    return read


def _cookie_token(name: str, verify: Verify) -> Read:
    def read(request: Request) -> Found:
        value = single(request.cookie_values(name))
        if not value:
            return None
        return _TWO_TOKENS if isinstance(value, Many) else verify(value)

    return read


BEARER: Final = "Bearer"
"""The challenge of RFC 6750, section 3, to a request without credentials."""
_TWO_TOKENS: Final = Rejection(
    400, "ambiguous-identity", "A bearer token was given more than once.", 'Bearer error="invalid_request"'
)
_SECOND_BEARER: Final = re.compile(r"^bearer\b.*,|,\s*bearer\b", re.IGNORECASE | re.DOTALL)
RIGHT_LINE: Final = (
    'write BearerClaim("sub", key=PUBLIC_KEY, algorithms=["RS256"], issuer="https://login.example.org", audience="api")'
)

HMAC: Final = ("HS256", "HS384", "HS512")
PUBLIC: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "ES256K", "EdDSA",
)  # fmt: skip


def _algorithms(given: object) -> tuple[str, ...]:
    names = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if not names or any(name not in (*HMAC, *PUBLIC) for name in names):
        raise ConfigurationError(
            f'BearerClaim(algorithms=) is a list such as ["RS256"], not {given!r}: each is one of'
            f" {', '.join((*HMAC, *PUBLIC))}"
        )
    if len({name in HMAC for name in names}) > 1:
        raise ConfigurationError(
            f"BearerClaim(algorithms=) mixes HMAC and public keys in {list(names)!r}: whoever knows the public key"
            " could sign with it; give each kind a BearerClaim of its own"
        )
    return names


def _expected(option: str, given: object) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigurationError(f"BearerClaim({option}=) is a text or a list of texts, not {given!r}")
    return names


def _fetchable(url: str) -> bool:
    """Whether keys may come from there: nobody on the way can have changed them."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _loopback(host))


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_JWT_FORM: Final[Mapping[str, str]] = {
    "jwtSecret": "key",
    "jwtPublicKey": "key",
    "jwksUrl": "jwks_url",
    "jwtAlgorithms": "algorithms",
    "jwtIssuer": "issuer",
    "jwtAudience": "audience",
    "jwtLeeway": "leeway",
}
JWT_COOKIE: Final = re.compile(r"\[technique=jwt\](?P<cookie>[^\[\]]+)\[pick=(?P<claim>[^\[\]]+)\]")


def declared_claim(form: Mapping[str, Any], claim: str, cookie: str | None) -> BearerClaim:
    """A claim of a token. One that nothing verifies is never accepted."""
    given = {option: form[key] for key, option in _JWT_FORM.items() if key in form}
    known = {"identityFieldName", "identityFieldLocation", *_JWT_FORM}
    if not form.keys() <= known or len({"jwtSecret", "jwtPublicKey", "jwksUrl"} & form.keys()) != 1:
        raise ConfigurationError(f"{_without_keys(form)!r} names no key that tokens are verified with: {_JWT_LINE}")
    missing = [key for key in ("jwtAlgorithms", "jwtIssuer", "jwtAudience") if key not in form]
    if missing:
        raise ConfigurationError(f"{_without_keys(form)!r} lacks {', '.join(missing)}: {_JWT_LINE}")
    if "jwtSecret" in form and not all(name in HMAC for name in _algorithms(given["algorithms"])):
        raise ConfigurationError("jwtSecret is for HMAC (HS256, HS384, HS512): give a public key as jwtPublicKey")
    if "jwtPublicKey" in form and any(name in HMAC for name in _algorithms(given["algorithms"])):
        raise ConfigurationError("jwtPublicKey is no secret, which HMAC needs: give jwtSecret, or another algorithm")
    return BearerClaim(claim, cookie=cookie, **given)


def _without_keys(form: Mapping[str, Any]) -> dict[str, Any]:
    return {name: "..." if name in ("jwtSecret", "jwtPublicKey") else value for name, value in form.items()}


_JWT_LINE: Final = (
    'write {"identityFieldName": "sub", "identityFieldLocation": "bearer_token",'
    ' "jwksUrl": "https://login.example.org/keys" (or "jwtPublicKey", "jwtSecret"), "jwtAlgorithms": ["RS256"],'
    ' "jwtIssuer": "https://login.example.org", "jwtAudience": "api"}'
)
