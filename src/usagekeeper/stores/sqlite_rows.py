"""How records lie in SQLite: columns, repeated texts as numbers, and the statements that read and write them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, Final

import msgspec

from usagekeeper.records import UsageRecord, plain, record_id
from usagekeeper.stores.base import RecordQuery

# -- rows ----------------------------------------------------------------------------------------

_COLUMNS: Final = ("id", *(n for n in UsageRecord.__struct_fields__ if n != "process"))
_AT: Final = {name: position for position, name in enumerate(_COLUMNS)}
_OURS: Final = (
    "application", "method", "scheme", "route", "subject_kind", "outcome", "reason", "violated",
    "policies", "exception", "error_code", "auth_scheme",
)  # fmt: skip
_THEIRS: Final = ("host", "request_mimetype", "response_mimetype", "origin", "user_agent")
"""Words that a client chooses: they get half of the numbers, so that nobody can use up all."""
MOST: Final = 16_384
_LONGEST: Final = 256
_LIMITS: Final = {
    **{_AT[name]: MOST for name in _OURS},
    **{_AT[name]: MOST // 2 for name in _THEIRS},
}


NULL: Final = float("nan")
"""SQLite keeps it as NULL. The sqlite3 module searches for adapters of None and bytes, which takes longer than all the
rest; it does not for floats and bytearrays."""
_OFTEN_NULL: Final = tuple(
    _AT[name]
    for name in (
        "subject", "first_byte", "request_length", "response_length", "referer", "remote_address", "auth_digest",
        "trace_id", "request_id", "metadata",
    )
)  # fmt: skip


class Words:
    """Texts as numbers and back, and what *connection* has looked up before."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.learnt: dict[Any, Any] = {}

    def number(self, value: Any, limit: int) -> Any:
        """The number of a text, or the text itself when it is long or *limit* numbers are given."""
        text = write_json(value) if isinstance(value, tuple) else str(value)
        if text is None or len(text) > _LONGEST:
            return text
        try:
            self._connection.execute(_LEARN, (text, limit))
        except UnicodeEncodeError:
            return text
        found = self._connection.execute(_NUMBER, (text,)).fetchone()
        if found is None:
            return text
        return self.learnt.setdefault(value, found[0])

    def text(self, number: int) -> Any:
        """What `number` was given."""
        if number not in self.learnt:
            found = self._connection.execute(_TEXT, (number,)).fetchone()
            self.learnt[number] = found and found[0]
        return self.learnt[number]


def row_of(record: UsageRecord, words: Words) -> list[Any]:
    """A record as the values of its columns."""
    row = [bytearray(record_id(record.at, record.serial, record.process)), *_fields(record)]
    for position, write in _WRITE.items():
        row[position] = write(row[position])
    for position in _OFTEN_NULL:
        if row[position] is None:
            row[position] = NULL
    known = words.learnt.get
    for position, limit in _LIMITS.items():
        value = row[position]
        row[position] = NULL if value is None else known(value) or words.number(value, limit)
    return row


def record_of(row: Sequence[Any], words: Words) -> UsageRecord:
    """The record of a row that was read."""
    values = list(row)
    for position in _LIMITS:
        if isinstance(values[position], int):
            values[position] = words.text(values[position])
    for position, read in _READ.items():
        values[position] = read(values[position])
    process = int.from_bytes(values[0][10:], "big")
    return UsageRecord(process=process, **dict(zip(_COLUMNS[1:], values[1:], strict=True)))


_fields = attrgetter(*_COLUMNS[1:])


def _fits(value: int) -> bool:
    return -(1 << 63) <= value < 1 << 63


def write_json(value: Any) -> str | None:
    """Notes or names as JSON; None where there are none."""
    if not value:
        return None
    try:
        return msgspec.json.encode(value).decode()
    except (UnicodeEncodeError, TypeError):
        return msgspec.json.encode(plain(value)).decode()


def _read_names(value: str | None) -> tuple[str, ...]:
    return tuple(msgspec.json.decode(value)) if value else ()


def _read_json(value: str | None) -> Any:
    return msgspec.json.decode(value) if value else {}


def write_units(value: int | Decimal) -> int | str:
    """Units as an integer where SQLite has room for it, else as text."""
    return value if isinstance(value, int) and _fits(value) else str(value)


def _read_units(value: int | str) -> int | Decimal:
    return value if isinstance(value, int) else Decimal(value)


