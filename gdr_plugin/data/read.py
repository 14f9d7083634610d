"""Reading an input as a whole: duplicate ids, unknown domains, and a first pass before any model is loaded.

Knows rows as `sources` reads them and `rows` understands them, and offers both from here. What is done with a row is
its caller's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from gdr_plugin.api.errors import DataError, DomainError, unknown
from gdr_plugin.data.rows import (
    PromptRow,
    Response,
    ScoreRow,
    id_of,
    parse_prompt,
    parse_prompt_row,
    parse_score_row,
    type_name,
)
from gdr_plugin.data.sources import STDIN, Row, parse_columns, read_rows

__all__ = [
    "STDIN",
    "BadRow",
    "PromptRow",
    "Response",
    "Row",
    "ScanReport",
    "ScoreRow",
    "SeenIds",
    "check_rows",
    "parse_columns",
    "parse_prompt",
    "parse_prompt_row",
    "parse_score_row",
    "read_rows",
    "scan",
]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    number: int
    where: str
    id: str
    """The row's id, or the generated one where it has none that can be read."""
    reason: str
    """One line that begins with the row's place."""


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


Parsed = TypeVar("Parsed", bound=_Identified)


@dataclass(frozen=True, slots=True)
class ScanReport(Generic[Parsed]):
    """What the first pass over an input found."""

    rows: int
    """Rows in the input, bad ones included."""
    bad: int
    errors: tuple[BadRow, ...]
    """The first few bad rows."""
    fingerprint: str
    """Hex digest of all rows' contents in order; equal rows in another file format have the same one."""

    def raise_first(self, hint: str = "") -> None:
        """Stop on bad rows.

        Args:
            hint: What the message ends with: how to go on nevertheless.

        Raises:
            DataError: There are bad rows; names the first and says how many more there are.
        """
        if self.errors:
            more = f" (and {self.bad - 1:,} more bad {'row' if self.bad == 2 else 'rows'})" if self.bad > 1 else ""
            raise DataError(self.errors[0].reason + more + hint)


def check_rows(
    source: str | Path,
    parse: Callable[[Row], Parsed],
    *,
    columns: Mapping[str, str] | None = None,
    domains: Collection[str] | None = None,
    domain_columns: Sequence[str] = ("domain",),
) -> Iterator[tuple[Row, Parsed | BadRow]]:
    """Stream an input's rows, each parsed or found bad: malformed, of a wrong type, of an unknown domain, a used id.

    Args:
        source: As for `read_rows`.
        parse: `parse_score_row` or `parse_prompt_row`.
        columns: As for `read_rows`.
        domains: The configured domains; None: any value will do.
        domain_columns: Columns that may hold a row's domain: the first with a value counts, as it does for routers.

    Yields:
        Each row with what became of it.

    Raises:
        DataError: The source as a whole cannot be read.
    """
    seen = SeenIds()

    def checked(row: Row) -> Parsed | BadRow:
        try:
            parsed = parse(row)
            if domains is not None:
                _check_domain(row, domain_columns, domains)
        except DataError as error:
            return BadRow(row.number, row.where, id_of(row), str(error))
        _, unit, place = row.where.rsplit(" ", 2)
        first = seen.add(parsed.id, int(place))
        if first is None:
            return parsed
        reason = f"{row.where}: duplicate id {parsed.id!r}, first used in {unit} {first}"
        return BadRow(row.number, row.where, parsed.id, reason)

    for row in read_rows(source, columns=columns):
        yield row, checked(row)


def scan(
    source: str | Path,
    parse: Callable[[Row], Parsed],
    *,
    columns: Mapping[str, str] | None = None,
    domains: Collection[str] | None = None,
    domain_columns: Sequence[str] = ("domain",),
    keep: int = 5,
) -> ScanReport[Parsed]:
    """Read a whole input once, to know what is wrong with it before work starts. Not for standard input.

    Args:
        source: As for `read_rows`.
        parse: `parse_score_row` or `parse_prompt_row`.
        columns: As for `read_rows`.
        domains: The configured domains; None: any value will do.
        domain_columns: Columns that may hold a row's domain: the first with a value counts, as it does for routers.
        keep: How many bad rows the report lists.

    Returns:
        The number of rows, the first bad ones, and a fingerprint of the content.

    Raises:
        DataError: The source as a whole cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    errors: list[BadRow] = []
    rows = bad = 0
    checked = check_rows(source, parse, columns=columns, domains=domains, domain_columns=domain_columns)
    for row, result in checked:
        rows += 1
        content = {name: value for name, value in (row.content or {}).items() if value is not None}
        digest.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\n")
        if isinstance(result, BadRow):
            bad += 1
            if len(errors) < keep:
                errors.append(result)
    return ScanReport(rows, bad, tuple(errors), digest.hexdigest())


class SeenIds:
    """Which ids have come, and in which row: 16 bytes an id, however long the ids are.

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


def _check_domain(row: Row, columns: Sequence[str], domains: Collection[str]) -> None:
    for column in columns:
        value = row.data.get(column)
        if value is None or value != value or value == "":  # table readers say NaN for "no value"
            continue
        if not isinstance(value, str):
            raise DataError(f"{row.where}: `{column}` must be a string, not {type_name(value)}")
        if value.strip() in domains:
            return
        raise DomainError(f"{row.where}: {unknown('domain', value, domains)}; guidance.domains in gdr.yaml lists them")
