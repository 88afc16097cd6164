"""What the rules add to an OpenAPI document: refusals and headers of the operations that a policy covers. Pure."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from usagekeeper.decisions import LEGACY_HEADERS, LIMIT_HEADER, POLICY_HEADER, Decision
from usagekeeper.engine import Engine
from usagekeeper.policies import Line, RoutePlan
from usagekeeper.values import ENFORCE, SHADOW

_METHODS: Final = frozenset(("get", "put", "post", "delete", "options", "head", "patch", "trace", "query"))
_PARAMETER: Final = re.compile(r"{[^{}]*}")
_ANY: Final = "~any~"
"""Stands for the value of a path parameter: a policy covers an operation when it covers any value."""
_SUCCESS: Final = re.compile("2(?:[0-9][0-9]|XX)", re.IGNORECASE)
_PROBLEM: Final = "UsageProblem"

_SCHEMA: Final[Mapping[str, Any]] = {
    "title": _PROBLEM,
    "description": "Why a request was refused, as problem details (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "reason": {"type": "string"},
        "violated-policies": {"type": "array", "items": {"type": "string"}},
    },
}

_SECONDS: Final = {"type": "integer", "minimum": 1}
_COUNT: Final = {"type": "integer", "minimum": 0}
_HEADERS: Final[Mapping[str, Mapping[str, Any]]] = {
    POLICY_HEADER: {"description": "Every limit: its name, units and window in seconds.", "schema": {"type": "string"}},
    LIMIT_HEADER: {
        "description": "Every limit: units left, seconds until there are more.",
        "schema": {"type": "string"},
    },
    LEGACY_HEADERS[0]: {"description": "Units of the limit with the least left.", "schema": _COUNT},
    LEGACY_HEADERS[1]: {"description": "Units left.", "schema": _COUNT},
    LEGACY_HEADERS[2]: {"description": "When the limit is whole again, in epoch seconds.", "schema": _COUNT},
    "Retry-After": {"description": "Seconds until the same request would fit.", "schema": _SECONDS},
}
_OF_STYLE: Final = {
    "both": (POLICY_HEADER, LIMIT_HEADER, *LEGACY_HEADERS),
    "ietf": (POLICY_HEADER, LIMIT_HEADER),
    "legacy": LEGACY_HEADERS,
    "none": (),
}


def describe(document: Mapping[str, Any], engine: Engine, *, root: str = "", problems: bool = True) -> dict[str, Any]:
    """A copy of *document* with what *engine* may answer; *root* is the application's `root_path`.

    What the document says of a response already is kept. Without *problems* refusals have bodies of another form, and
    no content is described.
    """
    described: dict[str, Any] = copy.deepcopy(dict(document))
    named: set[str] = set()
    for path, item in (described.get("paths") or {}).items():
        for method in _METHODS.intersection(item):
            plan = engine.find(method.upper(), _PARAMETER.sub(_ANY, path), root)
            if plan is not None and plan.lines:
                _extend(item[method].setdefault("responses", {}), plan, problems and method != "head", named)
    components = described.setdefault("components", {}) if named else {}
    if _PROBLEM in named:
        components.setdefault("schemas", {}).setdefault(_PROBLEM, copy.deepcopy(dict(_SCHEMA)))
    for name in _HEADERS:
        if name in named:
            components.setdefault("headers", {}).setdefault(name, copy.deepcopy(dict(_HEADERS[name])))
    return described


def _extend(responses: dict[str, Any], plan: RoutePlan, problems: bool, named: set[str]) -> None:
    headers = () if plan.form is None else _OF_STYLE[plan.style]
    for status, description, example, more in _refusals(plan):
        response = responses.setdefault(status, {"description": description})
        if "$ref" in response:
            continue
        _add_headers(response, (*more, *(headers if status == "429" else ())), named)
        if problems and "content" not in response:
            schema = {"$ref": f"#/components/schemas/{_PROBLEM}"}
            response["content"] = {"application/problem+json": {"schema": schema, "example": example.problem()}}
            named.add(_PROBLEM)
    for status, response in responses.items():
        if _SUCCESS.fullmatch(str(status)) and "$ref" not in response:
            _add_headers(response, headers, named)


def _add_headers(response: dict[str, Any], names: tuple[str, ...], named: set[str]) -> None:
    known = {name.lower() for name in response.get("headers") or ()}
    for name in names:
        if name.lower() not in known:
            response.setdefault("headers", {})[name] = {"$ref": f"#/components/headers/{name}"}
            named.add(name)


def _refusals(plan: RoutePlan) -> Iterator[tuple[str, str, Decision, tuple[str, ...]]]:
    """Status, description, an example, and the headers that belong to it alone."""
    if any(_names_are_checked(line) and line.mode != SHADOW for line in plan.lines):
        yield (
            "401",
            "The request does not say who it is from.",
            Decision(401, "missing-identity", "This request does not say who it is from."),
            (),
        )
    enforced = [line for line in plan.lines if line.limited and line.mode == ENFORCE]
    if enforced:
        name, count = next(_limits(enforced[0]))
        told = ", ".join(name for line in enforced for name, _ in _limits(line))
        yield (
            "429",
            f"A limit is used up: {told}.",
            Decision(429, "quota-exceeded", f"The limit {name} of {count} is used up.", violated=(name,)),
            ("Retry-After",),
        )
    if any(line.denies for line in enforced):
        yield (
            "503",
            "Usage cannot be counted at the moment.",
            Decision(503, "counters-unavailable", "Usage cannot be counted at the moment."),
            ("Retry-After",),
        )


def _names_are_checked(line: Line) -> bool:
    """Whether it answers 401: to who does not say who it is, or to a token that is not accepted."""
    return line.missing == "reject" or any(source.absent for source, _ in line.sources)


def _limits(line: Line) -> Iterator[tuple[str, int]]:
    limits = line.sources[0][1]
    for name, rate in zip(limits.names, limits.rates, strict=True):
        yield name, rate.count
