"""What one decision costs, with nothing around it: memory and SQLite counters, against the `limits` library.

Rows 14 and 15 of the targets, and the price of SQLite. Run alone; `limits` is in the bench requirements.
"""

from __future__ import annotations

import gc
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.timing import best, effort, figure, report
from usagekeeper import Rate
from usagekeeper.counters.base import Counters
from usagekeeper.counters.memory import MemoryCounters
from usagekeeper.counters.sqlite import SqliteCounters
from usagekeeper.limits import LimitSet
from usagekeeper.values import Charge, Operation

THREE = [Rate(10**6, "minute"), Rate(10**7, "hour"), Rate(10**8, "day")]
FOUR = [*THREE, Rate(10**9, "day", "fixed", name="quota")]


def decision(counters: Counters, rates: list[Rate], *, subjects: int = 1) -> Callable[[], object]:
    """One request's charge, made and judged; each call one microsecond later than the last."""
    limits = LimitSet("bench", "default", rates)
    names = [f"client-{number}" for number in range(subjects)]
    moment = iter(range(1_800_000_000_000_000, 1 << 62))
    pick = random.Random(7).randrange

    def decide() -> object:
        name = names[pick(subjects)] if subjects > 1 else names[0]
        return counters.apply(Operation([Charge(limits, name, 1)], next(moment)))

    return decide


def peer() -> Callable[[], object]:
    """Three fixed windows of `limits`, one after the other: it has no way to charge them all or none."""
    from limits import parse
    from limits.storage import MemoryStorage
    from limits.strategies import FixedWindowRateLimiter

    limiter = FixedWindowRateLimiter(MemoryStorage())
    items = [parse("1000000/minute"), parse("10000000/hour"), parse("100000000/day")]

    def decide() -> object:
        return [limiter.hit(item, "client-0") for item in items]

    return decide


def population(clients: int) -> dict[str, float]:
    """A million clients in memory: bytes each with key, the worst insertion, and what the collector adds.

    In processor time: on a busy machine a process is put aside for 300 ms in the middle of anything.
    """
    limits = LimitSet("bench", "default", FOUR)
    counters = MemoryCounters(max_subjects=clients + 1)
    gc.collect()
    begin = time.thread_time()
    gc.collect()
    idle = time.thread_time() - begin
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    worst = 0.0
    for number in range(clients):
        operation = Operation([Charge(limits, f"{number:032x}", 1)], 1_800_000_000_000_000)
        begin = time.thread_time()
        counters.apply(operation)
        worst = max(worst, time.thread_time() - begin)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    begin = time.thread_time()
    gc.collect()
    return {
        "bytes a client, key of 32 characters included": grown / clients,
        "worst insertion, ms": worst * 1e3,
        "added by a full collection, ms": (time.thread_time() - begin - idle) * 1e3,
    }


def main() -> None:
    """Print every table."""
    how, arguments = effort(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "limits, 3 fixed windows": peer(),
            "memory, 1 limit": decision(MemoryCounters(), FOUR[:1]),
            "memory, 3 limits": decision(MemoryCounters(), THREE),
            "memory, 3 limits + 1 fixed": decision(MemoryCounters(), FOUR),
            "memory, 100,000 clients at random": decision(MemoryCounters(), FOUR, subjects=100_000),
            "SQLite, 3 limits + 1 fixed": decision(SqliteCounters(Path(folder) / "counters.db"), FOUR),
        }
        report("One decision", best(cases, how), "limits, 3 fixed windows", style=arguments.style)
    for name, value in population(1_000_000).items():
        figure(name, value, style=arguments.style)


if __name__ == "__main__":
    main()
