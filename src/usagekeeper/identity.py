"""Who is asking: strategies that read a subject from a request.

A strategy is a small value. At start-up it is turned into *sources*, plain functions that the request path calls one
after the other. A header, query, cookie or body value is taken at its word: such strategies limit by value only, and a
second policy on `ClientAddress()` bounds abuse. What a client gives twice is rejected, not chosen from. The claims of a
token are verified, by a function that the keeper hands in.
"""

from __future__ import annotations

import inspect
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Final, Literal, NamedTuple, Protocol, runtime_checkable
from urllib.parse import urlsplit

from usagekeeper.errors import ConfigurationError, shown
from usagekeeper.exchange import MANY, Many, One, Request, header_key
from usagekeeper.proxies import ClientOf, address_key
from usagekeeper.records import digest, is_secret, redact_url
from usagekeeper.routes import canonical

SubjectKind = Literal["subject", "address"]
LONGEST: Final = 256
"""Characters of a subject; longer values are rejected."""
LARGEST_BODY: Final = 65_536
"""Bytes of a body that is read for an identity; larger ones are rejected."""


class Lack(Protocol):
    """What has to be fetched before an identity is known. Neither half raises: the next look tells what came of it."""

    def fetch(self) -> None:
        """Fetch it, or wait for whoever does already; for seconds at most."""

    async def afetch(self) -> None:
        """The same, on a running loop."""


class Rejection(NamedTuple):
    """Why a request has no acceptable identity."""

    status: int
    reason: str
    detail: str
    challenge: str | None = None
    """The WWW-Authenticate that fits the strategy."""
    retry_after: int | None = None
    lacks: Lack | None = None
    """Where given, the answer may be another one after this was fetched."""


Found = str | Rejection | None
Read = Callable[[Request], Found]
ReadLater = Callable[[Request], Awaitable[Found]]


class Source(NamedTuple):
    """One place where an identity may be, ready to be read."""

    read: Read
    kind: SubjectKind
    body: bool = False
    later: ReadLater | None = None
    absent: Rejection | None = None
    """What is said to a request without this identity, where that is refused unless the policy says otherwise."""


@runtime_checkable
class Strategy(Protocol):
    """Names the subject of a request."""

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """Where to look, in order; *client_of* reads the client's address."""
        ...


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
        _named(self, self.claim)
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
            _named(self, self.cookie)
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
        value = _single(request.cookie_values(name))
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


Identity = Strategy | BearerClaim | Callable[[Request], Any] | Mapping[str, Any]
"""What may be given as a strategy."""
VerifierOf = Callable[[BearerClaim], Verify]


def verified(given: Identity, verifier_of: VerifierOf) -> Strategy:
    """*given* as a strategy, its bearer claims with what *verifier_of* makes of them."""
    if isinstance(given, Mapping):
        given = _declared(given)
    if isinstance(given, FirstOf):
        return FirstOf(*(verified(one, verifier_of) for one in given.strategies))
    return given.verified(verifier_of(given)) if isinstance(given, BearerClaim) else strategy(given)


@dataclass(frozen=True, slots=True)
class Header:
    """The value of a request header. Values of secret headers (X-API-Key) become a digest, so none is ever kept."""

    name: str

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """One source."""
        if not _TOKEN.fullmatch(_named(self, self.name).strip()):
            raise ConfigurationError(f"Header({self.name!r}) names no header: a name is letters, digits and dashes")
        name, raw, environ = header_key(self.name)
        accept = _acceptor("header", name)
        plain = not is_secret(name)
        joined = Rejection(400, "ambiguous-identity", f"The header {name} was given more than once.")

        def read(request: Request) -> Found:
            value = request.one(raw, environ)
            if value is None or isinstance(value, Many):
                return None if value is None else joined
            # Servers join repeated headers with commas, some before we see them: both spellings are several values.
            if "," in value:
                return joined
            if plain and value.isascii() and 0 < len(value) <= LONGEST:
                return value
            return accept(value if value.isascii() else _meant(value))

        return (Source(read, "subject"),)


@dataclass(frozen=True, slots=True)
class Query:
    """The value of a query parameter."""

    name: str

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """One source."""
        name = _named(self, self.name)
        accept = _acceptor("query parameter", name)
        return (Source(lambda request: accept(_single(request.query_values(name))), "subject"),)


