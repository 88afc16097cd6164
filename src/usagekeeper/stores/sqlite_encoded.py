"""How an encoded record becomes a row of SQLite at once, without the record between.

Most of what a record says was said before in the same bytes; what was made of those is remembered.
Whatever is odd raises: it goes by way of the record.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, Final

from usagekeeper.records import (
    ALLOWED,
    read_length,
    read_mimetype,
    read_text,
    read_trace,
    read_units,
    take_apart,
    take_plan_apart,
)
from usagekeeper.stores.sqlite_rows import (
    MOST,
    NULL,
    Words,
    rows_at_once,
    write_digest,
    write_json,
    write_units,
)

_REMEMBERED: Final = 4096
_LONGEST: Final = 256
"""Values of a kind that are remembered, and the bytes or characters of one."""
_SIZES: Final = (200, 100, 50, 20)
"""Rows of a statement, which costs 8 us a row to prepare: few are, and return."""

_COLUMNS: Final = (
    "id", "at", "serial", "application", "method", "route", "policies", "path", "query", "scheme", "remote_address",
    "subject", "subject_kind", "units", "status", "first_byte", "duration", "bytes_in", "bytes_out", "response_length",
    "response_mimetype", "host", "origin", "user_agent", "request_length", "request_mimetype", "trace_id", "request_id",
    "referer", "auth_scheme", "auth_digest", "outcome",
)  # fmt: skip
_RARE: Final = ("reason", "violated", "aborted", "exception", "error_code", "metadata")
"""Bound only where a record has one: a NULL that is bound costs as much as a text that is looked up."""


class EncodedRows:
    """Inserts encoded records through one connection, within a transaction of the caller."""

    def __init__(self, connection: sqlite3.Connection, words: Words) -> None:
        self._words = words
        self._usual = _Pile(connection, _COLUMNS, ", aborted", ", 0")
        self._rare = _Pile(connection, _COLUMNS + _RARE)
        self._sizes = [size for size in _SIZES if size <= rows_at_once(connection)]
        self._plans = _Known(self._plan)
        self._names = _Known(self._name)
        self._texts = _Known(self._text)
        self._mimetypes = _Known(self._mimetype)
        self._digests = _Known(write_digest)

    def step(self, count: int) -> int:
        """How many of *count* records to take at once: fifty steps, or as few as twenty records each."""
        return min((size for size in self._sizes if 50 * size >= count), default=self._sizes[0])

    def insert(self, encoded: Iterable[bytes], step: int) -> int:
        """Insert *encoded*, *step* rows a statement, and return how many were new; fewer wait for `finish`."""
        self._add(encoded)
        return self._usual.insert(step) + self._rare.insert(step)

    def finish(self) -> int:
        """Insert what waits; returns how many were new."""
        return sum(pile.insert(size) for pile in (self._usual, self._rare) for size in (*self._sizes, 0))

    def _add(self, encoded: Iterable[bytes]) -> None:
        plans, names, texts, mimetypes, digests = (
            self._plans, self._names, self._texts, self._mimetypes, self._digests,
        )  # fmt: skip
        usual, rare = self._usual.values, self._rare.values
        allowed = names[ALLOWED]
        for one in encoded:
            (
                at, serial, process, plan, path, query, scheme, address, subject, kind, units, status, first_byte,
                duration, bytes_in, bytes_out, response_length, response_mimetype,
                (host, origin, agent, request_length, request_mimetype, traced, request_id, referer, credentials),
                unusual,
            ) = take_apart(one)  # fmt: skip
            auth_scheme, digest = credentials or _NOBODY
            values = (
                bytearray(
                    _id(
                        at // 1000 << 16 | 0x7000 | serial >> 14 & 0xFFF,
                        1 << 63 | (serial & 0x3FFF) << 48 | process & _PROCESS,
                    )
                ),
                at,
                serial,
                *plans[bytes(plan)],
                path,
                query and read_text(query),
                names[scheme],
                NULL if address is None else address,
                NULL if subject is None else subject,
                names[kind],
                units if type(units) is int and units <= _LARGEST else write_units(read_units(units)),
                status,
                NULL if first_byte is None else first_byte,
                duration,
                bytes_in,
                bytes_out,
                NULL if response_length is None else _or_null(read_length(response_length)),
                mimetypes[response_mimetype],
                texts[host],
                texts[origin],
                texts[agent],
                NULL if request_length is None else _or_null(read_length(request_length)),
                mimetypes[request_mimetype],
                NULL if traced is None else _traced(traced),
                NULL if request_id is None else read_text(request_id),
                NULL if referer is None else read_text(referer),
                names[auth_scheme],
                digests[digest],
            )
            if unusual is None:
                usual += values
                usual.append(allowed)
            else:
                rare += values
                rare += self._unusual(*unusual)

    def _unusual(
        self, outcome: Any, reason: Any, violated: list[Any], aborted: Any, exception: Any, code: Any, notes: Any
    ) -> tuple[Any, ...]:
        names = self._names
        return (
            names[outcome], names[reason], names[tuple(violated) or None], int(aborted), names[exception], names[code],
            _or_null(write_json(notes)),
        )  # fmt: skip

    # -- what is made of values that return ------------------------------------------------------

    def _plan(self, encoded: bytes) -> tuple[Any, ...]:
        application, method, route, policies = take_plan_apart(encoded)
        names = self._names
        return names[application], names[method], names[route], names[tuple(policies) or None]

    def _name(self, value: str | tuple[str, ...]) -> Any:
        return self._words.number(value, MOST)

    def _text(self, value: str | bytes) -> Any:
        return self._words.number(read_text(value), MOST // 2)

    def _mimetype(self, value: str | bytes) -> Any:
        found = read_mimetype(value)
        return NULL if found is None else self._words.number(found, MOST // 2)


class _Known(dict[Any, Any]):
    """What was made of the values that return, None included; a bounded number of them."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make
        self[None] = NULL

    def __missing__(self, value: Any) -> Any:
        made = self._make(value)
        if len(value) <= _LONGEST:
            if len(self) >= _REMEMBERED:
                self.clear()
                self[None] = NULL
            self[value] = made
        return made


