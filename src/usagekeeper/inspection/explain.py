"""Why a request would be allowed or refused: the engine's own steps, told one by one, with nothing charged."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import unquote, unquote_to_bytes

from usagekeeper.counters import Counters, open_counters
from usagekeeper.counters.base import judge
from usagekeeper.decisions import seconds
from usagekeeper.errors import ConfigurationError, StoreUnavailable, UsageError
from usagekeeper.exchange import AsgiRequest, Refusal, Request, WsgiRequest, header_key
from usagekeeper.identity import strategy
from usagekeeper.inspection.backends import absent, in_memory
from usagekeeper.inspection.coverage import Rule, asked, rules_of, told
from usagekeeper.inspection.locate import Installation, Kind
from usagekeeper.limits import LimitSet
from usagekeeper.policies import RoutePlan, ask
from usagekeeper.proxies import client_of
from usagekeeper.routes import Route, RouteTable, canonical
from usagekeeper.sources import LARGEST_BODY, Rejection
from usagekeeper.ticket import Ticket
from usagekeeper.values import CHECK, Charge, Operation, Spend, Spends

ADDRESS: Final = "127.0.0.1"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request as a client sends it: *target* is what stands in the request line."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]] = ()
    address: str = ADDRESS
    body: bytes = b""

    def __post_init__(self) -> None:
        if not _TOKEN.fullmatch(self.method):
            raise ConfigurationError(f"{self.method!r} is no method: write one word such as GET")
        if not self.target.startswith("/") and "://" not in self.target:
            raise ConfigurationError(f"a path begins with a slash, not {self.target!r}: write {'/' + self.target!r}")
        try:
            ip_address(self.address)
        except ValueError as error:
            raise ConfigurationError(f"{self.address!r} is no address: write --from 203.0.113.7") from error


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit as it stands, before the request."""

    limit: str
    fits: bool
    count: int
    remaining: int
    reset: int
    """Whole seconds until the limit is whole again."""
    retry: int | None
    """Whole seconds until the request would fit; None when it never does."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What one policy makes of the request."""

    policy: str
    mode: str
    subject: str | None
    source: str
    """Which strategy named the subject."""
    key: tuple[str, ...]
    """What the counts are kept under; empty where nothing is counted."""
    cost: int | None
    standing: tuple[Standing, ...]
    why: str = ""
    """Where nothing is counted: why."""


@dataclass(slots=True)
class Explanation:
    """The decision, and how it came about."""

    method: str
    path: str
    """As the server hands it over."""
    canonical: str
    route: str | None = None
    patterns: list[tuple[str, str]] = field(default_factory=list)
    """Every pattern that the path falls under, each with its option or policy."""
    client: str | None = None
    watched: bool = False
    why: str = ""
    rulings: list[Ruling] = field(default_factory=list)
    subject: str | None = None
    allowed: bool = True
    status: int | None = None
    reason: str | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    """Those of this package alone."""
    body: str = ""
    notes: list[str] = field(default_factory=list)


def explain(found: Installation, question: Question) -> Explanation:
    """What would happen to such a request now."""
    request = _request(found.kind, question)
    keeper = found.keeper
    told_so_far = Explanation(request.method, request.path, canonical(request.path))
    rules = rules_of(keeper)
    _place(told_so_far, found, rules, request)
    with _callables():
        told_so_far.client = client_of(keeper.settings.trusted_proxies)(request)
    plan = found.engine.find(request.method, request.path) if keeper.enabled else None
    if plan is None:
        return told_so_far
    told_so_far.watched, told_so_far.route = True, plan.label
    _decide(told_so_far, found, {rule.name: rule for rule in rules}, plan, request)
    return told_so_far


def _request(kind: Kind, question: Question) -> Request:
    path, _, query = question.target.partition("?")
    method = question.method.upper() if question.method.upper() in _WRITTEN_SMALL else question.method
    headers = list(question.headers)
    if question.body:
        given = {name.lower() for name, _ in headers}
        own = {"content-type": "application/json", "content-length": str(len(question.body))}
        headers += [pair for pair in own.items() if pair[0] not in given]
    request = (
        _scope(method, path, query, headers, question)
        if kind == "asgi"
        else _environ(method, path, query, headers, question)
    )
    request.oversized = len(question.body) > LARGEST_BODY
    request.body = None if request.oversized else question.body
    return request


