"""Columns by name or path, and the renaming of `--map`.

Knows one row as a mapping; nothing of files, or of what columns mean.

A path names a value inside a column: `info.post`, `summaries.0.text` (the first element), `answers.*.text` (of each
element, as a list). A column whose own name has dots is found first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gdr_plugin.api.errors import DataError

__all__ = ["LABELS", "column_of", "has", "lookup", "mapped", "parse_columns", "rename"]

LABELS = ("label.a", "label.b", "label.tie")
"""What `--map` names besides columns: the values of a label that mean the first, the second, and neither response."""


def lookup(data: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or at a path inside one.

    Raises:
        KeyError: There is none.
    """
    if path in data:
        return data[path]
    head, _, rest = path.partition(".")
    if not rest or head not in data:
        raise KeyError(path)
    try:
        return _inside(data[head], rest.split("."))
    except (LookupError, TypeError, ValueError):
        raise KeyError(path) from None


def _inside(value: Any, steps: list[str]) -> Any:
    for at, step in enumerate(steps):
        if step == "*":
            if not isinstance(value, list | tuple):
                raise TypeError
            return [_inside(item, steps[at + 1 :]) for item in value]
        if isinstance(value, Mapping):
            value = value[step]
        elif isinstance(value, list | tuple):
            value = value[int(step)]
        else:
            raise TypeError
    return value


def has(data: Mapping[str, Any], path: str) -> bool:
    """Whether there is a value at a path."""
    try:
        lookup(data, path)
    except KeyError:
        return False
    return True


def column_of(data: Mapping[str, Any], path: str) -> str:
    """The column that a path leads into."""
    return path if path in data else path.partition(".")[0]


def mapped(columns: Mapping[str, str] | None) -> Iterator[tuple[str, str]]:
    """The entries of `--map` that name columns: new name and path."""
    return ((new, old) for new, old in (columns or {}).items() if new not in LABELS)


def rename(data: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under its new names; the old names go, and so does what stood under the new ones."""
    names = dict(mapped(columns))
    renamed = {new: lookup(data, old) for new, old in names.items() if has(data, old)}
    return {**{name: value for name, value in data.items() if name not in names.values()}, **renamed}


def parse_columns(items: list[str] | None) -> dict[str, str]:
    """Read the `NEW=OLD` items of `--map`.

    Raises:
        DataError: An item has no `=`, or a new name comes twice.
    """
    columns: dict[str, str] = {}
    for item in items or []:
        new, equals, old = item.partition("=")
        if not (equals and new and old):
            raise DataError(f"--map {item!r}: write NEW=OLD, as in prompt=instruction")
        if new.startswith("label.") and new not in LABELS:
            raise DataError(f"--map {item!r}: the values of a label are named {', '.join(LABELS)}")
        if new in columns:
            raise DataError(f"--map names the column {new!r} twice")
        columns[new] = old
    return columns