def write_digest(value: str | None) -> bytearray | str | None:
    """A digest as its bytes; what is none is kept as it is."""
    if value is None or len(value) != 32:
        return value
    try:
        short = bytearray.fromhex(value)
    except ValueError:
        return value
    return short if short.hex() == value else value


def _read_digest(value: bytes | str | None) -> str | None:
    return value.hex() if isinstance(value, bytes) else value


_WRITE: Final[Mapping[int, Callable[[Any], Any]]] = {
    _AT["units"]: write_units,
    _AT["auth_digest"]: write_digest,
    _AT["trace_id"]: write_digest,
    _AT["metadata"]: write_json,
}
_READ: Final[Mapping[int, Callable[[Any], Any]]] = {
    _AT["violated"]: _read_names,
    _AT["policies"]: _read_names,
    _AT["units"]: _read_units,
    _AT["aborted"]: bool,
    _AT["auth_digest"]: _read_digest,
    _AT["trace_id"]: _read_digest,
    _AT["metadata"]: _read_json,
}


# -- statements ----------------------------------------------------------------------------------

PURGE: Final = "DELETE FROM records WHERE id IN (SELECT id FROM records WHERE id <= ? AND at < ? ORDER BY id LIMIT ?)"
_LEARN: Final = "INSERT OR IGNORE INTO words (text) SELECT ? WHERE (SELECT coalesce(max(number), 0) FROM words) < ?"
_NUMBER: Final = "SELECT number FROM words WHERE text = ?"
_TEXT: Final = "SELECT text FROM words WHERE number = ?"
_CONDITIONS: Final = {
    "application": ("application IN (:application, (SELECT number FROM words WHERE text = :application))"),
    "route": "route IN (:route, (SELECT number FROM words WHERE text = :route))",
    "outcome": "outcome IN (:outcome, (SELECT number FROM words WHERE text = :outcome))",
    "subject": "subject = :subject",
    "since": "id >= :first AND at >= :since",
    "until": "id <= :last AND at < :until",
}
"""What a query may ask; its values are only ever bound."""


def insert(connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> int:
    """How many of *rows* were new."""
    before = connection.total_changes
    statement = _insertion(len(rows))
    try:
        connection.execute(statement, list(chain.from_iterable(rows)))
    except (UnicodeEncodeError, OverflowError, sqlite3.InterfaceError, sqlite3.ProgrammingError):
        # Text that is no Unicode, integers beyond 64 bits, values of another type than promised.
        connection.execute(statement, [storable(value) for row in rows for value in row])
    return connection.total_changes - before


@lru_cache(maxsize=64)
def _insertion(rows: int) -> str:
    row = f"({', '.join('?' * len(_COLUMNS))})"
    return f"INSERT OR IGNORE INTO records ({', '.join(_COLUMNS)}) VALUES {', '.join([row] * rows)}"


def rows_at_once(connection: sqlite3.Connection) -> int:
    """Rows that one statement can take."""
    return connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(_COLUMNS)


def storable(value: Any) -> Any:
    """*value* as SQLite can hold it."""
    if isinstance(value, int):
        return value if _fits(value) else (1 << 63) - 1 if value > 0 else -(1 << 63)
    return value if isinstance(value, bytearray | bytes | float | None) else plain(str(value))


def select(query: RecordQuery, after: bytes) -> tuple[str, dict[str, Any]]:
    """The statement, and its parameters but for `:size`."""
    newest = query.order == "newest"
    asked = {name: getattr(query, name) for name in _CONDITIONS}
    conditions = [_CONDITIONS[name] for name, value in asked.items() if value is not None]
    if after:
        conditions.append("id < :after" if newest else "id > :after")
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    asked |= {"after": after, "first": _first_id(query.since), "last": last_id(query.until)}
    return (
        f"SELECT {', '.join(_COLUMNS)} FROM records {where}ORDER BY id {'DESC' if newest else 'ASC'} LIMIT :size",
        {name: storable(value) for name, value in asked.items()},
    )


def _first_id(at: int | None) -> bytes:
    return _milliseconds(at or 0) + b"\x00" * 10


def last_id(at: int | None) -> bytes:
    """No record that arrived in the millisecond of *at*, or before, has a larger id."""
    return _milliseconds(at or 0) + b"\xff" * 10


def _milliseconds(at: int) -> bytes:
    return min(max(at // 1000, 0), (1 << 48) - 1).to_bytes(6, "big")
