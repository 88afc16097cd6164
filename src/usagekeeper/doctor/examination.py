"""One examination: what is looked at, in which order, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from usagekeeper.doctor import places, rules, traffic, trust, wiring
from usagekeeper.doctor.codes import Finding, finding
from usagekeeper.doctor.surroundings import Surroundings
from usagekeeper.errors import ConfigurationError
from usagekeeper.inspection.locate import Installation, Missing, locate


@dataclass(slots=True)
class Report:
    """What was found, and what was looked at to find it."""

    findings: list[Finding] = field(default_factory=list)
    looked_at: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether there is no error."""
        return all(one.code.severity != "error" for one in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"findings": [one.as_json() for one in self.findings], "looked_at": self.looked_at}


def examine(name: str, environ: Mapping[str, str], *, workers: int | None = None, allowed: str | None = None) -> Report:
    """Look at the application called *name*, and at how *environ* and the server's options will run it.

    *workers* and *allowed* are the server's ``--workers`` and ``--forwarded-allow-ips``, where they are given on its
    command line. Raises `NotFound` where there is no such application.
    """
    try:
        found = locate(name)
    except ConfigurationError as error:
        return Report([finding("UK101", str(error))], [f"the middleware of {name}"])
    except Missing as error:
        return Report([finding("UK102", str(error))], [f"the imports of {name}"])
    around = Surroundings.read(environ, workers, allowed)
    report = Report()
    try:
        records = traffic.newest(found.keeper)
        report.findings += _findings(found, around, records)
        report.looked_at += _looked_at(found, around, records)
    finally:
        found.keeper.close()
    return report


def _findings(found: Installation, around: Surroundings, records: traffic.Sample) -> Iterator[Finding]:
    yield from wiring.findings(found)
    yield from trust.findings(found, around, records)
    yield from rules.findings(found)
    yield from traffic.findings(found, records)  # before the counters are asked: opening a file may touch it
    yield from places.findings(found, around)


def _looked_at(found: Installation, surroundings: Surroundings, records: traffic.Sample) -> Iterator[str]:
    around = ", ".join(layer.name for layer in found.layers) or "nothing around it"
    yield f"{found.name}: {found.framework or 'no framework'}, {len(found.templates)} routes, {around}"
    yield f"the environment: {surroundings.told()}"
    yield f"the store: {records.told()}"
    yield f"the counters: {places.place_of(found.keeper.counters)}"
