"""Who is asking: strategies that read a subject from a request.

A strategy is a small value. At start-up it is turned into *sources*, plain functions that the request path calls one
after the other. A header, query, cookie or body value is taken at its word: such strategies limit by value only, and a
second policy on `ClientAddress()` bounds abuse. What a client gives twice is rejected, not chosen from. The claims of a
token are verified, by a function that the keeper hands in.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from usagekeeper.bearer import JWT_COOKIE, BearerClaim, Verify, declared_claim
from usagekeeper.errors import ConfigurationError, shown
from usagekeeper.exchange import MANY, Many, One, Request, header_key
from usagekeeper.proxies import ClientOf, address_key
from usagekeeper.records import is_secret
from usagekeeper.routes import canonical
from usagekeeper.sources import (
    LARGEST_BODY,
    LONGEST,
    Found,
    Rejection,
    Source,
    Strategy,
    acceptor,
    named,
    single,
)

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
        if not _TOKEN.fullmatch(named(self, self.name).strip()):
            raise ConfigurationError(f"Header({self.name!r}) names no header: a name is letters, digits and dashes")
        name, raw, environ = header_key(self.name)
        accept = acceptor("header", name)
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
        name = named(self, self.name)
        accept = acceptor("query parameter", name)
        return (Source(lambda request: accept(single(request.query_values(name))), "subject"),)


@dataclass(frozen=True, slots=True)
class Cookie:
    """The value of a cookie, as a digest: cookies are secrets."""

    name: str

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """One source."""
        name = named(self, self.name)
        accept = acceptor("cookie", name, secret=True)
        return (Source(lambda request: accept(single(request.cookie_values(name))), "subject"),)


@dataclass(frozen=True, slots=True)
class PathParam:
    """A segment of the path, by the name that the policy's pattern or the framework's route gives it."""

    name: str

    def sources(self, client_of: ClientOf) -> tuple[Source, ...]:
        """One source."""
        name = named(self, self.name)
        accept = acceptor("path parameter", name)

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
        accept = acceptor("header", "host")

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
        names = named(self, self.path).split(".")
        accept = acceptor("body field", names[-1])
        _, raw, environ = header_key("content-type")

        large = Rejection(413, "body-too-large", f"The body is larger than {LARGEST_BODY} bytes.")

        def read(request: Request) -> Found:
            if request.oversized:
                return large
            kind = request.one(raw, environ)
            mimetype = kind.partition(";")[0].strip().lower() if isinstance(kind, str) else ""
            body = request.body or b""
            if mimetype == "application/x-www-form-urlencoded":
                return accept(single(request.form_values(".".join(names))))
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
        accept = acceptor("identity of", getattr(function, "__name__", repr(function)))
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


def _declared(form: Mapping[str, Any]) -> Strategy | BearerClaim:
    name, location = form.get("identityFieldName"), form.get("identityFieldLocation")
    if isinstance(name, str) and location == "bearer_token":
        return declared_claim(form, name, None)
    if isinstance(name, str) and location == "cookie" and name.startswith("["):
        if found := JWT_COOKIE.fullmatch(name):
            return declared_claim(form, found["claim"], found["cookie"])
        raise ConfigurationError(f'{name!r} names no cookie: write "session", or "[technique=jwt]session[pick=sub]"')
    build = _LOCATIONS.get(str(location))
    if build is None or not isinstance(name, str) or len(form) != 2:
        raise ConfigurationError(
            f"{dict(form)!r} is no strategy: write"
            ' {"identityFieldName": "userId", "identityFieldLocation": "headers"}'
            f" with one of {', '.join(_LOCATIONS)}, bearer_token"
        )
    return build(name)


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


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