@dataclass(frozen=True, slots=True)
class Cookie:
    """The value of a cookie, as a digest: cookies are secrets."""

    name: str

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """One source."""
        name = _named(self, self.name)
        accept = _acceptor("cookie", name, secret=True)
        return (Source(lambda request: accept(_single(request.cookie_values(name))), "subject"),)


@dataclass(frozen=True, slots=True)
class PathParam:
    """A segment of the path, by the name that the policy's pattern or the framework's route gives it."""

    name: str

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """One source."""
        name = _named(self, self.name)
        accept = _acceptor("path parameter", name)

        def read(request: Request) -> Found:
            position = request.positions.get(name)
            segments = canonical(request.path).split("/") if position is not None else ()
            return accept(segments[position]) if position is not None and position < len(segments) else None

        return (Source(read, "subject"),)


@dataclass(frozen=True, slots=True)
class Host:
    """The host that the request names, in lower case and without port."""

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """One source."""
        _, raw, environ = header_key("host")
        accept = _acceptor("header", "host")

        def read(request: Request) -> Found:
            value = request.one(raw, environ)
            if isinstance(value, str):
                return accept(MANY if "," in value else _host(value))
            return accept(value)

        return (Source(read, "subject"),)


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """The client's address, IPv6 by network: one client owns a whole /64 (*prefix*)."""

    prefix: int = 64

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """One source."""
        prefix = self.prefix
        if not isinstance(prefix, int) or not 32 <= prefix <= 128:
            raise ConfigurationError(f"ClientAddress(prefix=) is between 32 and 128 bits, not {shown(prefix)}")

        def read(request: Request) -> Found:
            address = client_of(request)
            return None if address is None else address_key(address, prefix)

        return (Source(read, "address"),)


@dataclass(frozen=True, slots=True)
class Everyone:
    """One subject for all: a limit on the whole application."""

    value: ClassVar[str] = ""  # no client can send an empty identity, so nobody can name this subject

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """One source."""
        return (Source(lambda request: "", "subject"),)


@dataclass(frozen=True, slots=True)
class Body:
    """A field of the body, "user.id" in JSON or a field of a form (application/x-www-form-urlencoded).

    The body is read before the application runs, at most 64 KiB of it (larger ones are refused with 413); the
    application still receives all of it.
    """

    path: str

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """One source."""
        names = _named(self, self.path).split(".")
        accept = _acceptor("body field", names[-1])
        _, raw, environ = header_key("content-type")

        large = Rejection(413, "body-too-large", f"The body is larger than {LARGEST_BODY} bytes.")

        def read(request: Request) -> Found:
            if request.oversized:
                return large
            kind = request.one(raw, environ)
            mimetype = kind.partition(";")[0].strip().lower() if isinstance(kind, str) else ""
            body = request.body or b""
            if mimetype == "application/x-www-form-urlencoded":
                return accept(_single(request.form_values(".".join(names))))
            if mimetype == "application/json" or mimetype.endswith("+json"):
                return _accept_json(accept, _field(body, names))
            return None

        return (Source(read, "subject", body=True),)


@dataclass(frozen=True, slots=True, init=False)
class FirstOf:
    """The first strategy that finds an identity; an unacceptable one is refused, not passed over."""

    strategies: tuple[Identity, ...]

    def __init__(self, *strategies: Identity) -> None:
        if not strategies:
            raise ConfigurationError('FirstOf() needs strategies: FirstOf(Header("X-Customer"), ClientAddress())')
        object.__setattr__(self, "strategies", strategies)

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """Those of all, in order."""
        return tuple(source for one in self.strategies for source in strategy(one).sources(client_of))


@dataclass(frozen=True, slots=True)
class Asked:
    """A callable of the user, sync or async, that names the subject itself."""

    function: Callable[[Request], Any]

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """One source."""
        function = self.function
        accept = _acceptor("identity of", getattr(function, "__name__", repr(function)))
        if not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)):
            return (Source(lambda request: accept(_said(function(request), function)), "subject"),)

        async def later(request: Request) -> Found:
            return accept(_said(await function(request), function))

        return (Source(lambda request: None, "subject", later=later),)


_LOCATIONS: Final[Mapping[str, Callable[[str], Strategy]]] = {
    "headers": Header,
    "query": Query,
    "query_params": Query,
    "body": Body,
    "path_params": PathParam,
    "cookie": Cookie,
}


