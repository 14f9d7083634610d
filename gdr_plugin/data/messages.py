"""Chat messages of data sets and trainers as turns: roles, texts, reasoning and tool calls in the shapes they come in.

The only reader and writer of messages; knows no rows, and nothing of what a model's template does with a turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from gdr_plugin.api.errors import DataError, unknown
from gdr_plugin.api.types import Message, ToolCall
from gdr_plugin.data.content import content_of, text_of
from gdr_plugin.text import is_missing, one_line, type_name, without_nulls

__all__ = ["ROLES", "STRUCTURED", "as_json", "message_of"]

ROLES: Final = ("system", "user", "assistant", "tool")
_SYNONYMS: Final = {
    **{"developer": "system", "function": "tool", "ipython": "tool", "model": "assistant"},
    **{"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant", "observation": "tool"},
}
"""Roles that data sets have, and what they are here."""
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")
"""Fields in which servers, trainers and data sets put reasoning apart from its answer."""
STRUCTURED: Final = (*_REASONING, "tool_calls", "function_call")
"""Fields of an assistant's message that its text does not hold."""


def message_of(item: object, what: str) -> Message:
    """Read one message.

    Args:
        item: `{"role": ..., "content": ...}` with, for an assistant's turn, `tool_calls` and reasoning apart from the
            answer (`reasoning_content`, `reasoning`, `thinking`), for a tool's `tool_call_id` and `name`. Content may
            be null where there are tool calls. Or `{"from": ..., "value": ...}`, as ShareGPT has it.
        what: What to call the message in errors.

    Raises:
        NotTextError: The content holds something that is not text.
        DataError: The message is malformed; or a turn that is no assistant's has tool calls.
    """
    if not isinstance(item, Mapping):
        raise DataError(f"{what} must be a mapping with role and content, not {type_name(item)}")
    if "role" not in item and "from" in item:  # ShareGPT's names
        item = {**item, "role": item["from"], "content": item.get("value")}
    given = item.get("role")
    role = _SYNONYMS.get(given, given) if isinstance(given, str) else given
    if role not in ROLES:
        raise DataError(f"{what}: {unknown('role', given, ROLES)}")
    calls = tuple(_call(call, what) for call in _calls(item, what))
    if calls and role != "assistant":
        raise DataError(f"{what} is a {role} turn with tool calls: only assistants call tools")
    content = item.get("content")
    text = "" if content is None and calls else content_of(content, what)
    reasoning = "" if role != "assistant" else _reasoning(item, what)
    return Message(
        role,
        text,
        reasoning,
        calls,
        _optional(item, "tool_call_id", what) if role == "tool" else None,
        _optional(item, "name", what) if role == "tool" else None,
    )


def as_json(turn: Message) -> dict[str, Any]:
    """A turn as chat data has it, so that `message_of` reads the same turn: keys for what there is, and no others."""
    calls = [
        {
            "type": "function",
            **({} if call.id is None else {"id": call.id}),
            "function": {"name": call.name, "arguments": _object(call.arguments)},
        }
        for call in turn.tool_calls
    ]
    more = {
        "reasoning_content": turn.reasoning,
        "tool_calls": calls,
        "tool_call_id": turn.tool_call_id,
        "name": turn.name,
    }
    return {"role": turn.role, "content": turn.content, **{name: value for name, value in more.items() if value}}


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:  # a turn that somebody made by hand; whoever reads it says what is wrong
        return arguments


def _reasoning(item: Mapping[str, Any], what: str) -> str:
    found = next((item[name] for name in _REASONING if not is_missing(item.get(name))), "")
    return text_of(found, f"the reasoning of {what}")


def _calls(item: Mapping[str, Any], what: str) -> list[Any]:
    calls = item.get("tool_calls")
    if calls is None and isinstance(item.get("function_call"), Mapping):
        return [item["function_call"]]
    if calls is not None and not isinstance(calls, list | tuple):
        raise DataError(f"`tool_calls` of {what} must be a list, not {type_name(calls)}")
    return list(calls or ())


def _call(call: object, what: str) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or is_missing(function.get("name")):
        raise DataError(f'a tool call of {what} must be a mapping with `function`: {{"name": ..., "arguments": ...}}')
    name = text_of(function["name"], f"the name of a tool call of {what}")
    identifier = call.get("id")
    id = None if is_missing(identifier) else text_of(str(identifier), f"the id of a tool call of {what}")
    return ToolCall(name, _arguments(function.get("arguments"), what), id)


def _arguments(arguments: object, what: str) -> str:
    """A call's arguments as the text of a JSON object: data sets have objects, or the text of one."""
    tidy = without_nulls  # JSON text has its own nulls only
    if isinstance(arguments, str):
        tidy = _as_it_is
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise DataError(f"the arguments of a tool call of {what} are not JSON: {one_line(error)}") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise DataError(f"the arguments of a tool call of {what} must be an object, not {type_name(arguments)}")
    try:
        return json.dumps(tidy(arguments), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"the arguments of a tool call of {what} cannot be written as JSON: {one_line(error)}"
        ) from None


def _as_it_is(value: Any) -> Any:
    return value


def _optional(item: Mapping[str, Any], name: str, what: str) -> str | None:
    value = item.get(name)
    return None if is_missing(value) else text_of(value, f"`{name}` of {what}")
