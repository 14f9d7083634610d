"""Checking an input's rows: malformed ones, used ids, and what the caller's own check refuses.

Knows rows as `sources` reads them. What a row must hold and what is done with it are the caller's.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from gdr_plugin.api.errors import DataError, DataWarning
from gdr_plugin.data.labels import UndecidedError
from gdr_plugin.data.prompts import unread
from gdr_plugin.data.rows import id_of
from gdr_plugin.data.sources import Row, read_rows

__all__ = ["BadRow", "CheckColumns", "Parsed", "SeenIds", "Undecided", "bad_rows_error", "check_rows"]

CheckColumns = Callable[[Mapping[str, Any]], None]
"""Raises DataError for columns that cannot be used, such as a `domain` that is not configured."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    number: int
    """Running number in the input, from 1."""
    where: str
    """The row's place, for messages."""
    id: str
    """The row's id, or the generated one where it has none that can be read."""
    reason: str
    """One line that begins with the row's place."""


@dataclass(frozen=True, slots=True)
class Undecided(BadRow):
    """A row of preference data that prefers nothing: a tie, or without a label. No fault of the row's."""


class _Row(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def fields(self) -> Mapping[str, Any]: ...


Parsed = TypeVar("Parsed", bound=_Row)
"""What `parse` makes of a row: anything with an id and the columns that it did not use."""


def bad_rows_error(first: BadRow, bad: int, hint: str = "") -> DataError:
    """The error that names the first of an input's bad rows and says how many more there are.

    Args:
        first: The first bad row.
        bad: How many there are.
        hint: What the message ends with: how to go on nevertheless.
    """
    more = f" (and {bad - 1:,} more bad {'row' if bad == 2 else 'rows'})" if bad > 1 else ""
    return DataError(first.reason + more + hint)


def check_rows(
    source: str | Path,
    parse: Callable[[Row], Parsed],
    *,
    columns: Mapping[str, str] | None = None,
    check: CheckColumns | None = None,
) -> Iterator[tuple[Row, Parsed | BadRow]]:
    """Stream an input's rows, each parsed or found bad: malformed, refused by `check`, or with an id used before.

    Columns that belong to what was asked in many data sets, such as Alpaca's `input`, and that nothing reads are named
    by one `DataWarning`.

    Args:
        source: As for `read_rows`.
        parse: `parse_score_row`, `parse_prompt_row` or the like; raises DataError that names the row.
        columns: As for `read_rows`.
        check: Is given each row's columns; the row's place is put before its message.

    Yields:
        Each row with what became of it.

    Raises:
        DataError: The source as a whole cannot be read.
    """
    seen = SeenIds()
    warned: set[str] = set()

    def checked(row: Row) -> Parsed | BadRow:
        try:
            parsed = parse(row)
            if check is not None:
                _check_columns(row, check)
        except UndecidedError as error:
            return Undecided(row.number, row.where, id_of(row), str(error))
        except DataError as error:
            return BadRow(row.number, row.where, id_of(row), str(error))
        new = [name for name in unread(parsed.fields) if name not in warned]
        if new:
            warned.update(new)
            _warn(new)
        _, unit, place = row.where.rsplit(" ", 2)
        first = seen.add(parsed.id, int(place))
        if first is None:
            return parsed
        reason = f"{row.where}: duplicate id {parsed.id!r}, first used in {unit} {first}"
        return BadRow(row.number, row.where, parsed.id, reason)

    for row in read_rows(source, columns=columns):
        yield row, checked(row)


def _warn(columns: Sequence[str]) -> None:
    names = ", ".join(f"`{name}`" for name in columns)
    are = "columns {} are" if len(columns) > 1 else "column {} is"
    warnings.warn(
        f"the {are.format(names)} not used: what belongs to the question must be in `prompt`", DataWarning, stacklevel=3
    )


def _check_columns(row: Row, check: CheckColumns) -> None:
    try:
        check(row.data)
    except DataError as error:
        raise type(error)(f"{row.where}: {error}") from None


class SeenIds:
    """Which ids an input has used, and in which rows: 16 bytes an id, whatever its length.

    Ids are told apart by a 64-bit hash: among ten million ids, two different ones share it with a chance of 3 in a
    million.

    Args:
        recent: How many ids are kept in a dictionary before they are packed.
    """

    def __init__(self, recent: int = 1 << 16) -> None:
        self._limit = recent
        self._hashes = np.empty(0, dtype=np.uint64)
        self._rows = np.empty(0, dtype=np.int64)
        self._recent: dict[int, int] = {}

    def add(self, identifier: str, row: int) -> int | None:
        """Note an id.

        Args:
            identifier: The id.
            row: Its row's number.

        Returns:
            The number of the row that had the id before, or None.
        """
        digest = hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "little")
        if value in self._recent:
            return self._recent[value]
        at = int(np.searchsorted(self._hashes, np.uint64(value)))
        if at < len(self._hashes) and int(self._hashes[at]) == value:
            return int(self._rows[at])
        self._recent[value] = row
        if len(self._recent) >= self._limit:
            self._merge()
        return None

    def _merge(self) -> None:
        hashes = np.concatenate([self._hashes, np.fromiter(self._recent.keys(), np.uint64, len(self._recent))])
        rows = np.concatenate([self._rows, np.fromiter(self._recent.values(), np.int64, len(self._recent))])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._rows = hashes[order], rows[order]
        self._recent.clear()
