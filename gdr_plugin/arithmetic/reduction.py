"""From two models' log-probs to one number. Knows arithmetic; nothing of prompts, guidance or models.

Sums are taken in double precision. Each side of `mean` is divided by its own tokens: the models' tokenizers may differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from gdr_plugin.api.types import Logprobs, Reduction, Score, TokenSpan

Kind = Literal["ratio", "strong", "weak"]

REDUCTIONS: tuple[Reduction, ...] = ("sum", "mean", "per_byte")

UNITS: dict[Reduction, str] = {"sum": "nats", "mean": "nats a token", "per_byte": "nats a byte"}
"""The unit of a reduced log-prob."""


@dataclass(frozen=True)
class Answer:
    """One model's answer for one sample: log-probs, or the reason why there are none."""

    logprobs: Logprobs | None = None
    span: TokenSpan | None = None
    """The tokens that were asked about; None when the sample could not be rendered."""
    reason: str | None = None

    @cached_property
    def total(self) -> float | None:
        """Sum of the log-probs in nats; not finite where the model overflowed; None without log-probs."""
        return None if self.logprobs is None else math.fsum(self.logprobs.tolist())

    @property
    def finite_total(self) -> float | None:
        """`total`, None where it is not finite."""
        total = self.total
        return total if total is not None and math.isfinite(total) else None

    @property
    def tokens(self) -> int:
        """Response tokens, 0 when they are not known."""
        return 0 if self.span is None else len(self.span.response)


def divisors(response: str, strong_tokens: int, weak_tokens: int, reduction: Reduction) -> tuple[int, int]:
    """What the strong and the weak sum of log-probs are divided by before they are subtracted.

    Every reduction of log-probs goes through this function.

    Args:
        response: The response's text; `per_byte` counts its UTF-8 bytes.
        strong_tokens: Response tokens of the strong model.
        weak_tokens: Response tokens of the weak model.
        reduction: `sum` in nats; `mean` in nats a token, each side by its own tokens; `per_byte` in nats a byte.

    Returns:
        Both numbers; 0 where there is nothing to divide by.
    """
    if reduction == "mean":
        return strong_tokens, weak_tokens
    size = len(response.encode("utf-8", "surrogatepass")) if reduction == "per_byte" else 1
    return size, size


def reduce(response: str, strong: Answer, weak: Answer, reduction: Reduction) -> tuple[float | None, str | None]:
    """The reward of one response.

    Args:
        response: The response's text.
        strong: The strong model's answer.
        weak: The weak model's answer.
        reduction: As for `divisors`.

    Returns:
        The reward and None, or None and the reason why there is no reward.
    """
    s, w = strong.total, weak.total
    if s is None or w is None:
        return None, strong.reason or weak.reason
    for side, total in (("strong", s), ("weak", w)):
        if not math.isfinite(total):
            return None, f"{side} model: log-probs are not finite (try dtype float32 or bfloat16)"
    if not strong.tokens or not weak.tokens:
        return None, "the response has no tokens to score"
    by_strong, by_weak = divisors(response, strong.tokens, weak.tokens, reduction)
    if not by_strong or not by_weak:
        return None, "the response is empty: it has no bytes to divide by"
    # One division where both sides have the same divisor: the two quotients would be rounded each.
    return ((s - w) / by_strong if reduction != "mean" else s / by_strong - w / by_weak), None


def value(score: Score, response: str, *, kind: Kind = "ratio", reduction: Reduction = "sum") -> float | None:
    """A score's log-probs as one number, reduced in another way than when it was made.

    Args:
        score: The score of `response`.
        response: The response's text.
        kind: `ratio` for strong - weak, or one model's log-prob alone.
        reduction: As for `divisors`.

    Returns:
        The number, or None where a log-prob that it needs is missing, or there is nothing to divide by.
    """
    by_strong, by_weak = divisors(response, score.strong_tokens, score.weak_tokens, reduction)
    parts: list[float] = []
    for side, logprob, tokens, divisor in (
        ("strong", score.strong_logprob, score.strong_tokens, by_strong),
        ("weak", score.weak_logprob, score.weak_tokens, by_weak),
    ):
        if kind not in ("ratio", side):
            continue
        if logprob is None or not tokens or not divisor:
            return None
        parts.append(logprob / divisor)
    return parts[0] - parts[1] if kind == "ratio" else parts[0]


def token_details(response: str, strong: Answer, weak: Answer, reduction: Reduction) -> dict[str, Any]:
    """The fields of `Score` that concern single tokens, except for their offsets in the text.

    Args:
        response: The response's text.
        strong: The strong model's answer, with log-probs.
        weak: The weak model's answer, with log-probs.
        reduction: As for `divisors`.

    Returns:
        Both models' log-probs by token; where both cut the response into the same ids, also their difference and what
        each token adds to the reward.
    """
    assert strong.logprobs is not None
    assert weak.logprobs is not None
    s, w = tuple(strong.logprobs.tolist()), tuple(weak.logprobs.tolist())
    details: dict[str, Any] = {"strong_token_logprobs": s, "weak_token_logprobs": w, "reduction": reduction}
    if strong.span is not None and weak.span is not None and strong.span.response == weak.span.response:
        # The ids are the same, so both sides are divided by the same number.
        divisor, _ = divisors(response, strong.tokens, weak.tokens, reduction)
        details["token_ratios"] = tuple(a - b for a, b in zip(s, w, strict=True))
        details["token_rewards"] = tuple(ratio / divisor for ratio in details["token_ratios"])
    return details
