"""Small rules for texts and values that come from outside: errors on one line, reasons to count, valid text, no value.

Knows strings only. What is wrong is returned as words, so that every caller raises its own kind of error.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

__all__ = [
    "first_line",
    "is_missing",
    "line_of",
    "one_line",
    "printable",
    "text_problem",
    "type_name",
    "typed_line",
    "without_nulls",
    "without_numbers",
]

_NUMBER = re.compile(r"\d[\d,]*")
_BREAK: Final = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_JOINERS: Final = "\u200c\u200d"  # they belong to the spelling of Persian and Hindi words and of emoji


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def one_line(error: BaseException, *, limit: int | None = None) -> str:
    """An error's whole message on one line, or its class where there is none.

    Args:
        error: Any exception.
        limit: Most characters of the message.
    """
    return " ".join(str(error).split())[:limit] or type(error).__name__


def typed_line(error: BaseException) -> str:
    """An error's class and whole message on one line, as in "ValueError: no number"."""
    name, text = type(error).__name__, one_line(error)
    return name if text == name else f"{name}: {text}"


def line_of(text: str) -> str:
    """Text on one line that `printable` would leave as it is: a line break with its white space becomes a space."""
    return printable(text if text.isprintable() else _BREAK.sub(" ", text.strip()))


def printable(text: str, *, limit: int | None = None, keep: str = "") -> str:
    """Text that can neither forge a line of a log nor command a terminal: control and format characters are escaped.

    Args:
        text: Any text, from anybody.
        limit: Most characters that are kept; the end is cut. None: all.
        keep: Characters that are not escaped, such as the line breaks of a text of several lines.
    """
    kept = text if limit is None or len(text) <= limit else text[: limit - 3] + "..."
    if kept.isprintable():
        return kept
    return "".join(
        char if char in keep or _is_shown(char) else char.encode("unicode_escape").decode("ascii") for char in kept
    )


def _is_shown(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"


def without_numbers(reason: str) -> str:
    """A reason with N in the place of every number, so that reasons of one kind can be counted together."""
    return _NUMBER.sub("N", reason)


def text_problem(text: str) -> str | None:
    """Why a string is not valid text, as the end of a sentence; None when it is."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds an unpaired surrogate at character {error.start + 1}: not valid text"
    return None


def is_missing(value: object) -> bool:
    """Whether a cell holds no value: null, an empty text, or NaN, which is how table readers say so."""
    return value is None or value == "" or (isinstance(value, float) and value != value)


def without_nulls(value: Any) -> Any:
    """A value of a table without nulls: Arrow gives every mapping of a column the keys of all others."""
    if isinstance(value, Mapping):
        return {str(key): without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def type_name(value: object) -> str:
    """What JSON calls the value's type, with its article."""
    names = {type(None): "null", bool: "true or false", list: "a list", dict: "a mapping", str: "a string"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
