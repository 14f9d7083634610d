"""How benchmarks turn the scores of their items into published numbers: sections, weights, ties, the style matrix.

Knows subsets and numbers; nothing of formats, models or rewards. When an item is right is `item_rules`'.

Sources: the evaluation code and data card of RewardBench (arXiv 2403.13787) and RewardBench 2 (2506.01937), the README
and paper of RM-Bench (2410.16184), the README of JudgeBench (2410.12784).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gdr_plugin.arithmetic.statistics import Estimate, Resampled, average, ratios
from gdr_plugin.data.benchmarks import REWARDBENCH, RM_BENCH_DOMAINS, judgebench_category
from gdr_plugin.evaluation.measures.item_rules import Comparison, Values, worth

STYLES = ("concise", "detailed", "detailed, markdown")
"""The styles of RM-Bench's three chosen and three rejected responses, in order."""


@dataclass(frozen=True, slots=True)
class Section:
    """A number that a benchmark publishes."""

    name: str
    estimate: Estimate | None
    """None where the data have no scored item for it."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A scored item as benchmarks see it."""

    id: str
    subset: str
    values: Values
    comparison: Comparison


def rewardbench(items: Sequence[Judged]) -> list[Section]:
    """The four sections and their mean.

    A section is the mean of its subsets' accuracies by the benchmark's counts (math-prm counts 984), the score the mean
    of the sections. A subset without scored items is left out of its section, a section without any of the score. Items
    are resampled within their subset.
    """
    parts: list[tuple[str, Resampled | None]] = []
    for number, (name, counts) in enumerate(REWARDBENCH.items()):
        subsets = [
            (count, _accuracy([item for item in items if item.subset == subset], seed=100 * number + place))
            for place, (subset, count) in enumerate(counts.items())
        ]
        parts.append((name, average(subsets)))
    return _sections([*parts, ("average of the sections", average([(1.0, part) for _, part in parts]))])


def rewardbench2(items: Sequence[Judged]) -> list[Section]:
    """Each subset's score and their mean; Ties by its own rule (`ties_score`), the others by accuracy at best of N."""
    parts: list[tuple[str, Resampled | None]] = []
    for number, name in enumerate(dict.fromkeys(item.subset for item in items)):
        own = [item for item in items if item.subset == name]
        part = ties_score(own) if name.lower() == "ties" else _accuracy(own, seed=number)
        parts.append((name, part))
    return _sections([*parts, ("average of the subsets", average([(1.0, part) for _, part in parts]))])


def ties_score(items: Sequence[Judged]) -> Resampled | None:
    """RewardBench 2's score of its Ties subset.

    Its ids are `tied:N` (several right answers) and `ref:N` (the same question's variant with one). Of every question,
    the gap is `min(C) - max(R)`, and the spread of a tied one `max(C) - min(C)`. The score is
    `0.3 mean(tied gap > 0) + 0.3 mean(ref gap > 0)`, and over questions that have both
    `0.2 mean(tied gap > spread) + 0.2 mean(min(gaps) > spread) + 0.01 mean(tanh(min(gaps) / spread - 1))`, the last
    one with 0 for 0/0. Questions are resampled with both their variants.

    Args:
        items: Those of the subset.

    Returns:
        The score with its distribution; None where there are no tied or no ref items, or no question with both.
    """
    found: dict[str, dict[str, Values]] = {}
    for item in items:
        kind, _, question = item.id.partition(":")
        found.setdefault(question, {})[kind] = item.values
    numerators, denominators = np.zeros((5, len(found))), np.zeros((5, len(found)))
    for at, kinds in enumerate(found.values()):
        gaps = {kind: min(chosen) - max(rejected) for kind, (chosen, rejected) in kinds.items()}
        for row, kind in enumerate(("tied", "ref")):
            if kind in gaps:
                numerators[row, at], denominators[row, at] = gaps[kind] > 0, 1
        if {"tied", "ref"} <= gaps.keys():
            spread, least = max(kinds["tied"][0]) - min(kinds["tied"][0]), min(gaps["tied"], gaps["ref"])
            excess = least / spread if spread else np.copysign(np.inf, least) if least else np.nan
            closeness = 0.0 if np.isnan(excess) else np.tanh(excess - 1)
            numerators[2:, at] = gaps["tied"] > spread, least > spread, closeness
            denominators[2:, at] = 1
    return ratios(list(numerators), list(denominators), (0.3, 0.3, 0.2, 0.2, 0.01), seed=7)


