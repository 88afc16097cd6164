"""Where a store or counters keep what they keep: in the memory of one process, or in a file."""

from __future__ import annotations

from pathlib import Path

from usagekeeper.counters.memory import MemoryCounters
from usagekeeper.stores.memory import MemoryStore


def in_memory(backend: object) -> bool:
    """Whether each process has what it keeps to itself."""
    return isinstance(backend, MemoryCounters | MemoryStore)


def file_of(backend: object) -> Path | None:
    """Its file, which may not be there yet; None where it has none, or does not tell."""
    path = getattr(backend, "path", None)
    return path if isinstance(path, Path) else None


def absent(backend: object) -> Path | None:
    """Its file, where it has one that is not there yet: using the backend would make it."""
    path = file_of(backend)
    return None if path is None or path.exists() else path
