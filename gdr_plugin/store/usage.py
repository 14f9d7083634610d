"""Counts what a log-prob store holds, and gives its space back. Knows the store's tables; nothing of models or keys."""

from __future__ import annotations

import datetime
import sqlite3
import time
from dataclasses import dataclass

from gdr_plugin.api.errors import StoreError, unknown
from gdr_plugin.store.file import StoreFile, damaged, pragma

_OVERHEAD = 64  # bytes a row costs beside its value: the key twice, and both b-trees' cells


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """What the store holds of one model."""

    name: str
    """The name under which the model was last used."""
    identity: str
    rows: int
    """Responses whose log-probs are kept."""
    tokens: int
    bytes: int
    """The rows' share of the file."""
    first_used: datetime.date
    last_used: datetime.date
    """The day on which a row was last read or written."""


def today() -> int:
    """Days since 1970-01-01, UTC."""
    return int(time.time() // 86_400)


def usage(file: StoreFile) -> list[ModelUsage]:
    """What the store holds, by model, the last used first. Reads the whole file."""
    query = """SELECT name, identity, COUNT(*), SUM(LENGTH(value)), created, MAX(used)
        FROM logprobs JOIN models ON models.id = model GROUP BY model ORDER BY MAX(used) DESC, name"""
    with file.session() as connection:
        rows = connection.execute(query).fetchall()
        scale = _scale(connection)
    try:
        return [
            ModelUsage(
                name=name,
                identity=identity,
                rows=count,
                tokens=size // 4,
                bytes=round((size + count * _OVERHEAD) * scale),
                first_used=_date(first),
                last_used=_date(last),
            )
            for name, identity, count, size, first, last in rows
        ]
    except (TypeError, OverflowError) as error:
        raise StoreError(damaged(file.path, "a date or a size is none")) from error


def prune(
    file: StoreFile, older_than_days: int | None, model: str | None, max_bytes: int | None, dry_run: bool
) -> tuple[int, int]:
    """Delete rows; see `LogprobStore.prune`."""
    rows = freed = 0
    while True:
        more = _prune_once(file, older_than_days, model, max_bytes, dry_run)
        rows, freed = rows + more[0], freed + more[1]
        # A row's share of the file is an estimate: look again until the size is right.
        if dry_run or max_bytes is None or not more[0] or _size(file) <= max_bytes:
            break
    if not dry_run:
        with file.transaction() as connection:
            connection.execute("DELETE FROM models WHERE id NOT IN (SELECT DISTINCT model FROM logprobs)")
    return rows, freed


def _prune_once(
    file: StoreFile, older_than_days: int | None, model: str | None, max_bytes: int | None, dry_run: bool
) -> tuple[int, int]:
    where, values = "1", list[object]()
    with file.session() as connection:
        if model is not None:
            where += f" AND model IN ({_model_ids(connection, model, file)})"
        if older_than_days is not None:
            where += " AND used < ?"
            values.append(today() - older_than_days)
        if max_bytes is not None:
            cut = _cut(connection, where, values, _file_bytes(connection) - max_bytes)
            where += " AND (used, rowid) <= (?, ?)"
            values += cut
        count = f"SELECT COUNT(*), COALESCE(SUM(LENGTH(value) + {_OVERHEAD}), 0) FROM logprobs WHERE {where}"
        rows, size = connection.execute(count, values).fetchone()
        freed = round(size * _scale(connection))
    if not dry_run:
        with file.transaction() as connection:
            connection.execute(f"DELETE FROM logprobs WHERE {where}", values)
        _compact(file)
    return rows, freed


def _model_ids(connection: sqlite3.Connection, model: str, file: StoreFile) -> str:
    rows = connection.execute("SELECT id, name, identity FROM models").fetchall()
    ids = [str(number) for number, *known in rows if model in known]
    if not ids:
        raise StoreError(f"{file.path}: {unknown('model', model, {name for _, name, _ in rows})}")
    return ", ".join(ids)


def _file_bytes(connection: sqlite3.Connection) -> int:
    """The file's size without its free pages."""
    return (pragma(connection, "page_count") - pragma(connection, "freelist_count")) * pragma(connection, "page_size")


def _size(file: StoreFile) -> int:
    with file.session() as connection:
        return _file_bytes(connection)


def _scale(connection: sqlite3.Connection) -> float:
    """Bytes of the file for each byte that the rows hold by our estimate."""
    held = connection.execute(f"SELECT COALESCE(SUM(LENGTH(value) + {_OVERHEAD}), 0) FROM logprobs").fetchone()[0]
    return _file_bytes(connection) / held if held else 1.0


def _cut(connection: sqlite3.Connection, where: str, values: list[object], excess: float) -> tuple[int, int]:
    """The youngest row that must go to free `excess` bytes, as its day and row id."""
    cut = (-1, -1)
    scale = _scale(connection)
    query = f"SELECT used, rowid, LENGTH(value) FROM logprobs WHERE {where} ORDER BY used, rowid"
    for used, rowid, size in connection.execute(query, values):
        if excess <= 0:
            break
        cut = (used, rowid)
        excess -= (size + _OVERHEAD) * scale
    return cut


def _compact(file: StoreFile) -> None:
    """Shrink the file; while another process reads it, the space is only marked as free."""
    with file.session() as connection:
        try:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise


def _date(day: int) -> datetime.date:
    return datetime.date(1970, 1, 1) + datetime.timedelta(days=day)
