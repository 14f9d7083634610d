"""Samples under their guidance, what one model is asked about each, and its answers in order.

Knows chat formats, placement and the end-of-turn policy; nothing of probabilities or of the other model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.api.models import ChatFormat, LogprobModel, SpansTogether, WritesTurns
from gdr_plugin.api.types import Conversation, Placement, Sample, Side, TokenSpan
from gdr_plugin.arithmetic.reduction import Answer
from gdr_plugin.config.schema import EndOfTurn
from gdr_plugin.guidance import apply
from gdr_plugin.routing import Routed

__all__ = ["GuidedSample", "ask", "guide"]


@dataclass(frozen=True, slots=True)
class GuidedSample:
    """A routed sample with its domain's guidance."""

    sample: Sample
    routed: Routed
    rendered: RenderedGuidance
    conversation: Conversation
    """The prompt with the guidance applied."""


def guide(
    samples: Sequence[Sample],
    routed: Sequence[Routed],
    rendered: Mapping[str, RenderedGuidance],
    *,
    unguided: RenderedGuidance,
) -> list[GuidedSample]:
    """Put each domain's guidance in front of its prompts; a prompt that comes again is guided once.

    Args:
        samples: The samples.
        routed: The domain of each.
        rendered: Domain -> its guidance as text.
        unguided: For samples whose domain is not there, as where routing failed.
    """
    conversations: dict[tuple[str, Conversation], Conversation] = {}
    guided = []
    for sample, route in zip(samples, routed, strict=True):
        guidance = rendered.get(route.domain) or unguided
        key = (route.domain, sample.prompt)
        if key not in conversations:
            conversations[key] = apply(guidance, sample.prompt)
        guided.append(GuidedSample(sample, route, guidance, conversations[key]))
    return guided


def ask(
    side: Side, model: LogprobModel, samples: Sequence[GuidedSample], *, placement: Placement, end_of_turn: EndOfTurn
) -> list[Answer]:
    """Score every sample under one model.

    Args:
        side: Which model it is.
        model: The model.
        samples: The samples with their guidance.
        placement: Which models see the guidance.
        end_of_turn: Whether the token that ends the turn counts.

    Returns:
        One answer a sample, in order; a sample that cannot be rendered gets a reason and is not asked about.

    Raises:
        ModelError: The model cannot be loaded or fails as a whole.
    """
    guided = placement == "both" or placement == side
    asked = _questions(side, model.chat, [_Asked.of(sample, guided, end_of_turn) for sample in samples])
    scored = iter(model.score([answer.span for answer in asked if answer.span is not None]))
    return [answer if answer.span is None else Answer(next(scored), answer.span) for answer in asked]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a model is asked about a sample, as text."""

    sample: Sample
    conversation: Conversation
    """What the model is shown."""
    end: bool
    """Whether the token that ends the turn counts."""
    problem: str | None
    """Why the sample is not asked about."""

    @classmethod
    def of(cls, guided_sample: GuidedSample, guided: bool, end_of_turn: EndOfTurn) -> _Asked:
        sample = guided_sample.sample
        conversation = guided_sample.conversation if guided else sample.prompt
        end = end_of_turn == "always" or (end_of_turn == "when-finished" and sample.finished)
        return cls(sample, conversation, end, guided_sample.routed.error)

    @property
    def plain(self) -> bool:
        """Whether no turn has more than its text."""
        sample = self.sample
        return not (sample.reasoning or sample.tool_calls or any(turn.tool_calls for turn in self.conversation))


def _questions(side: Side, chat: ChatFormat, asked: Sequence[_Asked]) -> list[Answer]:
    """What the model is asked, still without log-probs: spans, or the reasons why there are none."""
    together: dict[int, TokenSpan | ChatError] = {}
    if isinstance(chat, SpansTogether):
        plain = [at for at, question in enumerate(asked) if question.problem is None and question.plain]
        spans = chat.spans([(asked[at].conversation, asked[at].sample.response, asked[at].end) for at in plain])
        together = dict(zip(plain, spans, strict=True))
    found = []
    for at, question in enumerate(asked):
        if question.problem is not None:
            found.append(Answer(reason=question.problem))
            continue
        span = together[at] if at in together else _span(chat, question)
        reason = f"{side} model: {span}" if isinstance(span, ChatError) else None
        found.append(Answer(span=None if isinstance(span, ChatError) else span, reason=reason))
    return found


def _span(chat: ChatFormat, asked: _Asked) -> TokenSpan | ChatError:
    sample, conversation = asked.sample, asked.conversation
    try:
        if any(turn.tool_calls for turn in conversation) and not isinstance(chat, WritesTurns):
            raise ChatError("its backend cannot write the tool calls of the prompt")
        if not (sample.reasoning or sample.tool_calls):
            return chat.span(conversation, sample.response, end=asked.end)
        if not isinstance(chat, WritesTurns):
            raise ChatError("its backend cannot write reasoning or tool calls that are given apart from the text")
        return chat.turn_span(conversation, sample.turn, end=asked.end)
    except ChatError as error:
        return error
