"""One HTTP exchange as the engine sees it, whichever server protocol carried it.

The last place that knows a scope from an environ. What a client sends is read as the server handed it over; nothing
here trusts a forwarded header, `proxies` decides that.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_plus

import msgspec

HeaderList = list[tuple[bytes, bytes]]


class HeaderKey(NamedTuple):
    """A header's name in the two spellings that servers use."""

    name: str
    raw: bytes
    environ: str


def header_key(name: str) -> HeaderKey:
    """The spellings of header *name*; case does not matter."""
    lower = name.strip().lower()
    upper = lower.replace("-", "_").upper()
    plain = upper in ("CONTENT_TYPE", "CONTENT_LENGTH")
    return HeaderKey(lower, lower.encode("latin-1"), upper if plain else f"HTTP_{upper}")


class Many:
    """Said instead of a value where a client gave several: choosing one would let it choose who it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MANY"


MANY: Final = Many()
One = str | Many | None

Text = str | bytes | None
Observed = tuple[Text, Text, str | None, list[Any]]
"""What a record is made of, as the server's own bytes or text: scheme, query, peer and the headers of `OBSERVED`, those
in a list, because a tuple that is made of an iterator counts as kept until the garbage collector has looked at it."""

OBSERVED: Final = (
    "host", "origin", "user-agent", "content-length", "content-type", "traceparent", "x-request-id",
    "referer", "authorization",
)  # fmt: skip
"""Headers that a record is made of. All but the last two, which are redacted first, are kept as they are."""


class Request(msgspec.Struct):
    """What strategies and callables may ask of a request."""

    method: str
    """As sent."""
    path: str
    """Decoded, as the server handed it over, below the mount."""

    @property
    @abstractmethod
    def query(self) -> str:
        """Without the question mark, not decoded."""

    @property
    @abstractmethod
    def scheme(self) -> str:
        """ "http" or "https", as the server saw it."""

    @property
    @abstractmethod
    def peer(self) -> str | None:
        """The address at the other end of the socket, as the server tells it."""

    @property
    @abstractmethod
    def has_body(self) -> bool:
        """Whether the client announced a body (RFC 9112, 6.3)."""

    @property
    @abstractmethod
    def body(self) -> bytes | None:
        """The whole body, where a strategy asked for it; None otherwise."""

    @body.setter
    def body(self, body: bytes | None) -> None: ...

    @property
    @abstractmethod
    def oversized(self) -> bool:
        """The body was asked for and is larger than an identity may be."""

    @oversized.setter
    def oversized(self, oversized: bool) -> None: ...

    @property
    @abstractmethod
    def positions(self) -> Mapping[str, int]:
        """Where the named segments of the matching patterns stand in ``canonical(path).split("/")``."""

    @positions.setter
    def positions(self, positions: Mapping[str, int]) -> None: ...

    @abstractmethod
    def values(self, key: HeaderKey) -> list[str]:
        """Every value of a header, in order; a server that joins them gives one."""

    @abstractmethod
    def one(self, raw: bytes, environ: str) -> One:
        """The single value of a header, by the names it has in a scope and in an environ."""

    @abstractmethod
    def observed(self) -> Observed:
        """What every record keeps; unread."""

    def header(self, name: str) -> str | None:
        """Header *name*; several values are joined with commas, as HTTP allows."""
        values = self.values(header_key(name))
        return ", ".join(values) if values else None

    def query_values(self, name: str) -> list[str]:
        """Every value of query parameter *name*, decoded."""
        return pair_values(self.query, name)

    def form_values(self, name: str) -> list[str]:
        """Every value of *name* in the body as a form, decoded."""
        return pair_values((self.body or b"").decode("latin-1"), name)

    def cookie_values(self, name: str) -> list[str]:
        """Every value of cookie *name* (RFC 6265, 5.4); names are exact."""
        found = []
        for line in self.values(_COOKIE):
            for pair in line.split(";"):
                key, equals, value = pair.partition("=")
                if equals and key.strip() == name:
                    found.append(_unquoted(value.strip()))
        return found


_ESCAPED = re.compile(r"\\(?:([0-3][0-7]{2})|(.))")


def _unquoted(value: str) -> str:
    """A cookie's value as frameworks read it: one session in other quotes must not be another subject."""
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    return _ESCAPED.sub(lambda found: found[2] or chr(int(found[1], 8)), value[1:-1])


_COOKIE: Final = header_key("cookie")
_NO_POSITIONS: Final[Mapping[str, int]] = {}


