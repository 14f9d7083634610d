"""What the columns of an input row must hold: prompts, responses, ids. Knows rows, nothing of files."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gdr_plugin.api.errors import DataError, unknown
from gdr_plugin.api.types import Conversation, Message, Sample
from gdr_plugin.data.sources import Row

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A row of `gdr score`: a prompt with the response to score."""

    id: str
    sample: Sample


@dataclass(frozen=True, slots=True)
class Response:
    """A response given with a prompt."""

    text: str
    finished: bool = True
    """Whether it ended by itself."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A row of `gdr annotate`: a prompt, and the responses to choose from where they are given."""

    id: str
    prompt: Conversation
    responses: tuple[Response, ...] | None
    """None: the row has no `responses` (they are sampled)."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """All other columns."""


def parse_prompt(value: object) -> Conversation:
    """Read a prompt: a string is one user turn; a list of messages is a conversation.

    Args:
        value: A string, or a list of `{"role": ..., "content": ...}` with roles system, user, assistant, tool. System
            turns come first. Content is a string, or a list of `{"type": "text", "text": ...}`, whose texts are joined.

    Returns:
        The conversation, which ends with a user or tool turn.

    Raises:
        DataError: The value is something else, or there is nothing to answer.
    """
    if isinstance(value, str):
        messages: Conversation = (Message("user", _text(value, "`prompt`")),)
    elif isinstance(value, list | tuple):
        messages = tuple(_message(item, number) for number, item in enumerate(value, start=1))
    else:
        raise DataError(f"`prompt` must be a string or a list of messages, not {type_name(value)}")
    if not any(message.role == "user" for message in messages):
        raise DataError("`prompt` has no user turn")
    body = False
    for message in messages:
        body = body or message.role != "system"
        if body and message.role == "system":
            raise DataError("a system turn of `prompt` comes after another turn: system turns come first")
    if messages[-1].role == "assistant":
        raise DataError("`prompt` ends with an assistant turn: what is to be scored belongs in the response")
    if not messages[-1].content.strip():
        raise DataError("`prompt` is empty: its last turn has no text")
    return messages


def parse_score_row(row: Row) -> ScoreRow:
    """Read a row `{"id"?, "prompt", "response", "finished"?, ...}`; other columns go into the sample's fields.

    Raises:
        DataError: The row is malformed, or a column is missing or of another type; names the row and the column.
    """
    with _at(row) as data:
        sample = Sample(
            prompt=parse_prompt(_column(data, "prompt")),
            response=_text(_column(data, "response"), "`response`"),
            finished=_finished(data),
            fields={name: data[name] for name in data if name not in ("id", "prompt", "response", "finished")},
        )
        return ScoreRow(_id(row), sample)


def parse_prompt_row(row: Row) -> PromptRow:
    """Read a row `{"id"?, "prompt", "responses"?, ...}`; other columns are kept as fields.

    `responses` is a list of strings or of mappings with the text under `response`, `text` or `content`, and `finished`.

    Raises:
        DataError: The row is malformed, or a column is missing or of another type; names the row and the column.
    """
    with _at(row) as data:
        given = data.get("responses")
        if given is not None and not isinstance(given, list | tuple):
            raise DataError(f"`responses` must be a list, not {type_name(given)}")
        return PromptRow(
            id=_id(row),
            prompt=parse_prompt(_column(data, "prompt")),
            responses=None if given is None else tuple(_response(item, n) for n, item in enumerate(given, start=1)),
            fields={name: data[name] for name in data if name not in ("id", "prompt", "responses")},
        )


@contextmanager
def _at(row: Row) -> Iterator[Mapping[str, Any]]:
    """The row's columns; errors raised meanwhile get the row's place."""
    data = row.data
    try:
        yield data
    except DataError as error:
        raise type(error)(f"{row.where}: {error}") from None


def _column(data: Mapping[str, Any], name: str) -> Any:
    if name in data:
        return data[name]
    near = difflib.get_close_matches(name, list(data), n=1, cutoff=0.5)
    hint = f"name it with --map {name}={near[0] if near else 'COLUMN'}"
    raise DataError(f"there is no column {name!r} among {', '.join(map(str, data)) or 'none'}: {hint}")


def _id(row: Row) -> str:
    value = row.data.get("id")
    if value is None:
        return _generated(row)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"`id` must be a string or an integer, not {type_name(value)}")
    if value == "":
        raise DataError("`id` is empty")
    return _text(str(value), "`id`")


def _generated(row: Row) -> str:
    return f"row-{row.number:06d}"


def id_of(row: Row) -> str:
    """The row's id as far as it can be read, else the one made from its number."""
    try:
        return _id(row)
    except DataError:
        return _generated(row)


def _finished(data: Mapping[str, Any]) -> bool:
    value = data.get("finished")
    if value is not None and not isinstance(value, bool):
        raise DataError(f"`finished` must be true or false, not {type_name(value)}")
    return value is not False


def _response(item: object, number: int) -> Response:
    what = f"response {number} of `responses`"
    if isinstance(item, str):
        return Response(_text(item, what))
    if not isinstance(item, Mapping):
        raise DataError(f"{what} must be a string or a mapping, not {type_name(item)}")
    named = [name for name in ("response", "text", "content") if name in item]
    if len(named) != 1:
        raise DataError(f"{what} must have its text under one of response, text, content")
    return Response(_text(item[named[0]], what), _finished(item))


def _message(item: object, number: int) -> Message:
    what = f"message {number} of `prompt`"
    if not isinstance(item, Mapping):
        raise DataError(f"{what} must be a mapping with role and content, not {type_name(item)}")
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise DataError(f"{what}: {unknown('role', role, ROLES)}")
    if isinstance(content, list | tuple):
        content = "".join(_block(block, what) for block in content)
    return Message(role, _text(content, f"the content of {what}"))


def _block(block: object, what: str) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if not isinstance(block, Mapping) or kind != "text":
        raise DataError(f"{what} has a content block of type {kind!r}: only text can be scored")
    return _text(block.get("text"), f"a text block of {what}")


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{what} must be a string, not {type_name(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} holds half a surrogate pair at character {error.start + 1}: not valid text") from None
    return value


def type_name(value: object) -> str:
    """What JSON calls the value's type, with its article."""
    names = {type(None): "null", bool: "true or false", list: "a list", dict: "a mapping", str: "a string"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
