"""Saves what is whole in a damaged store. Knows the store's tables and SQLite's row ids; nothing of models or keys."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gdr_plugin.api.errors import StoreError
from gdr_plugin.store.file import APPLICATION_ID, SCHEMA_VERSION, StoreFile, checksum, explain, is_whole, pragma
from gdr_plugin.store.usage import today

__all__ = ["Repaired", "repair"]

_ROWS = 500
_LAST = 1 << 62
_UNKNOWN = "(model not readable)"


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did."""

    kept: int
    """Entries that are whole."""
    dropped: int
    """Entries that were not."""
    unreadable: bool
    """Whether parts of the file could not be read at all, so that nobody knows how many entries were in them."""


def repair(path: Path) -> Repaired:
    """Replace a store by one that holds its whole entries; no process may use it meanwhile.

    Args:
        path: The store's file.

    Raises:
        StoreError: It is no store, or of another version, nothing can be read of it, or the new file cannot be written.
    """
    partial = path.with_name(f"{path.name}.part")
    _remove(partial)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as old:
            try:
                checked = _is_checked(old, path)
                models = _models(old)
            except (OSError, sqlite3.Error) as error:
                raise StoreError(explain(path, error)) from error
            done = _copy(old, StoreFile(partial), models, checked=checked)
        _remove(path, but_file=True)  # a log beside the new file would be played into it
        partial.replace(path)
        return done
    except OSError as error:
        raise StoreError(explain(path, error)) from error
    finally:
        _remove(partial)


def _is_checked(old: sqlite3.Connection, path: Path) -> bool:
    """Whether entries carry a checksum; those of version 1 have none."""
    version, application = pragma(old, "user_version"), pragma(old, "application_id")
    if application != APPLICATION_ID or version not in (1, SCHEMA_VERSION):
        raise StoreError(f"{path} is not a log-prob store of this release: delete it, or name another file")
    return version == SCHEMA_VERSION


def _models(old: sqlite3.Connection) -> dict[int, tuple[str, str, int]]:
    """Id -> identity, name and first day, as far as they can be read."""
    found: dict[int, tuple[str, str, int]] = {}
    old.text_factory = lambda text: text.decode(errors="replace")
    for _, (number, identity, name, created) in _rows(old, "models", "id, identity, name, created"):
        if isinstance(number, int) and isinstance(identity, str) and isinstance(name, str):
            found[number] = identity, name, created if isinstance(created, int) else today()
    return found


def _copy(
    old: sqlite3.Connection, new: StoreFile, models: dict[int, tuple[str, str, int]], *, checked: bool
) -> Repaired:
    """Write models and whole entries into a new store."""
    with closing(new):
        with new.transaction() as connection:
            kept, dropped, unreadable = _copied(old, connection, models, checked=checked)
        with new.session() as connection:  # closing would pass over a full disk, and leave entries in the log
            if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise StoreError(f"{new.path} is in use: stop the process that holds it, and repair again")
    return Repaired(kept, dropped, unreadable)


def _copied(
    old: sqlite3.Connection, connection: sqlite3.Connection, models: dict[int, tuple[str, str, int]], *, checked: bool
) -> tuple[int, int, bool]:
    kept = dropped = 0
    unreadable = False
    latest = today()
    for number, (identity, name, created) in models.items():
        connection.execute("INSERT OR IGNORE INTO models VALUES (?, ?, ?, ?)", (number, identity, name, created))
    models_end = max(models, default=0) + 1
    for readable, (key, model, used, value, crc) in _rows(
        old, "logprobs", f"key, model, used, value, {'crc' if checked else 'NULL'}"
    ):
        if not readable:
            unreadable = True
            continue
        if not checked and isinstance(key, bytes) and isinstance(value, bytes):
            crc = checksum(key, value)
        if not is_whole(key, value, crc):
            dropped += 1
            continue
        if model not in models:
            model = models_end
            named = (model, _UNKNOWN, _UNKNOWN, latest)
            connection.execute("INSERT OR IGNORE INTO models VALUES (?, ?, ?, ?)", named)
        day = used if isinstance(used, int) and 0 <= used <= latest else latest
        row = (key, model, day, value, crc)
        kept += connection.execute("INSERT OR IGNORE INTO logprobs VALUES (?, ?, ?, ?, ?)", row).rowcount
    return kept, dropped, unreadable


def _rows(old: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[bool, tuple[Any, ...]]]:
    """The rows of a table by their ids; where a page cannot be read, one row of Nones stands for what was in it."""
    last, size = 0, _ROWS
    while True:
        try:
            found = _after(old, table, columns, last, size)
        except sqlite3.Error:
            if size > 1:  # the rows before the bad page first
                size = 1
                continue
            yield False, (None,) * (columns.count(",") + 1)
            beyond = _beyond(old, table, columns, last)
            if beyond is None:
                return
            last, size = beyond, _ROWS
            continue
        if not found:
            return
        last = found[-1][0]
        yield from ((True, row[1:]) for row in found)


def _beyond(old: sqlite3.Connection, table: str, columns: str, last: int) -> int | None:
    """The lowest id behind which rows can be read again; None where there is none."""

    def works(after: int) -> bool:
        with contextlib.suppress(sqlite3.Error):
            _after(old, table, columns, after, 1)
            return True
        return False

    low, high = last, last + 1
    while not works(high):
        if high > _LAST:
            return None
        low, high = high, last + 2 * (high - last)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high


def _after(old: sqlite3.Connection, table: str, columns: str, last: int, size: int) -> list[Any]:
    query = f"SELECT rowid, {columns} FROM {table} NOT INDEXED WHERE rowid > ? ORDER BY rowid LIMIT ?"
    found = old.execute(query, (last, size)).fetchall()
    # SQLite takes the ids as the pages say: damaged ones would lead back, and the same rows come for ever.
    if any(later <= earlier for earlier, later in pairwise([last, *(row[0] for row in found)])):
        raise sqlite3.DatabaseError("row ids are out of order")
    return found


def _remove(path: Path, *, but_file: bool = False) -> None:
    for suffix in ("-wal", "-shm", *(() if but_file else ("",))):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
