"""The responses of a row as assistant turns, whether the row has texts, conversations or lists of either.

Knows messages; nothing of data sets' formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Message
from gdr_plugin.data.content import text_of
from gdr_plugin.data.message_lists import messages_in
from gdr_plugin.data.messages import message_of
from gdr_plugin.data.prompts import Prompt, parse_prompt, prompt_of
from gdr_plugin.text import type_name

__all__ = ["joined_prompt", "response_of", "responses_of", "said"]


def said(text: str) -> Message:
    """A text as the assistant's turn."""
    return Message("assistant", text)


def response_of(value: object, what: str) -> tuple[list[Any], Message]:
    """A response, and the messages before it where it is a conversation.

    Args:
        value: A text, or messages that end with an assistant's, whose tool calls and reasoning are kept.
        what: What to call it in errors: "`response`".

    Raises:
        DataError: It is something else.
    """
    if not isinstance(value, list | tuple) or not value or not all(isinstance(item, Mapping) for item in value):
        return [], said(text_of(value, what))
    last = message_of(value[-1], f"the last message of {what}")
    if last.role != "assistant":
        raise DataError(f"{what} must end with an assistant message, not {last.role!r}")
    return list(value[:-1]), last


def responses_of(data: Mapping[str, Any]) -> tuple[Prompt, tuple[Message, ...], tuple[Message, ...]]:
    """The prompt of a preference row, and its chosen and its rejected responses.

    A side is a text, a conversation that ends with the response, or a list of several of either. The prompt is the
    column of that name, or the conversations' common beginning; where a row has both, they must agree.
    """
    chosen, rejected = (_side(data[name], f"`{name}`") for name in ("chosen", "rejected"))
    heads = [head for head, _ in (*chosen, *rejected) if head]
    if heads and len(heads) < len(chosen) + len(rejected):
        raise _parted()
    # Compared as turns: columns of a table may spell one conversation with other keys that are null.
    if any(parse_prompt(head) != parse_prompt(heads[0]) for head in heads):
        raise _parted()
    prompt = joined_prompt(data, data.get("prompt") if heads else data["prompt"], heads[0] if heads else [])
    first, second = (tuple(prompt.answer(turn) for _, turn in side) for side in (chosen, rejected))
    return prompt, first, second


def joined_prompt(data: Mapping[str, Any], given: object, head: list[Any], *, prefill: bool = False) -> Prompt:
    """The prompt of a row whose responses may be conversations.

    Args:
        data: The row's columns; see `prompt_of`.
        given: The prompt that the row states; may be None where there is a head.
        head: The messages before the response; may be empty.
        prefill: As for `parse_prompt`, where there is no head.

    Raises:
        DataError: There is neither; or what is stated is not in the conversation.
    """
    if not head:
        return prompt_of(data, given, prefill=prefill)
    turns = parse_prompt(head)
    if given is not None:
        known = [_what_counts(turn) for turn in turns]
        if any(_what_counts(turn) not in known for turn in prompt_of({}, given).turns):
            raise DataError(
                "`prompt` is not in the conversation that `chosen` and `rejected` continue: give one of them"
                if "chosen" in data
                else "`prompt` is not in the conversation that ends with the response: give one of them"
            )
    return prompt_of(data, head)


def _parted() -> DataError:
    return DataError("`chosen` and `rejected` part before the last message: they answer different prompts")


def _what_counts(turn: Message) -> object:
    return turn.role, turn.content.strip(), [(call.name, call.arguments) for call in turn.tool_calls]


def _side(value: object, what: str) -> list[tuple[list[Any], Message]]:
    """Each response of a side: the messages before it, and its turn."""
    if isinstance(value, str):
        return [response_of(messages_in(value, what) or value, what)]
    if isinstance(value, Mapping):
        return [response_of([value], what)]  # one message
    if not isinstance(value, list | tuple):
        raise DataError(f"{what} must be a text, messages or a list of them, not {type_name(value)}")
    if not value:
        raise DataError(f"{what} is an empty list")
    if all(isinstance(item, Mapping) for item in value):
        return [response_of(value, what)]
    if any(isinstance(item, Mapping) for item in value):
        raise DataError(f"{what} mixes messages and texts")
    return [_side(item, what)[0] for item in value]
