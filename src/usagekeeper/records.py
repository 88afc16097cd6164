"""The usage record: what it holds, how it is encoded at once on the request path, and what never enters it.

On the request path a record exists only as bytes, as MessagePack: what all records of a route share was encoded before,
and what nearly all records say of their outcome is one nil.
Keeping references instead (headers, scope, environ) costs 4-5 us a request in the garbage collector and its p99 grows
tenfold. Secrets are replaced before that, so nothing behind the request path ever holds one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from itertools import count
from operator import itemgetter
from typing import Any, Final
from urllib.parse import unquote_plus
from uuid import UUID
from weakref import WeakSet

import msgspec

REDACTED: Final = "REDACTED"

ALLOWED: Final = "allowed"
REFUSED: Final = "refused"
SHADOWED: Final = "shadow"
OVER: Final = "soft"
UNMETERED: Final = "unmetered"


class UsageRecord(msgspec.Struct, frozen=True):
    """One finished exchange. Times are microseconds; None is "unknown" or "there was none"."""

    at: int
    """When the request arrived, since the Unix epoch, UTC."""
    serial: int
    """Counts the records of one process; with `at` and `process` it makes the id."""
    process: int
    """48 random bits drawn once per process."""
    application: str
    method: str
    """As sent, for the methods that HTTP knows; else "_OTHER"."""
    scheme: str
    path: str
    query: str
    """Without the question mark; values of secret parameters are replaced."""
    route: str | None
    """The template of the framework's route, else the pattern of ours that matched; None when nothing did."""
    subject: str | None
    subject_kind: str | None
    """"subject" or "address"."""
    outcome: str
    """"allowed", "refused", "shadow" (a shadow policy would have refused), "soft" (over a soft limit) or "unmetered"
    (the counters did not answer and the policy lets through)."""
    reason: str | None
    """Why it was refused: the last part of the problem type."""
    violated: tuple[str, ...]
    """Names of the limits that refused, would have refused, or were passed."""
    policies: tuple[str, ...]
    """Names of the policies that apply."""
    units: int | Decimal
    """What the request cost: the policy's cost and what the handler charged; 0 when refused or free."""
    status: int
    aborted: bool
    """The response did not reach its end: the client left or the application raised in the middle."""
    exception: str | None
    """The class of the exception that the application raised."""
    error_code: str | None
    first_byte: int | None
    """From arrival to the start of the response."""
    duration: int
    """From arrival to the last byte handed to the server."""
    bytes_in: int
    """Body bytes that the application read."""
    bytes_out: int
    """Body bytes handed to the server."""
    response_length: int | None
    response_mimetype: str | None
    referer: str | None
    remote_address: str | None
    auth_scheme: str | None
    auth_digest: str | None
    """Of the credentials, for telling them apart; the credentials themselves are never kept."""
    metadata: dict[str, Any]
    """What the handler noted."""
    host: str | None
    origin: str | None
    user_agent: str | None
    request_length: int | None
    request_mimetype: str | None
    trace_id: str | None
    request_id: str | None

    @property
    def id(self) -> UUID:
        """UUIDv7 layout (RFC 9562, 5.7): milliseconds, 26 bits of the process's counter, 48 bits of the process."""
        return UUID(bytes=record_id(self.at, self.serial, self.process))

    @property
    def url(self) -> str:
        """As the client wrote it, less the secrets."""
        query = f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{self.host or ''}{self.path}{query}"


