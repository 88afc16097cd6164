"""Matches, identifies, prices and decides; the drivers do the waiting. Pure: no clock, no storage, no await.

The request path is flat on purpose: plans are compiled once, and what a request needs is a handful of calls on them.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from operator import itemgetter
from typing import Any, Final

from msgspec import Raw

from usagekeeper.decisions import Decision, HeaderForm, HeaderStyle, OnRefusal, over, refusal, refuse
from usagekeeper.errors import ConfigurationError
from usagekeeper.exchange import Refusal, Request, header_key
from usagekeeper.identity import Identity
from usagekeeper.limits import LimitSet
from usagekeeper.policies import METHODS, OTHER, SOCKET, Line, OnOutage, Policy, RoutePlan
from usagekeeper.proxies import ClientOf, peer_of
from usagekeeper.records import (
    ALLOWED,
    LARGE,
    OVER,
    REDACTED,
    REFUSED,
    SHADOWED,
    UNMETERED,
    Rare,
    Serials,
    authorization,
    encode,
    encode_bounded,
    of_plan,
    redact_query,
    redact_url,
)
from usagekeeper.routes import Match, Rest, Route, RouteTable, Template, canonical, specific
from usagekeeper.sources import Rejection
from usagekeeper.ticket import Ticket
from usagekeeper.values import SHADOW, Charge, Operation, Spends

CLIENT_LEFT: Final = 499
"""Recorded where a client left before any answer. It pays in full: whoever could leave for free would."""

_LOG: Final = logging.getLogger("usagekeeper")
_REMEMBERED: Final = 2048
"""Paths in one generation of the cache; longer ones than the next figure are not remembered."""
_LONGEST: Final = 256
_PREFLIGHT: Final = header_key("access-control-request-method")
_DELICATE = re.compile(r"[?@#]")
_DELICATE_RAW = re.compile(rb"[?@#]")


_Leaf = dict[str, RoutePlan | None]
"""The plan of each method."""
_Leaves = dict[tuple[Match, tuple[int, ...], int], _Leaf]


class Engine:
    """The rules of one keeper, compiled."""

    def __init__(
        self,
        *,
        application: str,
        routes: Sequence[Route],
        whitelist: Sequence[Route],
        policies: Sequence[Policy],
        identity: Identity,
        client_of: ClientOf,
        exempt: Callable[[Request], bool] | None = None,
        headers: HeaderStyle = "both",
        on_refusal: OnRefusal | None = None,
        on_outage: OnOutage = "allow",
    ) -> None:
        self.application = application
        self.serials = Serials()
        self.disagreements = 0
        """Requests that the framework served by another route than their label says."""
        self._client_of = client_of
        self._direct = client_of is peer_of
        self._exempt = exempt
        self._style: HeaderStyle = headers
        self._on_refusal = on_refusal
        self.lines = tuple(
            Line(policy, application=application, identity=identity, client_of=client_of, on_outage=on_outage)
            for policy in policies
        )
        self.anybody = Line(
            Policy("-", charge_on="always"),
            application=application,
            identity=identity,
            client_of=client_of,
            on_outage=on_outage,
        )
        self._routes = tuple(routes)
        for line in self.lines:
            _reachable(line, self._routes)
        self._entries: tuple[Route, ...] = (
            *whitelist,
            *routes,
            *(route for line in self.lines for route in line.routes),
        )
        self._whitelisted = len(whitelist)
        self._methods = METHODS | {route.method for route in self._entries if route.method != "*"} | {OTHER, SOCKET}
        self._owners = [line for line in self.lines for _ in line.routes]
        self.install(())

    def install(self, templates: Sequence[Template]) -> None:
        """Compile the framework's own *templates* into the table, so that refused requests have their label too."""
        self._table = RouteTable(self._entries, templates)
        self._leaves: _Leaves = {}
        self._older: dict[str | tuple[str, str], _Leaf] = {}
        self._recent: dict[str | tuple[str, str], _Leaf] = {}

    # -- which plan -----------------------------------------------------------------------------------------------

    def agrees(self, plan: RoutePlan, route: object, path: str | None) -> bool:
        """Whether the *route* that the framework chose, with its own *path* below any mounts, is the one of the label.

        What is not is counted: a policy by pattern holds there all the same, but the record says another route.
        """
        label = plan.label or ""
        below = path is not None and hasattr(route, "routes") and label.startswith(path.removesuffix("{path}"))
        if not self._table.templates or path is None or label.endswith(path) or below:
            plan.routed = route
            return True
        self.disagreements += 1
        _LOG.debug("the framework chose the route %r where the label is %r", path, plan.label)
        return False

    def find(self, method: str, path: str, root: str = "") -> RoutePlan | None:
        """What to do with a request, None when it is not watched; *path* is below the mount *root*."""
        try:
            return self._recent[(root, path) if root else path][method]
        except KeyError:
            leaf = self._leaf(path, root)
            method = method.upper()  # some frameworks do the same, so small letters dodge nothing
            return leaf[method] if method in leaf else leaf[OTHER]

    def _leaf(self, path: str, root: str) -> _Leaf:
        key = (root, path) if root else path
        # Read in the opposite order of `install`: what it replaces meanwhile gets nothing of the table of before.
        recent, leaves, table = self._recent, self._leaves, self._table
        leaf = recent.get(key) or self._older.get(key)
        if leaf is None:
            leaf = self._compiled(table, leaves, path, root)
        if len(root) + len(path) <= _LONGEST:
            if len(recent) >= _REMEMBERED:  # two generations: bounded, and dropping one costs nothing per path
                self._older, self._recent = recent, {}
            else:
                recent[key] = leaf
        return leaf

    def _compiled(self, table: RouteTable, leaves: _Leaves, path: str, root: str) -> _Leaf:
        """The plans of all methods for one combination of matching patterns; combinations are few, paths are not."""
        match = table.match(path, root)
        # Patterns that hold the mount's prefix count its segments too.
        inside = table.match(path).entries if root else match.entries
        depth = len(canonical(root).split("/")) - 1 if root else 0
        if root[:1] == "*":  # which segment is whose cannot be said: a parameter by a pattern is missing then
            inside, depth = (), sys.maxsize
        leaf = leaves.get((match, inside, depth))
        if leaf is None:
            if len(leaves) >= _REMEMBERED:
                leaves.clear()
            leaf = {method: self._plan(table, match, method, inside, depth) for method in self._methods}
            leaves[match, inside, depth] = leaf
        return leaf

    def _plan(
        self, table: RouteTable, match: Match, method: str, inside: tuple[int, ...], depth: int
    ) -> RoutePlan | None:
        socket = method == SOCKET
        method = "GET" if socket else method
        entries = [(at, self._entries[at]) for at in match.entries if self._entries[at].covers(method)]
        if match.exact and any(at < self._whitelisted for at, _ in entries):
            return None
        first = self._whitelisted + len(self._routes)
        if self._routes and not any(self._whitelisted <= at < first for at, _ in entries):
            return None
        owners = {id(self._owners[at - first]) for at, _ in entries if at >= first}
        patterns = sorted(
            ((specific(route), at, route) for at, route in entries if at >= self._whitelisted), key=itemgetter(0, 1)
        )
        positions: dict[str, int] = {}
        for _, at, route in reversed(patterns):  # the more specific names win, and the framework's own over ours
            skipped = 0 if at in inside else depth
            positions.update({name: place - skipped for name, place in route.parameters.items() if place > skipped})
        templates = table.served(match, socket=socket)
        for template in reversed(templates):
            positions.update(template.parameters)
        ours = patterns[0][2].pattern if patterns else None
        return RoutePlan(
            method=method,
            label=table.label(match, method, socket=socket) if table.templates else ours,
            lines=[line for line in self.lines if id(line) in owners],
            positions=positions,
            exempt=self._exempt,
            style=self._style,
            anybody=self.anybody,
            application=self.application,
        )

    # -- what it costs and whether it may -------------------------------------------------------------------------

    def price(self, ticket: Ticket) -> Operation | None:
        """What to ask the counters: nothing when the request is exempt, unlimited or (see `refusal`) rejected."""
        plan, request = ticket.plan, ticket.request
        if plan.positions:
            request.positions = plan.positions
        if plan.straight is not None:
            read, limits = plan.straight
            value = read(request)
            if value.__class__ is str:
                ticket.subject, ticket.kind, ticket.usual = value, limits.kind, True
                if not limits.count:
                    return None
                ticket.charges = charges = [Charge(limits, value, plan.cost)]
                ticket.form = plan.form
                return Operation(charges, ticket.at)
            if value.__class__ is Rejection and plan.lines:
                self._reject(ticket, value)
                return None
        return self._price(ticket, plan, request)

    def _price(self, ticket: Ticket, plan: RoutePlan, request: Request) -> Operation | None:
        """`price` for whatever is not straight."""
        if (plan.exempt is not None and plan.exempt(request)) or (plan.method == "OPTIONS" and _preflight(request)):
            ticket.exempt = True
        if not plan.lines:
            self._name(ticket)
            return None
        charges: list[Charge] = []
        for position, line in enumerate(plan.lines):
            value, limits = line.identify(request, ticket.found[position] if ticket.found else None)
            if isinstance(value, Rejection):
                if ticket.exempt or line.mode == SHADOW:
                    ticket.lacks = value.lacks or ticket.lacks
                    continue
                self._reject(ticket, value)
                return None
            if ticket.subject is None and value is not None:
                ticket.subject, ticket.kind = value, limits.kind
            if value is None or not line.limited or (line.exempt is not None and line.exempt(request)):
                continue
            charges.append(Charge(limits, value, line.price(request)))
            ticket.payer = ticket.payer or line
        if not charges or ticket.exempt:
            return None
        ticket.charges = charges
        ticket.form = _form(ticket)
        return Operation(charges, ticket.at)

    def _name(self, ticket: Ticket) -> None:
        value, limits = self.anybody.identify(ticket.request)
        if isinstance(value, str):
            ticket.subject, ticket.kind = value, limits.kind
        elif value is not None:
            ticket.lacks = value.lacks

    def price_again(self, ticket: Ticket) -> Operation | None:
        """`price`, after what it lacked was fetched."""
        ticket.lacks = ticket.refusal = ticket.reason = ticket.payer = None
        ticket.subject = ticket.kind = ticket.form = None
        ticket.charges = ()
        return self.price(ticket)

    def _reject(self, ticket: Ticket, rejection: Rejection) -> None:
        ticket.lacks = rejection.lacks or ticket.lacks
        decision = Decision(rejection.status, rejection.reason, rejection.detail, retry_after=rejection.retry_after)
        ticket.reason = rejection.reason
        ticket.refusal = refusal(decision, [], self._on_refusal, rejection.challenge)

    def decide(self, ticket: Ticket, spends: Spends) -> Refusal | None:
        """Read the counters' answer: None lets the request through."""
        ticket.spends = spends
        if not spends.refused:
            return None
        ticket.usual = False
        decision, longest = refuse(ticket.charges, spends, ticket.subject)
        ticket.reason, ticket.violated = decision.reason, decision.violated
        form = ticket.form
        headers = form.refused(spends.rows, spends.now, longest) if form else []
        ticket.refusal = refusal(decision, headers, self._on_refusal)
        return ticket.refusal

    def exceeded(self, ticket: Ticket, decision: Decision) -> Refusal:
        """The answer when the handler's own charge was refused and it left that to us."""
        ticket.usual = False
        ticket.reason, ticket.violated = decision.reason, decision.violated
        ticket.refusal = refusal(decision, [], self._on_refusal)
        return ticket.refusal

    def outage(self, ticket: Ticket) -> Refusal | None:
        """What the policies say to counters that do not answer: 503 when one of them denies."""
        ticket.usual = False
        if not any(charge.limits in line.denies for line in ticket.plan.lines for charge in ticket.charges):
            ticket.unmetered = True
            ticket.charges = []
            return None
        ticket.reason = "counters-unavailable"
        decision = Decision(503, ticket.reason, "Usage cannot be counted at the moment.", ticket.subject, retry_after=1)
        ticket.refusal = refusal(decision, [], self._on_refusal)
        return ticket.refusal

    # -- what is said and kept ------------------------------------------------------------------------------------

    def close(self, ticket: Ticket, now: int, aborted: bool = False) -> bytes:
        """The finished exchange as an encoded record; *now* is the timer's, in nanoseconds."""
        request, plan, began, started = ticket.request, ticket.plan, ticket.began, ticket.started
        protocol, query, peer, kept = request.observed()
        if kept[-1] is not None or kept[-2] is not None:
            _hide_secrets(kept)
        method, status, serials = request.method, ticket.status, self.serials
        usual = ticket.usual and not aborted
        # A list: CPython 3.11 never uses a tuple of twenty again, and each seems to be kept to the garbage collector.
        values = [
            ticket.at,
            serials.next(),
            serials.process,
            plan.recorded if method == plan.method else self._recorded(plan, method),
            request.path if not plan.secrets and request.path[:1] == "/" else _hidden(request.path, plan.secrets),
            _queried(query) if query else "",
            protocol,
            peer if self._direct else self._client_of(request),
            ticket.subject,
            ticket.kind,
            (plan.cost if status in plan.paid else 0) if usual else _units(ticket, plan),
            status,
            (started - began) // 1000 if started else None,
            (now - began) // 1000,
            ticket.bytes_in,
            ticket.bytes_out,
            ticket.length,
            ticket.mimetype,
            kept,
            None if usual else _rare(ticket, aborted),
        ]
        try:
            encoded = encode(values)
        except (UnicodeEncodeError, OverflowError, TypeError):  # what the server handed over is not Unicode, or huge
            return encode_bounded(values)
        return encoded if len(encoded) <= LARGE else encode_bounded(values)

    def _recorded(self, plan: RoutePlan, method: str) -> Raw:
        return of_plan(self.application, method if method in METHODS else OTHER, plan.label, plan.names)


