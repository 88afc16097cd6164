"""Rates, and the arithmetic of one charge against one rate. Integer microseconds; no clock, no storage.

Three algorithms, each with the bound that no client ever passes:

- *gcra* (default), the generic cell rate algorithm (ITU-T I.371 in its virtual scheduling form): a burst of *count* at
  once, then one unit each *spacing*; in any stretch of time at most ``count + elapsed / spacing``.
- *fixed*: at most *count* within each window, windows aligned to the Unix epoch.
- *sliding*: the counts of this window and, weighted by how much of it still overlaps the last *window*, of the one
  before; the weighted count never passes *count*.

A clock that steps back grants nothing and locks nobody out for longer than one window.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Literal

from usagekeeper.errors import ConfigurationError, shown
from usagekeeper.values import SECOND, Spend, Words

Algorithm = Literal["gcra", "fixed", "sliding"]

WINDOWS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
"""Seconds in each unit a rate may be written with."""

_SHORT: Final = {"s": "second", "sec": "second", "m": "minute", "min": "minute", "h": "hour", "hr": "hour", "d": "day"}
_CALENDAR: Final = ("week", "month", "quarter", "year")
_WINDOW = re.compile(r"(?:(\d+)\s*)?([a-z]+)", re.ASCII)
_TEXT = re.compile(r"([\d_]{1,30})\s*(?:/|\bper\b)\s*(.+)", re.ASCII)
_LARGEST: Final = 10**15 - 1
"""The largest integer of a structured field (RFC 9651, 3.3.1); below 2^53, which every backend holds exactly."""
LATE: Final = SECOND
"""Charges reach a row in another order than their moments were read. Up to this far behind the row one is late, and
judged where the row stands; further behind, the clock was set back, and the row follows it."""
_LONGEST: Final = 366 * 86_400
_FASTEST_GCRA: Final = 100_000
"""Units a second; above it a whole-microsecond spacing would be wrong by more than a tenth."""


@dataclass(frozen=True, slots=True)
class Rate:
    """*count* units each *window*: ``Rate(100, "hour")``, ``Rate(20, "10 seconds", algorithm="sliding")``.

    *window* is a unit (second, minute, hour, day, or s, m, h, d) with an optional multiple, whole seconds, or a
    timedelta. *name* replaces the name that clients see; *cost* is charged to this rate whatever the policy's cost.
    """

    count: int
    window: str | int | timedelta
    algorithm: Algorithm = "gcra"
    name: str | None = None
    cost: int | None = None
    seconds: int = field(init=False, repr=False)
    """The window in whole seconds."""
    unit: str = field(init=False, repr=False)
    """The window as a name: "minute", "10-second"."""
    period: int = field(init=False, repr=False)
    """The window in microseconds."""
    spacing: int = field(init=False, repr=False)
    """Microseconds between two units at the steady rate, rounded up so that the rate is never passed."""

    def __post_init__(self) -> None:
        _whole(self.count, "the count of a rate", least=1, hint=_ZERO_HINT)
        if self.cost is not None:
            _whole(self.cost, "the cost of a rate", least=0)
        if self.algorithm not in ("gcra", "fixed", "sliding"):
            raise ConfigurationError(f'a rate\'s algorithm is "gcra", "fixed" or "sliding", not {self.algorithm!r}')
        seconds, unit = _window(self.window)
        object.__setattr__(self, "seconds", seconds)
        object.__setattr__(self, "unit", unit)
        object.__setattr__(self, "period", seconds * SECOND)
        object.__setattr__(self, "spacing", -(-seconds * SECOND // self.count))
        if self.algorithm == "gcra" and self.count > _FASTEST_GCRA * seconds:
            raise ConfigurationError(
                f"{self.count} units in {seconds} s are too many for gcra, which keeps whole microseconds between"
                f' units (at most {_FASTEST_GCRA} a second): use Rate({self.count}, "{self.unit}", algorithm="fixed")'
            )

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read "100/hour", "20/10 seconds" or "5 per minute"."""
        found = _TEXT.fullmatch(text.strip().lower())
        if not found or not found[1].strip("_"):
            raise ConfigurationError(f'{text!r} is not a limit: write "100/hour", "20/10 seconds" or Rate(100, "hour")')
        return cls(int(found[1].replace("_", "")), found[2].strip())


_ZERO_HINT: Final = "; to close a route, leave it out of the application or answer 403 there"


