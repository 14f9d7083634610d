"""From two models' log-probs to one number. Knows arithmetic; nothing of prompts, guidance or models.

Sums are taken in double precision. Each side of `mean` is divided by its own tokens: the models' tokenizers may differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gdr_plugin.api.types import Logprobs, Reduction, Score, TokenSpan

if TYPE_CHECKING:
    from gdr_plugin.api.types import Reduction


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model said of one sample: log-probs, or why there are none."""

    logprobs: Logprobs | None = None
    span: TokenSpan | None = None
    """What was asked; None when the sample could not be rendered."""
    reason: str | None = None

    @property
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


def reduce(response: str, strong: Answer, weak: Answer, reduction: Reduction) -> tuple[float | None, str | None]:
    """The reward of one response.

    Args:
        response: Its text; `per_byte` counts its UTF-8 bytes.
        strong: The strong model's answer.
        weak: The weak model's answer.
        reduction: `sum` in nats, `mean` in nats a token, `per_byte` in nats a byte.

    Returns:
        The reward and None, or None and why there is no reward.
    """
    s, w = strong.total, weak.total
    if s is None or w is None:
        return None, strong.reason or weak.reason
    for side, value in (("strong", s), ("weak", w)):
        if not math.isfinite(value):
            return None, f"{side} model: log-probs are not finite (try dtype float32 or bfloat16)"
    if not strong.tokens or not weak.tokens:
        return None, "the response has no tokens to score"
    if reduction == "mean":
        return s / strong.tokens - w / weak.tokens, None
    if reduction == "per_byte":
        size = len(response.encode("utf-8", "surrogatepass"))
        return ((s - w) / size, None) if size else (None, "the response is empty: it has no bytes to divide by")
    return s - w, None


def divisors(response: str, strong_tokens: int, weak_tokens: int, reduction: Reduction) -> tuple[int, int]:
    """What the strong and the weak sum of log-probs are divided by before they are subtracted.

    Args:
        response: The response's text.
        strong_tokens: Response tokens of the strong model.
        weak_tokens: Likewise.
        reduction: As for `reduce`.
    """
    if reduction == "mean":
        return strong_tokens, weak_tokens
    size = len(response.encode("utf-8", "surrogatepass")) if reduction == "per_byte" else 1
    return size, size


def token_details(response: str, strong: Answer, weak: Answer, reduction: Reduction) -> dict[str, Any]:
    """What a score says of its tokens, as fields of `Score`, but for where they are.

    Args:
        response: The response's text.
        strong: The strong model's answer, with log-probs.
        weak: Likewise.
        reduction: As for `reduce`.

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


Kind = Literal["ratio", "strong", "weak"]


REDUCTIONS: tuple[Reduction, ...] = ("sum", "mean", "per_byte")


UNITS: dict[Reduction, str] = {"sum": "nats", "mean": "nats a token", "per_byte": "nats a byte"}
"""What a reduced log-prob is measured in."""


def value(score: Score, response: str, *, kind: Kind = "ratio", reduction: Reduction = "sum") -> float | None:
    """A score's log-probs as one number, reduced in another way than when it was made.

    Args:
        score: The score of `response`.
        response: Its text; `per_byte` counts its UTF-8 bytes.
        kind: `ratio` for strong - weak, or one model's log-prob alone.
        reduction: `sum` in nats; `mean` in nats a token, each side by its own tokens; `per_byte` in nats a byte.

    Returns:
        The number, or None where a log-prob that it needs is missing, or there is nothing to divide by.
    """
    sides = {
        "strong": (score.strong_logprob, score.strong_tokens),
        "weak": (score.weak_logprob, score.weak_tokens),
    }
    asked = ("strong", "weak") if kind == "ratio" else (kind,)
    size = len(response.encode("utf-8", "surrogatepass"))
    parts: list[float] = []
    for side in asked:
        logprob, tokens = sides[side]
        if logprob is None or not tokens or (reduction == "per_byte" and not size):
            return None
        parts.append(logprob / {"sum": 1, "mean": tokens, "per_byte": size}[reduction])
    return parts[0] - parts[1] if kind == "ratio" else parts[0]
