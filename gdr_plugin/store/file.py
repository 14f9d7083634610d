"""One SQLite file that several processes, threads and forked children use at the same time.

Knows how the log-prob store's file is opened, checked and locked, and explains its errors. `gdr_plugin.store.store`
knows what the rows mean.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gdr_plugin.api.errors import StoreError

SCHEMA_VERSION = 2
APPLICATION_ID = 0x47445250  # marks the file as ours ("GDRP")
_CACHE_KIB = 64 << 10
_LOG_PAGES = 16_000
"""Pages of the log, 4 KiB each, before they are written into the file."""
_SCHEMA = """
CREATE TABLE models (
    id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, name TEXT NOT NULL, created INTEGER NOT NULL
);
CREATE TABLE logprobs (
    key BLOB PRIMARY KEY, model INTEGER NOT NULL, used INTEGER NOT NULL, value BLOB NOT NULL, crc INTEGER
);
"""
# `created` and `used` are days since 1970-01-01 (UTC), `value` is little-endian float32, `crc` is `checksum`.


class StoreFile:
    """The store's file with one connection, which threads share behind a lock; a forked child opens its own.

    Args:
        path: The file; made, with its folder, when missing.
        wait_s: Seconds to wait for other processes that hold it.
        now: Whether it is opened at once, not at its first use.

    Raises:
        StoreError: The file cannot be made or opened, or is not a store of this version.
    """

    def __init__(self, path: Path, wait_s: float = 60.0, *, now: bool = True) -> None:
        self.path = path
        self._wait_s = wait_s
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._closer: weakref.finalize[..., StoreFile] | None = None
        _OPEN.add(self)
        if now:
            self.open()

    def open(self) -> None:
        """Open the file, if it is not open.

        Raises:
            StoreError: As for making one.
        """
        with self.session():
            pass

    @contextmanager
    def session(self) -> Iterator[sqlite3.Connection]:
        """The open connection, locked against other threads; SQLite's errors become `StoreError`."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = _open(self.path, self._wait_s)
                    self._closer = weakref.finalize(self, self._connection.close)
                yield self._connection
            except (OSError, sqlite3.Error) as error:
                raise StoreError(explain(self.path, error)) from error

    @contextmanager
    def transaction(self, *, wait: bool = True) -> Iterator[sqlite3.Connection]:
        """A session that holds the write lock; all of it is kept, or nothing when it raises.

        Args:
            wait: Whether to wait for other writers; else it is a `StoreError` at once while somebody writes.
        """
        with self.session() as connection:
            try:
                connection.execute(f"PRAGMA busy_timeout = {self._wait_s * 1000 if wait else 0:.0f}")
                with _transaction(connection):
                    yield connection
            finally:
                connection.execute(f"PRAGMA busy_timeout = {self._wait_s * 1000:.0f}")

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._closer is not None:
                self._closer()
            self._connection = self._closer = None

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connection alone (not even close it) and start with a free lock."""
        self._lock = threading.RLock()
        if self._closer is not None:
            _INHERITED.append(self._closer.detach())
        self._connection = self._closer = None


_OPEN: weakref.WeakSet[StoreFile] = weakref.WeakSet()
_INHERITED: list[object] = []


def _reset_after_fork() -> None:
    for file in list(_OPEN):
        file.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def _open(path: Path, wait_s: float) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=wait_s, isolation_level=None, check_same_thread=False)
    try:
        # Switching a fresh file to WAL reports "locked" at once, without waiting, while another process does the same.
        deadline = time.monotonic() + wait_s
        while True:
            try:
                _prepare(connection, path)
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    except BaseException:
        connection.close()
        raise
    return connection


def checksum(key: bytes, value: bytes) -> int:
    """What tells an entry that a disk has changed: SQLite reads back whatever is in the file."""
    return zlib.crc32(value, zlib.crc32(key))


def is_whole(key: object, value: object, crc: object) -> bool:
    """Whether an entry is what was written; a damaged file may give values of any type."""
    return isinstance(key, bytes) and isinstance(value, bytes) and not len(value) % 4 and crc == checksum(key, value)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables in a new file; refuse a file that is not ours."""
    version, application = pragma(connection, "user_version"), pragma(connection, "application_id")
    if version == 0 and application == 0:
        with _transaction(connection):
            if pragma(connection, "user_version") == 0:  # nobody else was faster
                if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                    raise StoreError(f"{path} is another program's SQLite file: name another file in store.path")
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif application != APPLICATION_ID:
        raise StoreError(f"{path} is another program's SQLite file: name another file in store.path")
    elif version == 1:
        _add_checksums(connection)
    elif version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} is a log-prob store of version {version}, this release reads version {SCHEMA_VERSION}: "
            "delete it, or name another file in store.path"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    # Keys are hashes, so every write touches another page of their index: in millions of rows, each page is read again
    # and written many times over unless some of them stay in memory and the log may grow before it is folded in.
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    connection.execute("PRAGMA synchronous = NORMAL")  # in WAL: power loss may cost the last commits, never the file


def _add_checksums(connection: sqlite3.Connection) -> None:
    """Bring a file of version 1 up to date: its entries are read once, and kept as they are."""
    connection.create_function("checksum", 2, checksum, deterministic=True)
    with _transaction(connection):
        if pragma(connection, "user_version") == 1:  # nobody else was faster
            connection.execute("ALTER TABLE logprobs ADD COLUMN crc INTEGER")
            connection.execute("UPDATE logprobs SET crc = checksum(key, value)")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """An integer setting of the open file."""
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Take the write lock at once: a read transaction that turns into a write could not wait for it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def explain(path: Path, error: Exception) -> str:
    """An error of SQLite or the operating system as one line that says what to do.

    Args:
        path: The store's file.
        error: What went wrong.
    """
    text, code = str(error), getattr(error, "sqlite_errorcode", 0)
    kind = code & 0xFF  # the rest says more exactly what it was
    if isinstance(error, OSError) or kind in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return f"the store {path} cannot be written ({text}): name another file in store.path"
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or "locked" in text:
        return f"the store {path} cannot be used ({text}): stop the process that holds it, and go on"
    if kind == sqlite3.SQLITE_FULL or (kind == sqlite3.SQLITE_IOERR and code != sqlite3.SQLITE_IOERR_SHORT_READ):
        return f"the store {path} cannot be written ({text}): free space, and go on"
    if kind == sqlite3.SQLITE_NOTADB:
        return f"{path} is not a readable log-prob store ({text}): delete it, or name another file in store.path"
    return damaged(path, text)


def damaged(path: Path, found: str) -> str:
    """What is said of a store whose file has changed on the disk.

    Args:
        path: The file.
        found: How it was noticed.
    """
    return f"the store {path} is damaged ({found}): `gdr store repair {path}` keeps what is whole, or delete it"