def _whole(value: object, what: str, *, least: int, hint: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _LARGEST:
        raise ConfigurationError(f"{what} is a whole number from {least} to 10^15 - 1, not {shown(value)}{hint}")


def _window(window: str | int | timedelta) -> tuple[int, str]:
    """Seconds and name of a window."""
    if isinstance(window, timedelta):
        if window.microseconds:
            raise ConfigurationError(f"a window is whole seconds, not {window!r}")
        window = window.days * 86_400 + window.seconds
    if isinstance(window, str):
        return _written_window(window)
    if not isinstance(window, int) or isinstance(window, bool) or not 1 <= window <= _LONGEST:
        raise ConfigurationError(
            f'a window is "minute", "10 seconds", whole seconds or a timedelta, not {shown(window)}'
        )
    for name, seconds in reversed(WINDOWS.items()):
        if window % seconds == 0:
            return window, _named(window // seconds, name)
    raise AssertionError("every whole number is a multiple of a second")  # pragma: no cover


def _written_window(text: str) -> tuple[int, str]:
    found = _WINDOW.fullmatch(text.strip().lower())
    name = found[2] if found else ""
    name = _SHORT.get(name, name.removesuffix("s"))
    if name in _CALENDAR:
        raise ConfigurationError(
            f"{text!r} is a calendar window, and calendar quotas are not in this version:"
            ' the longest window of a rate is "day" or a number of days such as "7 days"'
        )
    multiple = int(found[1] or 1) if found and len(found[1] or "") < 10 else 0
    if name not in WINDOWS or not 1 <= multiple * WINDOWS[name] <= _LONGEST:
        raise ConfigurationError(
            f'{text!r} is not a window: write second, minute, hour or day, with a multiple if you like ("10 seconds")'
        )
    return multiple * WINDOWS[name], _named(multiple, name)


def _named(multiple: int, unit: str) -> str:
    return unit if multiple == 1 else f"{multiple}-{unit}"


def read_gcra(name: str, rate: Rate, words: Words, now: int, cost: int) -> Spend:
    """Where a gcra rate stands: one word, the theoretical arrival time."""
    spacing = rate.spacing
    tolerance = spacing * rate.count
    arrival = min(max(words[0], now), now + tolerance)
    room = now + tolerance - arrival
    remaining = room // spacing
    need = spacing * cost - room
    more = spacing - room % spacing if remaining < rate.count else 0
    retry = 0 if need <= 0 else need if cost <= rate.count else None
    return Spend(name, need <= 0, rate.count, remaining, more, arrival - now, retry)


def read_fixed(name: str, rate: Rate, words: Words, now: int, cost: int) -> Spend:
    """Where a fixed window stands: two words, the window's number and what was used in it."""
    period = rate.period
    index = moment(words[0], now, period) // period
    used = words[1] if words[0] >= index else 0
    ends = (index + 1) * period - now
    allowed = not cost or used + cost <= rate.count
    retry = 0 if allowed else ends if cost <= rate.count else None
    return Spend(name, allowed, rate.count, max(0, rate.count - used), ends, ends, retry)


def read_sliding(name: str, rate: Rate, words: Words, now: int, cost: int) -> Spend:
    """Where a sliding window stands: three words, the window's number and what was used in it and in the one before."""
    period = rate.period
    now = moment(words[0], now, period)
    used, before = slide(words, now // period)
    left = period - now % period
    room = rate.count * period - used * period - before * left
    remaining = max(0, room // period)
    allowed = not cost or room >= cost * period
    more = _until(rate.count, period, left, used, before, remaining + 1) if remaining < rate.count else 0
    retry = 0 if allowed else None if cost > rate.count else _until(rate.count, period, left, used, before, cost)
    reset = left + period if used else left if before else 0
    return Spend(name, allowed, rate.count, remaining, more, reset, retry)


def moment(stored: int, now: int, period: int) -> int:
    """When a charge at *now* is judged by a row of window *stored*: a late one when that window began."""
    begins = stored * period
    return begins if now < begins <= now + LATE else now


def slide(words: Words, index: int) -> tuple[int, int]:
    """Used in window *index* and in the one before, as read from the *words* of an earlier moment."""
    stored, used, before = words
    if stored >= index:  # the same window, or a clock that stepped back: keep what was used
        return used, before
    return (0, used) if stored == index - 1 else (0, 0)


def _until(count: int, period: int, left: int, used: int, before: int, units: int) -> int:
    """Microseconds until *units* (at most *count*) fit, if nothing else is charged."""
    surplus = (used + units - count) * period + before * left
    if surplus <= 0:
        return 0
    if before and (wait := -(-surplus // before)) <= left:
        return wait
    surplus = (units - count) * period + used * period  # in the next window what is used now fades out
    return left + max(0, -(-surplus // used) if used else 0)
