"""A comparison of model pairs for people and machines: tables and JSON. Figures and the page are in `page`.

Knows how the numbers are shown; they come from `matrix` and `choice`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gdr_plugin.arithmetic.reduction import UNITS
from gdr_plugin.evaluation.pairs.choice import Choice, advice, choose
from gdr_plugin.evaluation.pairs.correlation import Correlation
from gdr_plugin.evaluation.pairs.matrix import PairStudy
from gdr_plugin.evaluation.pairs.models import NamedModel
from gdr_plugin.evaluation.pairs.scoring import LogprobTable, Setting
from gdr_plugin.report.tables import Table, estimate_json, estimate_text

__all__ = ["PairsReport", "gap_words", "spread"]

SHOWN = 10
"""Pairs in the terminal's ranking."""


@dataclass(frozen=True)
class PairsReport:
    """Everything that `gdr pairs` says."""

    data: str
    """The data set, as the user named it."""
    models: tuple[NamedModel, ...]
    setting: Setting
    table: LogprobTable
    study: PairStudy
    seed: int

    @cached_property
    def choice(self) -> Choice | None:
        """The pair chosen on one half of the items and judged on the other."""
        return choose(self.study, seed=self.seed)

    @property
    def advice(self) -> str:
        """Which pair to use and why, in one paragraph."""
        return advice(self.study, self.choice)

    @property
    def facts(self) -> dict[str, str]:
        """How it was measured."""
        shown = self.setting.shown
        facts = {
            "data": f"{self.data}: {len(self.table.items):,} items",
            "reward": f"log p_strong - log p_weak, {self.setting.reduction} ({UNITS[self.setting.reduction]})",
            "guidance": shown if shown == "none" else f"shown to {shown}",
            "chance": f"{self.study.chance:.3f}",
            "gap": f"difference of the models' {gap_words(self.study)}",
            "computed in": ", ".join(sorted({one["dtype"] for one in self.table.facts.values() if "dtype" in one}))
            or "-",
            "texts computed": _counts(self.table.asked),
        }
        if self.table.left_out:
            facts["left out"] = f"{self.table.left_out:,} items that not every model could score"
        return facts | {f"not scored: {reason}": f"{count:,}" for reason, count in self.table.reasons.items()}

    def tables(self, *, shown: int | None = None) -> list[Table]:
        """The tables; `shown` limits the ranking."""
        return [self._matrix(), self._ranking(shown), self._models(), self._correlations()]

    def _matrix(self) -> Table:
        names = self.study.names
        value = {(one.strong, one.weak): f"{one.accuracy.value:.3f}" for one in self.study.pairs}
        rows = tuple((strong, *(value.get((strong, weak), "\N{EN DASH}") for weak in names)) for strong in names)
        note = f"Rows are the strong model, columns the weak one; chance is {self.study.chance:.2f}."
        return Table("accuracy by pair", ("strong \\ weak", *names), rows, note)

    def _ranking(self, shown: int | None) -> Table:
        pairs = self.study.pairs[:shown]
        rows = tuple(
            (str(rank), one.strong, one.weak, estimate_text(one.accuracy), f"{one.gap:+.3g}")
            for rank, one in enumerate(pairs, start=1)
        )
        note = f"On all {len(self.table.items):,} items, so the first ones look better than they are."
        if len(pairs) < len(self.study.pairs):
            note += f" {len(self.study.pairs) - len(pairs)} more: --json, --html."
        return Table("ranking", ("rank", "strong", "weak", "accuracy (95 %)", "gap"), rows, note)

    def _models(self) -> Table:
        headers = ["model", "what it is", "own log-prob a token (95 %)"]
        rows = [[one.name, _spelt(one), estimate_text(self.study.own[one.name])] for one in self.models]
        if self.study.gap_source == "external scores":
            headers.append("external score")
            rows = [[*row, f"{self.study.quality[row[0]]:g}"] for row in rows]
        note = f"A pair's gap is the strong model's {gap_words(self.study)} less the weak one's."
        return Table("models", tuple(headers), tuple(map(tuple, rows)), note)

    def _correlations(self) -> Table:
        rows = tuple(
            (name, f"{one.value:+.3f}", spread(one.by_models), spread(one.by_items), _number(one.ordered))
            for name, one in (("Pearson", self.study.pearson), ("Spearman", self.study.spearman))
            if one is not None
        )
        headers = ("gap and accuracy", "r", "95 % other models", "95 % other items", "r with mirror images")
        if not rows:
            note = "Needs three models or more whose quality and accuracies differ."
        else:
            pairs = self.study.pearson.pairs if self.study.pearson else 0
            note = (
                f"Over {pairs} pairs of models, the better one as strong. Pairs share models, so models (or items) are "
                "resampled, never pairs. Counting both orders of a pair adds its mirror image and mostly raises r."
            )
        return Table("does accuracy grow with the gap?", headers, rows, note)

    def to_json(self) -> dict[str, Any]:
        """Everything for machines."""
        study = self.study
        return {
            "data": self.data,
            "items": len(self.table.items),
            "left_out": self.table.left_out,
            "not_scored": self.table.reasons,
            "reduction": self.setting.reduction,
            "placement": self.setting.shown,
            "seed": self.seed,
            "chance": study.chance,
            "gap_source": study.gap_source,
            "models": [
                {
                    "name": one.name,
                    "model": one.spec.model,
                    "adapter": one.spec.adapter,
                    "dtype": self.table.facts[one.name].get("dtype"),
                    "identity": self.table.facts[one.name]["identity"],
                    "texts_computed": self.table.asked[one.name],
                    "own_accuracy": estimate_json(study.own[one.name]),
                    "quality": study.quality[one.name],
                }
                for one in self.models
            ],
            "pairs": [
                {"strong": one.strong, "weak": one.weak, "accuracy": estimate_json(one.accuracy), "gap": one.gap}
                for one in study.pairs
            ],
            "pearson": _correlation_json(study.pearson),
            "spearman": _correlation_json(study.spearman),
            "choice": _choice_json(self.choice),
            "advice": self.advice,
        }


