"""Texts that are lists of messages written down: as JSON they are read, as Python prints them they are refused.

What table programs make of a column of lists. Nobody answers such a text as prose, and scored as prose its number would
say nothing. Knows one text; nothing of rows or files.
"""

from __future__ import annotations

import json
import re
from typing import Any

from gdr_plugin.api.errors import DataError

__all__ = ["messages_in"]

_KEYS = "role|content|tool_calls|reasoning_content|name|from|value"
_JSON = re.compile(rf'\s*\[\s*\{{\s*"(?:{_KEYS})"\s*:')
_PYTHON = re.compile(rf"\s*(?:array\(\s*)?[\[(]\s*\{{\s*'(?:{_KEYS})'\s*:")
_END = re.compile(r"\}[\s,]*[\])](?:,\s*dtype=object)?\)?\s*\Z")


def messages_in(text: str, what: str) -> list[Any] | None:
    """The messages that a text as a whole spells as JSON; None where it is a text.

    To score such a text as it is, make it the content of a message.

    Args:
        text: Any text.
        what: What to call it in the error.

    Raises:
        DataError: It spells messages as Python (or NumPy) prints a list of dictionaries.
    """
    if _JSON.match(text):
        try:
            value = json.loads(text, strict=False)  # tables break lines inside of cells
        except (ValueError, RecursionError):
            return None
        return (
            value
            if all(isinstance(item, dict) and not item.keys().isdisjoint(("role", "from")) for item in value)
            else None
        )
    if _PYTHON.match(text) and _END.search(text) and re.search(r"'(?:role|from)'\s*:", text):
        raise DataError(
            f"{what} is a list of messages as Python prints it: write it as JSON (json.dumps of the list), or the "
            "rows as JSON lines or Parquet"
        )
    return None