def record_id(at: int, serial: int, process: int) -> bytes:
    """The 16 bytes of a record's id; sorts by time, then by order within the process."""
    high = (at // 1000 << 16) | 0x7000 | (serial >> 14 & 0xFFF)
    low = 1 << 63 | (serial & 0x3FFF) << 48 | process & 0xFFFF_FFFF_FFFF
    return (high << 64 | low).to_bytes(16, "big")


class Serials:
    """Numbers the records of one process; drawn anew in a forked child."""

    __slots__ = ("__weakref__", "next", "process")

    def __init__(self) -> None:
        self.draw()
        _SERIALS.add(self)

    def draw(self) -> None:
        """Begin a process of its own."""
        self.process = int.from_bytes(os.urandom(6), "big")
        self.next = count(1).__next__


def _after_fork() -> None:
    for serials in list(_SERIALS):
        serials.draw()


_SERIALS: Final[WeakSet[Serials]] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


encode = msgspec.msgpack.Encoder().encode
"""Bytes of a record's values as `grouped` arranges them; text may be given as the server's bytes."""

Rare = tuple[str, str | None, tuple[str, ...], bool, str | None, str | None, Mapping[str, Any]]
"""Outcome, reason, violated, aborted, exception, error code, metadata: all at their defaults in most records."""

_decode = msgspec.msgpack.Decoder(list[Any]).decode
_Credentials = tuple[Any, Any]
_Kept = tuple[Any, Any, Any, Any, Any, Any, Any, Any, _Credentials | None]
_Rare = tuple[Any, Any, list[Any], Any, Any, Any, Any]
take_apart = msgspec.msgpack.Decoder(
    tuple[
        int, int, int, msgspec.Raw, Any, Any, Any, Any, Any, Any, Any, Any, Any, Any, Any, Any, Any, Any, _Kept,
        _Rare | None,
    ]
).decode  # fmt: skip
"""An encoded record as it was grouped, its plan still encoded; raises where it is not of that form."""
take_plan_apart = msgspec.msgpack.Decoder(tuple[Any, Any, Any, list[Any]]).decode
"""Application, method, route and policies."""
_FIELDS: Final = UsageRecord.__struct_fields__
_ID: Final = ("at", "serial", "process")
_PLAN: Final = ("application", "method", "route", "policies")
"""The same for all requests of a route: encoded once, at start-up."""
_OWN: Final = (
    "path", "query", "scheme", "remote_address", "subject", "subject_kind", "units", "status", "first_byte", "duration",
    "bytes_in", "bytes_out", "response_length", "response_mimetype",
)  # fmt: skip
_KEPT: Final = (
    "host",
    "origin",
    "user_agent",
    "request_length",
    "request_mimetype",
    "trace_id",
    "request_id",
    "referer",
)
"""Request headers, and after them the scheme and the digest of credentials, if any."""
_CREDENTIALS: Final = ("auth_scheme", "auth_digest")
_RARE: Final = ("outcome", "reason", "violated", "aborted", "exception", "error_code", "metadata")
_USUAL: Final[Rare] = (ALLOWED, None, (), False, None, None, {})

_WIRE: Final = (*_ID, *_PLAN, *_OWN, *_KEPT, *_CREDENTIALS, *_RARE)
_AT: Final = {name: position for position, name in enumerate(_WIRE)}
_in_order: Final = itemgetter(*(_AT[name] for name in _FIELDS))
LARGE: Final = 6_000
"""Bytes of an encoded record from which on its values are cut."""
_CUT: Final = 512
"""Characters that are kept of a header; of a path and a query four times as many."""


def of_plan(application: str, method: str, route: str | None, policies: Sequence[str]) -> msgspec.Raw:
    """What all records of one route and method share, ready to be copied into each."""
    return msgspec.Raw(encode(tuple(plain(value) for value in (application, method, route, policies))))


def encode_bounded(values: Sequence[Any]) -> bytes:
    """`encode`, with long values cut when they make a large record, so that hostile requests cannot fill the buffer."""
    try:
        encoded = encode(values)
    except (UnicodeEncodeError, OverflowError, TypeError):
        values = tuple(value if isinstance(value, msgspec.Raw) else plain(value) for value in values)
        encoded = encode(values)
    if len(encoded) <= LARGE:
        return encoded
    flat = _flat(_decode(encoded))
    return encode(grouped({name: _cut(name, value) for name, value in zip(_WIRE, flat, strict=True)}))


def grouped(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of a record under the names of its fields, as they are encoded: what goes together is one value."""
    credentials = tuple(values[name] for name in _CREDENTIALS)
    return (
        *(values[name] for name in _ID),
        tuple(values[name] for name in _PLAN),
        *(values[name] for name in _OWN),
        (*(values[name] for name in _KEPT), None if credentials == (None, None) else credentials),
        tuple(values[name] for name in _RARE),
    )


def _flat(values: Sequence[Any]) -> list[Any]:
    """The opposite of `grouped`, in the order of `_WIRE`."""
    kept, rare = values[-2:]
    return [
        *values[: len(_ID)],
        *values[len(_ID)],
        *values[len(_ID) + 1 : -2],
        *kept[:-1],
        *(kept[-1] or (None, None)),
        *(rare or _USUAL),
    ]


def _cut(name: str, value: Any) -> Any:
    if name == "metadata":
        return value if len(encode(value)) <= 16 * _CUT else {"_dropped": "more than 8 KiB of notes"}
    length = 4 * _CUT if name in ("path", "query") else _CUT
    return value[:length] if isinstance(value, str | bytes) else value


def plain(value: Any) -> Any:
    """*value* as `encode` and every store can keep it: text that is Unicode, integers of 64 bits, plain data."""
    if isinstance(value, str):
        # Half a surrogate pair: JSON can spell one, and undecodable bytes become one under "surrogateescape".
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, bool | None):
        return value
    if isinstance(value, int):
        # Python itself refuses to write out more than 4,300 digits.
        return int(value) if value.bit_length() < 64 else str(int(value)) if value.bit_length() < 1024 else REDACTED
    # NumPy's numbers are Python's as well, and `encode` knows no subclasses.
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bytes | Decimal):
        return bytes(value) if isinstance(value, bytes) else Decimal(value)
    if isinstance(value, Mapping):
        return {plain(str(name)): plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence):
        return [plain(inner) for inner in value]
    return plain(str(value))


def decode(encoded: bytes) -> UsageRecord:
    """What `encode` was given, as a record."""
    values = _flat(_decode(encoded))
    for position, read in _READ.items():
        if values[position] is not None:
            values[position] = read(values[position])
    return UsageRecord(*_in_order(values))  # by keyword it takes five times as long


def read_text(value: str | bytes | None) -> str | None:
    """Header bytes, in WSGI as Latin-1 text, are Latin-1 by protocol (RFC 9110, 5.5); meant is nearly always UTF-8."""
    if value is None:
        return None
    try:
        return (value.encode("latin-1") if isinstance(value, str) else value).decode()
    except UnicodeError:
        return value if isinstance(value, str) else value.decode("latin-1")


def read_mimetype(value: str | bytes | None) -> str | None:
    """A Content-Type without its parameters, in lower case."""
    text = read_text(value)
    return text.split(";", 1)[0].strip().lower() or None if text else None


def read_length(value: str | bytes | int | None) -> int | None:
    """A Content-Length; None where it is no number."""
    if isinstance(value, int):
        return value
    # Text of a header may hold digits of other scripts, or thousands of them: `int` refuses both.
    return int(value) if value is not None and value.isdigit() and value.isascii() and len(value) < 19 else None


def read_units(value: int | str) -> int | Decimal:
    """Units as they were encoded: a Decimal as text."""
    return value if isinstance(value, int) else Decimal(value)


_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.ASCII)


def read_trace(value: str | bytes | None) -> str | None:
    """The trace of a traceparent header (W3C Trace Context); None where it is none."""
    found = _TRACEPARENT.fullmatch(read_text(value) or "")
    return found[1] if found and found[1] != "0" * 32 else None


_READ: Final[Mapping[int, Any]] = {
    _AT["query"]: read_text,
    _AT["host"]: read_text,
    _AT["violated"]: tuple,
    _AT["policies"]: tuple,
    _AT["units"]: read_units,
    _AT["request_length"]: read_length,
    _AT["request_mimetype"]: read_mimetype,
    _AT["response_length"]: read_length,
    _AT["response_mimetype"]: read_mimetype,
    _AT["referer"]: read_text,
    _AT["origin"]: read_text,
    _AT["user_agent"]: read_text,
    _AT["trace_id"]: read_trace,
    _AT["request_id"]: read_text,
}

# -- what never enters a record ---------------------------------------------------------------------------------------

SECRET_NAMES: Final = (
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "client-secret",
    "api-key",
    "apikey",
    "x-api-key",
    "key",
    "access-key",
    "private-key",
    "token",
    "access-token",
    "refresh-token",
    "id-token",
    "auth",
    "auth-token",
    "x-auth-token",
    "bearer",
    "jwt",
    "session",
    "sessionid",
    "session-id",
    "sid",
    "csrf",
    "csrf-token",
    "xsrf-token",
    "credential",
    "credentials",
    "code",
    "auth-code",
    "authorization-code",
    "code-verifier",
    "client-assertion",
    "id-token-hint",
    "otp",
    "passcode",
    "pin",
    "cvv",
    "card-number",
    "ssn",
    "sig",
    "signature",
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "awsaccesskeyid",
    "x-goog-signature",
    "x-goog-credential",
)
"""Names whose values are secrets, in headers, queries and notes; "_" and "-" and case do not matter."""

_SECRETS: Final = frozenset(name.replace("-", "") for name in SECRET_NAMES)
_SECRET_ENDS: Final = ("apikey", "accesskey", "privatekey", "token", "signature", "credential")
_SECRET_PARTS = re.compile("passw(?:or)?d|passphrase|secret")
_NOISE = re.compile(r"[^\w.\[\]:/|>]+|_+")
_NESTING = re.compile(r"[.\[\]:/|>]+")
"""As in user.pin, user[pin], user:pin, user/pin and user->pin."""
_USERINFO = re.compile(r"(//)[^/?#]*@", re.ASCII)


def is_secret(name: str) -> bool:
    """Whether a header, parameter or note of this name holds a secret; what is too long to tell does."""
    return len(name) > _CUT or _is_secret(name)


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    nested = _NOISE.sub("", unquote_plus(name).lower())
    return any(
        plain in _SECRETS or plain.endswith(_SECRET_ENDS) or _SECRET_PARTS.search(plain)
        for plain in (_NESTING.sub("", nested), *_NESTING.split(nested))
    )


def redact_query(query: str) -> str:
    """*query*, at most its first 2,048 characters, with the values of secret parameters replaced; the names stay."""
    if ";" in query:  # some servers still take it for an ampersand
        return "".join([_redact_pair(part) for part in _PAIRS.findall(query[: 4 * _CUT])])
    return "&".join([_redact_pair(pair) for pair in query[: 4 * _CUT].split("&")])


_PAIRS = re.compile("[&;]|[^&;]+")


def _redact_pair(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    return f"{name}={REDACTED}" if equals and is_secret(name) else pair


def redact_url(url: str) -> str:
    """*url* without user, password, secret parameters and fragment; nothing of one beyond 8,192 characters."""
    if len(url) > 16 * _CUT:
        return REDACTED
    address, _, _ = url.partition("#")
    address, mark, query = address.partition("?")
    return _USERINFO.sub(r"\1", address) + mark + redact_query(query)


def redact(value: Any, *, depth: int = 8) -> Any:
    """A copy of a note in which the values under secret names are replaced and everything is plain data."""
    if isinstance(value, str | bool | int | float | None):
        return value
    if depth == 0:
        return REDACTED
    named = _named(value)
    if named is not None:
        return {
            str(name): REDACTED if is_secret(str(name)) else redact(inner, depth=depth - 1)
            for name, inner in named.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [redact(inner, depth=depth - 1) for inner in value]
    return str(value)


def _named(value: Any) -> Mapping[Any, Any] | None:
    """The parts of *value* under their names, where it has such: text that an object makes of itself hides them."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    dump = getattr(value, "_asdict", None) or getattr(value, "model_dump", None)  # named tuples, Pydantic's models
    parts = dump() if callable(dump) and not isinstance(value, type | Mapping) else value
    return parts if isinstance(parts, Mapping) else None


_SCHEMES: Final = frozenset(
    ("basic", "bearer", "digest", "dpop", "gnap", "hoba", "mutual", "negotiate", "ntlm", "oauth", "privatetoken",
     "scram-sha-1", "scram-sha-256", "vapid", "apikey", "token", "aws4-hmac-sha256")
)  # fmt: skip


def digest(secret: bytes) -> str:
    """32 hexadecimal characters that tell secrets apart without telling them."""
    return blake2b(secret, digest_size=16, person=b"usagekeeper").hexdigest()


def authorization(value: bytes) -> tuple[str | None, str | None]:
    """Scheme and digest of an Authorization header. Basic has no digest: a password can be guessed from one."""
    scheme, credentials = (*value.split(None, 1), b"", b"")[:2]
    known = scheme.decode("latin-1").lower()
    if not credentials or known not in _SCHEMES:
        return None, digest(value)
    return known, None if known == "basic" else digest(credentials.strip())
