"""What a measured reward is worth, in one sentence: against chance, and against the best thing that needs no reward.

Knows a report's numbers; how they were computed is `measures`'.
"""

from __future__ import annotations

import math

from gdr_plugin.arithmetic.statistics import Estimate, difference
from gdr_plugin.evaluation.measures.item_rules import chance
from gdr_plugin.evaluation.measures.metrics import Measures
from gdr_plugin.evaluation.summary import Report

__all__ = ["verdict"]

_FEW = 20
"""Fewer items than that have intervals that mean nothing."""
_MANY = 20_000
"""More items than that are not asked for."""


def verdict(report: Report) -> str:
    """Say whether the reward is worth using, as `gdr evaluate` ends.

    Intervals are 95 %; items that are missing are estimated from the width of the interval, which shrinks with the
    square root of their number.
    """
    said = _verdict(report)
    partial = report.main.overall.partial
    return said if partial is None else f"{said} These are not the benchmark's own numbers ({partial} items)."


def _verdict(report: Report) -> str:
    accuracy = report.main.overall.accuracy
    if accuracy is None:
        return "Nothing was scored: there is no verdict."
    if accuracy.n < _FEW:
        return f"Only {accuracy.n:,} items were scored: too few to tell what the reward is worth; give 100 or more."
    level = chance([scores.item for scores in report.scores], report.format)
    seen = f"{accuracy.value:.3f}, 95 % interval {accuracy.low:.3f} to {accuracy.high:.3f}, chance {level:.2f}"
    if accuracy.high < level:
        return f"The reward prefers the rejected responses ({seen}): are strong and weak swapped?"
    if accuracy.low <= level:
        gap = Estimate(accuracy.value - level, accuracy.low - level, accuracy.high - level, accuracy.n)
        return f"The reward is not told from chance ({seen}){_missing(gap)}."
    rival = max(report.baselines, key=_accuracy)
    ahead = difference(_worths(report.main), _worths(rival))
    other = f"{_words(rival)} ({_accuracy(rival):.3f})"
    if ahead is None or ahead.low <= 0 <= ahead.high:
        more = "" if ahead is None or ahead.value <= 0 else _missing(ahead)
        return f"The reward beats chance ({seen}), but is not told from {other}{more}."
    if ahead.high < 0:
        return f"The reward beats chance ({seen}), but not {other}: that is simpler and better here."
    return f"The reward beats chance ({seen}) and the best baseline, {other}, by {ahead.low:.3f} to {ahead.high:.3f}."


def _missing(gap: Estimate) -> str:
    """How many more items would tell a difference from 0, as the end of a sentence."""
    if gap.value <= 0:
        return ""
    needed = math.ceil(gap.n * ((gap.high - gap.low) / 2 / gap.value) ** 2) - gap.n
    return f"; about {needed:,} more items would tell, if it stays as it is" if 0 < needed <= _MANY else ""


def _accuracy(measures: Measures) -> float:
    accuracy = measures.overall.accuracy
    return 0.0 if accuracy is None else accuracy.value


def _worths(measures: Measures) -> list[float | None]:
    return [None if comparison is None else comparison.worth for comparison in measures.comparisons]


def _words(measures: Measures) -> str:
    if measures.name == "strong log-prob":
        return f"the strong model's log-prob alone by {measures.reduction.replace('_', ' ')}"
    return f"'{measures.name}'"
