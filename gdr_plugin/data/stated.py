"""What a row states in its columns: the prompt, and the responses by side or by name, as messages or texts.

Knows the table of formats and one row; what becomes of them is `preference_formats`'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Message
from gdr_plugin.data.columns import has, lookup
from gdr_plugin.data.content import text_of
from gdr_plugin.data.format_table import Format
from gdr_plugin.data.labels import best_of
from gdr_plugin.data.messages import as_json
from gdr_plugin.data.prompts import transcript_turns
from gdr_plugin.text import is_missing, type_name

__all__ = ["FIELD", "best", "first", "label_columns", "prompt", "response", "side"]

FIELD = re.compile(r"\{([\w.]+)\}")
"""A column's name in a template."""


def first(format: Format, data: Mapping[str, Any], role: str) -> Any:
    """A role's value: that of the first of its columns that the row has."""
    paths = format.at(role)
    return lookup(data, next((path for path in paths if has(data, path)), paths[0]))


def label_columns(format: Format) -> list[str]:
    """The columns of a label that is made of several."""
    return [*format.label.get("flags", {}).values(), *format.label.get("votes", ())]


def prompt(format: Format, data: Mapping[str, Any]) -> Any:
    """The prompt as the row states it; None where it states none."""
    paths = format.at("prompt")
    if format.template and paths == ("prompt",) and "prompt" not in data:
        return _filled(format.template, data)
    there = [path for path in paths if has(data, path)]
    if not there:
        if paths and format.kind != "sides":
            lookup(data, paths[0])  # says which column is missing
        return None
    value = lookup(data, there[0])
    if len(paths) > 1:
        texts = [text_of(lookup(data, path), f"`{path}`") for path in there if not is_missing(lookup(data, path))]
        return "\n\n".join(texts)
    if format.interleave:
        return None  # it is in the conversations
    return _marked(format.marks, value) if format.marks and isinstance(value, str) else value


def _filled(templates: Any, data: Mapping[str, Any]) -> str:
    """The first text whose columns all hold something."""
    for template in templates:
        paths: list[str] = FIELD.findall(template)
        if not any(is_missing(lookup(data, path) if has(data, path) else None) for path in paths):
            filled: str = FIELD.sub(lambda match: text_of(lookup(data, match[1]), f"`{match[1]}`"), template)
            return filled
    raise DataError("the columns of the prompt are empty")


def _marked(marks: Mapping[str, str], text: str) -> Any:
    """A text with marks before its turns, as messages; the text itself where there are none."""
    roles = {mark: role for role, mark in marks.items()}
    parts = re.split(rf"\n?({'|'.join(map(re.escape, roles))})\n", text)
    if len(parts) == 1:
        return text
    turns = [("user", parts[0]), *((roles[mark], said) for mark, said in zip(parts[1::2], parts[2::2], strict=True))]
    return [{"role": role, "content": content.strip()} for role, content in turns if content.strip()]


def response(format: Format, data: Mapping[str, Any], role: str) -> Any:
    """One of two responses: a text or messages, cut after the turns that were judged."""
    value = first(format, data, role)
    if format.join is not None and isinstance(value, list | tuple):
        return format.join.join(text_of(part, f"a part of `{role}`") for part in value)
    if not isinstance(value, str | list | tuple | Mapping):
        name = next((path for path in format.at(role) if has(data, path)), role)
        raise DataError(f"`{name}` must be a text or messages, not {type_name(value)}")
    if format.interleave:
        value = _interleaved(first(format, data, "prompt"), value)
    turns = data.get(format.turns) if format.turns is not None else None
    if isinstance(turns, int) and not isinstance(turns, bool) and isinstance(value, list | tuple):
        ends = [at for at, turn in enumerate(value) if isinstance(turn, Mapping) and turn.get("role") == "assistant"]
        value = value[: ends[turns - 1] + 1] if 0 < turns <= len(ends) else value
    return value


def _interleaved(prompts: Any, responses: Any) -> list[dict[str, Any]]:
    """A conversation of JSON lists with the user's and the assistant's turns."""
    users, assistants = _texts(prompts, "prompt"), _texts(responses, "response")
    if len(users) != len(assistants) or None in assistants:
        raise DataError("the lists of prompts and responses must have a text for each turn, as many on both sides")
    return [
        {"role": role, "content": text}
        for asked, answered in zip(users, assistants, strict=True)
        for role, text in (("user", asked), ("assistant", answered))
    ]


def _texts(value: Any, what: str) -> list[Any]:
    try:
        found = json.loads(value, strict=False) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise DataError(f"`{what}` must be a JSON list with a text for each turn")
    return found


def side(format: Format, data: Mapping[str, Any], name: str) -> Any:
    """Chosen or rejected, of rows that have both."""
    value = first(format, data, name)
    column = format.counted.get(name)
    if column is not None and isinstance(value, list | tuple) and lookup(data, column) != len(value):
        raise DataError(f"`{column}` is {data[column]!r}, but `{name}` has {len(value)} responses")
    if format.each is not None:
        sizes = [len(own) if isinstance(own, list | tuple) else 1 for own in (data["chosen"], data["rejected"])]
        if sizes != [format.each, format.each]:
            raise DataError(
                f"{format.sets.partition(',')[0]} has {format.each} chosen and {format.each} rejected responses, not "
                f"{sizes[0]} and {sizes[1]}"
            )
    return _transcript(value, name) if name in format.transcripts else value


def _transcript(value: Any, name: str) -> list[dict[str, Any]]:
    """The messages of a transcript; what the assistant says in several turns at the end is one response."""
    turns = transcript_turns(text_of(value, f"`{name}`"))
    if turns is None:
        raise DataError(f"`{name}` must be a transcript from Human: to a last Assistant: turn")
    end = len(turns)
    while end > 1 and turns[end - 2].role == "assistant":
        end -= 1
    last = Message("assistant", "\n\n".join(turn.content for turn in turns[end - 1 :]))
    return [as_json(turn) for turn in (*turns[: end - 1], last)]


def best(format: Format, data: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Chosen and rejected of a list of responses: the best ones, and all others."""
    responses = first(format, data, "responses")
    by = next((role for role in ("scores", "ranks") if any(has(data, path) for path in format.at(role))), "scores")
    numbers = first(format, data, by)
    for what, value in (("responses", responses), (by, numbers)):
        if not isinstance(value, list | tuple):
            raise DataError(f"`{what}` must be a list, not {type_name(value)}")
    if len(responses) != len(numbers) or not responses:
        raise DataError(f"there are {len(responses)} responses and {len(numbers)} {by}: one for each")
    won = best_of(numbers, lowest=by == "ranks")
    return {
        "chosen": [text for text, own in zip(responses, won, strict=True) if own],
        "rejected": [text for text, own in zip(responses, won, strict=True) if not own],
    }
