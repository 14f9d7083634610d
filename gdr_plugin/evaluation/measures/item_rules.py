"""When is an item right? How the scores of its responses agree with the preference, and what a coin would get.

Knows numbers; nothing of what is reported of them (`benchmarks`, `metrics`). A score is whatever ranks responses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gdr_plugin.data.item import Item

Rule = Literal["best", "all", "matrix"]
"""What makes an item right; see `compare`."""
Values: TypeAlias = "tuple[Sequence[float], Sequence[float]]"
"""The scores of an item's chosen and of its rejected responses."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether the scores of an item agree with the preference."""

    worth: float
    """1 right, 0 wrong, between them where scores are equal or an item has several comparisons."""
    margin: float
    """By how much the chosen side leads; negative where it does not."""
    tie: bool
    """Whether a chosen and a rejected response that decide the item have the same score."""


def rule_of(format: str, subset: str) -> Rule:
    """What makes an item of a format's subset right."""
    if format == "rm-bench":
        return "matrix"
    return "all" if format == "rewardbench2" and subset.lower() == "ties" else "best"


def compare(values: Values, rule: Rule) -> Comparison:
    """Judge one item.

    Args:
        values: The scores of its chosen and rejected responses; at least one of each.
        rule: With C and R for those scores,
            `best` (pairs, best of N): the response with the highest score should be a chosen one. The margin is
            `max(C) - max(R)`, the worth the share of chosen ones among the responses with the highest score: 1/2 for
            a tied pair, 1/k where one chosen response shares the first place with k - 1 rejected ones (RewardBench 2).
            `all` (RewardBench 2's Ties): every chosen response should beat every rejected one. The margin is
            `min(C) - max(R)`, the worth 1/2 where that is 0.
            `matrix` (RM-Bench): every chosen response against every rejected one. The worth is the share of these
            comparisons that are won; equal scores win none, as in the benchmark's code. The margin is
            `mean(C) - mean(R)`.

    Returns:
        The judgement.
    """
    chosen, rejected = values
    if rule == "matrix":
        gaps = [c - r for c in chosen for r in rejected]
        margin = sum(chosen) / len(chosen) - sum(rejected) / len(rejected)
        return Comparison(sum(map(strictly, gaps)) / len(gaps), margin, 0 in gaps)
    if rule == "all":
        margin = min(chosen) - max(rejected)
        return Comparison(worth(margin), margin, margin == 0)
    top = max(*chosen, *rejected)
    first = sum(score == top for score in chosen), sum(score == top for score in rejected)
    margin = max(chosen) - max(rejected)
    return Comparison(first[0] / sum(first), margin, margin == 0)


def chance(items: Sequence[Item], format: str) -> float:
    """The accuracy of a coin: what items are worth on average when their responses are ordered at random.

    Args:
        items: At least one.
        format: Their format; see `rule_of`.

    Returns:
        0.5 where every item is a pair.
    """
    found = []
    for item in items:
        chosen, rejected = len(item.chosen), len(item.rejected)
        rule = rule_of(format, item.subset)
        best = chosen / (chosen + rejected)
        found.append({"best": best, "all": 1 / math.comb(chosen + rejected, chosen), "matrix": 0.5}[rule])
    return sum(found) / len(found)


def worth(margin: float) -> float:
    """What one comparison is worth: 1 won, 1/2 tied, 0 lost."""
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def strictly(margin: float) -> float:
    """What one comparison is worth where a tie counts as lost: 1 won, 0 tied or lost."""
    return 1.0 if margin > 0 else 0.0
