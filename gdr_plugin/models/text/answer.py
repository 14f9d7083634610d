"""A response as the text that is encoded behind a context, and where its tokens are in the response again.

Knows texts and what a template writes around answers; no token ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, TypeAlias

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import Conversation, Message
from gdr_plugin.models.text.layout import Header, ReasoningForm, TurnLayout
from gdr_plugin.models.text.reasoning import USUAL
from gdr_plugin.models.text.template import ChatTemplate

_TOOL: Final = "qtoolprobeq"

__all__ = [
    "Kind",
    "Piece",
    "RenderedCalls",
    "as_text",
    "behind",
    "kind_of",
    "places",
    "reasoned_pieces",
    "rendered_calls",
    "text_pieces",
]

Kind: TypeAlias = Literal["answer", "thought", "written", "call"]
"""What stands behind a context: an answer without reasoning, a response with its own, one whose reasoning the
template's own form writes, or a call of tools."""


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
    """Everything that the assistant writes, without the end of turn where that is the usual one."""
    usual_end: bool
    """Whether the usual end of turn follows."""
    following: str
    """What follows up to the tool's answer, where the usual end does not."""


def kind_of(layout: TurnLayout, response: str) -> Kind:
    """The kind of context that a response's text follows."""
    return "answer" if layout.reasoning_of(response) is None else "thought"


def text_pieces(layout: TurnLayout, response: str, *, lead: str, opened: str) -> list[Piece]:
    """The text that is encoded for a response.

    Args:
        layout: What the template writes.
        response: The response's text; reasoning in it is spelt with the model's own marks.
        lead: White space that the model generates before an answer.
        opened: The mark of reasoning that its context opens, with the white space behind it; or nothing.
    """
    size = len(response)
    marks = layout.reasoning_of(response)
    if marks is None:
        first = [Piece(lead, 0, 0, literal=False)] if response and lead else []
        return [*first, Piece(response, 0, size)]
    start = size - len(response.lstrip())
    if not response.startswith(marks.opening, start):
        return [Piece(response, 0, size)]
    if not opened.startswith(marks.opening):
        first = [Piece(layout.thought_lead, 0, 0, literal=False)] if layout.thought_lead and not start else []
        return [*first, Piece(response, 0, size)]
    # The context has the opening mark already, and maybe white space behind it.
    start += len(marks.opening)
    gap = opened[len(marks.opening) :]
    start += len(gap) if response.startswith(gap, start) else 0
    return [Piece(response[start:], start, size)]


def reasoned_pieces(form: ReasoningForm, reasoning: str, response: str) -> list[Piece]:
    """The text that is encoded for reasoning and answer that came apart, in the template's own form.

    Args:
        form: How the template writes reasoning.
        reasoning: What the assistant thought.
        response: Its answer.
    """
    parts = ((form.before, False), (reasoning.strip("\n"), True), (form.between, False))
    return [*(Piece(text, 0, 0, literal) for text, literal in parts if text), Piece(response, 0, len(response))]


def as_text(layout: TurnLayout, reasoning: str) -> str:
    """Reasoning as text before its answer, for a template that has no form of its own for it.

    Raises:
        ChatError: The template's marks are others, and nothing says how it writes them.
    """
    if (layout.marks and USUAL not in layout.marks) or (not layout.marks and layout.reads_reasoning):
        raise ChatError(
            "the chat template shows no form for reasoning apart from its answer: write it into the response as the "
            "model does, or leave it out"
        )
    return f"{USUAL.opening}\n{reasoning.strip(chr(10))}\n{USUAL.closing}\n\n"


def behind(pieces: Sequence[Piece], cut: int) -> list[Piece]:
    """Pieces of a text whose first `cut` characters are no part of the response."""
    found = []
    for piece in pieces:
        inside = piece.text[: max(0, cut - piece.start)] if piece.literal else piece.text
        rest = piece.text[len(inside) :]
        found += [Piece(inside, 0, 0, piece.literal)] if inside else []
        found += [Piece(rest, max(0, piece.start - cut), piece.stop - cut)] if rest else []
    return found


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


def rendered_calls(template: ChatTemplate, layout: TurnLayout, turns: Conversation, turn: Message) -> RenderedCalls:
    """What the template writes for an assistant turn with tool calls.

    Args:
        template: The template.
        layout: What it writes around plain answers.
        turns: The turns before, as the template takes them.
        turn: The assistant's turn.

    Raises:
        ChatError: The template drops the calls, or writes the turn in a way that no context of it begins.
    """
    if layout.asks_always:
        raise ChatError(
            "the chat template writes its generation prompt unasked, so nothing tells where a tool call ends: such "
            "responses cannot be scored with it"
        )
    prompt = template.render(turns)
    whole = template.render((*turns, turn), ask=False)
    # Counted, since the prompt may hold the name too: "Set a timer" and a call of `timer`.
    bare = template.render((*turns, replace(turn, content=turn.content or "-", tool_calls=())), ask=False)
    named = Counter(call.name for call in turn.tool_calls)
    if any(whole.count(name) < bare.count(name) + calls for name, calls in named.items()):
        raise ChatError("the chat template does not write tool calls: such responses cannot be scored with it")
    for what, text in (("text", turn.content.strip()), ("reasoning", turn.reasoning.strip())):
        if text and whole.count(text) <= prompt.count(text):
            raise ChatError(
                f"the chat template drops the {what} of a turn with tool calls: remove it, or split the turn"
            )
    headers: tuple[tuple[Kind, Header], ...] = (
        ("answer", layout.answer_after(turns)[0]),
        ("thought", Header()),
        ("call", layout.history),
    )
    for kind, header in headers:
        context = header.apply(prompt)
        if whole.startswith(context):
            text = whole[len(context) :]
            if layout.after and text.endswith(layout.after):
                return RenderedCalls(kind, text[: -len(layout.after)], True, "")
            return RenderedCalls(kind, text, False, _before_answer(template, turns, turn, whole))
    raise ChatError(
        "the chat template writes a turn with tool calls behind another header than it asks with: such responses "
        "cannot be scored with it"
    )


def _before_answer(template: ChatTemplate, turns: Conversation, turn: Message, whole: str) -> str:
    """What the template writes between a call and the tool's answer."""
    call = turn.tool_calls[-1]
    try:
        answered = template.render(
            (*turns, turn, Message("tool", _TOOL, tool_call_id=call.id, name=call.name)), ask=False
        )
    except ChatError:
        return ""
    following, found, _ = answered[len(whole) :].partition(_TOOL)
    return following if found and answered.startswith(whole) else ""
