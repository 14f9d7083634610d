"""What TRL passes for one completion, read once: its assistant turns as samples, and whether it was cut.

Knows TRL's shapes of prompts and completions (text, messages, tool turns, content blocks, reasoning). Knows nothing of
scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.data.content import NotTextError
from gdr_plugin.data.messages import message_of
from gdr_plugin.data.prompts import check_prompt
from gdr_plugin.models.text.reasoning import marks_in
from gdr_plugin.text import type_name
from gdr_trl.ends import CompletionTokens

Reasoning = Literal["score", "drop"]


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
    tools: Message | None = None,
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
        tools: The definitions of tools that the policy was shown, as the prompt's first turn.

    Returns:
        The samples in order. A completion that cannot be read has none, and a reason.

    Raises:
        NotTextError: A turn holds an image or something else that is not text.
    """
    samples: list[Sample] = []
    try:
        given = list(_messages(prompt, "user", "prompt"))
        last = len(given) - 1
        # A turn that the completion goes on with keeps its reasoning; earlier ones lose theirs, as templates drop it.
        before = [_read(item, "the prompt", "score" if at == last else "drop") for at, item in enumerate(given)]
        before = before if tools is None else [tools, *before]
        begun = before[-1:] if before and before[-1].role == "assistant" else []
        for item in _messages(completion, "assistant", "completion"):
            turn = _read(item, "the completion", reasoning)
            if turn.role == "assistant":
                check_prompt(tuple(before), prefill=True)
                samples.append(Sample(tuple(before), turn.content, True, fields, turn.reasoning, turn.tool_calls))
            if begun and before[-1] is begun[0]:  # the completion goes on with the prompt's last turn
                before[-1] = replace(turn, content=begun[0].content + turn.content)
            else:
                before.append(turn)
    except NotTextError as error:
        raise NotTextError(
            f"a message holds a block of type {error.kind!r}: the reward is of text alone; use a data set without "
            "images or leave such rows to another reward function",
            error.kind,
        ) from error
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


def _read(item: Mapping[str, Any], what: str, reasoning: Reasoning) -> Message:
    """A message as a turn; an assistant's reasoning is kept apart from its answer, or dropped."""
    turn = message_of(item if item.get("content") is not None else {**item, "content": ""}, f"a message of {what}")
    if turn.role != "assistant" or reasoning == "score":
        return turn
    return replace(turn, content=_without_reasoning(turn.content), reasoning="")


def _without_reasoning(text: str) -> str:
    """The text after its reasoning; some templates open the block themselves, so that only its end is there."""
    start = text.lstrip()
    for marks in marks_in(text):
        thought, closing, rest = text.partition(marks.closing)
        if start.startswith(marks.opening):
            return rest.lstrip("\n") if closing else ""
        if closing and marks.opening not in thought and ("\n" in thought or rest.startswith("\n")):
            return rest.lstrip("\n")
    return text
