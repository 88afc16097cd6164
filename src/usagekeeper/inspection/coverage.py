"""What is said of each of the framework's routes: watched or not, by which policies, with which limits.

Here patterns are compared with templates, not with paths: a pattern may cover all that a template answers, some of it,
or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import zip_longest
from typing import Any, Final, Literal

from usagekeeper.bearer import Verified
from usagekeeper.config import Settings
from usagekeeper.identity import Asked, ClientAddress, Everyone, FirstOf, Identity, strategy
from usagekeeper.keeper import UsageKeeper
from usagekeeper.policies import Policy
from usagekeeper.rates import Rate
from usagekeeper.routes import Parameter, Rest, Route, Segment, Template

Reach = Literal["all", "some", "none"]
_MORE: Final = {"none": 0, "some": 1, "all": 2}


def reach(pattern: Sequence[Segment], other: Sequence[Segment]) -> Reach:
    """How much of what falls under *other* falls under *pattern* too."""
    partly = False
    for mine, theirs in zip_longest(pattern, other):
        if isinstance(mine, Rest):
            break
        if isinstance(theirs, Rest):
            return "some"
        if mine is None or theirs is None:
            return "none"
        if isinstance(mine, str) and mine != theirs:
            if not isinstance(theirs, Parameter) or (theirs.fits and not theirs.fits.fullmatch(mine)):
                return "none"
            partly = True
    return "some" if partly else "all"


def widest(routes: Iterable[Route], method: str, segments: Sequence[Segment]) -> Reach:
    """The reach of the one of *routes* that covers most."""
    found: list[Reach] = [reach(route.segments, segments) for route in routes if route.covers(method)]
    return max(found, key=_MORE.__getitem__, default="none")


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy, ready to be shown."""

    name: str
    routes: tuple[Route, ...]
    limits: tuple[Rate, ...]
    mode: str
    strategies: tuple[Any, ...]
    """Who is counted, in the order of asking."""
    policy: Policy

    @property
    def enforced(self) -> bool:
        """Whether it can refuse anybody."""
        return bool(self.limits) and self.mode == "enforce"


@dataclass(frozen=True, slots=True)
class Covered:
    """One route of the framework, for methods that are treated alike."""

    methods: tuple[str, ...]
    route: str
    status: str
    """ "watched", "watched in part", "whitelisted", "whitelisted in part" or "not watched"."""
    rules: tuple[tuple[Rule, Reach], ...]

    @property
    def bare(self) -> bool:
        """Watched, and no policy with a limit covers it."""
        watched = self.status not in ("not watched", "whitelisted")
        return watched and not any(rule.limits and reached == "all" for rule, reached in self.rules)


@dataclass(frozen=True, slots=True)
class Written:
    """One pattern as the user wrote it, and how many of the framework's routes fall under it."""

    option: str
    """ "routes", "whitelist", or the name of a policy."""
    route: Route
    matches: int


def rules_of(keeper: UsageKeeper) -> list[Rule]:
    """The keeper's policies."""
    return [_rule(policy, keeper.identity) for policy in keeper.ready]


def _rule(policy: Policy, default: Identity) -> Rule:
    strategies = flat(policy.identity if policy.identity is not None else default)
    last = strategies[-1].sources(lambda request: None)[-1]
    falls_back = policy.on_missing_identity == "address" or (policy.on_missing_identity is None and not last.absent)
    if falls_back and last.kind != "address" and not isinstance(strategies[-1], Everyone):
        strategies += (ClientAddress(),)
    routes = tuple(map(Route.parse, policy.routes))
    return Rule(policy.name, routes, tuple(policy.rates()), policy.mode, strategies, policy)


def flat(identity: Identity) -> tuple[Any, ...]:
    """The strategies that *identity* asks, one after the other."""
    one = strategy(identity)
    return tuple(inner for part in one.strategies for inner in flat(part)) if isinstance(one, FirstOf) else (one,)


def covered(settings: Settings, rules: Sequence[Rule], templates: Sequence[Template]) -> list[Covered]:
    """Every route of the framework, in its order.

    HEAD, and OPTIONS beside another method, are left out: frameworks answer them by themselves. Where several
    templates share a path, each stands for its own methods.
    """
    watched, spared = settings.parsed_routes("routes"), settings.parsed_routes("whitelist")
    rows: list[Covered] = []
    for template in templates:
        alike: dict[tuple[str, tuple[Reach, ...]], list[str]] = {}
        for method in _methods(template):
            status = _status(watched, spared, method, template.segments)
            apart = status in ("not watched", "whitelisted")
            reached = () if apart else tuple(widest(rule.routes, method, template.segments) for rule in rules)
            alike.setdefault((status, reached), []).append(method)
        for (status, reached), methods in alike.items():
            applied = tuple(pair for pair in zip(rules, reached, strict=False) if pair[1] != "none")
            rows.append(Covered(tuple(methods), template.label, status, applied))
    return rows


def _methods(template: Template) -> list[str]:
    if template.methods is None:
        return ["*"]
    others = template.methods - {"HEAD", "OPTIONS"}
    return sorted(others or template.methods)


def _status(watched: Sequence[Route], spared: Sequence[Route], method: str, segments: Sequence[Segment]) -> str:
    exempt = widest(spared, method, segments)
    if exempt == "all":
        return "whitelisted"
    seen = widest(watched, method, segments) if watched else "all"
    if seen == "none":
        return "not watched"
    if exempt == "some":
        return "whitelisted in part"
    return "watched" if seen == "all" else "watched in part"


def written(settings: Settings, rules: Sequence[Rule], templates: Sequence[Template]) -> list[Written]:
    """Every pattern of the keeper, in the order of the options."""
    own = [template for template in templates if template.methods is None or template.methods]
    rows = [(option, route) for option in ("routes", "whitelist") for route in settings.parsed_routes(option)]
    rows += [(rule.name, route) for rule in rules for route in rule.routes]
    return [Written(option, route, sum(_touches(route, template) for template in own)) for option, route in rows]


def _touches(route: Route, template: Template) -> bool:
    methods = template.methods
    fits = methods is None or route.method == "*" or any(route.covers(method) for method in methods)
    return fits and reach(route.segments, template.segments) != "none"


# -- words -------------------------------------------------------------------------------------------------------------


def told(one: Any) -> str:
    """A strategy as it is written: ``Header("X-Customer")``, ``customer_of()``."""
    if isinstance(one, Asked):
        return f"{getattr(one.function, '__name__', type(one.function).__name__)}()"
    if isinstance(one, Verified):
        return f'BearerClaim("{one.claim.claim}")'
    if isinstance(one, ClientAddress):
        return "ClientAddress()" if one.prefix == ClientAddress().prefix else f"ClientAddress(prefix={one.prefix})"
    if not is_dataclass(one) or isinstance(one, type):
        return f"{type(one).__name__}()"
    values = [getattr(one, field.name) for field in fields(one) if field.repr]
    inner = ", ".join(f'"{value}"' if isinstance(value, str) else repr(value) for value in values)
    return f"{type(one).__name__}({inner})"


def asked(rule: Rule) -> str:
    """Who a policy counts: ``Header("X-Customer"), else ClientAddress()``."""
    return ", else ".join(map(told, rule.strategies))


def rate(limit: Rate) -> str:
    """A limit as it is written: "100/hour", "20/10 seconds"; the algorithm where it is not gcra."""
    multiple, _, unit = limit.unit.rpartition("-")
    window = f"{multiple} {unit}s" if multiple else unit
    return f"{limit.count}/{window}" + ("" if limit.algorithm == "gcra" else f" ({limit.algorithm})")
