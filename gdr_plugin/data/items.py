"""Preference data as items, whatever its format.

Knows the order of things: read rows, find the format, turn each row into an item or say what is wrong with it, put rows
of one prompt together where each has one response, draw a sample. The formats themselves are in `preference_formats`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from gdr_plugin.api.errors import DataError
from gdr_plugin.data.format_table import Format, format_named
from gdr_plugin.data.item import Item
from gdr_plugin.data.preference_formats import LABEL, Half, detect, parse
from gdr_plugin.data.read import BadRow, CheckColumns, Undecided, bad_rows_error, check_rows
from gdr_plugin.data.sampled import sampled
from gdr_plugin.data.sources import Row

__all__ = ["BadRow", "Data", "Item", "ItemReader", "Undecided", "labelled", "load_items", "read_items"]


@dataclass(frozen=True, slots=True)
class Data:
    """A preference data set in memory."""

    format: str
    """Its format's name."""
    items: list[Item]
    bad: list[BadRow]
    """Rows that cannot be used."""
    undecided: dict[str, int] = field(default_factory=dict)
    """Rows that prefer no response, by reason: ties, no label."""
    drawn_from: int | None = None
    """How many items there were, where `items` is a sample of them."""

    @property
    def facts(self) -> dict[str, str]:
        """What was left out, for people."""
        found = {f"left out: {reason}": f"{count:,} rows" for reason, count in self.undecided.items()}
        if self.bad:
            found["bad rows left out"] = f"{len(self.bad):,} (first: {self.bad[0].reason})"
        if self.drawn_from is not None:
            found["sample"] = f"{len(self.items):,} of {self.drawn_from:,} items, drawn by subset"
        own = sum(bool(item.contexts) for item in self.items)
        if own:
            found["own conversations"] = f"{own:,} items: the last replies are compared, each in its conversation"
        return found


def read_items(
    source: str | Path, *, format: str = "auto", columns: Mapping[str, str] | None = None
) -> Iterator[Item | BadRow]:
    """Stream the items of a preference data set.

    Args:
        source: A file, folder or Hugging Face data set, as for `sources.read_rows`.
        format: A name of `format_table.FORMATS`, or `auto`: the columns of the first row that can be read decide.
        columns: New name -> the input's name of columns: `{"prompt": "instruction"}`; a name may be a path inside a
            column. `label.a`, `label.b` and `label.tie` name values of the label instead.

    Yields:
        An item for each row, or what is wrong with the row: `Undecided` where it prefers no response. Data whose rows
        have one response each give their items at the end.

    Raises:
        DataError: The source as a whole cannot be read, or its format is not known.
    """
    return ItemReader(format, columns).read(source)


def load_items(
    source: str | Path,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    check: CheckColumns | None = None,
    skip_bad: bool = False,
) -> Data:
    """Read a whole data set, before any model loads.

    Args:
        source: As for `read_items`.
        format: As for `read_items`.
        columns: As for `read_items`.
        limit: Only the first items.
        sample: Only so many items, drawn from all of them in proportion to their subsets; see `sampled.sampled`.
        seed: Seed of the sample.
        check: Is given the columns of each item that routers may read; as for `check_rows`.
        skip_bad: Whether bad rows are left out rather than stop.

    Returns:
        The data set.

    Raises:
        DataError: The source cannot be read, a row is bad (without `skip_bad`), or no row is good.
    """
    for option, number in (("--limit", limit), ("--sample", sample)):
        if number is not None and number < 1:
            raise DataError(f"{option} must be 1 or more, not {number}")
    reader = ItemReader(format, columns, check)
    items: list[Item] = []
    bad: list[BadRow] = []
    undecided = Counter[str]()
    for item in islice(reader.read(source), limit):
        if isinstance(item, Undecided):
            undecided[item.reason.removeprefix(f"{item.where}: ")] += 1
        elif isinstance(item, BadRow):
            bad.append(item)
        else:
            items.append(item)
    if bad and not (skip_bad and items):
        known = reader.name != "auto"  # without a format, no row would be left
        raise bad_rows_error(bad[0], len(bad), "; --skip-bad leaves bad rows out" if known and not skip_bad else "")
    if not items:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in undecided.items())
        raise DataError(f"{source}: no row prefers a response ({reasons})")
    there = len(items)
    if sample is not None and sample < there:
        items = sampled(items, sample, seed=seed)
    return Data(reader.name, items, bad, dict(undecided.most_common()), there if len(items) < there else None)


def labelled(item: Item) -> Item:
    """The item with the domain that its benchmark puts it in, unless its row names one: as a perfect router would."""
    return replace(item, domain=item.fields.get(LABEL)) if item.domain is None else item


class ItemReader:
    """Reads items; with `auto` the format is known once the first row was read.

    Args:
        format: As for `read_items`.
        columns: As for `read_items`.
        check: As for `load_items`.

    Raises:
        DataError: There is no such format.
    """

    def __init__(self, format: str, columns: Mapping[str, str] | None, check: CheckColumns | None = None) -> None:
        self._format: Format | None = None if format == "auto" else format_named(format).with_map(columns)
        self._columns = columns
        self._check = check
        self._groups: dict[object, list[tuple[Row, Half]]] = {}

    @property
    def name(self) -> str:
        """The format's name; `auto` as long as no row could be read."""
        return "auto" if self._format is None else self._format.name

    def read(self, source: str | Path) -> Iterator[Item | BadRow]:
        """The items of a source; see `read_items`."""
        for row, found in check_rows(source, self._item, columns=self._columns):
            if isinstance(found, Half):
                self._groups.setdefault(found.group, []).append((row, found))
            else:
                yield found
        yield from map(_together, self._groups.values())

    def _item(self, row: Row) -> Item | Half:
        format = self._format
        if format is None:
            assert row.data is not None  # raises what is wrong with a row that could not be read
            try:
                format = self._format = detect(row, self._columns)
            except DataError as error:
                raise DataError(f"{row.where}: {error}") from None
        found = parse(row, format)
        if self._check is not None:
            try:
                self._check(found.item.columns if isinstance(found, Half) else found.columns)
            except DataError as error:
                raise type(error)(f"{row.where}: {error}") from None
        return found


def _together(rows: Iterable[tuple[Row, Half]]) -> Item | BadRow:
    """The item of the rows that have a response to one prompt each."""
    halves = list(rows)
    row, half = halves[0]
    chosen = tuple(turn for _, own in halves for turn in own.item.chosen)
    rejected = tuple(turn for _, own in halves for turn in own.item.rejected)
    if not chosen or not rejected:
        kind = "bad" if rejected else "good"
        return Undecided(row.number, row.where, half.id, f"{row.where}: all responses to the prompt are {kind}")
    return replace(half.item, chosen=chosen, rejected=rejected)
