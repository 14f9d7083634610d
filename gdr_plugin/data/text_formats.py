"""Rows out of JSON lines or a JSON array, one at a time, each with its place in the file.

Knows syntax only: a row is what the format makes of it, or a few words about what is wrong with it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any, TypeAlias

Located: TypeAlias = "tuple[str, Mapping[str, Any] | str]"
"""A row's place for messages, and its columns or what is wrong with it."""

_CHUNK = 1 << 16
_FIRST = re.compile(r"\s*\[\s*(\]?)")
_NEXT = re.compile(r"\s*([,\]])\s*")


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
    # What is not UTF-8 becomes half surrogate pairs, which UTF-8 cannot spell: it spoils its own element only.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
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
                    problem, whole = f"{error.msg} (character {error.pos - before.end() + 1} of the row)", not cut
                except (ValueError, RecursionError) as error:
                    problem, whole = str(error), True
                else:
                    bad = undecoded(buffer[before.end() : end])
                    number, position, size = number + 1, end, _CHUNK
                    yield f"{name} row {number}", bad or _object(value)
                    continue
            more = "" if whole else text.read(size)
            if not more:
                lost = "; the rows after it cannot be read" if whole else ""
                yield f"{name} row {number + 1}", f"malformed JSON: {problem}{lost}"
                return
            buffer, position, size = buffer[position:] + more, 0, size * 2
    finally:
        text.detach()


def undecoded(text: str) -> str | None:
    """Where a text that was decoded with `surrogateescape` is not UTF-8, in words; None where all of it is."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = len(text[: error.start].encode("utf-8", "surrogateescape"))
        return f"not UTF-8 (byte {before + 1})"
    return None
