"""How benchmarks turn the scores of their items into published numbers: sections, weights, ties, the style matrix.

Knows subsets and numbers; nothing of formats, models or rewards. When an item is right is `item_rules`'.

Sources: the evaluation code and data card of RewardBench (arXiv 2403.13787) and RewardBench 2 (2506.01937), the code
(`scripts/utils.py`) and paper of RM-Bench (2410.16184), the README of JudgeBench (2410.12784). How many items each part
has as published is in `gdr_plugin/data/benchmarks.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gdr_plugin.arithmetic.statistics import Estimate, Resampled, average, ratios
from gdr_plugin.data.benchmarks import Subset, benchmarks
from gdr_plugin.data.item import Item
from gdr_plugin.evaluation.measures.item_rules import Comparison, Values, strictly

STYLES = ("concise", "detailed", "detailed, markdown")
"""The styles of RM-Bench's three chosen and three rejected responses, in order."""


@dataclass(frozen=True, slots=True)
class Section:
    """A number that a benchmark publishes."""

    name: str
    estimate: Estimate | None
    """None where the data have no scored item for it, or where a part of an overall number is missing."""
    items: int = 0
    """The scored items that it rests on, or would."""
    expected: int | None = None
    """The items that the published number rests on; None where that is not known."""

    @property
    def partial(self) -> str | None:
        """What to say where it does not rest on all items: `partial: 37 of 456`; else None."""
        return partial(self.items, self.expected)


@dataclass(frozen=True, slots=True)
class Judged:
    """A scored item as benchmarks see it."""

    id: str
    subset: str
    values: Values
    comparison: Comparison
    edition: str = ""
    """The edition that it is of, where the benchmark has several."""


class _Part(NamedTuple):
    """A number in the making."""

    name: str
    number: Resampled | None
    items: int
    expected: int | None


def partial(items: int, expected: int | None) -> str | None:
    """What to say of a number over other items than the published ones; None where it is over all, or nobody knows."""
    if expected is None or items == expected:
        return None
    return f"partial: {items:,} of {expected:,}" if items < expected else f"{items:,} items, published: {expected:,}"


def expected(format: str, subsets: Iterable[str], editions: Iterable[str]) -> int | None:
    """How many items the parts of a benchmark have together as published.

    Args:
        format: The data's format.
        subsets: What the data call the parts; names that the benchmark does not have are of no use.
        editions: The editions of the data.

    Returns:
        The number; None where the format is no benchmark, or the number of a part is not known.
    """
    benchmark = benchmarks().get(format)
    if benchmark is None:
        return None
    parts = {part.name: part for name in subsets if (part := benchmark.subset(name)) is not None}
    return _expected(parts.values(), editions) if parts else None


def whole(items: Sequence[Item], format: str) -> int | None:
    """How many items the benchmark has that these are of, as published; None where they are of no benchmark's parts."""
    benchmark = benchmarks().get(format)
    if benchmark is None or any(benchmark.subset(name) is None for name in {item.subset for item in items}):
        return None
    return expected(format, [part.name for part in benchmark.subsets], {edition(item, format) for item in items})


def edition(item: Item, format: str) -> str:
    """The edition of its benchmark that an item is of; empty where there is none."""
    benchmark = benchmarks().get(format)
    column = benchmark.edition if benchmark is not None else None
    return str(item.fields.get(column, "")) if column is not None else ""


def rewardbench(items: Sequence[Judged]) -> list[Section]:
    """The four sections and their mean.

    A section is the mean of its subsets' accuracies by the benchmark's counts (math-prm counts 984), the score the mean
    of the sections. A subset without scored items is left out of its section; there is no score then. Items are
    resampled within their subset.
    """
    parts: list[_Part] = []
    whole = True
    for number, (name, subsets) in enumerate(benchmarks()["rewardbench"].sections.items()):
        found = [
            (part.weight, _accuracy([item for item in items if item.subset == part.name], seed=100 * number + place))
            for place, part in enumerate(subsets)
        ]
        whole = whole and all(own is not None for _, own in found)
        scored = sum(own.n for _, own in found if own is not None)
        parts.append(_Part(name, average(found), scored, _expected(subsets)))
    return _sections([*parts, _overall("average of the sections", parts, whole=whole)])


