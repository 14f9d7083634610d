"""From scores to measures: accuracy, ties, parts of the data, published sections, calibration, length bias.

Knows items' scores and how numbers are computed of them; nothing of how they were scored, shown or written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gdr_plugin.api.types import Reduction
from gdr_plugin.arithmetic.reduction import Kind, value
from gdr_plugin.arithmetic.statistics import Estimate, pearson, share
from gdr_plugin.data.benchmarks import benchmarks
from gdr_plugin.data.item import ItemScores
from gdr_plugin.evaluation.measures.benchmarks import (
    SCORING,
    Judged,
    Section,
    edition,
    expected,
    partial,
    style_matrix,
    whole,
)
from gdr_plugin.evaluation.measures.calibration import Calibration, calibration
from gdr_plugin.evaluation.measures.item_rules import Comparison, Values, compare, rule_of

Ranking = Callable[[ItemScores], "Values | None"]
"""Gives every response of an item a number to rank it by; None where one of them has none."""


@dataclass(frozen=True, slots=True)
class Part:
    """The accuracy over some of the items."""

    items: int
    """Scored or not."""
    ties: int
    accuracy: Estimate | None
    """None where none of them was scored."""
    expected: int | None = None
    """The items of this part as its benchmark was published; None where nobody knows."""

    @property
    def partial(self) -> str | None:
        """What to say where the accuracy does not rest on all items: `partial: 37 of 456`; else None."""
        return partial(self.scored, self.expected)

    @property
    def scored(self) -> int:
        """Items that the accuracy rests on."""
        return self.accuracy.n if self.accuracy else 0


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How far the verdicts follow length, counted in the strong model's tokens.

    The length of a side with several responses is their mean. Items that were not scored are in no part: nothing
    counted the tokens of a text that was too long to score.
    """

    shorter: Part
    """Items whose chosen response is shorter than the rejected one: what a taste for length gets wrong."""
    equal: Part
    longer: Part
    correlation: Estimate | None
    """Pearson's, of the margin with the chosen side's length less the rejected side's."""


@dataclass(frozen=True, slots=True)
class Measures:
    """The measures of one ranking of responses."""

    name: str
    """`ratio`, `strong log-prob`, `longer wins`, `shorter wins`."""
    reduction: str
    """`sum`, `mean`, `per_byte`; `tokens` for lengths."""
    overall: Part
    subsets: dict[str, Part]
    """By the data's subset, in the data's order; empty where there is one only."""
    domains: dict[str, Part]
    """By the domain that the prompt was routed to; empty where there is one only."""
    sections: tuple[Section, ...]
    """What the benchmark publishes, where the data are of one that publishes more than an accuracy."""
    styles: list[list[float]] | None
    """RM-Bench's 3 x 3 matrix."""
    length: LengthBias
    calibration: Calibration | None
    """None for rankings without a unit of nats."""
    comparisons: tuple[Comparison | None, ...] = field(repr=False)
    """One an item, in order; None where it was not scored."""


def rewards(kind: Kind, reduction: Reduction) -> Ranking:
    """Rank by log-probs: the ratio, or one model's alone."""

    def ranking(scores: ItemScores) -> Values | None:
        item = scores.item
        chosen, rejected = (
            [value(s, y.text, kind=kind, reduction=reduction) for s, y in zip(side, turns, strict=True)]
            for side, turns in ((scores.chosen, item.chosen), (scores.rejected, item.rejected))
        )
        known = (
            [number for number in chosen if number is not None],
            [number for number in rejected if number is not None],
        )
        return known if (len(known[0]), len(known[1])) == (len(chosen), len(rejected)) else None

    return ranking


def lengths(sign: int) -> Ranking:
    """Rank by length in the strong model's tokens: the longer (1) or the shorter (-1) response wins."""

    def ranking(scores: ItemScores) -> Values | None:
        # Only items that were scored: all rankings are to be compared on the same ones.
        if rewards("ratio", "sum")(scores) is None:
            return None
        chosen, rejected = (
            [float(sign * score.strong_tokens) for score in side] for side in (scores.chosen, scores.rejected)
        )
        return chosen, rejected

    return ranking


