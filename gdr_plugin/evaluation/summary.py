"""What evaluating a reward gave: scoring once, measuring in every way, and the result as JSON.

Knows the order of things; how numbers are computed is `metrics`', how they are shown `summary_tables`' and
`summary_page`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.types import Reduction, Score
from gdr_plugin.arithmetic.reduction import REDUCTIONS, value
from gdr_plugin.data.fingerprint import item_digest
from gdr_plugin.data.item import Item, ItemScores
from gdr_plugin.data.preference_formats import LABEL
from gdr_plugin.evaluation.measures.benchmarks import STYLES, Section
from gdr_plugin.evaluation.measures.item_rules import Comparison
from gdr_plugin.evaluation.measures.metrics import Measures, Part, lengths, measure, rewards
from gdr_plugin.progress import Progress
from gdr_plugin.report.tables import estimate_json
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.scoring.items import score_items
from gdr_plugin.text import without_numbers

if TYPE_CHECKING:
    from gdr_plugin.evaluation.ablations.ablate import Ablations

VERSION = 1
"""Version of the JSON's keys: it rises when a key changes its meaning or goes."""


@dataclass(frozen=True, slots=True)
class Report:
    """A reward measured on a data set."""

    format: str
    """The data's format."""
    reduction: Reduction
    """The configured one."""
    ratio: dict[Reduction, Measures]
    """The reward by reduction, the configured one first."""
    baselines: tuple[Measures, ...]
    """Longer wins, shorter wins, and the strong model's log-prob alone by reduction."""
    not_scored: dict[str, int]
    """Items that were not scored, by reason; numbers in a reason are replaced by N."""
    routers: dict[str, int]
    """Items by the router that decided their domain, `default` for those that none did."""
    routed: dict[str, dict[str, int]]
    """The domain that the benchmark puts items in -> the domain that they were routed to -> items; empty where the data
    say no domain."""
    guided: int
    """Items whose prompt got a guidance."""
    truncated: int
    """Items of which a prompt lost its start to fit."""
    scores: tuple[ItemScores, ...] = field(repr=False)
    """The items with their scores, in the data's order."""
    ablations: Ablations | None = None
    """The reward's variants, where they were asked for."""

    @property
    def main(self) -> Measures:
        """The reward as configured."""
        return self.ratio[self.reduction]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values; docs/evaluate.md says what the keys mean."""
        return {
            "version": VERSION,
            "format": self.format,
            "items": len(self.scores),
            "scored": self.main.overall.scored,
            "not_scored": self.not_scored,
            "routers": self.routers,
            "routed": self.routed,
            "guided": self.guided,
            "truncated": self.truncated,
            "reduction": self.reduction,
            "reward": {name: _measures(measures) for name, measures in self.ratio.items()},
            "baselines": [
                {"name": measures.name, "reduction": measures.reduction, **_measures(measures)}
                for measures in self.baselines
            ],
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping an item, in order: what came of it."""
        for at, scores in enumerate(self.scores):
            verdicts = {name: measures.comparisons[at] for name, measures in self.ratio.items()}
            item = scores.item
            told = {"id": item.id, "subset": item.subset, "item": item_digest(item)}
            yield {**told, **_row(scores, verdicts, self.reduction)}


def evaluate_items(
    ratio: GuidedDensityRatio, items: Iterable[Item], *, format: str = "plain", progress: Progress | None = None
) -> Report:
    """Score items once and measure the reward on them.

    Args:
        ratio: The reward; with a store, what it has seen is not computed again.
        items: What to score.
        format: The data's format (see `data.preference_formats`): what makes an item right, and which sections are
            published.
        progress: Told how many items are done.

    Returns:
        The report.

    Raises:
        ModelError: A model cannot be loaded or fails as a whole.
    """
    return report_of(tuple(score_items(ratio, items, progress=progress)), ratio.reduction, format=format)


def report_of(scores: tuple[ItemScores, ...], reduction: Reduction, *, format: str = "plain") -> Report:
    """Measure scored items.

    Args:
        scores: The items with their scores.
        reduction: The one to show first.
        format: The data's format.

    Returns:
        The report.
    """
    ratio = {
        name: measure("ratio", name, rewards("ratio", name), scores, format=format)
        for name in (reduction, *(other for other in REDUCTIONS if other != reduction))
    }
    baselines = [measure(name, "tokens", lengths(sign), scores, format=format) for name, sign in _LENGTHS.items()]
    baselines += [measure("strong log-prob", name, rewards("strong", name), scores, format=format) for name in ratio]
    first = [own.chosen[0] for own in scores]
    return Report(
        format=format,
        reduction=reduction,
        ratio=ratio,
        baselines=tuple(baselines),
        not_scored=_reasons(scores, ratio[reduction]),
        routers=dict(Counter(score.router for score in first).most_common()),
        routed=_routed(scores),
        guided=sum(score.guidance != "none" for score in first),
        truncated=sum(any(score.truncated for score in (*own.chosen, *own.rejected)) for own in scores),
        scores=scores,
    )


