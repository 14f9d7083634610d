"""The definitions of the tools that an assistant may call, in the shapes that data sets and trainers have them in.

Knows OpenAI's form of a function's definition (a name and a JSON schema of its parameters); nothing of calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import TOOLS, Message
from gdr_plugin.text import is_missing, one_line, text_problem, type_name, without_nulls

__all__ = ["TOOL_COLUMNS", "definitions_of", "tools_of"]

TOOL_COLUMNS: Final = ("tools", "functions")
"""Columns with definitions of tools."""


def tools_of(data: Mapping[str, Any]) -> tuple[str | None, Message | None]:
    """The definitions of tools that a row brings.

    Args:
        data: The row's columns.

    Returns:
        The column's name, and its definitions as the first turn of a conversation; None and None where no column of
        `TOOL_COLUMNS` holds any. A text that is no JSON, or a list of names, is no definition.

    Raises:
        DataError: A definition is malformed.
    """
    for name in TOOL_COLUMNS:
        found = _listed(data.get(name))
        if found:
            return name, definitions_of(found, f"`{name}`")
    return None, None


def definitions_of(given: Sequence[object], what: str = "`tools`") -> Message:
    """Definitions of tools as the first turn of a conversation.

    Args:
        given: Mappings: `{"type": "function", "function": {"name": ..., "parameters": ...}}`, or the function alone.
        what: What to call them in errors.

    Raises:
        DataError: A definition has no name, or cannot be written as JSON.
    """
    made = [_definition(item, f"definition {number} of {what}") for number, item in enumerate(given, start=1)]
    try:
        text = json.dumps(made, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{what} cannot be written as JSON: {one_line(error)}") from None
    problem = text_problem(text)
    if problem is not None:
        raise DataError(f"{what} {problem}")
    return Message(TOOLS, text)


def _listed(value: object) -> list[object]:
    """The definitions that a column holds: a list of them, one alone, each or all of them as the text of JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    elif isinstance(value, Mapping | list | tuple):
        value = without_nulls(value)  # Arrow gives every definition the keys of all others
    if isinstance(value, Mapping):
        return [value] if value else []
    if not isinstance(value, list):
        return []
    found = [one for item in value for one in (_listed(item) if isinstance(item, str) else [item])]
    return found if all(isinstance(item, Mapping) for item in found) else []


def _definition(item: object, what: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise DataError(f"{what} must be a mapping, not {type_name(item)}")
    function = item.get("function", item)
    if not isinstance(function, Mapping) or is_missing(function.get("name")):
        raise DataError(f'{what} must be a mapping with `function`: {{"name": ..., "parameters": ...}}')
    if not isinstance(function["name"], str):
        raise DataError(f"the name of {what} must be a string, not {type_name(function['name'])}")
    if function is item:  # the function alone, as in data sets of before tools; or flat, as OpenAI's Responses have it
        return {"type": "function", "function": {name: value for name, value in item.items() if name != "type"}}
    return item
