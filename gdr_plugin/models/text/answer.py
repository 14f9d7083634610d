"""A response as the text that is encoded behind a context, and where its tokens are in the response again.

Knows texts and what a template writes around answers; no token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import Conversation, Message
from gdr_plugin.models.text.layout import Header, TurnLayout
from gdr_plugin.models.text.reasoning import USUAL
from gdr_plugin.models.text.template import ChatTemplate

__all__ = ["Kind", "Piece", "RenderedCalls", "places", "reasoned_pieces", "rendered_calls", "text_pieces"]

Kind: TypeAlias = Literal["answer", "thought", "written"]
"""What stands behind a context: an answer without reasoning, a response with its own, or one whose reasoning the
template's own form writes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the text that is encoded, and the part of the response that it stands for."""

    text: str
    start: int
    """Where it begins in the response, in characters."""
    stop: int
    literal: bool = True
    """Whether it is the response's own text; False: written by the template in that text's place."""


class RenderedCalls(NamedTuple):
    """An assistant turn with tool calls, as the template writes it."""

    kind: Kind
    """Which context it follows."""
    text: str
    """Everything that the assistant writes, without the end of turn."""


def text_pieces(layout: TurnLayout, response: str) -> tuple[Kind, list[Piece]]:
    """The text that is encoded for a response, and the kind of context that it follows.

    Args:
        layout: What the template writes.
        response: The response's text; reasoning in it is spelt with the model's own marks.
    """
    size = len(response)
    marks = layout.reasoning_of(response)
    if marks is None:
        lead = [Piece(layout.lead, 0, 0, literal=False)] if response and layout.lead else []
        return "answer", [*lead, Piece(response, 0, size)]
    start = size - len(response.lstrip())
    if not (response.startswith(marks.opening, start) and layout.opened.startswith(marks.opening)):
        return "thought", [Piece(response, 0, size)]
    # The generation prompt has written the opening mark, and maybe white space behind it.
    start += len(marks.opening)
    gap = layout.opened[len(marks.opening) :]
    start += len(gap) if response.startswith(gap, start) else 0
    return "thought", [Piece(response[start:], start, size)]


def reasoned_pieces(layout: TurnLayout, reasoning: str, response: str) -> tuple[Kind, list[Piece]]:
    """As `text_pieces`, for reasoning that came apart from its answer.

    Args:
        layout: What the template writes.
        reasoning: What the assistant thought.
        response: Its answer.
    """
    answer = Piece(response, 0, len(response))
    if layout.form is not None:
        parts = ((layout.form.before, False), (reasoning.strip("\n"), True), (layout.form.between, False))
        pieces = [*(Piece(text, 0, 0, literal) for text, literal in parts if text), answer]
        return "written", pieces
    marks = layout.marks[0] if layout.marks else USUAL
    before = f"{marks.opening}\n{reasoning.strip(chr(10))}\n{marks.closing}\n\n"
    kind, pieces = text_pieces(layout, before + response)
    cut = len(before)
    found = []
    for piece in pieces:
        inside = piece.literal and piece.stop > cut
        thought = piece.text[: cut - piece.start] if inside else piece.text
        found.append(Piece(thought, 0, 0, piece.literal))
        if inside:
            found.append(answer)
    return kind, [piece for piece in found if piece.text]


def places(
    pieces: Sequence[Piece], offsets: Sequence[tuple[int, int]], restored: Callable[[str], str]
) -> tuple[tuple[int, int], ...]:
    """Where the tokens of the encoded text are in the response.

    Args:
        pieces: What was encoded.
        offsets: From which to which character of the encoded text each token reaches.
        restored: Gives a piece's text as offsets count it.

    Returns:
        Start and stop in the response for each token. A token of text that the template writes in the place of a part
        of the response reaches over that whole part.
    """
    bounds = []
    at = 0
    for piece in pieces:
        size = len(restored(piece.text))
        bounds.append((at, at + size, piece))
        at += size
    found = []
    for start, stop in offsets:
        reach = [
            (piece.start + max(0, start - a), piece.start + min(stop, b) - a)
            if piece.literal and piece.start < piece.stop
            else (piece.start, piece.stop)
            for a, b, piece in bounds
            if (start < b and stop > a) or start == stop == a
        ]
        if reach:
            found.append((min(a for a, _ in reach), max(b for _, b in reach)))
        else:
            end = pieces[-1].stop if pieces else 0
            found.append((end, end))
    return tuple(found)


def rendered_calls(
    template: ChatTemplate, layout: TurnLayout, turns: Conversation, turn: Message
) -> tuple[RenderedCalls, bool]:
    """What the template writes for an assistant turn with tool calls.

    Args:
        template: The template.
        layout: What it writes around plain answers.
        turns: The turns before, as the template takes them.
        turn: The assistant's turn.

    Returns:
        The text behind its context, and whether that has an end of its own, as gpt-oss's calls have.

    Raises:
        ChatError: The template drops the calls, or writes the turn in a way that no context of it begins.
    """
    prompt = template.render(turns)
    whole = template.render((*turns, turn), ask=False)
    bare = template.render((*turns, Message("assistant", turn.content or "-")), ask=False)
    if whole == bare or any(call.name not in whole for call in turn.tool_calls):
        raise ChatError("the chat template does not write tool calls: such responses cannot be scored with it")
    headers: tuple[tuple[Kind, Header], ...] = (
        ("answer", layout.answer),
        ("thought", layout.thought),
    )
    for kind, header in headers:
        context = header.apply(prompt)
        if whole.startswith(context):
            text = whole[len(context) :]
            closed = bool(layout.after) and not text.endswith(layout.after)
            return RenderedCalls(kind, text if closed or not layout.after else text[: -len(layout.after)]), closed
    raise ChatError(
        "the chat template writes a turn with tool calls behind another header than it asks with: such responses "
        "cannot be scored with it"
    )