_LENGTHS = {"longer wins": 1, "shorter wins": -1}


def _routed(scores: Iterable[ItemScores]) -> dict[str, dict[str, int]]:
    """Where items of each of the benchmark's domains went; a domain that a row names itself is no finding."""
    found: dict[str, Counter[str]] = {}
    for own in scores:
        label = own.item.fields.get(LABEL)
        if label is not None and own.item.domain is None:
            found.setdefault(label, Counter())[own.chosen[0].domain or "(not routed)"] += 1
    return {label: dict(went.most_common()) for label, went in found.items()}


def _reasons(scores: Iterable[ItemScores], main: Measures) -> dict[str, int]:
    """Why items have no verdict: the first reason of each."""
    reasons = Counter[str]()
    for own, verdict in zip(scores, main.comparisons, strict=True):
        if verdict is None:
            given = (score.reason for score in (*own.chosen, *own.rejected) if score.reason is not None)
            reasons[without_numbers(next(given, "a log-prob is missing"))] += 1
    return dict(reasons.most_common())


def _row(scores: ItemScores, verdicts: Mapping[Reduction, Comparison | None], reduction: Reduction) -> dict[str, Any]:
    first, main = scores.chosen[0], verdicts[reduction]
    reasons = [score.reason for score in (*scores.chosen, *scores.rejected) if score.reason is not None]

    def each(number: Callable[[Score, str], Any]) -> dict[str, list[Any]]:
        """A number of each response."""
        sides = {"chosen": (scores.chosen, scores.item.chosen), "rejected": (scores.rejected, scores.item.rejected)}
        return {
            side: [number(score, turn.text) for score, turn in zip(own, turns, strict=True)]
            for side, (own, turns) in sides.items()
        }

    return {
        "domain": first.domain,
        "router": first.router,
        "guidance": first.guidance,
        "margins": {name: None if comparison is None else comparison.margin for name, comparison in verdicts.items()},
        "worths": {name: None if comparison is None else comparison.worth for name, comparison in verdicts.items()},
        "correct": None if main is None else main.worth,
        "reduction": reduction,
        "rewards": each(lambda score, text: value(score, text, reduction=reduction)),
        "strong_logprobs": each(lambda score, _: score.strong_logprob),
        "weak_logprobs": each(lambda score, _: score.weak_logprob),
        "strong_tokens": each(lambda score, _: score.strong_tokens),
        "weak_tokens": each(lambda score, _: score.weak_tokens),
        "reason": reasons[0] if main is None and reasons else None,
    }


def _measures(measures: Measures) -> dict[str, Any]:
    overall = measures.overall
    found = {
        "accuracy": estimate_json(overall.accuracy),
        **({} if overall.expected is None else {"expected": overall.expected, "partial": overall.partial is not None}),
        "ties": overall.ties,
        "subsets": {name: _part(own) for name, own in measures.subsets.items()},
        "domains": {name: _part(own) for name, own in measures.domains.items()},
        "sections": {own.name: _section(own) for own in measures.sections},
        "length": {
            **{name: _part(getattr(measures.length, name)) for name in ("shorter", "equal", "longer")},
            "correlation": estimate_json(measures.length.correlation),
        },
    }
    if measures.styles is not None:
        found["styles"] = {"names": list(STYLES), "accuracy": measures.styles}
    if measures.calibration is not None:
        found["calibration"] = asdict(measures.calibration)
    return found


def _part(part: Part) -> dict[str, Any]:
    found = {"items": part.items, "ties": part.ties, "accuracy": estimate_json(part.accuracy)}
    return found if part.expected is None else {**found, "expected": part.expected, "partial": part.partial is not None}


def _section(section: Section) -> dict[str, Any] | None:
    found = estimate_json(section.estimate)
    if found is None or section.expected is None:
        return found
    return {**found, "items": section.items, "expected": section.expected, "partial": section.partial is not None}
