"""Rewards of a response's steps: lines, or what stands between delimiters. Pure arithmetic on a score with its tokens.

The ratio of a response is the sum of its tokens' ratios, so every part of it has a reward of its own: an implicit
process reward, without labels for steps. Knows text and places; nothing of models.

Sources: "From r to Q*: Your Language Model is Secretly a Q-Function" (arXiv 2404.12358) for the token view, and "Free
Process Rewards without Process Labels" (arXiv 2412.01981) for steps. Both multiply by beta, which this method has not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from gdr_plugin.api.types import Score
from gdr_plugin.arithmetic.reduction import divisors

__all__ = ["Step", "cut", "step_rewards"]


class Step(NamedTuple):
    """A part of a response and its reward."""

    text: str
    """The step with the delimiter that ends it."""
    start: int
    """Where it begins in the response, in characters."""
    stop: int
    """Where it ends; the next step begins there."""
    reward: float
    """Its share of the response's reward, in the same unit."""


def step_rewards(score: Score, response: str, *, by: str = "line", written: str | None = None) -> list[Step] | None:
    """Divide a response's reward among its steps.

    A token counts to the step in which it begins, also where it goes on into the next; the end of turn counts to the
    last step. Each model's tokens are placed by themselves, so strong and weak may cut the response differently.

    Args:
        score: The response's score, made with `tokens=True`.
        response: Its text.
        by: As for `cut`.
        written: All that the assistant wrote (`Sample.text`), where that is more than the response; its reasoning
            counts to the first step.

    Returns:
        The steps in order. Their texts make up the response, and their rewards add up to `score.reward`. None where the
        response was not scored.

    Raises:
        ValueError: The score was made without tokens, by models whose chat format does not say where they are, or it
            belongs to another response.
    """
    if score.reward is None:
        return None
    strong, weak = score.strong_token_logprobs, score.weak_token_logprobs
    offsets = score.strong_token_offsets, score.weak_token_offsets
    if strong is None or weak is None or score.reduction is None:
        raise ValueError("the score has no token log-probs: score with tokens=True")
    if offsets[0] is None or offsets[1] is None:
        raise ValueError("a model's chat format does not say where tokens are: it needs `offsets` (see TokenOffsets)")
    if max((stop for _, stop in (*offsets[0], *offsets[1])), default=0) > len(response):
        raise ValueError("the score belongs to another response: its tokens are at other places")
    spans = cut(response, by=by)
    divided = divisors(response if written is None else written, len(strong), len(weak), score.reduction)
    sums = [
        _sums(logprobs, places, [start for start, _ in spans])
        for logprobs, places in ((strong, offsets[0]), (weak, offsets[1]))
    ]
    return [
        Step(response[start:stop], start, stop, s / divided[0] - w / divided[1])
        for (start, stop), s, w in zip(spans, *sums, strict=True)
    ]


def cut(response: str, *, by: str = "line") -> list[tuple[int, int]]:
    """Cut a response into steps.

    Args:
        response: The text.
        by: `line`, or a text that ends a step and belongs to it, such as a blank line.

    Returns:
        Start and stop of each step in characters; at least one, and together they are the whole response. What is only
        white space and delimiters is no step: it belongs to the step before it, or to the first.

    Raises:
        ValueError: `by` is empty.
    """
    if not by:
        raise ValueError("steps are cut by `line` or by a text; the text is empty")
    mark = "\n" if by == "line" else by
    stops = [0]
    while (found := response.find(mark, stops[-1])) >= 0:
        stops.append(found + len(mark))
    if stops[-1] < len(response):
        stops.append(len(response))
    spans: list[tuple[int, int]] = []
    for start, stop in pairwise(stops):
        if spans and (not response[start:stop].replace(mark, "").strip() or _blank(response, spans[-1], mark)):
            spans[-1] = spans[-1][0], stop
        else:
            spans.append((start, stop))
    return spans or [(0, 0)]


def _blank(response: str, span: tuple[int, int], mark: str) -> bool:
    return not response[span[0] : span[1]].replace(mark, "").strip()


def _sums(logprobs: Sequence[float], offsets: Sequence[tuple[int, int]], starts: Sequence[int]) -> list[float]:
    """The sum of each step's log-probs."""
    parts: list[list[float]] = [[] for _ in starts]
    step = 0
    for logprob, (begin, _) in zip(logprobs, offsets, strict=True):
        while step + 1 < len(starts) and begin >= starts[step + 1]:
            step += 1
        parts[step].append(logprob)
    return [math.fsum(part) for part in parts]
