"""Whether patterns and policies say what they seem to say of the framework's routes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from usagekeeper.doctor.codes import Finding, finding
from usagekeeper.inspection.coverage import Covered, Rule, covered, rate, rules_of, written
from usagekeeper.inspection.locate import Installation

_SHOWN = 5


def findings(found: Installation) -> Iterator[Finding]:
    """What is wrong with the rules."""
    settings, rules = found.keeper.settings, rules_of(found.keeper)
    rows = covered(settings, rules, found.templates)
    limited = any(rule.limits for rule in rules)
    if not limited:
        yield finding("UK304", "No policy has a limit: requests are recorded, and nobody is ever refused.")
    for rule in filter(lambda rule: rule.enforced, rules):
        yield from _too_dear(rule)
    bare = [row for row in rows if row.bare]
    if limited and bare:
        yield finding("UK301", f"No policy with a limit covers all of {_listed(bare)}.", _policy(bare[0]))
    apart = [row for row in rows if row.status in ("not watched", "watched in part")]
    if apart:
        yield finding("UK303", f"routes= leaves out {_listed(apart)}: neither limited nor recorded.")
    if any(template.methods is None or template.methods for template in found.templates):
        for row in written(settings, rules, found.templates):
            if not row.matches:
                option = f"{row.option}=" if row.option in ("routes", "whitelist") else f"policy {row.option!r}"
                yield finding(
                    "UK302",
                    f"{option} has {row.route.method} {row.route.pattern}, under which no route of the"
                    f" {found.framework} application falls.",
                )


def _too_dear(rule: Rule) -> Iterator[Finding]:
    for limit in rule.limits:
        cost = rule.policy.cost if limit.cost is None else limit.cost
        if isinstance(cost, int) and cost > limit.count:
            yield finding(
                "UK305",
                f"Policy {rule.name!r} charges {cost} for a request and allows {rate(limit)}: every one is refused.",
            )


def _listed(rows: Sequence[Covered]) -> str:
    shown = [f"{'|'.join(row.methods)} {row.route}" for row in rows[:_SHOWN]]
    more = len(rows) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _policy(row: Covered) -> str:
    head = row.route.split("{")[0].split("<")[0].rstrip("/")
    return f'Policy("{head.strip("/").replace("/", "-") or "all"}", routes=["{head or ""}/*"], limits=["100/minute"])'