def _preflight(request: Request) -> bool:
    return isinstance(request.one(_PREFLIGHT.raw, _PREFLIGHT.environ), str)


def _form(ticket: Ticket) -> HeaderForm | None:
    plan = ticket.plan
    if len(ticket.charges) == plan.limited:
        return plan.form
    return plan.form_of(tuple(charge.limits for charge in ticket.charges if isinstance(charge.limits, LimitSet)))


def _hidden(path: str, positions: Sequence[int]) -> str:
    """*path* without secret segments, and without the user and password that an absolute-form target may carry."""
    path = canonical(path)
    if positions and "/." in path:  # it may have matched as a file system reads it, with other positions
        return REDACTED
    segments = path.split("/")
    for position in positions:
        if position < len(segments):
            segments[position] = REDACTED
    return "/".join(segments)


def _queried(query: str | bytes) -> str:
    return redact_query(_latin(query))


def _hide_secrets(kept: list[Any]) -> None:
    """Make the last two headers of a record, referer and authorization, what may be kept of them."""
    referer, credentials = kept[-2:]
    if referer is not None and (_DELICATE_RAW if isinstance(referer, bytes) else _DELICATE).search(referer):
        kept[-2] = redact_url(_latin(referer))
    if credentials is not None:
        kept[-1] = authorization(_latin(credentials).encode("latin-1", "replace"))


