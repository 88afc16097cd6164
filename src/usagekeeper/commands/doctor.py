"""`usagekeeper doctor`: what is wrong with an installation, and the line to change."""

from __future__ import annotations

import os

from usagekeeper.commands.show import COLOURS, as_json, say
from usagekeeper.doctor.examination import examine


def run(name: str, *, workers: int | None, allowed: str | None, json: bool) -> bool:
    """Examine the application called *name*; whether there is no error."""
    report = examine(name, os.environ, workers=workers, allowed=allowed)
    if json:
        as_json(report.as_json())
        return report.healthy
    for one in report.findings:
        say(f"{one.code.number} {one.code.severity}: {one.code.title}", colour=COLOURS[one.code.severity])
        say(f"  {one.sentence}")
        say(f"  change: {one.change}")
    for place in report.looked_at:
        say(f"looked at {place}")
    counts = [sum(one.code.severity == kind for one in report.findings) for kind in _KINDS]
    words = [f"{count} {kind}{'' if count == 1 else 's'}" for count, kind in zip(counts, _KINDS, strict=True)]
    say(", ".join(words))
    return report.healthy


_KINDS = ("error", "warning", "note")
