"""Turns whose texts cannot forge control tokens, in every part that a template writes.

Knows the parts of a turn; which spellings are control tokens, the tokenizer knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import TOOLS, Message, ToolCall
from gdr_plugin.models.text.tokens import Tokens
from gdr_plugin.text import one_line

__all__ = ["protected", "texts_of"]


def protected(turn: Message, tokens: Tokens) -> Message:
    """A turn whose texts stay text when they are rendered and encoded.

    Raises:
        ChatError: The arguments of a tool call, or the definitions of tools, are not JSON.
    """
    protect = tokens.protect
    if turn.role == TOOLS:
        return replace(turn, content=_protected_json(turn.content, protect, "the definitions of tools"))
    calls = tuple(
        ToolCall(
            protect(call.name),
            _protected_json(call.arguments, protect, f"the arguments of the call of {call.name}"),
            None if call.id is None else protect(call.id),
        )
        for call in turn.tool_calls
    )
    return replace(
        turn,
        content=protect(turn.content, assistant=turn.role == "assistant"),
        reasoning=protect(turn.reasoning, assistant=True),
        tool_calls=calls,
        name=None if turn.name is None else protect(turn.name),
        tool_call_id=None if turn.tool_call_id is None else protect(turn.tool_call_id),
    )


def texts_of(turn: Message) -> Iterator[str]:
    """Every text of a turn that a template may write."""
    yield from (turn.content, turn.reasoning, turn.name or "", turn.tool_call_id or "")
    for call in turn.tool_calls:
        yield from (call.name, call.arguments, call.id or "")


def _protected_json(text: str, protect: Callable[[str], str], what: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChatError(f"{what} are not JSON: {one_line(error)}") from None
    return json.dumps(_protected(value, protect), ensure_ascii=False)


def _protected(value: Any, protect: Callable[[str], str]) -> Any:
    """JSON with every text in it protected."""
    if isinstance(value, str):
        return protect(value)
    if isinstance(value, dict):
        return {protect(key): _protected(item, protect) for key, item in value.items()}
    return [_protected(item, protect) for item in value] if isinstance(value, list) else value
