"""What TRL passes for one completion, read once: its assistant turns as samples, and whether it was cut.

Knows TRL's shapes of prompts and completions (text, messages, tool turns, content blocks, reasoning). Knows nothing of
scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gdr_plugin.api.errors import DataError, unknown
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.data.content import NotTextError, content_of
from gdr_plugin.data.rows import ROLES, check_prompt
from gdr_plugin.text import text_problem, type_name
from gdr_trl.ends import CompletionTokens

Reasoning = Literal["score", "drop"]

_ROLES: Final = {"developer": "system", "function": "tool"}
"""Roles of datasets that have another name in the core."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion as the reward reads it."""

    samples: tuple[Sample, ...] = ()
    """One for each assistant turn, with everything before it as its prompt. Only the last one can be unfinished."""
    reason: str | None = None
    """Why there are no samples."""
    length: int | None = None
    """The policy's own tokens, the end counted and padding not; None where they are not known."""


def read_completion(
    prompt: object,
    completion: object,
    *,
    tokens: CompletionTokens | None,
    fields: Mapping[str, Any],
    reasoning: Reasoning,
) -> Completion:
    """Split a completion into its assistant turns, each with everything before it as its prompt.

    Args:
        prompt: Text (one user turn) or messages.
        completion: Text, or messages in which tool turns stand between the assistant's.
        tokens: The completion's token ids: without an end token the last assistant turn was cut. None: it is finished.
            Earlier turns ended by themselves, because somebody answered them.
        fields: Data set columns of this row.
        reasoning: Whether reasoning before an answer is part of what is scored, and shown to later turns. That of the
            prompt's own turns never is: chat templates drop it, too.

    Returns:
        The samples in order. A completion that cannot be read has none, and a reason.

    Raises:
        NotTextError: A turn holds an image or something else that is not text.
    """
    samples: list[Sample] = []
    try:
        before = [_read_message(message, "drop") for message in _messages(prompt, "user", "prompt")]
        for item in _messages(completion, "assistant", "completion"):
            message = _read_message(item, reasoning)
            if message.role == "assistant":
                samples.append(_sample(before, message.content, fields))
            before.append(message)
    except NotTextError:
        raise
    except DataError as error:
        return Completion(reason=f"cannot be read: {error}")
    if not samples:
        return Completion(reason="the completion has no assistant turn")
    if tokens is None:
        return Completion(tuple(samples))
    if before[-1].role == "assistant":
        samples[-1] = replace(samples[-1], finished=tokens.ended(len(samples)))
    return Completion(tuple(samples), length=tokens.length(len(samples)))


def row_fields(columns: Mapping[str, object], count: int) -> list[dict[str, Any]]:
    """Turn the columns that TRL passes as keywords into one mapping for each row.

    Args:
        columns: Everything but prompts, completions and what belongs to the trainer.
        count: Rows.

    Returns:
        One mapping for each row. What is not a list of `count` values, such as a trainer's own object, is left out.
    """
    usable = {
        name: values
        for name, values in columns.items()
        if isinstance(values, list | tuple) and len(values) == count and name != "environments"
    }
    return [{name: values[row] for name, values in usable.items()} for row in range(count)]


def _sample(before: Sequence[Message], response: str, fields: Mapping[str, Any]) -> Sample:
    """One assistant turn with the turns before it."""
    if problem := text_problem(response):
        raise DataError(f"the completion {problem}")
    for number, message in enumerate(before, start=1):
        if problem := text_problem(message.content):
            raise DataError(f"the content of message {number} of `prompt` {problem}")
    prompt = tuple(before)
    check_prompt(prompt)
    return Sample(prompt, response, True, fields)


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


def _read_message(message: Mapping[str, Any], reasoning: Reasoning) -> Message:
    """Role and text: an assistant's reasoning and tool calls become text in the form in which models write them."""
    role = message.get("role")
    role = _ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise DataError(unknown("role", role, ROLES))
    text = _content(message.get("content"))
    if role == "assistant":
        text = _with_reasoning(message, text) if reasoning == "score" else _without_reasoning(text)
        calls = [_call(call) for call in message.get("tool_calls") or ()]
        text = "\n".join([text, *calls] if text else calls) if calls else text
    return Message(role, text)


def _with_reasoning(message: Mapping[str, Any], text: str) -> str:
    """The text after the reasoning that the message holds in a field of its own."""
    thought = message.get("reasoning_content") or message.get("thinking")
    if not isinstance(thought, str) or not thought.strip():
        return text
    return "<think>\n" + thought.strip("\n") + "\n</think>\n\n" + text


def _without_reasoning(text: str) -> str:
    """The text after its `<think>` block; some templates open the block, so that the text has only its end."""
    thought, mark, rest = text.partition("</think>")
    if mark:
        return rest.lstrip("\n")
    return "" if thought.lstrip().startswith("<think>") else text


def _content(content: object) -> str:
    """A message's text: a string, or blocks of text that are joined."""
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
