"""Samples under their guidance, what one model is asked about each, and its answers in the samples' order.

Knows chat formats, placement and the end-of-turn policy; nothing of probabilities or of the other model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.api.models import LogprobModel, WritesTurns
from gdr_plugin.api.types import Conversation, Logprobs, Placement, Sample, Side, TokenSpan
from gdr_plugin.arithmetic.reduction import Answer
from gdr_plugin.config.schema import EndOfTurn
from gdr_plugin.guidance import apply
from gdr_plugin.routing import Routed

__all__ = ["GuidedSample", "answers", "guide", "questions", "spans"]


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


def questions(
    side: Side, model: LogprobModel, samples: Sequence[GuidedSample], *, placement: Placement, end_of_turn: EndOfTurn
) -> list[Answer]:
    """Turn samples into what one model is asked.

    Args:
        side: Which model it is.
        model: The model, for its chat format; nothing is scored.
        samples: The samples with their guidance.
        placement: Which models see the guidance.
        end_of_turn: Whether the token that ends the turn counts.

    Returns:
        An answer for each sample, still without log-probs: its span, or the reason why it cannot be asked.
    """
    guided = placement == "both" or placement == side
    return [_question(side, model, sample, guided=guided, end_of_turn=end_of_turn) for sample in samples]


def spans(asked: Sequence[Answer]) -> list[TokenSpan]:
    """The spans that a model has to score."""
    return [answer.span for answer in asked if answer.span is not None]


def answers(asked: Sequence[Answer], logprobs: Sequence[Logprobs]) -> list[Answer]:
    """The answers with their log-probs.

    Args:
        asked: From `questions`.
        logprobs: One array for each of `spans(asked)`, in order.
    """
    scored = iter(logprobs)
    return [answer if answer.span is None else Answer(next(scored), answer.span) for answer in asked]


def _question(
    side: Side, model: LogprobModel, guided_sample: GuidedSample, *, guided: bool, end_of_turn: EndOfTurn
) -> Answer:
    if guided_sample.routed.error is not None:
        return Answer(reason=guided_sample.routed.error)
    sample = guided_sample.sample
    conversation = guided_sample.conversation if guided else sample.prompt
    end = end_of_turn == "always" or (end_of_turn == "when-finished" and sample.finished)
    try:
        if not (sample.reasoning or sample.tool_calls):
            return Answer(span=model.chat.span(conversation, sample.response, end=end))
        if not isinstance(model.chat, WritesTurns):
            raise ChatError("its backend cannot write reasoning or tool calls that are given apart from the text")
        return Answer(span=model.chat.turn_span(conversation, sample.turn, end=end))
    except ChatError as error:
        return Answer(reason=f"{side} model: {error}")
