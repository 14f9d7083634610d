"""What the columns of an input row must hold: prompts, responses, ids. Knows rows; nothing of files."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Conversation, Message, Sample
from gdr_plugin.data.content import text_of
from gdr_plugin.data.messages import message_of
from gdr_plugin.data.sources import Row
from gdr_plugin.text import type_name


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A row of `gdr score`: a prompt with the response to score."""

    id: str
    sample: Sample
    where: str
    """The row's place, for messages."""


class Response(NamedTuple):
    """A response to a prompt, given in the row or drawn from a policy."""

    text: str
    finished: bool = True
    """Whether it ended by itself rather than at a length limit."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A row of `gdr annotate`: a prompt, and the responses to choose from where they are given."""

    number: int
    """Running number in the input, from 1."""
    where: str
    """The row's place, for messages."""
    id: str
    prompt: Conversation
    responses: tuple[Response, ...] | None
    """None: the row has no `responses` (they are sampled)."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """All other columns."""


def parse_prompt(value: object, *, prefill: bool = False) -> Conversation:
    """Read a prompt: a string is one user turn; a list of messages is a conversation.

    Args:
        value: A string, or a list of `{"role": ..., "content": ...}` with roles system, user, assistant, tool. System
            turns come first. Content is a string, or a list of `{"type": "text", "text": ...}`, whose texts are joined.
            Messages may have tool calls and reasoning, see `message_of`.
        prefill: Whether the last turn may be an assistant's, which the response goes on with.

    Returns:
        The conversation, which ends with a user or tool turn, or with what a response goes on with.

    Raises:
        DataError: The value is something else, or there is nothing to answer.
    """
    if isinstance(value, str):
        messages: Conversation = (Message("user", text_of(value, "`prompt`")),)
    elif isinstance(value, list | tuple):
        messages = tuple(
            message_of(item, f"message {number} of `prompt`") for number, item in enumerate(value, start=1)
        )
    else:
        raise DataError(f"`prompt` must be a string or a list of messages, not {type_name(value)}")
    check_prompt(messages, prefill=prefill)
    return messages


def check_prompt(messages: Conversation, *, prefill: bool = False) -> None:
    """Refuse a conversation that cannot be answered.

    Args:
        messages: Turns whose roles and texts are valid already.
        prefill: As for `parse_prompt`.

    Raises:
        DataError: No turn is the user's, a system turn comes later, or the last turn is an assistant's or empty.
    """
    if not any(message.role == "user" for message in messages):
        raise DataError("`prompt` has no user turn")
    body = False
    for message in messages:
        body = body or message.role != "system"
        if body and message.role == "system":
            raise DataError("a system turn of `prompt` comes after another turn: system turns come first")
    if messages[-1].role == "assistant" and not prefill:
        raise DataError("`prompt` ends with an assistant turn: what is to be scored belongs in the response")
    if not messages[-1].content.strip() and not messages[-1].tool_calls:
        raise DataError("`prompt` is empty: its last turn has no text")


def parse_score_row(row: Row) -> ScoreRow:
    """Read a row `{"id"?, "prompt", "response", "finished"?, ...}`; other columns go into the sample's fields.

    Raises:
        DataError: The row is malformed, or a column is missing or of another type; names the row and the column.
    """
    with _at(row) as data:
        sample = Sample(
            prompt=parse_prompt(_column(data, "prompt")),
            response=text_of(_column(data, "response"), "`response`"),
            finished=_finished(data),
            fields={name: data[name] for name in data if name not in ("id", "prompt", "response", "finished")},
        )
        return ScoreRow(_id(row), sample, row.where)


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
            number=row.number,
            where=row.where,
            id=_id(row),
            prompt=parse_prompt(_column(data, "prompt")),
            responses=None if given is None else tuple(_response(item, n) for n, item in enumerate(given, start=1)),
            fields={name: data[name] for name in data if name not in ("id", "prompt", "responses")},
        )


@contextmanager
def _at(row: Row) -> Iterator[Mapping[str, Any]]:
    """The row's columns; an error raised inside the block gets the row's place."""
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
    return text_of(str(value), "`id`")


def _generated(row: Row) -> str:
    return f"row-{row.number:06d}"


def id_of(row: Row) -> str:
    """The row's id; where it cannot be read, the id that is made from the row's number."""
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
        return Response(text_of(item, what))
    if not isinstance(item, Mapping):
        raise DataError(f"{what} must be a string or a mapping, not {type_name(item)}")
    named = [name for name in ("response", "text", "content") if name in item]
    if len(named) != 1:
        raise DataError(f"{what} must have its text under one of response, text, content")
    return Response(text_of(item[named[0]], what), _finished(item))
