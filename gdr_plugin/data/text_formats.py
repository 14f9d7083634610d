"""Rows out of JSON lines, a JSON array or CSV, one at a time, each with its place in the file.

Knows syntax only: a row is what the format makes of it, or a few words about what is wrong with it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any, TypeAlias

from gdr_plugin.api.errors import DataError

Located: TypeAlias = "tuple[str, Mapping[str, Any] | str]"
"""A row's place for messages, and its columns or what is wrong with it."""

_MAX_CELL = 1 << 30
_CHUNK = 1 << 16
_FIRST = re.compile(r"\s*\[\s*(\]?)")
_NEXT = re.compile(r"\s*([,\]])\s*")


class Cells(dict[str, str]):
    """A row of a CSV file: every value is text, and what it means is known once the columns have their names."""


def read_jsonl(file: IO[bytes], name: str) -> Iterator[Located]:
    """One object a line; blank lines count but are no rows."""
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield f"{name} line {number}", _json_object(line)


def _json_object(line: bytes) -> Mapping[str, Any] | str:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte {error.start + 1})"
    except json.JSONDecodeError as error:
        return f"malformed JSON: {error.msg} (column {error.colno})"
    except (ValueError, RecursionError) as error:
        return f"malformed JSON: {error}"
    return _object(value)


def _object(value: object) -> Mapping[str, Any] | str:
    if isinstance(value, dict):
        return value
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return f"expected a JSON object, found {names.get(type(value), 'a number')}"


def read_json_array(file: IO[bytes], name: str) -> Iterator[Located]:
    """The elements of one array, decoded as they come: the file may be larger than the memory."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    decode = json.JSONDecoder().raw_decode
    buffer, position, number, size = "", 0, 0, _CHUNK
    try:
        while True:
            before = (_NEXT if number else _FIRST).match(buffer, position)
            if before and before[1] == "]":
                return
            problem, whole = "expected , or ]", bool(buffer[position:].strip())
            if before:
                try:
                    value, end = decode(buffer, before.end())
                except json.JSONDecodeError as error:
                    cut = error.pos >= len(buffer) - 16 or error.msg.startswith("Unterminated")
                    problem, whole = error.msg, not cut
                except (ValueError, RecursionError) as error:
                    problem, whole = str(error), True
                else:
                    number, position, size = number + 1, end, _CHUNK
                    yield f"{name} row {number}", _object(value)
                    continue
            more = "" if whole else text.read(size)
            if not more:
                yield f"{name} row {number + 1}", f"malformed JSON: {problem}"
                return
            buffer, position, size = buffer[position:] + more, 0, size * 2
    except UnicodeDecodeError as error:
        yield f"{name} row {number + 1}", f"not UTF-8: {error.reason}"
    finally:
        text.detach()


def read_csv(file: IO[bytes], name: str) -> Iterator[Located]:
    """Rows under a header line, as `Cells`."""
    csv.field_size_limit(_MAX_CELL)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.reader(text, strict=True)
    line = 1
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{name}: two columns of the header have one name: {', '.join(header)}")
        line = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(header):
                yield f"{name} line {line}", Cells(zip(header, cells, strict=True))
            elif cells:
                yield f"{name} line {line}", f"{len(cells)} cells, but the header has {len(header)}"
            line = reader.line_num + 1
    except csv.Error as error:
        yield f"{name} line {line}", f"malformed CSV: {error}"
    except UnicodeDecodeError as error:
        yield f"{name} line {line}", f"not UTF-8: {error.reason}"
    finally:
        text.detach()


def typed(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Give a CSV row's cells their types: empty ones of optional columns, true and false, and lists spelt as JSON."""
    row: dict[str, Any] = {
        name: None if not value and name in ("id", "domain", "finished") else value for name, value in cells.items()
    }
    for name, kinds in (("prompt", (dict,)), ("responses", (str, dict))):
        if name in row:
            row[name] = _json_list(row[name], kinds)
    truth = {"true": True, "false": False}
    if row.get("finished") is not None:
        row["finished"] = truth.get(row["finished"].lower(), row["finished"])
    return row


def _json_list(text: str, kinds: tuple[type, ...]) -> Any:
    """The list that a cell spells as JSON, or the cell as it is."""
    if text.lstrip().startswith("["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(value, list) and value and all(isinstance(item, kinds) for item in value):
            return value
    return text
