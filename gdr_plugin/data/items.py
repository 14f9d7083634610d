"""Preference data as items, whatever its format.

Knows the order of things: read rows, find the format, turn each row into an item or say what is wrong with it. The
formats themselves are in `preference_formats`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from gdr_plugin.api.errors import DataError, unknown
from gdr_plugin.data.item import Item
from gdr_plugin.data.preference_formats import FORMATS, LABEL, detect, parse
from gdr_plugin.data.read import BadRow, CheckColumns, bad_rows_error, check_rows
from gdr_plugin.data.sources import Row

__all__ = ["BadRow", "Data", "Item", "labelled", "load_items", "read_items"]


@dataclass(frozen=True, slots=True)
class Data:
    """A preference data set in memory."""

    format: str
    """Its format's name."""
    items: list[Item]
    bad: list[BadRow]
    """Rows that cannot be used."""


def read_items(
    source: str | Path, *, format: str = "auto", columns: Mapping[str, str] | None = None
) -> Iterator[Item | BadRow]:
    """Stream the items of a preference data set.

    Args:
        source: A file, folder or Hugging Face data set, as for `sources.read_rows`.
        format: A name of `preference_formats.FORMATS`, or `auto`: the columns of the first row that can be read decide.
        columns: New name -> the input's name of columns: `{"prompt": "instruction"}`.

    Yields:
        An item for each row, or what is wrong with the row.

    Raises:
        DataError: The source as a whole cannot be read, or its format is not known.
    """
    return _Reader(format).read(source, columns)


def load_items(
    source: str | Path,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    check: CheckColumns | None = None,
    skip_bad: bool = False,
) -> Data:
    """Read a whole data set, before any model loads.

    Args:
        source: As for `read_items`.
        format: As for `read_items`.
        columns: As for `read_items`.
        limit: Only the first rows.
        check: Is given the columns of each item that routers may read; as for `check_rows`.
        skip_bad: Whether bad rows are left out rather than stop.

    Returns:
        The data set.

    Raises:
        DataError: The source cannot be read, a row is bad (without `skip_bad`), or no row is good.
    """
    if limit is not None and limit < 1:
        raise DataError(f"--limit must be 1 or more, not {limit}")
    reader = _Reader(format, check)
    items: list[Item] = []
    bad: list[BadRow] = []
    for item in islice(reader.read(source, columns), limit):
        if isinstance(item, BadRow):
            bad.append(item)
        else:
            items.append(item)
    if bad and not (skip_bad and items):
        raise bad_rows_error(bad[0], len(bad), "" if skip_bad else "; --skip-bad leaves bad rows out")
    return Data(reader.format, items, bad)


def labelled(item: Item) -> Item:
    """The item with the domain that its benchmark puts it in, unless its row names one: as a perfect router would."""
    return replace(item, domain=item.fields.get(LABEL)) if item.domain is None else item


class _Reader:
    """Reads items; with `auto` the format is known once the first row was read."""

    def __init__(self, format: str, check: CheckColumns | None = None) -> None:
        if format != "auto" and format not in FORMATS:
            raise DataError(unknown("format", format, ["auto", *FORMATS]))
        self.format = format
        self._check = check

    def read(self, source: str | Path, columns: Mapping[str, str] | None) -> Iterator[Item | BadRow]:
        for _, item in check_rows(source, self._item, columns=columns):
            yield item

    def _item(self, row: Row) -> Item:
        if self.format == "auto" and row.content is not None:
            try:
                self.format = detect(row.content)
            except DataError as error:
                raise DataError(f"{row.where}: {error}") from None
        item = parse(row, self.format)
        if self._check is not None:
            try:
                self._check(item.columns)
            except DataError as error:
                raise type(error)(f"{row.where}: {error}") from None
        return item
