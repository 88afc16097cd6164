"""Where an identity may be found, as the request path reads it; and what is said where it is not acceptable."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, NamedTuple, Protocol, runtime_checkable

from usagekeeper.errors import ConfigurationError
from usagekeeper.exchange import MANY, Many, One, Request
from usagekeeper.proxies import ClientOf
from usagekeeper.records import digest, is_secret

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


def named(of: object, name: object) -> str:
    """*name* as the name that a strategy needs, checked."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ConfigurationError(f"{type(of).__name__}({name!r}) needs a name")
    return name


def single(values: Sequence[str]) -> One:
    """The one of *values*, or that there are many; None without any."""
    return (values[0] if len(values) == 1 else MANY) if values else None


def acceptor(place: str, name: str, *, secret: bool = False) -> Callable[[One], Found]:
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
        return broken if SURROGATE.search(value) else value

    return accept


SURROGATE = re.compile("[\ud800-\udfff]")