class _Pile:
    """Values of rows that wait to be inserted together."""

    def __init__(
        self, connection: sqlite3.Connection, columns: tuple[str, ...], more: str = "", fixed: str = ""
    ) -> None:
        self._connection = connection
        self._width = len(columns)
        self._into = f"INSERT OR IGNORE INTO records ({', '.join(columns)}{more}) VALUES "
        self._row = f"({', '.join('?' * len(columns))}{fixed})"
        self._statements: dict[int, str] = {}
        self.values: list[Any] = []

    def insert(self, size: int) -> int:
        """Insert *size* rows at a time, as often as there are so many (0: all, at once); returns how many were new."""
        new = 0
        values = self.values
        size = size or len(values) // self._width
        end = size * self._width
        while values and len(values) >= end:
            try:
                new += self._connection.execute(self._statement(size), values[:end]).rowcount
            except (sqlite3.InterfaceError, sqlite3.ProgrammingError) as error:  # it has no form for such a value
                raise ValueError("a record holds what no record holds") from error
            del values[:end]
        return new

    def _statement(self, rows: int) -> str:
        found = self._statements.get(rows)
        if found is None:
            found = self._statements[rows] = self._into + ", ".join([self._row] * rows)
        return found


def _traced(header: Any) -> Any:
    found = read_trace(header)
    return NULL if found is None else bytearray.fromhex(found)


def _or_null(value: Any) -> Any:
    return NULL if value is None else value


_id: Final = Struct(">QQ").pack
_NOBODY: Final = (None, None)
_PROCESS: Final = (1 << 48) - 1
_LARGEST: Final = (1 << 63) - 1