def strategy(given: Identity) -> Strategy:
    """*given* as a strategy: one, a callable, or UsageFlow's declarative form. Bearer claims take `verified`."""
    if isinstance(given, Mapping):
        given = _declared(given)
    if isinstance(given, BearerClaim):
        raise ConfigurationError(f"{given!r} is verified by a keeper: give it to UsageKeeper(...) or a middleware")
    if isinstance(given, Strategy) and not isinstance(given, type):
        return given
    if callable(given) and not isinstance(given, type):
        return Asked(given)
    raise ConfigurationError(
        f'{given!r} is no identity strategy: give one such as Header("X-Customer"),'
        " or a callable (Request) -> str | None"
    )


_JWT_FORM: Final[Mapping[str, str]] = {
    "jwtSecret": "key",
    "jwtPublicKey": "key",
    "jwksUrl": "jwks_url",
    "jwtAlgorithms": "algorithms",
    "jwtIssuer": "issuer",
    "jwtAudience": "audience",
    "jwtLeeway": "leeway",
}
_JWT_COOKIE: Final = re.compile(r"\[technique=jwt\](?P<cookie>[^\[\]]+)\[pick=(?P<claim>[^\[\]]+)\]")


def _declared_claim(form: Mapping[str, Any], claim: str, cookie: str | None) -> BearerClaim:
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


def _declared(form: Mapping[str, Any]) -> Strategy | BearerClaim:
    name, location = form.get("identityFieldName"), form.get("identityFieldLocation")
    if isinstance(name, str) and location == "bearer_token":
        return _declared_claim(form, name, None)
    if isinstance(name, str) and location == "cookie" and name.startswith("["):
        if found := _JWT_COOKIE.fullmatch(name):
            return _declared_claim(form, found["claim"], found["cookie"])
        raise ConfigurationError(f'{name!r} names no cookie: write "session", or "[technique=jwt]session[pick=sub]"')
    build = _LOCATIONS.get(str(location))
    if build is None or not isinstance(name, str) or len(form) != 2:
        raise ConfigurationError(
            f"{dict(form)!r} is no strategy: write"
            ' {"identityFieldName": "userId", "identityFieldLocation": "headers"}'
            f" with one of {', '.join(_LOCATIONS)}, bearer_token"
        )
    return build(name)


def _named(of: object, name: object) -> str:
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ConfigurationError(f"{type(of).__name__}({name!r}) needs a name")
    return name


def _single(values: Sequence[str]) -> One:
    return (values[0] if len(values) == 1 else MANY) if values else None


def _acceptor(place: str, name: str, *, secret: bool = False) -> Callable[[One], Found]:
    """A check of what a client gave: one value, not empty, not too long; secrets leave as a digest."""
    many = Rejection(400, "ambiguous-identity", f"The {place} {name} was given more than once.")
    long = Rejection(400, "invalid-identity", f"The {place} {name} is longer than {LONGEST} characters.")
    broken = Rejection(400, "invalid-identity", f"The {place} {name} is not Unicode text.")
    hide = secret or is_secret(name)

    def accept(value: One) -> Found:
        if not value:
            return None
        if isinstance(value, Many):
            return many
        if hide:
            return "digest:" + digest(value.encode("utf-8", "surrogatepass"))
        if len(value) > LONGEST:
            return long
        return broken if _SURROGATE.search(value) else value

    return accept


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SURROGATE = re.compile("[\ud800-\udfff]")


def _host(value: str) -> str:
    """The host of "example.com:8000" or "[::1]:8000", spelled in one way."""
    host = value.strip().lower()
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0].removesuffix(".")


def _meant(value: str) -> str:
    """Header text arrives as Latin-1; where its bytes are UTF-8, that is what was meant."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


class _Members(list[tuple[str, Any]]):
    """A JSON object, with what it says twice."""


def _field(body: bytes, names: Sequence[str]) -> Any:
    """What stands at *names*, read with the parser of most frameworks; MANY where one of them stands there twice."""
    try:
        value: Any = json.loads(body, object_pairs_hook=_Members)
    except (ValueError, RecursionError):
        return None
    for name in names:
        found = [inner for key, inner in value if key == name] if isinstance(value, _Members) else []
        if len(found) > 1:
            return MANY
        value = found[0] if found else None
    return value


def _accept_json(accept: Callable[[One], Found], value: Any) -> Found:
    if value is None or isinstance(value, str | Many):
        return accept(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return accept(str(value))
    return Rejection(400, "invalid-identity", "An identity in the body is a text or a whole number.")


def _said(value: Any, function: Callable[..., Any]) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"the identity callable {function!r} returned {value!r}: it returns a text or None")