def _spelt(one: NamedModel) -> str:
    """Model and adapter by the last parts of their paths."""
    adapter = one.spec.adapter
    return Path(one.spec.model).name + (f" + {'/'.join(Path(adapter).parts[-2:])}" if adapter else "")


def _counts(asked: dict[str, int]) -> str:
    """How many texts each model computed, shortly where all did the same."""
    if len(set(asked.values())) == 1:
        return f"{next(iter(asked.values())):,} by each of {len(asked)} models"
    return ", ".join(f"{name} {count:,}" for name, count in asked.items())


def gap_words(study: PairStudy) -> str:
    """What gaps are differences of."""
    return "external score" if study.gap_source == "external scores" else "own log-prob accuracy (a token)"


def spread(bounds: tuple[float, float] | None) -> str:
    """An interval of correlations."""
    return "-" if bounds is None else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _correlation_json(one: Correlation | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {
        "value": one.value,
        "interval_by_models": one.by_models,
        "interval_by_items": one.by_items,
        "pairs": one.pairs,
        "ordered": one.ordered,
    }


def _choice_json(one: Choice | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {
        "strong": one.strong,
        "weak": one.weak,
        "gap": one.gap,
        "best_of": one.best_of,
        "chosen_on": estimate_json(one.chosen_on),
        "held_out": estimate_json(one.held_out),
        "next": {"strong": one.next_strong, "weak": one.next_weak, "difference": estimate_json(one.over_next)},
        "better_than_chance": one.better_than_chance,
        "clear": one.clear,
        "best_of_all": {"strong": one.best_of_all[0], "weak": one.best_of_all[1]},
    }
