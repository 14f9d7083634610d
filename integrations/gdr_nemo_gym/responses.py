"""A rollout in OpenAI's Responses form as a sample; knows its items, and nothing of servers or scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.data.messages import message_of
from gdr_plugin.data.prompts import check_prompt
from gdr_plugin.data.tools import tools_of


def sample_of(
    request: Mapping[str, Any], output: Sequence[Mapping[str, Any]], *, finished: bool, fields: Mapping[str, Any]
) -> Sample:
    """The last answer of a rollout, with all that came before it as its prompt.

    Args:
        request: What was asked: `input` (a text or items), `instructions`, `tools`.
        output: The items that came back, tools' outputs among them.
        finished: Whether the last answer ended by itself.
        fields: The row's columns.

    Raises:
        DataError: There is no answer, or an item is malformed or no text.
    """
    given = request["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    if request.get("instructions"):
        items = [{"role": "system", "content": request["instructions"]}, *items]
    asked, answered = turns_of(items), turns_of(output)
    at = max((at for at, turn in enumerate(answered) if turn.role == "assistant"), default=None)
    if at is None:
        raise DataError("the response has no answer of the policy")
    defined = tools_of({"tools": request.get("tools")})[1]
    prompt = ([defined] if defined else []) + asked + answered[:at]
    check_prompt(tuple(prompt))
    return Sample(prompt, answered[at], finished=finished, fields=fields)


def turns_of(items: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Items as turns: reasoning, texts and calls that follow each other are one turn of the assistant's.

    Raises:
        DataError: An item is malformed or no text.
    """
    turns: list[dict[str, Any]] = []
    for item in items:
        kind, role = item.get("type") or "message", item.get("role")
        if kind == "function_call_output":
            turns.append({"role": "tool", "content": item["output"], "tool_call_id": item["call_id"]})
        elif kind == "message" and role != "assistant":
            turns.append({"role": role, "content": _blocks(item["content"])})
        else:
            if not turns or turns[-1]["role"] != "assistant":
                turns.append({"role": "assistant", "content": [], "reasoning": "", "tool_calls": []})
            turn = turns[-1]
            if kind == "reasoning":
                turn["reasoning"] += "\n".join(part["text"] for part in item["summary"])
            elif kind == "function_call":
                turn["tool_calls"].append({"id": item["call_id"], "name": item["name"], "arguments": item["arguments"]})
            elif kind == "message":
                turn["content"] += _blocks(item["content"])
            else:
                raise DataError(f"an item of type {kind!r} cannot be read")
    return [message_of(turn, f"turn {number} of the rollout") for number, turn in enumerate(turns, start=1)]


def _blocks(content: str | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Content as blocks of text; what is no text stays what it is, and is refused."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    texts = {"input_text": "text", "output_text": "text", "refusal": "refusal"}
    return [
        {"type": "text", "text": block[texts[block["type"]]]} if block["type"] in texts else block for block in content
    ]