class AsgiRequest(Request):
    """A request out of an ASGI scope."""

    scope: Mapping[str, Any]
    headers: dict[bytes, bytes]
    """The last of each name."""
    repeats: bool
    """Whether some name came more than once."""
    body: bytes | None = None
    oversized: bool = False
    positions: Mapping[str, int] = _NO_POSITIONS

    @property
    def query(self) -> str:
        """Without the question mark."""
        query: bytes = self.scope.get("query_string", b"")
        return query.decode("latin-1")

    @property
    def scheme(self) -> str:
        """ "http" or "https"."""
        scheme: str = self.scope.get("scheme", "http")
        return scheme

    @property
    def peer(self) -> str | None:
        """The socket's peer."""
        client = self.scope.get("client")
        return client[0] if client else None

    @property
    def has_body(self) -> bool:
        """Whether a body may come: only HTTP/1 announces every one."""
        headers = self.headers
        if b"content-length" in headers or b"transfer-encoding" in headers:
            return True
        return not self.scope.get("http_version", "1.1").startswith("1")

    def values(self, key: HeaderKey) -> list[str]:
        """Every value of a header."""
        return [value.decode("latin-1") for name, value in self.scope["headers"] if name == key.raw]

    def one(self, raw: bytes, environ: str) -> One:
        """The single value of a header."""
        value = self.headers.get(raw)
        if value is None:
            return None
        if self.repeats and sum(name == raw for name, _ in self.scope["headers"]) > 1:
            return MANY
        return value.decode("latin-1")

    def observed(self) -> Observed:
        """What every record keeps."""
        get, scope = self.headers.get, self.scope
        client = scope.get("client")
        return (
            scope.get("scheme", "http"),
            scope.get("query_string"),
            client[0] if client else None,
            list(map(get, _RAW)),
        )


class WsgiRequest(Request):
    """A request out of a WSGI environ. Servers join repeated headers with commas before we see them."""

    environ: Mapping[str, Any]
    body: bytes | None = None
    oversized: bool = False
    positions: Mapping[str, int] = _NO_POSITIONS

    @property
    def query(self) -> str:
        """Without the question mark."""
        query: str = self.environ.get("QUERY_STRING", "")
        return query

    def query_values(self, name: str) -> list[str]:
        """Every value of a query parameter. What is not encoded is UTF-8 to frameworks of WSGI, Latin-1 to others."""
        query = self.query
        return pair_values(query if query.isascii() else _utf8(query.encode("latin-1", "replace")), name)

    def form_values(self, name: str) -> list[str]:
        """Every value of a form's field, decoded as those of a query."""
        return pair_values(_utf8(self.body or b""), name)

    @property
    def scheme(self) -> str:
        """ "http" or "https"."""
        scheme: str = self.environ["wsgi.url_scheme"]
        return scheme

    @property
    def peer(self) -> str | None:
        """The socket's peer; None on a Unix socket."""
        return self.environ.get("REMOTE_ADDR") or None

    @property
    def has_body(self) -> bool:
        """Whether the client announced a body; chunked ones have no length."""
        return self.environ.get("CONTENT_LENGTH") not in (None, "", "0") or "HTTP_TRANSFER_ENCODING" in self.environ

    def values(self, key: HeaderKey) -> list[str]:
        """Every value of a header; one, or none."""
        value = self.environ.get(key.environ)
        return [] if value is None else [value]

    def one(self, raw: bytes, environ: str) -> One:
        """The single value of a header."""
        value: str | None = self.environ.get(environ)
        return value

    def observed(self) -> Observed:
        """What every record keeps."""
        get = self.environ.get
        return (
            get("wsgi.url_scheme"),
            get("QUERY_STRING"),
            get("REMOTE_ADDR") or None,
            list(map(get, _ENVIRON)),
        )


_RAW: Final = tuple(header_key(name).raw for name in OBSERVED)
_ENVIRON: Final = tuple(header_key(name).environ for name in OBSERVED)


def asgi_path(scope: Mapping[str, Any]) -> str:
    """The path below the mount: scopes carry the mount's prefix in both `root_path` and `path`."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("/", ""):
        return path[len(root) :] or "/"
    return path


def asgi_place(scope: Mapping[str, Any]) -> tuple[str, str]:
    """The path, and the mount that it is below: after a star where the path holds it elsewhere than in front.

    There Litestar serves what comes after it (`/x/shop/api` as `/api`) and Quart `/shopapi`; others the path as it is.
    """
    path, root = asgi_path(scope), scope["root_path"]
    return path, f"*{root}" if path == scope["path"] and root in path else root


def wsgi_path(environ: Mapping[str, Any]) -> str:
    """The path below the mount. WSGI carries its bytes as Latin-1 text (PEP 3333); they are UTF-8."""
    path: str = environ.get("PATH_INFO", "") or "/"
    return path if path.isascii() else _utf8(path.encode("latin-1", "replace"))


def _utf8(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def pair_values(encoded: str, name: str) -> list[str]:
    """Every value of *name* in a query or a form (application/x-www-form-urlencoded)."""
    found = []
    for pair in encoded.split("&"):
        key, _, value = pair.partition("=")
        if (unquote_plus(key) if "%" in key or "+" in key else key) == name:
            found.append(unquote_plus(value))
    return found


def as_text(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Headers as WSGI wants them."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


class Refusal(NamedTuple):
    """A ready-made answer for a request that the application never sees."""

    status: int
    headers: HeaderList
    body: bytes


def byte_length(value: Any) -> int:
    """The size of one body chunk; servers accept anything with a buffer."""
    return len(value) if isinstance(value, bytes | bytearray) else memoryview(value).nbytes
