"""What the held-out pairs say: three accuracies, paired differences, and whether guidance is shown to help.

Knows results and statistics; nothing of models or of how the winner was found. The search's own scores never enter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gdr_plugin.arithmetic.statistics import Estimate, difference, share
from gdr_plugin.tuning.halving import PromptResults

LEVEL = 0.05
"""The error that is allowed to a claim, in the interval and in the sign test."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Accuracies on the held-out prompts that all three can score."""

    tuned: Estimate
    """The winner of the search."""
    unguided: Estimate
    """No guidance."""
    configured: Estimate
    """What gdr.yaml shows to these prompts today."""
    gain: Estimate
    """Tuned minus unguided, by prompt."""
    gain_over_configured: Estimate
    """Tuned minus configured, by prompt."""
    better: int
    """Prompts on which the winner does better than no guidance."""
    worse: int
    """Prompts on which it does worse."""
    sign_p: float
    """Exact two-sided sign test of `better` against `worse`."""
    not_scored: int
    """Held-out prompts left out because one of the three cannot score a response."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The recommendation."""

    use: bool
    """Whether the winner is recommended."""
    because: str
    """One sentence for people."""


def compare(tuned: PromptResults, unguided: PromptResults, configured: PromptResults) -> HeldOut | None:
    """Compare the three on the same prompts.

    Args:
        tuned: The winner's results, one a held-out prompt.
        unguided: Those without guidance, for the same prompts.
        configured: Those of gdr.yaml's guidance, for the same prompts.

    Returns:
        The comparison, or None when no prompt was scored by all three.
    """
    rows = [row for row in zip(tuned, unguided, configured, strict=True) if None not in row]
    worths = [[result.worth for result in column if result is not None] for column in zip(*rows, strict=True)]
    if not worths:
        return None
    a, b, c = worths
    better = sum(x > y for x, y in zip(a, b, strict=True))
    worse = sum(x < y for x, y in zip(a, b, strict=True))
    return HeldOut(
        tuned=_known(share(a)),
        unguided=_known(share(b)),
        configured=_known(share(c)),
        gain=_known(difference(a, b)),
        gain_over_configured=_known(difference(a, c)),
        better=better,
        worse=worse,
        sign_p=sign_test(better, worse),
        not_scored=len(tuned) - len(rows),
    )


def judge(result: HeldOut, *, guided: bool, configured_guided: bool) -> Verdict:
    """Say whether the winner is shown to help.

    Two conditions: the interval of the paired difference lies above 0, and an exact sign test agrees. The bootstrap
    alone is too sure of itself where few prompts change sides: when three of eight do, all three go up by chance once
    in eight times, and the interval then excludes 0.

    Args:
        result: The held-out comparison.
        guided: Whether the winner is a guidance at all.
        configured_guided: Whether gdr.yaml shows any guidance to these prompts.

    Returns:
        The verdict.
    """
    gain = result.gain
    if not guided:
        return Verdict(False, "no candidate did better than no guidance in the search: none is recommended")
    if gain.high < 0:
        return Verdict(False, "the best candidate of the search does worse than no guidance: none is recommended")
    if gain.low <= 0:
        return Verdict(
            False,
            "guidance is not shown to help: the interval of its difference from no guidance includes 0. None is "
            "recommended",
        )
    if result.sign_p >= LEVEL:
        return Verdict(
            False,
            f"guidance is not shown to help: it is better on {result.better} prompts and worse on {result.worse}, too "
            f"few to tell (sign test p = {result.sign_p:.2f}). None is recommended",
        )
    if not configured_guided:
        return Verdict(True, "the guidance found helps")
    if result.gain_over_configured.low <= 0:
        return Verdict(
            True, "the guidance found helps; it is not shown to do better than what gdr.yaml shows these prompts today"
        )
    return Verdict(True, "the guidance found helps, and does better than what gdr.yaml shows these prompts today")


def sign_test(better: int, worse: int) -> float:
    """The exact two-sided p-value of a sign test: how likely so uneven a count is when both sides are as likely.

    Args:
        better: Prompts that went up.
        worse: Prompts that went down; ties are in neither.

    Returns:
        A probability; 1.0 when nothing changed.
    """
    n, least = better + worse, min(better, worse)
    tail: float = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    return min(1.0, 2 * tail)


def _known(estimate: Estimate | None) -> Estimate:
    """An estimate that exists, because there are prompts."""
    assert estimate is not None
    return estimate
