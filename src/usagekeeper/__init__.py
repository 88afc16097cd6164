"""Know, limit and record the use of an API, inside its own process.

Names are loaded on first use: importing the package imports nothing third-party.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from usagekeeper.bearer import BearerClaim
    from usagekeeper.decisions import EXPOSED_HEADERS, Decision
    from usagekeeper.errors import ConfigurationError, QuotaExceeded, StoreUnavailable, UsageError
    from usagekeeper.exchange import Request
    from usagekeeper.identity import (
        Body,
        ClientAddress,
        Cookie,
        Everyone,
        FirstOf,
        Header,
        Host,
        PathParam,
        Query,
    )
    from usagekeeper.keeper import UsageKeeper
    from usagekeeper.policies import Policy
    from usagekeeper.rates import Rate
    from usagekeeper.records import UsageRecord
    from usagekeeper.routes import Route
    from usagekeeper.stores.base import RecordQuery
    from usagekeeper.usage import Usage, current_usage

__version__ = "0.1.0.dev0"

__all__ = [
    "EXPOSED_HEADERS",
    "BearerClaim",
    "Body",
    "ClientAddress",
    "ConfigurationError",
    "Cookie",
    "Decision",
    "Everyone",
    "FirstOf",
    "Header",
    "Host",
    "PathParam",
    "Policy",
    "Query",
    "QuotaExceeded",
    "Rate",
    "RecordQuery",
    "Request",
    "Route",
    "StoreUnavailable",
    "Usage",
    "UsageError",
    "UsageKeeper",
    "UsageRecord",
    "current_usage",
]

_HOMES: Final = {
    "decisions": ("EXPOSED_HEADERS", "Decision"),
    "errors": ("ConfigurationError", "QuotaExceeded", "StoreUnavailable", "UsageError"),
    "exchange": ("Request",),
    "bearer": ("BearerClaim",),
    "identity": (
        "Body",
        "ClientAddress",
        "Cookie",
        "Everyone",
        "FirstOf",
        "Header",
        "Host",
        "PathParam",
        "Query",
    ),
    "keeper": ("UsageKeeper",),
    "policies": ("Policy",),
    "rates": ("Rate",),
    "records": ("UsageRecord",),
    "routes": ("Route",),
    "stores.base": ("RecordQuery",),
    "usage": ("Usage", "current_usage"),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if name == "UsageMiddleware":  # a plain AttributeError would hide the sentence from `from usagekeeper import`
        raise ImportError(
            "there is a UsageMiddleware for each kind of application: import it from usagekeeper.asgi (FastAPI,"
            " Starlette), usagekeeper.flask or usagekeeper.wsgi"
        )
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
