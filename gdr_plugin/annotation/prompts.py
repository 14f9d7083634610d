"""The prompts of an annotation: checked as a whole first, then read window by window, always in the input's order.

Adds to `read` what only annotation asks of a row: responses, or a policy that draws them. Files and row formats are
`read`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Conversation
from gdr_plugin.data.read import BadRow, check_rows
from gdr_plugin.data.rows import PromptRow, Response, parse_prompt_row
from gdr_plugin.data.sources import STDIN, Row


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of the input."""

    number: int
    """Running number, from 1."""
    where: str
    """Its place, for messages."""
    id: str
    prompt: Conversation = ()
    responses: tuple[Response, ...] = ()
    """Those that the row brings."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Why the row cannot be used; else None."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the whole input is."""

    rows: int
    bad: int
    fingerprint: str
    """Hex digest of all rows' contents in order."""


class Prompts:
    """An input that can be read again and again.

    Args:
        source: As for `read_rows`; not standard input, which can be read only once.
        columns: New name -> the input's name of columns.
        limit: Only the first rows.
        sampled: Whether a policy draws the responses; else each row must bring its own.
        check_fields: Raises `DataError` when a row's other columns are wrong.

    Raises:
        DataError: The source is standard input.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        columns: Mapping[str, str] | None = None,
        limit: int | None = None,
        sampled: bool = False,
        check_fields: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        if str(source) == STDIN:
            raise DataError("gdr annotate reads its input more than once: write standard input to a file first")
        if limit is not None and limit < 1:
            raise DataError(f"--limit must be 1 or more, not {limit}")
        self._source, self._columns, self._limit = source, columns, limit
        self._sampled, self._check_fields = sampled, check_fields

    def check(self, *, skip_bad: bool) -> Inventory:
        """Read everything once, before any model loads.

        Args:
            skip_bad: Whether bad rows are left for the rejects.

        Raises:
            DataError: There is no such input, or a row is bad and `skip_bad` is not set, or every row is.
        """
        digest = hashlib.blake2b(digest_size=16)
        rows = bad = 0
        first: str | None = None
        for row, result in self._rows():
            rows += 1
            digest.update(json.dumps(row.content, sort_keys=True, default=str).encode() + b"\n")
            if isinstance(result, BadRow):
                bad += 1
                first = first or result.reason
        if first is not None and (not skip_bad or bad == rows):
            more = f" (and {bad - 1:,} more bad rows)" if bad > 1 else ""
            hint = "" if skip_bad else "; --skip-bad puts bad rows into the rejects and goes on"
            raise DataError(f"{first}{more}{hint}")
        return Inventory(rows, bad, digest.hexdigest())

    def windows(self, size: int) -> Iterator[list[Prompt]]:
        """The prompts in groups of `size`, the last one smaller; the same groups each time."""
        stream = self._rows()
        while group := list(islice(stream, size)):
            yield [self._prompt(row, result) for row, result in group]

    def _rows(self) -> Iterator[tuple[Row, PromptRow | BadRow]]:
        return islice(check_rows(self._source, self._parse, columns=self._columns), self._limit)

    def _parse(self, row: Row) -> PromptRow:
        parsed = parse_prompt_row(row)
        if not self._sampled and parsed.responses is None:
            raise DataError(
                f"{row.where}: has no `responses`: give at least two in each row, or --policy MODEL to draw them"
            )
        if self._check_fields is not None:
            try:
                self._check_fields(parsed.fields)
            except DataError as error:
                raise DataError(f"{row.where}: {error}") from error
        return parsed

    def _prompt(self, row: Row, result: PromptRow | BadRow) -> Prompt:
        if isinstance(result, BadRow):
            return Prompt(row.number, row.where, result.id, problem=result.reason)
        given = () if self._sampled else result.responses or ()
        return Prompt(row.number, row.where, result.id, result.prompt, given, result.fields)
