"""What a client is told: rate-limit headers, refusals and the decision that handlers of exceptions see.

Headers follow draft-ietf-httpapi-ratelimit-headers-10 (`RateLimit`, `RateLimit-Policy`, structured fields of RFC 9651)
and the older X-RateLimit trio; refusals are problem details (RFC 9457). Everything that does not depend on the request
is rendered once, at start-up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, Literal, NamedTuple

from usagekeeper.exchange import HeaderList, Refusal
from usagekeeper.limits import LimitSet, written_standing
from usagekeeper.unrolled import LISTED
from usagekeeper.values import ENFORCE, SECOND, SHADOW, Charge, Spend, Spends, Words

HeaderStyle = Literal["both", "ietf", "legacy", "none"]
OnRefusal = Callable[["Decision"], Mapping[str, Any] | str | bytes]

POLICY_HEADER: Final = "RateLimit-Policy"
LIMIT_HEADER: Final = "RateLimit"
LEGACY_HEADERS: Final = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
HEADER_NAMES: Final = frozenset(name.lower() for name in (POLICY_HEADER, LIMIT_HEADER, *LEGACY_HEADERS))
EXPOSED_HEADERS: Final = (POLICY_HEADER, LIMIT_HEADER, *LEGACY_HEADERS, "Retry-After")
"""What scripts in browsers may read of an answer from another origin, where CORS exposes it."""
RAW_HEADER_NAMES: Final = frozenset(name.encode() for name in HEADER_NAMES)

_PROBLEMS: Final[Mapping[str, tuple[int, str, str]]] = {
    # reason: status, problem type, title. The first two types are those of the rate-limit draft, section 6.
    "quota-exceeded": (429, "https://iana.org/assignments/http-problem-types#quota-exceeded", "Quota exceeded"),
    "counters-unavailable": (
        503,
        "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
        "Temporary reduced capacity",
    ),
}


class Decision(NamedTuple):
    """Why a request or a charge was refused; everything a client is told derives from it."""

    status: int
    reason: str
    detail: str
    subject: str | None = None
    violated: tuple[str, ...] = ()
    retry_after: int | None = None
    """Whole seconds, rounded up; None when waiting does not help."""
    remaining: int | None = None
    renews_at: float | None = None
    """Epoch seconds."""

    def problem(self) -> dict[str, Any]:
        """The body as problem details."""
        phrase = HTTPStatus(self.status).phrase
        _, kind, title = _PROBLEMS.get(self.reason, (self.status, "about:blank", phrase))
        body: dict[str, Any] = {"type": kind, "title": title, "status": self.status, "detail": self.detail}
        if self.violated:
            body["violated-policies"] = list(self.violated)
        if kind == "about:blank":
            body["reason"] = self.reason
        return body


_IETF: Final = slice(2)
_LEGACY: Final = slice(2, None)
"""Which of the five headers a style shows."""


class HeaderForm:
    """The rate-limit headers of one list of charges, rendered as far as start-up allows."""

    __slots__ = (
        "_limits",
        "_policy",
        "_raw_limits",
        "_raw_policy",
        "_raw_template",
        "_shown",
        "_tell",
        "_tell_charged",
        "_template",
    )  # fmt: skip

    def __init__(self, sets: Sequence[LimitSet | None], style: HeaderStyle) -> None:
        # Aligned with the charges of a request; None where a charge is not shown to clients.
        self._shown = {"ietf": _IETF, "legacy": _LEGACY}.get(style)
        faces = tuple(face for row, limits in enumerate(sets) if limits for face in limits.faces(row))
        shown = [pair for limits in sets if limits for pair in zip(limits.names, limits.rates, strict=True)]
        listed = list(zip(shown, faces, strict=True))[:LISTED]
        policy = ", ".join(f"{quoted(name)};q={rate.count};w={rate.seconds}" for (name, rate), _ in listed)
        self._template = ", ".join(
            f"{quoted(name).replace('%', '%%')};r=%d;t={'1' if face[-1] else '%d'}" for (name, _), face in listed
        )
        self._raw_template = self._template.encode()
        self._policy = (POLICY_HEADER, policy)
        self._raw_policy = (POLICY_HEADER.lower().encode(), policy.encode())
        self._limits = [(LEGACY_HEADERS[0], str(rate.count)) for _, rate in shown]
        self._raw_limits = [(LEGACY_HEADERS[0].lower().encode(), b"%d" % rate.count) for _, rate in shown]
        sizes = tuple(None if limits is None else limits.size for limits in sets)
        self._tell = self._tell_charged = written_standing(faces, sizes, charged=False)
        if all(limits is None or limits.mode == ENFORCE for limits in sets):  # soft charges may stand past their limits
            self._tell_charged = written_standing(faces, sizes, charged=True)

    def raw(self, rows: Sequence[Words], now: int, *, charged: bool = False) -> HeaderList:
        """Headers for ASGI; *charged* if the rows were charged at this very moment."""
        told, remaining, tightest, whole_at = (self._tell_charged if charged else self._tell)(rows, now)
        headers = [
            self._raw_policy,
            (b"ratelimit", self._raw_template % told),
            self._raw_limits[tightest],
            (b"x-ratelimit-remaining", b"%d" % remaining),
            (b"x-ratelimit-reset", b"%d" % whole_at),
        ]
        return headers if self._shown is None else headers[self._shown]

    def text(self, rows: Sequence[Words], now: int, *, charged: bool = False) -> list[tuple[str, str]]:
        """Headers for WSGI; *charged* if the rows were charged at this very moment."""
        told, remaining, tightest, whole_at = (self._tell_charged if charged else self._tell)(rows, now)
        headers = [
            self._policy,
            (LIMIT_HEADER, self._template % told),
            self._limits[tightest],
            (LEGACY_HEADERS[1], str(remaining)),
            (LEGACY_HEADERS[2], str(whole_at)),
        ]
        return headers if self._shown is None else headers[self._shown]

    def refused(self, rows: Sequence[Words], now: int, longest: Spend) -> HeaderList:
        """Headers of a refusal: the older ones speak of the limit that keeps the client waiting longest."""
        headers = [
            self._raw_policy,
            (b"ratelimit", self._raw_template % self._tell(rows, now)[0]),
            (b"x-ratelimit-limit", b"%d" % longest.limit),
            (b"x-ratelimit-remaining", b"%d" % longest.remaining),
            (b"x-ratelimit-reset", b"%d" % seconds(now + longest.reset_after)),
        ]
        return headers if self._shown is None else headers[self._shown]


def quoted(name: str) -> str:
    """*name* as a structured-field string (RFC 9651, 3.3.3): ASCII, quotes escaped, everything else as %XX."""
    plain = "".join(char if " " <= char <= "~" else _percent(char) for char in name)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _percent(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "replace"))


def refuse(charges: Sequence[Charge], spends: Spends, subject: str | None) -> tuple[Decision, Spend]:
    """The decision on a refused operation, and the limit that keeps the client waiting longest."""
    violated: list[Spend] = []
    for charge, row in zip(charges, spends.rows, strict=True):
        limits = charge.limits
        if limits.mode == "enforce" and isinstance(limits, LimitSet):
            violated += limits.refusing(row, spends.now, charge.cost)
    longest = max(violated, key=_wait)
    wait = longest.retry_after
    decision = Decision(
        429,
        "quota-exceeded",
        _told(longest, wait),
        subject,
        tuple(spend.name for spend in violated),
        None if wait is None else max(1, seconds(wait), seconds(longest.more_after)),
        longest.remaining,
        None if wait is None else (spends.now + wait) / SECOND,
    )
    return decision, longest


def _wait(spend: Spend) -> float:
    return float("inf") if spend.retry_after is None else spend.retry_after


def _told(spend: Spend, wait: int | None) -> str:
    if wait is None:
        return f"This request costs more than the limit {spend.name} of {spend.limit} ever allows."
    return f"The limit {spend.name} of {spend.limit} is used up."


def over(charge: Charge, row: Words, now: int) -> tuple[str, ...]:
    """Names of the limits of a shadow or soft charge that did not fit."""
    limits = charge.limits
    if not isinstance(limits, LimitSet):
        return ()
    if limits.mode == SHADOW:
        return tuple(spend.name for spend in limits.refusing(row, now, charge.cost))
    return limits.passed(row, now)


def tightest(charges: Sequence[Charge], spends: Spends) -> Spend | None:
    """The limit with the fewest units left, of those that clients are told about."""
    shown = [
        spend
        for charge, row in zip(charges, spends.rows, strict=True)
        if isinstance(charge.limits, LimitSet) and charge.limits.mode != SHADOW
        for spend in charge.limits.read(row, spends.now)
    ]
    return min(shown, key=lambda spend: spend.remaining, default=None)


def seconds(microseconds: int) -> int:
    """Whole seconds, rounded up."""
    return -(-microseconds // SECOND)


def refusal(
    decision: Decision, headers: HeaderList, on_refusal: OnRefusal | None, challenge: str | None = None
) -> Refusal:
    """The answer to a refused request; *challenge* tells how to say who one is, where the usual way is another."""
    content_type, body = _body(decision, on_refusal)
    own: HeaderList = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    if decision.retry_after is not None:
        own.append((b"retry-after", b"%d" % decision.retry_after))
    if challenge is None and decision.status == 401:
        challenge = 'ApiKey realm="usage"'
    if challenge is not None:
        own.append((b"www-authenticate", challenge.encode()))
    return Refusal(decision.status, own + headers, body)


@lru_cache(maxsize=256)
def _rendered(decision: Decision) -> bytes:
    """Problem bodies say nothing of one request: a flood of refusals renders a handful of them."""
    return json.dumps(decision.problem()).encode()


def _body(decision: Decision, on_refusal: OnRefusal | None) -> tuple[bytes, bytes]:
    if on_refusal is None:
        return b"application/problem+json", _rendered(
            Decision(decision.status, decision.reason, decision.detail, violated=decision.violated)
        )
    body = on_refusal(decision)
    if isinstance(body, bytes):
        return b"application/octet-stream", body
    if isinstance(body, str):
        return b"text/plain; charset=utf-8", body.encode()
    return b"application/json", json.dumps(dict(body)).encode()
