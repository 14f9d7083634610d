"""What TRL passes to a reward function, as samples of ours.

Knows TRL's shapes of prompts and completions (text, messages, tool turns, content blocks, reasoning) and token ids of
completions. Knows nothing of scores.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from gdr_plugin.api.errors import DataError, unknown
from gdr_plugin.api.types import Sample
from gdr_plugin.data.content import NotTextError, content_of
from gdr_plugin.data.rows import ROLES, parse_prompt
from gdr_plugin.text import text_problem, type_name

Reasoning = Literal["score", "drop"]

_ROLES: Final = {"developer": "system", "function": "tool"}
"""Roles that datasets have and the core calls otherwise."""


@dataclass(frozen=True, slots=True)
class Turns:
    """One completion: a sample for each of its assistant turns, or why there is none."""

    samples: tuple[Sample, ...]
    reason: str | None = None


def read_completion(
    prompt: object, completion: object, *, finished: bool, fields: Mapping[str, Any], reasoning: Reasoning
) -> Turns:
    """Split a completion into its assistant turns, each with everything before it as its prompt.

    Args:
        prompt: Text (one user turn) or messages.
        completion: Text, or messages in which tool turns stand between the assistant's.
        finished: Whether the last assistant turn ended by itself. Earlier ones did: somebody answered them.
        fields: Data set columns of this row.
        reasoning: Whether reasoning before an answer is part of what is scored, and shown to later turns. That of the
            prompt's own turns never is: chat templates drop it, too.

    Returns:
        The samples in order. A completion that cannot be read has none, and a reason.

    Raises:
        DataError: A turn holds an image or something else that is not text.
    """
    samples: list[Sample] = []
    try:
        before = [_message(one, "drop") for one in _messages(prompt, "user", "prompt")]
        for turn in _messages(completion, "assistant", "completion"):
            message = _message(turn, reasoning)
            if message["role"] == "assistant":
                response = _encodable(message["content"])
                samples.append(Sample(parse_prompt(before), response, True, fields))
            before.append(message)
    except NotTextError:
        raise
    except DataError as error:
        return Turns((), f"cannot be read: {error}")
    if not samples:
        return Turns((), "the completion has no assistant turn")
    if not finished and before[-1]["role"] == "assistant":
        last = samples[-1]
        samples[-1] = Sample(last.prompt, last.response, False, last.fields)
    return Turns(tuple(samples))


def row_fields(columns: Mapping[str, object], count: int) -> list[dict[str, Any]]:
    """Turn the columns that TRL passes as keywords into one mapping a row.

    Args:
        columns: Everything but prompts, completions and what belongs to the trainer.
        count: Rows.

    Returns:
        One mapping a row. What is not a list of `count` values, such as a trainer's own object, is left out.
    """
    usable = {
        name: values
        for name, values in columns.items()
        if isinstance(values, list | tuple) and len(values) == count and name != "environments"
    }
    return [{name: values[row] for name, values in usable.items()} for row in range(count)]


def count_turns(completion: object) -> int:
    """Assistant turns of a completion."""
    if not isinstance(completion, list | tuple):
        return 1
    return sum(1 for turn in completion if isinstance(turn, Mapping) and turn.get("role") == "assistant")


def ended(ids: Sequence[int], ends: Collection[int], turns: int = 1) -> bool:
    """Whether a completion ended by itself rather than at the length limit.

    Args:
        ids: The completion's token ids, padded on the right or not.
        ends: The policy's end-of-sequence ids.
        turns: Assistant turns in it: earlier ones of several hold ends of their own.

    Returns:
        Whether the (last) turn's end is there.
    """
    if turns > 1:
        return bool(ids) and ids[-1] in ends
    return any(id in ends for id in ids)


def length(ids: Sequence[int], ends: Collection[int], turns: int = 1) -> int:
    """How many tokens a completion has, its end counted and padding after it not; arguments as for `ended`."""
    if turns > 1:
        return len(ids)
    return next((place for place, id in enumerate(ids, start=1) if id in ends), len(ids))


def _messages(value: object, role: str, what: str) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, str):
        yield {"role": role, "content": value}
        return
    if not isinstance(value, list | tuple):
        raise DataError(f"a {what} must be a string or a list of messages, not {type_name(value)}")
    for message in value:
        if not isinstance(message, Mapping):
            raise DataError(f"a {what} holds {type_name(message)} where a message belongs")
        yield message


def _message(message: Mapping[str, Any], reasoning: Reasoning) -> dict[str, str]:
    """Role and text alone: what an assistant reasoned and which tools it called become text as it wrote it."""
    role = _ROLES.get(message.get("role", ""), message.get("role"))
    if role not in ROLES:
        raise DataError(unknown("role", role, ROLES))
    text = _text(message.get("content"))
    if role == "assistant":
        text = _reasoned(message, text) if reasoning == "score" else _answer(text)
        calls = [_call(call) for call in message.get("tool_calls") or ()]
        text = "\n".join([text, *calls] if text else calls) if calls else text
    return {"role": role, "content": text}


def _reasoned(message: Mapping[str, Any], text: str) -> str:
    """The text after its reasoning, where that came apart from it."""
    thought = message.get("reasoning_content") or message.get("thinking")
    if not isinstance(thought, str) or not thought.strip():
        return text
    return "<think>\n" + thought.strip("\n") + "\n</think>\n\n" + text


def _answer(text: str) -> str:
    """The text without reasoning in it; some templates open the block themselves, so that only its end is there."""
    thought, mark, rest = text.partition("</think>")
    if mark:
        return rest.lstrip("\n")
    return "" if thought.lstrip().startswith("<think>") else text


def _text(content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | tuple):
        raise DataError(f"a message's content must be text, not {type_name(content)}")
    return "".join(map(_block, content))


def _block(block: object) -> str:
    if isinstance(block, str):
        return block
    try:
        return content_of([block], "a message")
    except NotTextError as error:
        kind = error.kind if isinstance(block, Mapping) else type_name(block)
        raise NotTextError(
            f"a message holds a block of type {kind!r}: the reward is of text alone; use a data set without images or "
            "leave such rows to another reward function",
            kind,
        ) from None


def _call(call: object) -> str:
    """A tool call in the form that most open models write it in."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise DataError("a tool call has no function name")
    shown = {"name": function["name"], "arguments": function.get("arguments", {})}
    return f"<tool_call>\n{json.dumps(shown, ensure_ascii=False)}\n</tool_call>"


def _encodable(text: str) -> str:
    problem = text_problem(text)
    if problem is not None:
        raise DataError(f"the completion {problem}")
    return text
