"""The prompt of a row as turns: a text, messages, or a transcript, and the system turn that has a column of its own.

Knows the columns that a prompt is made of; nothing of responses or files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import TOOLS, Conversation, Message
from gdr_plugin.data.content import text_of
from gdr_plugin.data.message_lists import messages_in
from gdr_plugin.data.messages import message_of
from gdr_plugin.data.tools import TOOL_COLUMNS, tools_of
from gdr_plugin.text import is_missing, type_name

__all__ = ["Prompt", "check_prompt", "parse_prompt", "prompt_of", "transcript_turns", "unread", "with_columns"]

SYSTEM: Final = ("system", "system_prompt")
"""Columns whose text is the prompt's system turn."""
CONTEXT: Final = (*SYSTEM, "input", "context", "history", "documents", *TOOL_COLUMNS, "images", "image")
"""Columns that belong to what was asked in the data sets that have them."""
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES: Final = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row's prompt, and how its responses are to be read."""

    turns: Conversation
    columns: Collection[str] = ()
    """Columns besides the prompt's own that it was made of."""
    transcript: bool = False
    """Whether it was a transcript, in which white space separates turns."""

    def answer(self, turn: Message) -> Message:
        """A response to the prompt as given: of a transcript, without white space around it."""
        return replace(turn, content=turn.content.strip()) if self.transcript else turn


def prompt_of(data: Mapping[str, Any], value: object, *, prefill: bool = False) -> Prompt:
    """The prompt of a row.

    Args:
        data: The row's columns. A `system` (or `system_prompt`) text becomes the first turn, unless the prompt has a
            system turn already. Definitions in `tools` (or `functions`) come before it, as the turn `TOOLS`.
        value: The prompt itself: as for `parse_prompt`, messages spelt as JSON, or a transcript from `Human:` to an
            empty `Assistant:`.
        prefill: As for `parse_prompt`.

    Raises:
        DataError: As for `parse_prompt`.
    """
    turns = transcript_turns(value) if isinstance(value, str) else None
    if turns is not None and turns[0].role == "user" and not turns[-1].content:
        check_prompt(turns[:-1])
        return with_columns(turns[:-1], data, transcript=True)
    spelt = messages_in(value, "`prompt`") if isinstance(value, str) else None
    return with_columns(parse_prompt(spelt or value, prefill=prefill), data)


def with_columns(turns: Conversation, data: Mapping[str, Any], *, transcript: bool = False) -> Prompt:
    """A prompt with what columns of their own add to it: the system turn, and tools; see `prompt_of`."""
    used = []
    own = [turn.content for turn in turns if turn.role == "system"]
    for name in SYSTEM:
        text = data.get(name)
        if isinstance(text, str) and text.strip() and own in ([], [text]):
            used.append(name)
            if not own:
                turns = (Message("system", text_of(text, f"`{name}`")), *turns)
            break
    column, tools = tools_of(data)
    if column is not None and tools is not None:
        used.append(column)
        turns = (tools, *turns)
    return Prompt(turns, tuple(used), transcript)


def unread(fields: Mapping[str, Any]) -> list[str]:
    """The columns with context that nobody read.

    Args:
        fields: A row's columns that are neither prompt nor responses.
    """
    return [name for name in CONTEXT if name in fields and not _empty(fields[name])]


def _empty(value: object) -> bool:
    return is_missing(value) or (isinstance(value, str | list | tuple | dict) and not len(value))


def transcript_turns(text: str) -> Conversation | None:
    """The turns of a transcript of `Human:` and `Assistant:` turns that ends with the latter; None where it is none.

    The form of hh-rlhf (arXiv 2204.05862). White space around a turn is no part of it.
    """
    if not text.lstrip().startswith(("Human:", "Assistant:")):
        return None
    _, *parts = _TURN.split("\n\n" + text.lstrip())
    found = zip(parts[::2], parts[1::2], strict=True)
    turns = tuple(Message(_ROLES[role], content.strip()) for role, content in found)
    return turns if len(turns) > 1 and turns[-1].role == "assistant" else None


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
        body = body or message.role not in ("system", TOOLS)
        if body and message.role == "system":
            raise DataError("a system turn of `prompt` comes after another turn: system turns come first")
    if messages[-1].role == "assistant" and not prefill:
        raise DataError("`prompt` ends with an assistant turn: what is to be scored belongs in the response")
    if not messages[-1].content.strip() and not messages[-1].tool_calls:
        raise DataError("`prompt` is empty: its last turn has no text")
