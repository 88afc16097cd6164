"""`usagekeeper routes`: every route of the framework and every pattern, and what one makes of the other."""

from __future__ import annotations

from typing import Any

from usagekeeper.commands.show import as_json, say, table
from usagekeeper.inspection.coverage import Covered, Rule, Written, asked, covered, rate, rules_of, written
from usagekeeper.inspection.locate import Installation, locate

_BARE = "no limit"


def run(name: str, *, json: bool) -> None:
    """Show the routes of the application called *name*."""
    found = locate(name)
    rules = rules_of(found.keeper)
    rows = covered(found.keeper.settings, rules, found.templates)
    patterns = written(found.keeper.settings, rules, found.templates)
    if json:
        as_json(_plain(found, rules, rows, patterns))
        return
    if not found.keeper.enabled:
        say("The keeper is switched off (enabled=False): none of this holds now.")
    if rows:
        table(("method", "route", "watched", "policies"), [_row(row) for row in rows])
    else:
        say(f"{name} tells no routes of its own: requests are known by the patterns below.")
    for columns, lines in (
        (("option", "pattern", "routes"), [_pattern(row, bool(found.templates)) for row in patterns]),
        (("policy", "limits", "who is counted", "mode"), [_rule(rule) for rule in rules]),
    ):
        if lines:
            print()
            table(columns, lines)
    if not any(rule.limits for rule in rules):
        say("No policy has a limit: nothing is refused.")


def _row(row: Covered) -> tuple[str, ...]:
    names = ", ".join(f"{rule.name} (in part)" if reach == "some" else rule.name for rule, reach in row.rules)
    marked = ", ".join(filter(None, (names, _BARE if row.bare else "")))
    return "|".join(row.methods), row.route, row.status, marked


def _pattern(row: Written, known: bool) -> tuple[str, str, str]:
    return row.option, f"{row.route.method} {row.route.pattern}", str(row.matches or "none") if known else "?"


def _rule(rule: Rule) -> tuple[str, str, str, str]:
    return rule.name, ", ".join(map(rate, rule.limits)) or "none", asked(rule), rule.mode


def _plain(found: Installation, rules: list[Rule], rows: list[Covered], patterns: list[Written]) -> dict[str, Any]:
    return {
        "app": found.name,
        "framework": found.framework or None,
        "enabled": found.keeper.enabled,
        "routes": [
            {
                "methods": list(row.methods),
                "route": row.route,
                "status": row.status,
                "policies": [{"name": rule.name, "in_part": reach == "some"} for rule, reach in row.rules],
                "unlimited": row.bare,
            }
            for row in rows
        ],
        "patterns": [
            {
                "option": row.option,
                "method": row.route.method,
                "pattern": row.route.pattern,
                "routes": row.matches if found.templates else None,
            }
            for row in patterns
        ],
        "policies": [
            {
                "name": rule.name,
                "limits": list(map(rate, rule.limits)),
                "identity": asked(rule),
                "mode": rule.mode,
            }
            for rule in rules
        ],
    }
