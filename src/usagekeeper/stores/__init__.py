"""Where usage records live. Backends open by URL; a third party adds to `usagekeeper.stores`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Final

from usagekeeper.errors import ConfigurationError
from usagekeeper.records import redact_url
from usagekeeper.stores.base import RecordQuery, UsageStore

__all__ = ["RecordQuery", "UsageStore", "open_store"]

_SCHEMES: Final = {
    "memory": "usagekeeper.stores.memory:open_memory",
    "sqlite": "usagekeeper.stores.sqlite:open_sqlite",
}


def open_store(url: str) -> UsageStore:
    """The store at *url*. Opens no file and no connection yet: the first use in a process does."""
    scheme = url.partition("://")[0]
    target = _SCHEMES.get(scheme)
    if target is None:
        found = {entry.name: entry for entry in entry_points(group="usagekeeper.stores")}
        if scheme not in found:
            known = ", ".join(f"{name}://" for name in (*_SCHEMES, *found))
            raise ConfigurationError(
                f"store {redact_url(url)!r} cannot be opened: this version knows {known}"
                ', as in store="sqlite:///usagekeeper.db"'
            )
        make = found[scheme].load()
    else:
        module, _, function = target.partition(":")
        make = getattr(import_module(module), function)
    opened: UsageStore = make(url)
    return opened
