"""The responses of a preference row as texts, whether the row has texts, conversations or lists of either.

Knows messages; nothing of data sets' formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Conversation
from gdr_plugin.data.content import content_of, text_of
from gdr_plugin.data.rows import parse_prompt
from gdr_plugin.text import type_name

__all__ = ["responses_of"]


def responses_of(data: Mapping[str, Any]) -> tuple[Conversation, tuple[str, ...], tuple[str, ...]]:
    """The prompt of a preference row, and the texts of its chosen and of its rejected responses.

    A side is a text, a conversation that ends with the response, or a list of several of either. The prompt is the
    column of that name, or the conversations' common beginning; where a row has both, they must agree.
    """
    chosen, rejected = (_side(data[name], f"`{name}`") for name in ("chosen", "rejected"))
    heads = [head for head, _ in (*chosen, *rejected) if head]
    texts = tuple(text for _, text in chosen), tuple(text for _, text in rejected)
    given = data.get("prompt")
    if not heads:
        return parse_prompt(data["prompt"]), *texts
    if len(heads) < len(chosen) + len(rejected) or any(head != heads[0] for head in heads):
        raise DataError("`chosen` and `rejected` part before the last message: they answer different prompts")
    prompt = parse_prompt(heads[0])
    if given is not None:
        stated = parse_prompt(given)
        turns = [(turn.role, turn.content.strip()) for turn in prompt]
        if any((turn.role, turn.content.strip()) not in turns for turn in stated):
            raise DataError(
                "`prompt` is not in the conversation that `chosen` and `rejected` continue: give one of them"
            )
    return prompt, *texts


def _side(value: object, what: str) -> list[tuple[list[Any], str]]:
    """Each response of a side: the messages before it, and its text."""
    if isinstance(value, str):
        return [([], text_of(value, what))]
    if not isinstance(value, list | tuple):
        raise DataError(f"{what} must be a text, messages or a list of them, not {type_name(value)}")
    if not value:
        raise DataError(f"{what} is an empty list")
    if all(isinstance(item, Mapping) for item in value):
        last = value[-1]
        if last.get("role") != "assistant":
            raise DataError(f"{what} must end with an assistant message, not {last.get('role')!r}")
        return [(list(value[:-1]), content_of(last.get("content"), f"the last message of {what}"))]
    if any(isinstance(item, Mapping) for item in value):
        raise DataError(f"{what} mixes messages and texts")
    return [_side(item, what)[0] for item in value]
