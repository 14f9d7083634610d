"""Ways to write one conversation, and whether a rendered text shows it. Imports nothing of the package under test."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Turns = Sequence[Mapping[str, Any]]


def tools_of(turns: Turns) -> tuple[list[Any] | None, Turns]:
    """The definitions of tools that come before a conversation, and the conversation."""
    return (turns[0]["content"], turns[1:]) if turns and turns[0]["role"] == "tools" else (None, turns)


def as_parts(turn: Mapping[str, Any]) -> dict[str, Any]:
    content = turn.get("content")
    return {**turn, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else dict(turn)


def system_forms(turns: Turns) -> Iterator[tuple[str, Turns]]:
    """The conversation itself; with its system turns as one; with them at the beginning of the first user turn."""
    yield "native", turns
    tools, turns = tools_of(turns)
    before = [] if tools is None else [{"role": "tools", "content": tools}]
    count = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    text = "\n\n".join(str(turn["content"]) for turn in turns[:count])
    if count > 1:
        yield "merged", [*before, {"role": "system", "content": text}, *turns[count:]]
    if count and turns[count]["role"] == "user":
        first = {**turns[count], "content": f"{text}\n\n{turns[count]['content']}"}
        yield "folded", [*before, first, *turns[count + 1 :]]


def call_forms(turns: Turns) -> list[Turns]:
    """Tool calls with arguments as an object, or as JSON text for templates that cannot write objects."""
    if not any(turn.get("tool_calls") for turn in turns):
        return [turns]
    return [
        [_call_form(turn, text, empty) if turn.get("tool_calls") else turn for turn in turns]
        for text, empty in itertools.product((False, True), ("", None))
    ]


def _call_form(turn: Mapping[str, Any], text: bool, empty: str | None) -> dict[str, Any]:
    calls = []
    for call in turn["tool_calls"]:
        arguments = call["function"]["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        arguments = json.dumps(arguments, ensure_ascii=False) if text else arguments
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**turn, "content": turn["content"] or empty, "tool_calls": calls}


def called_words(turn: Mapping[str, Any]) -> list[str]:
    """Words that show a message's tool calls: each function's name and its arguments' values."""
    found = []
    for call in turn.get("tool_calls") or ():
        arguments = call["function"]["arguments"]
        values = json.loads(arguments) if isinstance(arguments, str) else arguments
        found += [call["function"]["name"], *map(str, values.values())]
    return found


def shows(text: str, turns: Turns) -> bool:
    """Whether a rendered text holds every turn, and nothing of Python's way to write values."""
    tools, turns = tools_of(turns)
    if any(word not in text for tool in tools or () for word in _told(tool["function"])):
        return False
    said = text
    if tools is not None:  # a template may write definitions, which come before all turns, as Python does
        said = text[text.find(_text(next(turn for turn in turns if turn["role"] == "user"))) :]
    if any(turn.get("tool_calls") for turn in turns) and re.search(r"\{'\w+'|\\\"\w+\\\"|\bNone\b", said):
        return False
    for turn in turns:
        answer = _text(turn).rpartition("</think>")[2]  # templates drop an earlier turn's reasoning
        if any(line.strip() not in text for line in answer.splitlines()):
            return False
        if any(value not in text for value in called_words(turn)):
            return False
    return True


def _text(turn: Mapping[str, Any]) -> str:
    content = turn.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def _told(function: Mapping[str, Any]) -> list[str]:
    """What shows a tool's definition, beyond what a call of the tool holds."""
    return [function["name"], function["description"], *function["parameters"]["properties"]]


def common_start(one: str, other: str) -> str:
    """What two texts begin with, without the beginning of a mark that only one of them has."""
    size = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    common = one[:size]
    cut = max(common.rfind("<"), common.rfind("["))
    if cut >= 0 and not re.search(r"[>\]]", common[cut:]) and (size < len(one) or size < len(other)):
        return common[:cut]
    return common


def without_spaces(context: str) -> tuple[str, str]:
    """A context without the spaces at its end, and these: the answer's first word starts with them."""
    kept = context.rstrip(" \t")
    return kept, context[len(kept) :]