def rm_bench(items: Sequence[Judged]) -> list[Section]:
    """Each domain's accuracy, then easy, normal, hard and their mean over the domains.

    In the 3 x 3 matrix of `style_matrix`, normal is the diagonal (same style), hard what lies above it (the chosen
    response in a plainer style than the rejected one), easy what lies below. Domains count the same, and safety is the
    mean of its two parts.
    """
    cells = {
        "easy": [(i, j) for i in range(3) for j in range(i)],
        "normal": [(i, i) for i in range(3)],
        "hard": [(i, j) for i in range(3) for j in range(i + 1, 3)],
    }
    cells["average"] = [(i, j) for i in range(3) for j in range(3)]
    by_domain = _domains(items)
    sections = [(name, _over(parts, cells["average"])) for name, parts in by_domain.items()]
    overall = [
        (name, average([(1.0, _over(parts, own)) for parts in by_domain.values()])) for name, own in cells.items()
    ]
    return _sections([*sections, *overall])


def style_matrix(items: Sequence[Judged]) -> list[list[float]] | None:
    """RM-Bench's matrix: the share of right comparisons, by the chosen response's style (rows) and the rejected one's.

    Over the domains as in `rm_bench`; None where no item was scored.
    """
    by_domain = _domains(items)
    if not by_domain:
        return None

    def cell(i: int, j: int) -> float:
        mean = average([(1.0, _over(parts, [(i, j)])) for parts in by_domain.values()])
        assert mean is not None  # every part has items
        return mean.value

    return [[cell(i, j) for j in range(3)] for i in range(3)]


def _domains(items: Sequence[Judged]) -> dict[str, dict[str, list[Judged]]]:
    """The items by domain and, within it, by part; domains without items are not there."""
    found: dict[str, dict[str, list[Judged]]] = {}
    for item in items:
        found.setdefault(item.subset.partition("-")[0], {}).setdefault(item.subset, []).append(item)
    return found


def _over(parts: Mapping[str, Sequence[Judged]], cells: Sequence[tuple[int, int]]) -> Resampled | None:
    """The mean over some cells of the matrix, of a domain's parts."""
    resampled: list[tuple[float, Resampled | None]] = []
    for name, items in parts.items():
        worths = [sum(worth(item.values[0][i] - item.values[1][j]) for i, j in cells) / len(cells) for item in items]
        seed = list(RM_BENCH_DOMAINS).index(name) if name in RM_BENCH_DOMAINS else 0
        resampled.append((1.0, ratios([worths], [np.ones(len(worths))], seed=seed)))
    return average(resampled)


def judgebench(items: Sequence[Judged]) -> list[Section]:
    """The four categories, each over its pairs; the benchmark's score is the accuracy over all pairs."""
    names = ("Knowledge", "Reasoning", "Math", "Coding")
    return _sections(
        [
            (name, _accuracy([item for item in items if judgebench_category(item.subset) == name], seed=number))
            for number, name in enumerate(names)
        ]
    )


def _accuracy(items: Sequence[Judged], *, seed: int) -> Resampled | None:
    worths = [item.comparison.worth for item in items]
    return ratios([worths], [np.ones(len(worths))], seed=seed)


def _sections(parts: Sequence[tuple[str, Resampled | None]]) -> list[Section]:
    return [Section(name, part.estimate if part else None) for name, part in parts]


SCORING: dict[str, Callable[[Sequence[Judged]], list[Section]]] = {
    "rewardbench": rewardbench,
    "rewardbench2": rewardbench2,
    "rm-bench": rm_bench,
    "judgebench": judgebench,
}
"""The benchmarks that publish other numbers than an accuracy over all items, by format."""
