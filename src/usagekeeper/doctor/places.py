"""Whether counters and store are shared by all workers, can be used, and have room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

from usagekeeper.doctor.codes import Finding, finding
from usagekeeper.doctor.surroundings import Surroundings
from usagekeeper.errors import UsageError
from usagekeeper.inspection.backends import absent, file_of, in_memory
from usagekeeper.inspection.locate import Installation
from usagekeeper.keeper import UsageKeeper
from usagekeeper.limits import LimitSet
from usagekeeper.rates import Rate
from usagekeeper.stores.base import RecordQuery
from usagekeeper.values import CHECK, Charge, Operation

MOUNTS: Final = Path("/proc/self/mounts")
_NETWORK: Final = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "ocfs2", "gfs2", "beegfs")
)
_NETWORK_FUSE: Final = frozenset(("fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.davfs2"))
_LITTLE: Final = 256 << 20
_LARGE: Final = 10 << 30


def findings(found: Installation, around: Surroundings) -> Iterator[Finding]:
    """What is wrong with the places."""
    keeper = found.keeper
    if around.workers is None and in_memory(keeper.counters):
        yield finding(
            "UK408",
            "Counts are in memory, and nothing here says how many workers the server has: with several, each one counts"
            " for itself.",
        )
    if around.workers is not None and around.workers > 1:
        yield from _apart(keeper, around)
    usable = yield from _usable("UK403", "counters", keeper.counters, lambda: _ask(keeper))
    usable &= yield from _usable("UK404", "store", keeper.store, lambda: _read(keeper))
    if usable:
        yield from _disks(keeper)


def place_of(backend: object) -> str:
    """Where a backend keeps what it keeps, without the secrets of a URL."""
    path = file_of(backend)
    return type(backend).__name__ + (f" {path}" if path is not None else "")


def _apart(keeper: UsageKeeper, around: Surroundings) -> Iterator[Finding]:
    count = f"{around.workers} workers ({around.workers_from})"
    if in_memory(keeper.counters):
        yield finding("UK401", f"With {count} each one counts for itself: together they admit so many times a limit.")
    if in_memory(keeper.store):
        yield finding("UK402", f"With {count} each one keeps its own records, and they are gone when it ends.")


def _usable(number: str, option: str, backend: object, use: Callable[[], None]) -> Generator[Finding, None, bool]:
    """Whether it can be used, and a finding where not; a file that is not there yet is not made."""
    try:
        if (check := getattr(backend, "check", None)) is not None:
            check()
        if absent(backend) is None:
            use()
    except (UsageError, OSError) as error:
        change = f'{option}="sqlite:////var/lib/shop/usage.{"counters." if option == "counters" else ""}db"'
        yield finding(number, f"The {option} cannot be used: {error}.", change)
        return False
    return True


def _ask(keeper: UsageKeeper) -> None:
    """A question about a subject that nobody can be; it charges nothing."""
    limits = LimitSet(keeper.application, "", [Rate(1, "second")])
    keeper.counters.apply(Operation([Charge(limits, "", 1)], keeper.now() // 1000, CHECK))


def _read(keeper: UsageKeeper) -> None:
    for _ in keeper.store.read(RecordQuery(order="newest", limit=1)):
        pass


# -- files -------------------------------------------------------------------------------------------------------------


def _disks(keeper: UsageKeeper) -> Iterator[Finding]:
    for folder in sorted({path.parent for path in filter(None, map(file_of, (keeper.store, keeper.counters)))}):
        kind = file_system(folder)
        if kind in _NETWORK or kind in _NETWORK_FUSE:
            yield finding(
                "UK405",
                f"{folder} is on a network file system ({kind}): its locks do not hold there, and counts and records"
                " may be lost or damaged.",
            )
        free = shutil.disk_usage(folder).free
        if free < _LITTLE:
            yield finding("UK406", f"The disk of {folder} has {free >> 20} MiB left.")
    store = file_of(keeper.store)
    if store is not None and (size := _size(store)) > _LARGE:
        kept = keeper.settings.retention
        kept_for = "for ever" if kept is None else f"for {kept.days} days"
        yield finding("UK407", f"{store} has {size >> 30} GiB; records are kept {kept_for}.")


def _size(path: Path) -> int:
    log = path.with_name(f"{path.name}-wal")
    return sum(os.stat(file).st_size for file in (path, log) if file.exists())


def file_system(folder: Path) -> str:
    """The kind of file system that *folder* is on, "" where the system does not tell."""
    if not MOUNTS.exists():
        return ""
    kind, longest = "", -1
    for line in MOUNTS.read_text("utf-8", "surrogateescape").splitlines():
        _, point, found, *_ = line.split(" ")
        where = Path(point.replace("\\040", " "))
        if len(where.parts) > longest and folder.resolve().is_relative_to(where):
            kind, longest = found, len(where.parts)
    return kind
