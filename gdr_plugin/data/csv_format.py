"""Rows out of CSV as people have it: quoting, separators, and cells that hold lists.

Knows the syntax of one file; a row is its columns, or a few words about what is wrong with it. One bad record does not
end a file: reading goes on in the line after the one in which the record began.
"""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import IO, Any, NamedTuple

from gdr_plugin.api.errors import DataError
from gdr_plugin.data.message_lists import messages_in
from gdr_plugin.data.text_formats import Located, undecoded

__all__ = ["Cells", "read_csv", "typed"]

_MAX_CELL = 1 << 30
_REREAD = 1 << 24
"""Characters of a bad record that are read again, for the rows that it took with it."""
_SEPARATORS = (";", "\t", "|")


class Cells(dict[str, str]):
    """A row of a CSV file: every value is text, and what it means is known once the columns have their names."""


class _Record(NamedTuple):
    line: int
    """The line in which it begins."""
    cells: list[str]
    problem: str | None
    """What is wrong with it; None for nothing."""


def read_csv(file: IO[bytes], name: str) -> Iterator[Located]:
    """Rows under a header line, as `Cells`.

    A header that is one cell with `;`, tabs or `|` in it says that this is the separator; so does Excel's line `sep=;`.
    Quotes inside a cell are doubled, or have a backslash before them, as Spark writes them: what makes a record whole.
    """
    csv.field_size_limit(_MAX_CELL)
    # What is not UTF-8 becomes half surrogate pairs, which UTF-8 cannot spell: it spoils its own record only.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        lines = _Lines(text)
        separator, header = _header(lines, name)
        for record in _records(lines, separator, len(header)):
            row: Cells | str = record.problem or Cells(zip(header, record.cells, strict=True))
            yield f"{name} line {record.line}", row
    finally:
        text.detach()


class _Lines:
    """The lines of a file, of which those of the record at hand can be put back."""

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self._again: deque[str] = deque()
        self._room = _REREAD
        self.taken: list[str] = []
        """The lines of the record at hand; not all of them where they are too many to be put back."""
        self.last = 0
        """The number of the last line taken, from 1."""
        self.backslashes = False
        """Whether quotes with a backslash are given as doubled ones."""
        self.bounded = False
        """Whether the lines end where no more can be put back."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._source)
        if self.bounded and len(line) > self._room:
            self._again.appendleft(line)
            raise StopIteration
        self.last += 1
        self._room -= len(line)
        if self.whole:
            self.taken.append(line)
        return _doubled(line) if self.backslashes else line

    @property
    def whole(self) -> bool:
        """Whether all of the record's lines can be put back."""
        return self._room >= 0

    def begin(self) -> None:
        """Begin a record: the one before is done with."""
        self.taken, self._room = [], _REREAD

    def put_back(self, keep: int = 0) -> None:
        """Take the record's lines but the first `keep` again."""
        again = self.taken[keep:]
        self._again.extendleft(reversed(again))
        self.last -= len(again)
        self.begin()


def _doubled(line: str) -> str:
    r"""A line with `\"` as `""`, and the `\\` before a quote, which stands for one backslash, as `\`."""
    if '\\"' not in line:
        return line
    parts = line.split('"')
    found = [parts[0]]
    for before, after in pairwise(parts):
        slashes = len(before) - len(before.rstrip("\\"))
        found[-1] = found[-1][: len(found[-1]) - (slashes + 1) // 2]
        found.append(('""' if slashes % 2 else '"') + after)
    return "".join(found)


def _header(lines: _Lines, name: str) -> tuple[str, list[str]]:
    """The separator and the columns' names."""
    first = next(lines, "")
    bad = undecoded(first)
    if bad is not None or "\0" in first:
        utf16 = first.encode("utf-8", "surrogateescape")[:2] in (b"\xff\xfe", b"\xfe\xff") or "\0" in first
        what = "UTF-16" if utf16 else bad
        raise DataError(f"{name} line 1: the header is {what}: save the file as UTF-8")
    separator = ","
    if first.strip().lower()[:4] == "sep=" and len(first.strip()) == 5:
        separator = first.strip()[4]
    else:
        lines.put_back()
        for other in _SEPARATORS:
            if len(next(csv.reader([first]), [])) == 1 and len(next(csv.reader([first], delimiter=other), [])) > 1:
                separator = other
                break
    lines.begin()
    try:
        header = next(csv.reader(lines, strict=True, delimiter=separator), [])
    except csv.Error as error:
        raise DataError(f"{name} line {lines.last}: the header is malformed CSV: {error}") from None
    if len(set(header)) < len(header):
        raise DataError(f"{name}: two columns of the header have one name: {', '.join(header)}")
    return separator, header


def _records(lines: _Lines, separator: str, width: int) -> Iterator[_Record]:
    """The records under the header, blank lines left out."""
    reader = csv.reader(lines, strict=True, delimiter=separator)
    while True:
        lines.begin()
        line = lines.last + 1
        cells, problem = _read(reader, width)
        if problem is not None and lines.whole and any('\\"' in text for text in lines.taken):
            cells, problem = _reread(lines, reader, width, cells, problem)
        if cells is None and problem is None:
            return
        bad = undecoded("".join(lines.taken if lines.whole else cells or []))
        if cells is None and lines.whole:
            lines.put_back(keep=1)
        elif cells is None:
            problem = f"{problem}; the lines up to {lines.last} went with it"
        if cells != []:
            yield _Record(line, cells or [], bad or problem)


def _reread(
    lines: _Lines, reader: Iterator[list[str]], width: int, cells: list[str] | None, problem: str
) -> tuple[list[str] | None, str | None]:
    """A bad record with the other way to write quotes in cells; where that makes it whole, it stays."""
    taken = len(lines.taken)
    lines.put_back()
    lines.backslashes, lines.bounded = not lines.backslashes, True
    other, still = _read(reader, width)
    lines.bounded = False
    if still is None:
        return other, None
    lines.put_back()
    lines.backslashes = not lines.backslashes
    for _ in range(taken):
        next(lines)
    return cells, problem


def _read(reader: Iterator[list[str]], width: int) -> tuple[list[str] | None, str | None]:
    """The cells of the next record, and what is wrong with them; None for both at the end of the file."""
    try:
        cells = next(reader, None)
    except csv.Error as error:
        return None, f"malformed CSV: {error} (a quote inside a cell is written as two)"
    return cells, f"{len(cells)} cells, but the header has {width}" if cells and len(cells) != width else None


def typed(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Give a CSV row's cells their types: empty ones of optional columns, true and false, and lists spelt as JSON.

    Raises:
        DataError: A list is spelt as Python prints it.
    """
    row: dict[str, Any] = {
        name: None if not value and name in ("id", "domain", "finished") else value for name, value in cells.items()
    }
    for name, kinds in (("prompt", (dict,)), ("responses", (str, dict))):
        if name in row:
            row[name] = _json_list(row[name], kinds)
    for name in ("messages", "prompt", "chosen", "rejected", "response", "completion"):
        if isinstance(row.get(name), str):
            row[name] = messages_in(row[name], f"`{name}`") or row[name]
    truth = {"true": True, "false": False}
    if row.get("finished") is not None:
        row["finished"] = truth.get(row["finished"].lower(), row["finished"])
    return row


def _json_list(text: str, kinds: Sequence[type]) -> Any:
    """The list that a cell spells as JSON, or the cell as it is."""
    if text.lstrip().startswith("["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(value, list) and value and all(isinstance(item, tuple(kinds)) for item in value):
            return value
    return text
