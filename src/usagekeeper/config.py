"""Options, read once: names, types and defaults, from keywords and from the environment.

Pydantic checks what is plain; what it finds wrong becomes a `ConfigurationError` whose sentence shows the value.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Literal, TypedDict

import pydantic

from usagekeeper.decisions import OnRefusal
from usagekeeper.errors import ConfigurationError, shown
from usagekeeper.exchange import Request
from usagekeeper.identity import ClientAddress, Identity
from usagekeeper.policies import OnOutage, Policy
from usagekeeper.rates import Rate
from usagekeeper.routes import Route


class Options(TypedDict, total=False):
    """What `UsageKeeper` and the middlewares take, keyword-only; `Settings` has the defaults."""

    application: str
    routes: Sequence[Any] | None
    whitelist: Sequence[Any] | None
    exempt: Callable[[Request], bool] | None
    identity: Identity | None
    policies: Sequence[Policy] | None
    rate_limits: Mapping[str, Any] | None
    store: Any
    counters: Any
    retention: str | timedelta | None
    trusted_proxies: int | Sequence[str] | None
    headers: Literal["both", "ietf", "legacy", "none"]
    on_refusal: OnRefusal | None
    on_outage: OnOutage
    enabled: bool
    clock: Callable[[], float]


class Settings(pydantic.BaseModel):
    """Options with their defaults, checked."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    application: str = pydantic.Field("default", min_length=1, max_length=100, strict=True)
    routes: tuple[Any, ...] = ()
    whitelist: tuple[Any, ...] = ()
    exempt: Callable[[Any], bool] | None = None
    identity: Any = ClientAddress()
    policies: tuple[Any, ...] = ()
    rate_limits: dict[str, RateLimitForm] = {}
    store: Any = "sqlite:///usagekeeper.db"
    counters: Any = "auto"
    retention: timedelta | None = timedelta(days=90)
    trusted_proxies: Any = None
    headers: Literal["both", "ietf", "legacy", "none"] = "both"
    on_refusal: Callable[..., Any] | None = None
    on_outage: Literal["allow", "deny"] = "allow"
    enabled: bool = True
    clock: Callable[[], float] = time.time

    @pydantic.field_validator("application")
    @classmethod
    def _named(cls, value: str) -> str:
        if value != value.strip() or not value.isprintable():
            raise ValueError("this is a name without spaces around it and without control characters")
        return value

    @pydantic.field_validator("clock")
    @classmethod
    def _ticking(cls, value: Callable[[], Any]) -> Callable[[], Any]:
        try:
            now = value()
        except TypeError as error:
            raise ValueError(f"a clock is called without arguments, and this one says {error}") from error
        if isinstance(now, bool) or not isinstance(now, int | float) or not 0 <= now < _YEAR_9999:
            raise ValueError(f"a clock tells the seconds since 1970, and this one says {now!r}")
        return value

    @pydantic.field_validator("routes", "whitelist", "policies", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if value is None:
            return ()
        if isinstance(value, str | Mapping | Policy) or not isinstance(value, Sequence):
            raise ValueError("this is a list")
        return tuple(value)

    @pydantic.field_validator("rate_limits", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return {} if value is None else value

    @pydantic.field_validator("retention", mode="before")
    @classmethod
    def _days(cls, value: Any) -> Any:
        found = _AGE.fullmatch(value.strip().lower()) if isinstance(value, str) else None
        if found:
            value = timedelta(days=int(found[1]) * _DAYS[found[2]])
        if value is None or (isinstance(value, timedelta) and value > timedelta(0)):
            return value
        raise ValueError('write "90 days", "3 years", a timedelta, or None to keep records for ever')

    def parsed_routes(self, option: Literal["routes", "whitelist"]) -> list[Route]:
        """The patterns of an option."""
        return [Route.parse(route) for route in getattr(self, option)]

    def parsed_identity(self) -> Identity:
        """The default strategy, as it was given."""
        given: Identity = self.identity if self.identity is not None else ClientAddress()
        return given

    def all_policies(self) -> list[Policy]:
        """The policies, and those that `rate_limits` stands for."""
        for policy in self.policies:
            if not isinstance(policy, Policy):
                raise ConfigurationError(
                    f'policies holds {policy!r}: write Policy("default", routes=["/api/*"], limits=["5/minute"])'
                )
        return [*self.policies, *(_limited(url, form) for url, form in self.rate_limits.items())]


class RateLimitForm(pydantic.BaseModel):
    """One entry of UsageFlow's mapping: ``{"limit": 1000, "window": "1h"}``."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    limit: pydantic.StrictInt
    window: str

    def to_policy(self, url: str) -> Policy:
        """A policy named after the pattern."""
        return Policy(url, routes=[url], limits=[Rate(self.limit, self.window)])


def _limited(url: str, form: RateLimitForm) -> Policy:
    try:
        return form.to_policy(url)
    except ConfigurationError as error:
        raise ConfigurationError(f"rate_limits[{url!r}]: {error}{_HINTS['rate_limits']}") from error


Settings.model_rebuild()

_AGE = re.compile(r"(\d{1,5}) ?(day|week|month|year)s?")
_DAYS: Final = {"day": 1, "week": 7, "month": 31, "year": 366}
_PLAIN: Final = ("application", "store", "counters", "retention", "headers", "on_outage", "enabled")
_PREFIX: Final = "USAGEKEEPER_"
_YEAR_9999: Final = 253_402_300_800
_LOG: Final = logging.getLogger("usagekeeper")


def read_settings(options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from *options*, then from ``USAGEKEEPER_<OPTION>`` in the environment for the plain ones."""
    known = tuple(Settings.model_fields)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ConfigurationError(f"there is no option {name!r}: {hint}")
    given = _from_environment(environ, options)
    try:
        return Settings.model_validate({**given, **options})
    except pydantic.ValidationError as error:
        raise ConfigurationError(_sentence(error, given)) from error


def _from_environment(environ: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, str]:
    """What the environment says of the plain options that are not among *options*."""
    given = {}
    for key in environ:
        if not key.startswith(_PREFIX):
            continue
        name = key.removeprefix(_PREFIX).lower()
        if name in _PLAIN:
            if name not in options and key.isupper():
                given[name] = _unquoted(key, environ[key])
        elif name in Settings.model_fields:
            _LOG.warning("%s is not read from the environment: write %s= in the code", key, name)
        elif near := difflib.get_close_matches(name, _PLAIN, n=1, cutoff=0.8):
            _LOG.warning("%s is not read: did you mean %s?", key, _PREFIX + near[0].upper())
    return given


def _unquoted(key: str, value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        raise ConfigurationError(f"the quotes of {key}={value} are part of its value: write {key}={value[1:-1]}")
    return value


def _sentence(error: pydantic.ValidationError, environment: Mapping[str, str]) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ").partition(" or instance of")[0]
    name = str(first["loc"][0])
    hint = f", as in {_PREFIX}{name.upper()}={_WRITTEN[name]}" if name in environment else _HINTS.get(name, "")
    return f"option {place} cannot be {shown(first['input'])}: {message}{hint}"


_HINTS: Final = {
    "application": ', as in application="orders"',
    "exempt": ', as in exempt=lambda request: request.header("X-Probe") is not None',
    "on_refusal": ', as in on_refusal=lambda decision: {"error": decision.reason}',
    "enabled": ", as in enabled=False",
    "clock": ", as in clock=time.time",
    "headers": ', as in headers="ietf"',
    "on_outage": ', as in on_outage="deny"',
    "retention": ', as in retention="90 days"',
    "routes": ', as in routes=[{"method": "*", "url": "/api/*"}]',
    "whitelist": ', as in whitelist=["GET /api/health"]',
    "policies": ', as in policies=[Policy("default", limits=["5/minute"])]',
    "rate_limits": ', as in rate_limits={"/api/users": {"limit": 1000, "window": "1h"}}',
}
_WRITTEN: Final = {
    "application": "orders",
    "store": "sqlite:///usagekeeper.db",
    "counters": "sqlite:///usagekeeper.counters.db",
    "retention": '"90 days"',
    "headers": "ietf",
    "on_outage": "deny",
    "enabled": "false",
}
"""How the plain options are written in the environment."""
