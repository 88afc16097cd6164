"""Policies: what is limited, for whom, how much, and what happens otherwise; and their compiled form.

`Policy` is what users write. At start-up each becomes a `Line`, and the lines that can apply to a route and a method
become one `RoutePlan`, which the request path walks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Literal

from usagekeeper.decisions import HeaderForm, HeaderStyle
from usagekeeper.errors import ConfigurationError, shown
from usagekeeper.exchange import Request
from usagekeeper.identity import Identity, strategy
from usagekeeper.limits import LimitSet
from usagekeeper.proxies import ClientOf, address_key
from usagekeeper.rates import Rate
from usagekeeper.records import is_secret, of_plan
from usagekeeper.routes import Route
from usagekeeper.sources import Found, Rejection, Source
from usagekeeper.values import ENFORCE, SHADOW, Mode

OnMissing = Literal["address", "reject", "allow"]
OnOutage = Literal["allow", "deny"]
Cost = int | Callable[[Request], int]
ChargeOn = str | Callable[[int], bool]

METHODS: Final = frozenset(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY")
)  # fmt: skip
"""Methods that HTTP knows; others share the name "_OTHER", so that no client can invent labels."""
OTHER: Final = "_OTHER"
SOCKET: Final = "GET WEBSOCKET"
"""The plan of WebSocket handshakes: those of GET, and a label of its own. No method that a client sends has a space."""

_MODES: Final = ("enforce", "shadow", "soft")
_STATUSES: Final = range(1000)
_CLASS = re.compile(r"([1-5])xx(?:-([1-5])xx)?")
_BELOW = re.compile(r"<\s*([1-5]\d\d)")


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits for the requests under some routes, counted per subject.

    *routes* are patterns (default: everything watched); *identity* names the subject; *limits* are rates such as
    "100/hour"; *cost* is what a request costs, a whole number or a callable on the Request. *mode* is "enforce",
    "shadow" (counts apart and never decides) or "soft" (always counts, flags the record). *on_missing_identity*:
    "address" limits by the client's address, "reject" answers 401 (the default of `BearerClaim`), "allow" lets through
    unlimited. *charge_on* tells which answers cost ("<500", "2xx-3xx", "always", or a callable on the status).
    *on_outage*: "allow" or "deny" when the counters do not answer. *exempt* is a callable on the Request: recorded,
    never charged.
    """

    name: str
    _: KW_ONLY
    routes: Sequence[Any] = ("*",)
    identity: Identity | None = None
    limits: Sequence[str | Rate] = ()
    cost: Cost = 1
    mode: Mode = "enforce"
    on_missing_identity: OnMissing | None = None
    charge_on: ChargeOn = "<500"
    on_outage: OnOutage | None = None
    exempt: Callable[[Request], bool] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or len(self.name) > 100:
            raise ConfigurationError(
                f'a policy needs a name of up to 100 characters, as in Policy("default"), not {self.name!r}'
            )
        if not isinstance(self.routes, Sequence) or isinstance(self.routes, str) or not self.routes:
            raise ConfigurationError(
                f'policy {self.name!r}: routes is a list, as in routes=["/api/*"], not {self.routes!r}'
            )
        if not isinstance(self.limits, Sequence) or isinstance(self.limits, str):
            raise ConfigurationError(
                f'policy {self.name!r}: limits is a list, as in limits=["5/minute"], not {self.limits!r}'
            )
        _one_of(self.name, "mode", self.mode, _MODES)
        _one_of(self.name, "on_missing_identity", self.on_missing_identity, (None, "address", "reject", "allow"))
        _one_of(self.name, "on_outage", self.on_outage, (None, "allow", "deny"))
        if self.exempt is not None and not callable(self.exempt):
            raise ConfigurationError(
                f"policy {self.name!r}: exempt is a callable on the Request, not {self.exempt!r}:"
                ' a route is left alone by whitelist=["GET /api/health"]'
            )
        if not callable(self.cost):
            check_cost(self.cost, f"policy {self.name!r}: cost")
        if not callable(self.charge_on):
            paying(self.charge_on)

    def rates(self) -> list[Rate]:
        """The limits, read."""
        rates = []
        for limit in self.limits:
            if not isinstance(limit, str | Rate):
                raise ConfigurationError(
                    f'policy {self.name!r}: {shown(limit)} is not a limit: write "100/hour" or Rate(100, "hour")'
                )
            rates.append(Rate.parse(limit) if isinstance(limit, str) else limit)
        return rates


