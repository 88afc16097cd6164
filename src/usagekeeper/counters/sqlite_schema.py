"""The file of SQLite's counters: its schema, its version, and how a connection to it is set up."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

LOG: Final = 4096
"""Writes after which the write-ahead log is emptied (8 MiB): fsyncs of 1-50 ms, too long for a request."""
_PATIENCE: Final = 0.05
"""Seconds that opening may wait for SQLite itself."""
OWNER: Final = 0x75736B63
"""SQLite's application_id of our counters: "uskc"."""
VERSION: Final = 1
_SCHEMA: Final = (
    "CREATE TABLE counts (key BLOB PRIMARY KEY, state BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE swept (after BLOB NOT NULL)",
    "INSERT INTO swept VALUES (x'')",
    f"PRAGMA application_id = {OWNER}",
    f"PRAGMA user_version = {VERSION}",
)
CHECKPOINT: Final = "PRAGMA wal_checkpoint(PASSIVE)"
SELECT: Final = "SELECT state, expires FROM counts WHERE key = ?"
SELECT_LAST: Final = "SELECT key FROM counts WHERE key > ? ORDER BY key LIMIT 1 OFFSET ?"
INSERT: Final = "INSERT OR REPLACE INTO counts (state, expires, key) VALUES (?, ?, ?)"
UPDATE: Final = "UPDATE counts SET state = ?, expires = ? WHERE key = ?"


def connected(path: Path, mode: str) -> sqlite3.Connection:
    """A connection to the counters at *path*; *mode* is "rw", or "rwc" to make the file."""
    # Only who opens may have to wait for SQLite itself: another process closes without our lock when it ends.
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
    )
    try:
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    run = connection.execute
    run("PRAGMA page_size = 2048")  # a write logs a page; twenty limits still fit into a row of this one
    run("PRAGMA synchronous = OFF")  # others wait while a file is made; what is lost with it was not there before
    (owner,) = run("PRAGMA application_id").fetchone()
    (version,) = run("PRAGMA user_version").fetchone()
    new = not owner and not run("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if not new and owner != OWNER:
        raise sqlite3.DatabaseError("the file belongs to another application, counters need one of their own")
    if version > VERSION:
        raise sqlite3.DatabaseError(f"a newer usagekeeper wrote the file (version {version}, this one knows {VERSION})")
    if run("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise sqlite3.OperationalError("the file lies where SQLite cannot share a write-ahead log")
    run(f"PRAGMA wal_autocheckpoint = {16 * LOG}")  # its largest size: 128 MiB
    if new:
        run("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            run(statement)
        run("COMMIT")
    run("PRAGMA synchronous = NORMAL")
    run("PRAGMA busy_timeout = 0")


_HINTS: Final = {
    sqlite3.SQLITE_NOTADB: "; it is no SQLite file: name another one, or move it away",
    sqlite3.SQLITE_CORRUPT: "; it is damaged: move it away with its -wal and -shm, counts start anew then",
}


def sentence(error: Exception) -> str:
    """What *error* says, and the way out where there is one."""
    code = getattr(error, "sqlite_errorcode", None)
    return str(error) + (_HINTS.get(code & 0xFF, "") if code is not None else "")
