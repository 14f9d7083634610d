"""Samples under their guidance, what one model is asked about each, and its answers in order.

Knows chat formats, placement and the end-of-turn policy; nothing of probabilities or of the other model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.api.models import LogprobModel, WritesTurns
from gdr_plugin.api.types import Conversation, Placement, Sample, Side
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
    asked = [_question(side, model, sample, guided=guided, end_of_turn=end_of_turn) for sample in samples]
    scored = iter(model.score([answer.span for answer in asked if answer.span is not None]))
    return [answer if answer.span is None else Answer(next(scored), answer.span) for answer in asked]


def _question(
    side: Side, model: LogprobModel, guided_sample: GuidedSample, *, guided: bool, end_of_turn: EndOfTurn
) -> Answer:
    """What the model is asked, still without log-probs: a span, or the reason why there is none."""
    if guided_sample.routed.error is not None:
        return Answer(reason=guided_sample.routed.error)
    sample = guided_sample.sample
    conversation = guided_sample.conversation if guided else sample.prompt
    end = end_of_turn == "always" or (end_of_turn == "when-finished" and sample.finished)
    try:
        if any(turn.tool_calls for turn in conversation) and not isinstance(model.chat, WritesTurns):
            raise ChatError("its backend cannot write the tool calls of the prompt")
        if not (sample.reasoning or sample.tool_calls):
            return Answer(span=model.chat.span(conversation, sample.response, end=end))
        if not isinstance(model.chat, WritesTurns):
            raise ChatError("its backend cannot write reasoning or tool calls that are given apart from the text")
        return Answer(span=model.chat.turn_span(conversation, sample.turn, end=end))
    except ChatError as error:
        return Answer(reason=f"{side} model: {error}")