def _latin(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _rare(ticket: Ticket, aborted: bool) -> Rare:
    outcome, violated = _outcome(ticket)
    notes = ticket.notes
    code, metadata = (None, {}) if notes is None else (notes.error_code, notes.metadata)
    return outcome, ticket.reason, violated, aborted, ticket.exception, code, metadata


def _outcome(ticket: Ticket) -> tuple[str, tuple[str, ...]]:
    if ticket.refusal is not None or (ticket.spends is not None and ticket.spends.refused):
        return REFUSED, ticket.violated
    if ticket.unmetered:
        return UNMETERED, ()
    spends = ticket.spends
    if spends is None or False not in spends.fits:
        return ALLOWED, ticket.violated
    names: tuple[str, ...] = ()
    outcome = SHADOWED
    for charge, fits, row in zip(ticket.charges, spends.fits, spends.rows, strict=True):
        if not fits:
            names += over(charge, row, spends.now)
            if charge.limits.mode != "shadow":
                outcome = OVER
    return outcome, names


def _units(ticket: Ticket, plan: RoutePlan) -> Any:
    """What the request cost: of the first policy that charged, and what the handler added; 1 where none applies."""
    if ticket.refusal is not None or ticket.exempt:
        return 0
    payer = ticket.payer or plan
    if ticket.status != CLIENT_LEFT:
        pays = ticket.status in payer.paid if payer.pays is None else payer.pays(ticket.status)
        if not pays:
            return 0
    units = ticket.charges[0].cost if ticket.charges else 1 if plan.limited else plan.cost
    return units if ticket.notes is None else units + ticket.notes.units


def _reachable(line: Line, watched: Sequence[Route]) -> None:
    if watched and not any(_overlap(route, other) for route in line.routes for other in watched):
        patterns = ", ".join(f"{route.method} {route.pattern}" for route in line.routes)
        seen = ", ".join(f"{route.method} {route.pattern}" for route in watched)
        raise ConfigurationError(
            f"policy {line.name!r} is for {patterns}, and none of these is watched: routes= has {seen}"
        )


def _overlap(one: Route, other: Route) -> bool:
    """Whether some request falls under both."""
    if not (one.covers(other.method) or other.covers(one.method) or other.method == "*"):
        return False
    for mine, yours in zip_longest(one.segments, other.segments):
        if isinstance(mine, Rest) or isinstance(yours, Rest):
            return True
        if mine is None or yours is None or (isinstance(mine, str) and isinstance(yours, str) and mine != yours):
            return False
    return True


def check_names(policies: Sequence[Policy]) -> None:
    """Names are unique, those of policies as part of every key, those of limits as what clients tell them apart by."""
    _once("policies", [policy.name for policy in policies])
    _once("limits", [name for policy in policies for name in LimitSet("", policy.name, policy.rates()).names])


def _once(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two {what} are called {name!r}: give each its own name, clients are told it")