_WRITTEN_SMALL: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""On a command line "get" is a spelling, not another method."""


def _scope(method: str, path: str, query: str, headers: Sequence[tuple[str, str]], question: Question) -> Request:
    pairs = [(name.lower().encode("latin-1", "replace"), value.encode()) for name, value in headers]
    scope = {
        "type": "http", "http_version": "1.1", "scheme": "http", "method": method, "path": unquote(path),
        "raw_path": path.encode(), "root_path": "", "query_string": query.encode(), "headers": pairs,
        "client": (question.address, 50_000), "server": (ADDRESS, 80),
    }  # fmt: skip
    known = dict(pairs)
    return AsgiRequest(method, scope["path"], scope, known, len(known) != len(pairs))  # type: ignore[arg-type]


def _environ(method: str, path: str, query: str, headers: Sequence[tuple[str, str]], question: Question) -> Request:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query, "REMOTE_ADDR": question.address, "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(question.body),
    }  # fmt: skip
    for name, value in headers:
        key = header_key(name).environ
        text = value.encode().decode("latin-1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    return WsgiRequest(method, unquote(path, errors="replace") or "/", environ)


# -- which patterns ----------------------------------------------------------------------------------------------------


def _place(said: Explanation, found: Installation, rules: Sequence[Rule], request: Request) -> None:
    settings = found.keeper.settings
    spared, watched = settings.parsed_routes("whitelist"), settings.parsed_routes("routes")
    entries: list[tuple[str, Route]] = [("whitelist", route) for route in spared]
    entries += [("routes", route) for route in watched]
    entries += [(f"policy {rule.name}", route) for rule in rules for route in rule.routes]
    match = RouteTable([route for _, route in entries], found.templates).match(request.path)
    of_path = [entries[at] for at in match.entries]
    hit = [(option, route) for option, route in of_path if route.covers(request.method)]
    said.patterns = [(option, f"{route.method} {route.pattern}") for option, route in hit]
    white = [route for option, route in hit if option == "whitelist"]
    others = [route for option, route in of_path if option == "whitelist" and not route.covers(request.method)]
    if not found.keeper.enabled:
        said.why = "the keeper is switched off (enabled=False): everything passes through"
    elif white and match.exact:
        said.why = f"whitelisted by {white[0].method} {white[0].pattern}: never limited, never recorded"
    elif watched and not any(option == "routes" for option, _ in hit):
        said.why = "no pattern of routes= matches: neither limited nor recorded"
    elif white:
        said.why = (
            f"not exempt although {white[0].pattern} is whitelisted: servers read this spelling in more than one way,"
            f" and only the plain form {said.canonical!r} is exempt"
        )
    elif others:
        said.why = f"not exempt: {others[0].pattern} is whitelisted for {others[0].method} alone"


# -- the decision ------------------------------------------------------------------------------------------------------


def _decide(said: Explanation, found: Installation, rules: dict[str, Rule], plan: RoutePlan, request: Request) -> None:
    engine = found.engine
    ticket = Ticket(plan, request, found.keeper.now() // 1000, 0)
    with _callables():
        request.positions = plan.positions
        named = asyncio.run(_named(plan, request))
        ticket.found = named if len(plan.lines) else None
        operation = engine.price(ticket)
    said.subject = ticket.subject
    spends = None
    if operation is not None:
        spends = _checked(said, found, ticket, operation)
    charged = {charge.limits.head[1]: (charge, row) for charge, row in _charged(ticket, spends)}
    for line, values in zip(plan.lines, named, strict=True):
        said.rulings.append(_ruling(rules[line.name], values, charged.get(line.name), spends, ticket))
    if ticket.refusal is not None:
        _refused(said, ticket.refusal, ticket.reason)
    elif operation is not None and spends is not None and ticket.form is not None:
        after, _ = judge(Operation(operation.charges, spends.now), spends.rows)
        said.headers = ticket.form.text(after.rows, after.now)
    if ticket.exempt:
        said.notes.append("exempt: recorded, never charged")


async def _named(plan: RoutePlan, request: Request) -> list[list[Any]]:
    return [await ask(line, request) for line in plan.lines]


def _checked(said: Explanation, found: Installation, ticket: Ticket, operation: Operation) -> Spends | None:
    """The counters' answer to a question that charges nothing."""
    counters = _readable(said, found)
    try:
        spends = counters.apply(Operation(operation.charges, operation.now, CHECK))
    except StoreUnavailable as error:
        found.engine.outage(ticket)
        outcome = "refuses" if ticket.refusal else "lets through uncounted"
        said.notes.append(f"the counters do not answer ({error}): on_outage {outcome}")
        return None
    ticket.spends = spends
    if spends.refused:
        found.engine.decide(ticket, spends)
    return spends