def rewardbench2(items: Sequence[Judged]) -> list[Section]:
    """Each subset's score and their mean; Ties by its own rule (`ties_score`), the others by accuracy at best of N."""
    benchmark = benchmarks()["rewardbench2"]
    parts: list[_Part] = []
    for number, subset in enumerate(benchmark.subsets):
        own = [item for item in items if item.subset.lower() == subset.name.lower()]
        part = ties_score(own) if subset.name == "Ties" else _accuracy(own, seed=number)
        parts.append(_Part(subset.name, part, len(own), subset.expected(())))
    return _sections([*parts, _overall("average of the subsets", parts)])


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
    response in a plainer style than the rejected one), easy what lies below. A comparison is won by the higher score
    only: a tie is lost. All items of a domain count the same, safety's two parts together, and domains count the same.
    Where domains are missing, easy, normal and hard are those of each domain that is there.
    """
    cells = {
        "easy": [(i, j) for i in range(3) for j in range(i)],
        "normal": [(i, i) for i in range(3)],
        "hard": [(i, j) for i in range(3) for j in range(i + 1, 3)],
    }
    every = [(i, j) for i in range(3) for j in range(3)]
    sections = benchmarks()["rm-bench"].sections
    own = _by_domain(items)
    there = {item.subset for item in items}
    whole = all(part.name in there for parts in sections.values() for part in parts)

    def over(places: Sequence[tuple[int, int]]) -> list[_Part]:
        return [
            _Part(name, _over(own[name], places, seed=seed), len(own[name]), _expected(parts))
            for seed, (name, parts) in enumerate(sections.items())
        ]

    found = over(every)
    if not whole:
        by_level = [(level, over(places)) for level, places in cells.items()]
        found += [
            parts[at]._replace(name=f"{name}, {level}")
            for at, name in enumerate(sections)
            if own[name]
            for level, parts in by_level
        ]
    levels = {**cells, "average": every}
    return _sections([*found, *(_overall(level, over(places), whole=whole) for level, places in levels.items())])


def style_matrix(items: Sequence[Judged]) -> list[list[float]] | None:
    """RM-Bench's matrix: the share of won comparisons, by the chosen response's style (rows) and the rejected one's.

    Over the domains that have items, as in `rm_bench`; None where no item was scored.
    """
    own = [part for part in _by_domain(items).values() if part]
    if not own:
        return None

    def cell(i: int, j: int) -> float:
        mean = average([(1.0, _over(part, [(i, j)], seed=0)) for part in own])
        assert mean is not None  # a part has items
        return mean.value

    return [[cell(i, j) for j in range(3)] for i in range(3)]


def _by_domain(items: Sequence[Judged]) -> dict[str, list[Judged]]:
    """RM-Bench's items by domain: all domains, in order."""
    benchmark = benchmarks()["rm-bench"]
    found: dict[str, list[Judged]] = {name: [] for name in benchmark.sections}
    for item in items:
        part = benchmark.subset(item.subset)
        if part is not None:
            found[part.section].append(item)
    return found


def _over(items: Sequence[Judged], cells: Sequence[tuple[int, int]], *, seed: int) -> Resampled | None:
    """The mean over some cells of the matrix."""
    if not items:
        return None
    worths = [sum(strictly(item.values[0][i] - item.values[1][j]) for i, j in cells) / len(cells) for item in items]
    return ratios([worths], [np.ones(len(worths))], seed=seed)


def judgebench(items: Sequence[Judged]) -> list[Section]:
    """The four categories, each over its pairs; the benchmark's score is the accuracy over all pairs."""
    benchmark = benchmarks()["judgebench"]
    editions = {item.edition for item in items}
    found = []
    for number, part in enumerate(benchmark.subsets):
        own = [item for item in items if item.subset.startswith(part.name)]
        found.append(_Part(part.section, _accuracy(own, seed=number), len(own), _expected([part], editions)))
    return _sections(found)


def _accuracy(items: Sequence[Judged], *, seed: int) -> Resampled | None:
    worths = [item.comparison.worth for item in items]
    return ratios([worths], [np.ones(len(worths))], seed=seed)


def _overall(name: str, parts: Sequence[_Part], *, whole: bool = True) -> _Part:
    """The mean of all parts; no number where one of them is missing, since it would not be the published one."""
    there = whole and all(part.number is not None for part in parts)
    known = [part.expected for part in parts if part.expected is not None]
    return _Part(
        name,
        average([(1.0, part.number) for part in parts]) if there else None,
        sum(part.items for part in parts),
        sum(known) if len(known) == len(parts) else None,
    )


def _expected(parts: Iterable[Subset], editions: Iterable[str] = ()) -> int | None:
    known = set(editions)
    found = [part.expected(known) for part in parts]
    numbers = [number for number in found if number is not None]
    return sum(numbers) if len(numbers) == len(found) else None


def _sections(parts: Sequence[_Part]) -> list[Section]:
    return [
        Section(part.name, part.number.estimate if part.number else None, part.items, part.expected) for part in parts
    ]


SCORING: dict[str, Callable[[Sequence[Judged]], list[Section]]] = {
    "rewardbench": rewardbench,
    "rewardbench2": rewardbench2,
    "rm-bench": rm_bench,
    "judgebench": judgebench,
}
"""The benchmarks that publish other numbers than an accuracy over all items, by format."""
