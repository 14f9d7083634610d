"""From the scores of assistant turns to the reward of a completion: joins turns, clips tokens, counts length.

Pure arithmetic; knows neither TRL nor models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.types import Reduction, Sample, Score
from gdr_trl.completion import Completion


@dataclass(frozen=True, slots=True)
class Shaping:
    """What is done to the ratio before it becomes a reward."""

    token_clip: float | None = None
    """Bound on each token's `|log p_strong - log p_weak|`, in nats."""
    length_penalty: float = 0.0
    """What each response token costs, in units of the reward."""

    def __post_init__(self) -> None:
        if self.token_clip is not None and not (self.token_clip > 0 and math.isfinite(self.token_clip)):
            raise ConfigError(f"token_clip must be above 0, not {self.token_clip}")
        if not math.isfinite(self.length_penalty):
            raise ConfigError(f"length_penalty must be a number, not {self.length_penalty}")


@dataclass(frozen=True, slots=True)
class CompletionReward:
    """The reward of one completion, and what it was computed from."""

    value: float | None = None
    """The reward: what the trainer gets; None when the completion was not scored."""
    ratio: float | None = None
    """The reduced ratio before the length penalty."""
    reason: str | None = None
    """Why there is no reward."""
    strong: float | None = None
    """Sum of the strong model's log-probs, in nats."""
    weak: float | None = None
    strong_tokens: int = 0
    """Response tokens of the strong model: the length that the penalty counts."""
    weak_tokens: int = 0
    domain: str | None = None
    """The domain of the first assistant turn."""
    cut: bool = False
    """Whether the completion was cut at the length limit."""
    length: int | None = None
    """The policy's own tokens, where they are known."""


def join(
    completion: Completion, scores: Sequence[Score], reduction: Reduction | None, shaping: Shaping
) -> CompletionReward:
    """Join the scores of a completion's assistant turns.

    The log-probs of several turns are added up: `mean` divides their sum by the tokens of all turns, `per_byte` by the
    bytes of all turns. One turn that is not scored leaves the whole completion without a reward.

    Args:
        completion: Has at least one assistant turn.
        scores: One for each turn; with token ratios where `shaping` clips.
        reduction: How log-probs are reduced.
        shaping: Clipping and length penalty.

    Returns:
        A reward that is finite or None.

    Raises:
        ConfigError: Tokens are to be clipped, but the two models cut the response into different ones; or a completion
            of several turns comes from a server that does not say how it reduces.
    """
    samples = completion.samples
    facts = CompletionReward(
        strong=_total([score.strong_logprob for score in scores]),
        weak=_total([score.weak_logprob for score in scores]),
        strong_tokens=sum(score.strong_tokens for score in scores),
        weak_tokens=sum(score.weak_tokens for score in scores),
        domain=scores[0].domain,
        cut=not samples[-1].finished,
        length=completion.length,
    )
    reason = next((score.reason or "no reason given" for score in scores if score.reward is None), None)
    if reason is None:
        ratio = _ratio(samples, scores, facts, reduction, shaping.token_clip)
        reward = ratio - shaping.length_penalty * facts.strong_tokens
        if math.isfinite(reward):
            return replace(facts, value=reward, ratio=ratio)
        reason = "the reward is not finite"
    return replace(facts, reason=reason)


def _ratio(
    samples: Sequence[Sample],
    scores: Sequence[Score],
    facts: CompletionReward,
    reduction: Reduction | None,
    clip: float | None,
) -> float:
    if len(scores) == 1 and clip is None:
        assert scores[0].reward is not None
        return scores[0].reward
    if clip is not None:
        total = math.fsum(max(-clip, min(clip, ratio)) for score in scores for ratio in _token_ratios(score))
    else:
        assert facts.strong is not None
        assert facts.weak is not None
        total = facts.strong - facts.weak
    match reduction:
        case "sum":
            return total
        case "per_byte":
            return total / sum(len(sample.text.encode()) for sample in samples)
        case "mean" if clip is not None:
            return total / facts.strong_tokens
        case "mean":
            assert facts.strong is not None
            assert facts.weak is not None
            return facts.strong / facts.strong_tokens - facts.weak / facts.weak_tokens
        case _:
            raise ConfigError("the server does not say how it reduces log-probs: start it with a gdr.yaml")


def _token_ratios(score: Score) -> tuple[float, ...]:
    if score.token_ratios is None:
        raise ConfigError(
            "token_clip needs two models with the same tokenizer and end of turn, so that they cut a response into the "
            "same tokens: leave token_clip out"
        )
    return score.token_ratios


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None
