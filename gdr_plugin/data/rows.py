"""What the columns of an input row must hold: prompts, responses, ids. Knows rows; nothing of files."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Conversation, Sample
from gdr_plugin.data.content import text_of
from gdr_plugin.data.messages import STRUCTURED
from gdr_plugin.data.prompts import Prompt, prompt_of
from gdr_plugin.data.responses import joined_prompt, response_of, said
from gdr_plugin.data.sources import Row
from gdr_plugin.text import is_missing, type_name

_INSTEAD = ("completion", "messages")
"""Where a row has its response instead of in `response`."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A row of `gdr score`: a prompt with the response to score."""

    id: str
    sample: Sample
    where: str
    """The row's place, for messages."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """The row's columns as they were read, where they are to be kept."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """All other columns."""
        return self.sample.fields


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


def is_score_row(data: Mapping[str, Any]) -> bool:
    """Whether a row has one response to a prompt, rather than chosen and rejected ones."""
    return not {"chosen", "rejected"} <= data.keys() and response_column(data) is not None


def response_column(data: Mapping[str, Any]) -> str | None:
    """The column with a row's one response; None where it has none."""
    return next((name for name in ("response", *_INSTEAD) if name in data), None)


def parse_score_row(row: Row, *, prefill: bool = False, keep: bool = False) -> ScoreRow:
    """Read a row `{"id"?, "prompt", "response", "finished"?, ...}`; other columns go into the sample's fields.

    The response is a text, or messages that end with the assistant's. `completion` is another name for it. `messages`
    alone are a conversation that ends with it.

    Args:
        row: As read.
        prefill: Whether the prompt may end with an assistant's turn, which the response goes on with.
        keep: Whether the columns are kept as they are, too.

    Raises:
        DataError: The row is malformed, or a column is missing or of another type; names the row and the column.
    """
    with _at(row) as data:
        name = response_column(data) or "response"
        given = data.get("prompt") if name == "messages" else _column(data, "prompt")
        head, turn = response_of(_column(data, name), f"`{name}`")
        if not head and given is None:
            raise DataError("`messages` has nothing before the assistant's message: give the whole conversation")
        prompt = joined_prompt(data, given, head, prefill=prefill)
        turn = prompt.answer(turn)
        used = ("id", "prompt", name, "finished", *prompt.columns)
        sample = Sample(
            prompt=prompt.turns,
            response=turn.content,
            finished=_finished(data),
            fields={name: data[name] for name in data if name not in used},
            reasoning=turn.reasoning,
            tool_calls=turn.tool_calls,
        )
        return ScoreRow(_id(row), sample, row.where, dict(data) if keep else {})


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
        prompt = prompt_of(data, _column(data, "prompt"))
        used = ("id", "prompt", "responses", *prompt.columns)
        return PromptRow(
            number=row.number,
            where=row.where,
            id=_id(row),
            prompt=prompt.turns,
            responses=None if given is None else tuple(_response(item, n, prompt) for n, item in enumerate(given, 1)),
            fields={name: data[name] for name in data if name not in used},
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
        return generated_id(row)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"`id` must be a string or an integer, not {type_name(value)}")
    if value == "":
        raise DataError("`id` is empty")
    return text_of(str(value), "`id`")


def generated_id(row: Row) -> str:
    """The id of a row that has none of its own."""
    return f"row-{row.number:06d}"


def id_of(row: Row) -> str:
    """The row's id; where it cannot be read, the id that is made from the row's number."""
    try:
        return _id(row)
    except DataError:
        return generated_id(row)


def _finished(data: Mapping[str, Any]) -> bool:
    value = data.get("finished")
    if value is not None and not isinstance(value, bool):
        raise DataError(f"`finished` must be true or false, not {type_name(value)}")
    return value is not False


def _response(item: object, number: int, prompt: Prompt) -> Response:
    what = f"response {number} of `responses`"
    if isinstance(item, str):
        return Response(prompt.answer(said(text_of(item, what))).content)
    if not isinstance(item, Mapping):
        raise DataError(f"{what} must be a string or a mapping, not {type_name(item)}")
    named = [name for name in ("response", "text", "content") if name in item]
    if len(named) != 1:
        raise DataError(f"{what} must have its text under one of response, text, content")
    if any(not is_missing(item.get(name)) for name in STRUCTURED):
        raise DataError(f"{what} has tool calls or reasoning: candidates are texts; `gdr score` takes such responses")
    return Response(prompt.answer(said(text_of(item[named[0]], what))).content, _finished(item))