def _readable(said: Explanation, found: Installation) -> Counters:
    """The keeper's counters, or empty ones where asking would make a file or where they are another process's."""
    counters = found.keeper.counters
    if (path := absent(counters)) is not None:
        said.notes.append(f"nothing is counted yet: {path} does not exist")
        return open_counters("memory://")
    if in_memory(counters):
        said.notes.append("counts in memory are known to the server's process alone: limits are shown as if untouched")
    return counters


def _charged(ticket: Ticket, spends: Spends | None) -> Iterator[tuple[Charge, Sequence[int] | None]]:
    for position, charge in enumerate(ticket.charges):
        yield charge, None if spends is None else spends.rows[position]


def _ruling(
    rule: Rule,
    values: Sequence[Any],
    charged: tuple[Charge, Sequence[int] | None] | None,
    spends: Spends | None,
    ticket: Ticket,
) -> Ruling:
    at, value = next(((at, value) for at, value in enumerate(values) if value is not None), (None, None))
    source = _source(rule, at)
    if isinstance(value, Rejection):
        why = "passed over" if rule.mode == "shadow" or ticket.exempt else f"refused with {value.status}"
        return Ruling(rule.name, rule.mode, None, source, (), None, (), f"{why}: {value.detail}")
    if charged is None:
        return Ruling(rule.name, rule.mode, value, source, (), None, (), _uncharged(rule, value, ticket))
    charge, row = charged
    limits = charge.limits
    standing: tuple[Standing, ...] = ()
    if row is not None and spends is not None and isinstance(limits, LimitSet):
        stands = limits.read(row, spends.now, charge.cost)
        left = limits.read(row, spends.now)
        standing = tuple(_standing(one, before) for one, before in zip(stands, left, strict=True))
    return Ruling(rule.name, rule.mode, charge.value, source, charge.key, charge.cost, standing)


def _standing(charged: Spend, before: Spend) -> Standing:
    retry = None if charged.retry_after is None else seconds(charged.retry_after)
    return Standing(charged.name, charged.allowed, charged.limit, before.remaining, seconds(before.reset_after), retry)


def _uncharged(rule: Rule, value: str | None, ticket: Ticket) -> str:
    if ticket.refusal is not None and not ticket.charges:
        return f"the request is refused before anything is counted: {ticket.reason}"
    if ticket.exempt:
        return "exempt"
    if not rule.limits:
        return "this policy has no limits"
    if value is None and rule.policy.on_missing_identity == "allow":
        return 'nobody is named, and on_missing_identity="allow" does not limit then'
    return "the policy's exempt says so" if rule.policy.exempt else "nothing is counted"


def _source(rule: Rule, at: int | None) -> str:
    """The words for the source that stands at a place; a strategy may have several."""
    if at is None:
        return f"nobody is named by {asked(rule)}"
    names = []
    for one in rule.strategies:
        names += [told(one)] * len(strategy(one).sources(lambda request: None))
    return names[at] + (f", because {', '.join(names[:at])} found nothing" if at else "")


def _refused(said: Explanation, refusal: Refusal, reason: str | None) -> None:
    said.allowed, said.status, said.reason = False, refusal.status, reason
    said.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in refusal.headers]
    said.body = refusal.body.decode("utf-8", "replace")


@contextmanager
def _callables() -> Iterator[None]:
    """Callables of the user may raise anything; under a server the request would end with 500."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"a callable of the application raised {type(error).__name__}: {error}; such a request ends with 500"
        ) from error
