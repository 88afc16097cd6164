"""`usagekeeper tail`: records as they come, one a line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from usagekeeper.commands.show import COLOURS, as_json, say
from usagekeeper.errors import ConfigurationError, StoreUnavailable
from usagekeeper.inspection.backends import absent, in_memory
from usagekeeper.inspection.following import Follower
from usagekeeper.inspection.locate import locate
from usagekeeper.printable import sentence, visible
from usagekeeper.records import REFUSED, UsageRecord
from usagekeeper.stores import open_store
from usagekeeper.stores.base import RecordQuery, UsageStore

_STEP: Final = 0.5
"""Seconds between two looks."""
_PATH: Final = 80
_SUBJECT: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which records to show; None is any."""

    application: str | None = None
    subject: str | None = None
    route: str | None = None
    refused: bool = False

    def __call__(self, record: UsageRecord) -> bool:
        """Whether *record* is one of them."""
        return (
            (self.application is None or record.application == self.application)
            and (self.subject is None or record.subject == self.subject)
            and (self.route is None or record.route == self.route)
            and (not self.refused or record.outcome == REFUSED)
        )

    def query(self, lines: int) -> RecordQuery:
        """The newest of them."""
        outcome = REFUSED if self.refused else None
        return RecordQuery(
            application=self.application,
            subject=self.subject,
            route=self.route,
            outcome=outcome,
            order="newest",
            limit=lines,
        )


def run(
    name: str | None,
    url: str | None,
    *,
    lines: int,
    follow: bool,
    json: bool,
    subject: str | None,
    route: str | None,
    refused: bool,
) -> None:
    """Show the newest records of a store, and those that come, until interrupted."""
    store, application = _store(name, url)
    wanted = Wanted(application=application, subject=subject, route=route, refused=refused)
    try:
        with suppress(KeyboardInterrupt):
            tail(store, wanted, lines=lines, show=_json if json else _line, again=_pause if follow else _never)
    finally:
        store.close()


def tail(
    store: UsageStore,
    wanted: Wanted,
    *,
    lines: int,
    show: Callable[[UsageRecord], None],
    again: Callable[[], bool],
) -> None:
    """Show the newest *lines*, then what is new at every look; *again* waits for the next, and says if there is one."""
    follower = Follower(store)
    follower.start()
    newest = list(store.read(wanted.query(lines))) if lines else []
    for record in reversed(newest):
        follower.note(record)  # it may have come between the two readings
        show(record)
    while again():
        try:
            new = follower.look()
        except StoreUnavailable as error:
            print(sentence(f"{error}; asked again"), file=sys.stderr)
            continue
        for record in filter(wanted, new):
            show(record)


def _store(name: str | None, url: str | None) -> tuple[UsageStore, str | None]:
    """The store to read, and the application whose records are wanted."""
    if url is not None:
        store, application = open_store(url), None
    else:
        keeper = locate(name or "").keeper
        store, application = keeper.store, keeper.application
    if in_memory(store):
        raise ConfigurationError(
            'records in memory are known to the server\'s process alone: give it store="sqlite:///usagekeeper.db"'
        )
    if (path := absent(store)) is not None:
        raise ConfigurationError(f"there are no records in {path} yet: the server makes it with the first one")
    return store, application


def _pause() -> bool:
    time.sleep(_STEP)
    return True


def _never() -> bool:
    return False


# -- one record --------------------------------------------------------------------------------------------------------


def _json(record: UsageRecord) -> None:
    plain: dict[str, Any] = msgspec.to_builtins(record)
    as_json({"id": str(record.id), **plain}, line=True)


def _line(record: UsageRecord) -> None:
    say(line(record), colour=COLOURS.get(record.outcome))


def line(record: UsageRecord) -> str:
    """A record on one line; what the client wrote is made visible, and cut where it is long."""
    query = f"?{record.query}" if record.query else ""
    why = ", ".join(filter(None, (record.reason, *record.violated, record.exception, record.error_code)))
    parts = (
        datetime.fromtimestamp(record.at / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
        f"{record.status}",
        f"{record.outcome:<9}",
        visible(record.subject or record.remote_address or "-", longest=_SUBJECT),
        f"{record.method} {visible(record.path + query, longest=_PATH)}",
        f"{record.duration / 1000:.1f} ms",
        f"{record.units} unit{'' if record.units == 1 else 's'}",
        f"({visible(why, longest=_PATH)})" if why else "",
        f'"{visible(record.user_agent, longest=_SUBJECT)}"' if record.user_agent else "",
    )
    return "  ".join(part for part in parts if part)
