"""Where the counts live. Backends open by URL; a third party adds an entry point `usagekeeper.counters`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Final

from usagekeeper.counters.base import AsyncCounters, Counters
from usagekeeper.errors import ConfigurationError
from usagekeeper.records import redact_url

__all__ = ["AsyncCounters", "Counters", "open_counters"]

_SCHEMES: Final = {
    "memory": "usagekeeper.counters.memory:open_memory",
    "sqlite": "usagekeeper.counters.sqlite:open_sqlite",
}


def open_counters(url: str) -> Counters:
    """The counters at *url*. Opens no file and no connection yet: the first `apply` in a process does."""
    scheme = url.partition("://")[0]
    target = _SCHEMES.get(scheme)
    if target is None:
        found = {entry.name: entry for entry in entry_points(group="usagekeeper.counters")}
        if scheme not in found:
            known = ", ".join(f"{name}://" for name in (*_SCHEMES, *found))
            raise ConfigurationError(
                f"counters {redact_url(url)!r} cannot be opened: this version knows {known}"
                ', as in counters="sqlite:///usagekeeper.counters.db"'
            )
        opened: Counters = found[scheme].load()(url)
        return opened
    module, _, function = target.partition(":")
    built: Counters = getattr(import_module(module), function)(url)
    return built