def _one_of(policy: str, option: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        known = ", ".join(repr(one) for one in allowed if one is not None)
        raise ConfigurationError(f"policy {policy!r}: {option} is one of {known}, not {value!r}")


def check_cost(cost: object, what: str) -> int:
    """*cost* as whole units; anything else that a caller may give is refused, so that no counter goes astray."""
    if isinstance(cost, int) and not isinstance(cost, bool) and 0 <= cost < 2**53:
        return cost
    raise ConfigurationError(f"{what} is a whole number of units from 0, not {shown(cost)}")


def paying(charge_on: str) -> frozenset[int]:
    """The statuses that cost, of "<500", "2xx", "2xx-3xx" or "always"."""
    text = charge_on.strip().lower() if isinstance(charge_on, str) else ""
    if text == "always":
        return frozenset(_STATUSES)
    paid: frozenset[int] = frozenset()
    if below := _BELOW.fullmatch(text):
        paid = frozenset(range(100, int(below[1])))
    elif span := _CLASS.fullmatch(text):
        paid = frozenset(range(int(span[1]) * 100, int(span[2] or span[1]) * 100 + 100))
    if paid:
        return paid
    raise ConfigurationError(f'charge_on is "<500", "2xx-3xx", "always" or a callable on the status, not {charge_on!r}')


_ABSENT: Final = Rejection(401, "missing-identity", "This request does not say who it is from.")


class Line:
    """One policy, ready to be walked."""

    __slots__ = (
        "absent", "asks", "body", "cost", "cost_of", "denies", "exempt", "fixed", "limited", "missing", "mode", "name",
        "paid", "pays", "routes", "sources", "unknown",
    )  # fmt: skip

    def __init__(
        self, policy: Policy, *, application: str, identity: Identity, client_of: ClientOf, on_outage: OnOutage
    ) -> None:
        self.name = policy.name
        self.mode = policy.mode
        self.routes = tuple(Route.parse(route) for route in policy.routes)
        rates = policy.rates()
        sets = {
            kind: LimitSet(application, policy.name, rates, kind=kind, mode=policy.mode)
            for kind in ("subject", "address")
        }
        self.limited = bool(rates)
        named = strategy(policy.identity if policy.identity is not None else identity)
        sources = named.sources(client_of)
        self.missing = policy.on_missing_identity or ("reject" if sources[-1].absent else "address")
        self.absent = next((source.absent for source in sources if source.absent), _ABSENT)
        if self.missing == "address" and sources[-1].kind != "address":
            sources += (_address(client_of),)
        self.sources = tuple((source, sets[source.kind]) for source in sources)
        # Where not even the address is known (a Unix socket), all such clients share one count: never no limit at all.
        self.unknown = sets["address"]
        self.asks = any(source.later for source in sources)
        self.body = any(source.body for source in sources)
        self.cost = 1 if callable(policy.cost) else policy.cost
        self.cost_of = policy.cost if callable(policy.cost) else None
        self.exempt = policy.exempt
        denies = policy.mode == ENFORCE and (policy.on_outage or on_outage) == "deny"
        self.denies = frozenset(sets.values()) if denies else frozenset[LimitSet]()
        self.pays = policy.charge_on if callable(policy.charge_on) else None
        self.paid = frozenset[int]() if callable(policy.charge_on) else paying(policy.charge_on)
        asked = (self.cost_of, self.exempt, self.pays)
        self.fixed = self.mode == ENFORCE and not self.asks and all(callback is None for callback in asked)

    def identify(
        self, request: Request, found: Sequence[Found] | None = None
    ) -> tuple[str | Rejection | None, LimitSet]:
        """The subject and its limits; *found* is what asynchronous sources said, in their order."""
        for position, (source, limits) in enumerate(self.sources):
            value = source.read(request) if found is None else found[position]
            if value is not None:
                return value, limits
        if self.missing == "reject":
            return self.absent, self.unknown
        return (None if self.missing == "allow" else "unknown"), self.unknown

    def price(self, request: Request) -> int:
        """What *request* costs."""
        if self.cost_of is None:
            return self.cost
        return check_cost(self.cost_of(request), f"what the cost of policy {self.name!r} returned")


async def ask(line: Line, request: Request) -> list[Found]:
    """What the sources of a policy say, in order and up to the first that knows, where some must be awaited."""
    found: list[Found] = []
    for source, _ in line.sources:
        value = await source.later(request) if source.later else source.read(request)
        if isinstance(value, Rejection) and value.lacks is not None:
            await value.lacks.afetch()
            value = source.read(request)
        found.append(value)
        if found[-1] is not None:
            break
    return found + [None] * (len(line.sources) - len(found))


def _address(client_of: ClientOf) -> Source:
    def read(request: Request) -> str | None:
        address = client_of(request)
        return None if address is None else address_key(address, 64)

    return Source(read, "address")


class RoutePlan:
    """What is done with the requests of one route and method."""

    __slots__ = (
        "_forms", "asks", "body", "cost", "exempt", "form", "gathers", "label", "limited", "lines", "method", "names",
        "paid", "pays", "positions", "recorded", "routed", "secrets", "straight", "style",
    )  # fmt: skip

    def __init__(
        self,
        *,
        method: str,
        label: str | None,
        lines: Sequence[Line],
        positions: Mapping[str, int],
        exempt: Callable[[Request], bool] | None,
        style: HeaderStyle,
        anybody: Line,
        application: str,
    ) -> None:
        self.method = method
        self.label = label
        self.lines = tuple(lines)
        self.routed: object = None
        """The framework's route that was last seen to be the one of the label."""
        self.positions = positions
        self.secrets = tuple(place for name, place in positions.items() if is_secret(name))
        self.exempt = exempt
        self.style: HeaderStyle = style
        self.body = any(line.body for line in lines)
        self.asks = any(line.asks for line in lines)
        self.gathers = self.body or self.asks
        self.names = [line.name for line in lines]
        self.recorded = of_plan(application, method if method in METHODS else OTHER, label, self.names)
        # Of the first policy; where there is none, whoever asks is recorded and every answer costs one.
        first = lines[0] if lines else anybody
        self.paid, self.pays, self.cost = first.paid, first.pays, first.cost
        # One policy whose charge depends on nothing but the subject: most routes of most applications.
        self.straight = None
        if len(lines) < 2 and first.fixed and exempt is None and method != "OPTIONS":
            self.straight = first.sources[0][0].read, first.sources[0][1]
        limited = tuple(line.sources[0][1] for line in lines if line.limited)
        self.limited = len(limited)
        self._forms: dict[tuple[LimitSet, ...], HeaderForm | None] = {}
        self.form = self.form_of(limited)

    def form_of(self, sets: tuple[LimitSet, ...]) -> HeaderForm | None:
        """The headers for charges on *sets*, in their order; None where there is nothing to tell."""
        if self.style == "none" or all(limits.mode == SHADOW for limits in sets):
            return None
        if sets not in self._forms:
            shown = [None if limits.mode == SHADOW else limits for limits in sets]
            self._forms[sets] = HeaderForm(shown, self.style)
        return self._forms[sets]