def measure(
    name: str, reduction: str, ranking: Ranking, scored: Sequence[ItemScores], *, format: str = "plain"
) -> Measures:
    """Measure one ranking of responses.

    Args:
        name: The ranking's name in tables.
        reduction: The reduction's name in tables; `tokens` for lengths.
        ranking: Gives responses their numbers.
        scored: The items with their scores.
        format: The data's format: says what makes an item right, and which sections are published.

    Returns:
        The measures.
    """
    values = [ranking(scores) for scores in scored]
    comparisons = [
        None if own is None else compare(own, rule_of(format, scores.item.subset))
        for scores, own in zip(scored, values, strict=True)
    ]
    editions = [edition(scores.item, format) for scores in scored]
    judged = [
        Judged(scores.item.id, scores.item.subset, own, verdict, own_edition)
        for scores, own, verdict, own_edition in zip(scored, values, comparisons, editions, strict=True)
        if own is not None and verdict is not None
    ]
    names = [scores.item.subset for scores in scored]
    in_nats = reduction != "tokens"
    return Measures(
        name=name,
        reduction=reduction,
        overall=part(comparisons, whole([scores.item for scores in scored], format)),
        subsets=_subsets(format, names, comparisons, editions),
        domains=_by([scores.chosen[0].domain or "(not routed)" for scores in scored], comparisons),
        sections=tuple(SCORING[format](judged)) if format in SCORING and judged else (),
        styles=style_matrix(judged) if format == "rm-bench" else None,
        length=length_bias(scored, comparisons),
        calibration=calibration(_margins(comparisons), _worths(comparisons)) if in_nats else None,
        comparisons=tuple(comparisons),
    )


def part(comparisons: Sequence[Comparison | None], expected: int | None = None) -> Part:
    """The accuracy over items with their verdicts; `expected` as in `Part`."""
    ties = sum(comparison is not None and comparison.tie for comparison in comparisons)
    return Part(len(comparisons), ties, share(_worths(comparisons)), expected)


def length_bias(scored: Sequence[ItemScores], comparisons: Sequence[Comparison | None]) -> LengthBias:
    """How far verdicts follow length; see `LengthBias`."""
    longer = [
        sum(score.strong_tokens for score in scores.chosen) / len(scores.chosen)
        - sum(score.strong_tokens for score in scores.rejected) / len(scores.rejected)
        for scores in scored
    ]
    sides = {
        sign: part(
            [
                comparison
                for comparison, by in zip(comparisons, longer, strict=True)
                if comparison is not None and (by > 0) - (by < 0) == sign
            ]
        )
        for sign in (-1, 0, 1)
    }
    return LengthBias(sides[-1], sides[0], sides[1], pearson(_margins(comparisons), longer))


def _subsets(
    format: str, names: Sequence[str], comparisons: Sequence[Comparison | None], editions: Sequence[str]
) -> dict[str, Part]:
    """The subsets; of a benchmark's, how many items each should have, unless a benchmark's part has several."""
    found = _by(names, comparisons)
    benchmark = benchmarks().get(format)
    if benchmark is None or benchmark.prefixes:
        return found
    return {name: replace(own, expected=expected(format, [name], set(editions))) for name, own in found.items()}


def _by(names: Sequence[str], comparisons: Sequence[Comparison | None]) -> dict[str, Part]:
    """The parts by name; empty where all have the same."""
    parts: dict[str, list[Comparison | None]] = {}
    for name, comparison in zip(names, comparisons, strict=True):
        parts.setdefault(name, []).append(comparison)
    return {name: part(own) for name, own in parts.items()} if len(parts) > 1 else {}


def _margins(comparisons: Sequence[Comparison | None]) -> list[float | None]:
    return [None if comparison is None else comparison.margin for comparison in comparisons]


def _worths(comparisons: Sequence[Comparison | None]) -> list[float | None]:
    return [None if comparison is None else comparison.worth for comparison in comparisons]
