"""From both models' answers to the score of one sample. Knows the fields of `Score`; asks no model."""

from __future__ import annotations

from typing import Any

from gdr_plugin.api.models import ChatFormat, TokenOffsets, WritesTurns
from gdr_plugin.api.types import Reduction, Sample, Score
from gdr_plugin.arithmetic.reduction import Answer, reduce, token_details
from gdr_plugin.reward.questions import GuidedSample

__all__ = ["score_of"]


def score_of(
    guided: GuidedSample,
    strong: Answer,
    weak: Answer,
    reduction: Reduction,
    chats: tuple[ChatFormat, ChatFormat] | None = None,
) -> Score:
    """The score of a sample.

    Args:
        guided: The sample with its domain and guidance.
        strong: The strong model's answer.
        weak: The weak model's answer.
        reduction: How token log-probs become one number.
        chats: The strong and the weak model's chat format, where the score is to carry tokens.

    Returns:
        The score; `reward` is None with a reason where a model has no finite log-probs.
    """
    reward, reason = reduce(guided.sample.text, strong, weak, reduction)
    asked = [answer.span for answer in (strong, weak) if answer.span is not None]
    return Score(
        reward=reward,
        reason=reason,
        strong_logprob=strong.finite_total,
        weak_logprob=weak.finite_total,
        strong_tokens=strong.tokens,
        weak_tokens=weak.tokens,
        domain=guided.routed.domain,
        router=guided.routed.router,
        guidance=guided.rendered.id,
        exemplars=guided.rendered.exemplars,
        truncated=any(span.dropped for span in asked),
        **(_details(guided.sample, strong, weak, reduction, chats) if chats and reward is not None else {}),
    )


def _details(
    sample: Sample, strong: Answer, weak: Answer, reduction: Reduction, chats: tuple[ChatFormat, ChatFormat]
) -> dict[str, Any]:
    """The fields of `Score` that concern single tokens."""
    prompt, response = sample.prompt, sample.response
    details = token_details(sample.text, strong, weak, reduction)
    for side, chat, answer in (("strong", chats[0], strong), ("weak", chats[1], weak)):
        # The response's ids are those of its text alone, with or without guidance in front of them.
        offsets: tuple[tuple[int, int], ...] | None = None
        if sample.reasoning or sample.tool_calls:
            offsets = chat.turn_offsets(prompt, sample.turn) if isinstance(chat, WritesTurns) else None
        elif isinstance(chat, TokenOffsets):
            offsets = chat.offsets(prompt, response)
        if offsets is not None:
            end_of_turn = ((len(response), len(response)),) * (answer.tokens - len(offsets))
            details[f"{side}_token_offsets"] = offsets + end_of_turn
    return details
