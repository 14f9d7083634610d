"""A comparison of model pairs for people and machines: tables and JSON. Figures and the page are in `page`.

Knows how the numbers are shown; they come from `matrix` and `choice`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gdr_plugin.arithmetic.reduction import UNITS
from gdr_plugin.data.fingerprint import fingerprint
from gdr_plugin.evaluation.pairs.choice import ModelPairChoice, advice, choose
from gdr_plugin.evaluation.pairs.correlation import Correlation
from gdr_plugin.evaluation.pairs.matrix import ModelPairStudy
from gdr_plugin.evaluation.pairs.models import NamedModel
from gdr_plugin.evaluation.pairs.scoring import Conditions, LogprobTable
from gdr_plugin.report.tables import Table, estimate_json, estimate_text
from gdr_plugin.version import __version__

__all__ = ["ModelPairsReport", "gap_words", "spread"]

SHOWN = 10
"""Pairs in the terminal's ranking."""


@dataclass(frozen=True)
class ModelPairsReport:
    """Everything that `gdr pairs` says."""

    data: str
    """The data set, as the user named it."""
    models: tuple[NamedModel, ...]
    conditions: Conditions
    table: LogprobTable
    study: ModelPairStudy
    seed: int
    told: Mapping[str, str] = field(default_factory=dict)
    """What was left out of the data, and whether they are a benchmark as a whole."""

    @cached_property
    def choice(self) -> ModelPairChoice | None:
        """The model pair chosen on one half of the items and judged on the other."""
        return choose(self.study, seed=self.seed)

    @property
    def advice(self) -> str:
        """Which model pair to use and why, in one paragraph."""
        return advice(self.study, self.choice)

    @property
    def facts(self) -> dict[str, str]:
        """How it was measured."""
        shown = self.conditions.shown
        dtypes = {described["dtype"] for described in self.table.facts.values() if "dtype" in described}
        facts = {
            "data": f"{self.data}: {len(self.table.items):,} items",
            **self.told,
            "reward": f"log p_strong - log p_weak, {self.conditions.reduction} ({UNITS[self.conditions.reduction]})",
            "guidance": shown if shown == "none" else f"shown to {shown}",
            "chance": f"{self.study.chance:.3f}",
            "gap": f"difference of the models' {gap_words(self.study)}",
            "computed in": ", ".join(sorted(dtypes)) or "-",
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
        value = {(result.strong, result.weak): f"{result.accuracy.value:.3f}" for result in self.study.model_pairs}
        rows = tuple((strong, *(value.get((strong, weak), "\N{EN DASH}") for weak in names)) for strong in names)
        note = f"Rows are the strong model, columns the weak one; chance is {self.study.chance:.2f}."
        return Table("accuracy by pair", ("strong \\ weak", *names), rows, note)

    def _ranking(self, shown: int | None) -> Table:
        pairs = self.study.model_pairs[:shown]
        rows = tuple(
            (str(rank), result.strong, result.weak, estimate_text(result.accuracy), f"{result.gap:+.3g}")
            for rank, result in enumerate(pairs, start=1)
        )
        note = f"On all {len(self.table.items):,} items, so the first ones look better than they are."
        if len(pairs) < len(self.study.model_pairs):
            note += f" {len(self.study.model_pairs) - len(pairs)} more: --json, --html."
        return Table("ranking", ("rank", "strong", "weak", "accuracy (95 %)", "gap"), rows, note)

    def _models(self) -> Table:
        headers = ["model", "what it is", "own log-prob a token (95 %)"]
        rows = [[model.name, _spelt(model), estimate_text(self.study.own[model.name])] for model in self.models]
        if self.study.gap_source == "external scores":
            headers.append("external score")
            rows = [[*row, f"{self.study.quality[row[0]]:g}"] for row in rows]
        note = f"A pair's gap is the strong model's {gap_words(self.study)} less the weak one's."
        return Table("models", tuple(headers), tuple(map(tuple, rows)), note)

    def _correlations(self) -> Table:
        rows = tuple(
            (
                name,
                f"{correlation.value:+.3f}",
                spread(correlation.by_models),
                spread(correlation.by_items),
                _number(correlation.ordered),
            )
            for name, correlation in (("Pearson", self.study.pearson), ("Spearman", self.study.spearman))
            if correlation is not None
        )
        headers = ("gap and accuracy", "r", "95 % other models", "95 % other items", "r with mirror images")
        if not rows:
            note = "Needs three models or more whose quality and accuracies differ."
        else:
            pairs = self.study.pearson.pairs if self.study.pearson else 0
            note = (
                f"Over {pairs} model pairs, the better one as strong. Pairs share models, so models (or items) are "
                "resampled, never pairs. Counting both orders of a pair adds its mirror image and mostly raises r."
            )
        return Table("does accuracy grow with the gap?", headers, rows, note)

    @property
    def made_with(self) -> dict[str, str]:
        """What the numbers can be made again with."""
        facts = {"gdr-plugin": __version__, "data fingerprint": fingerprint(self.table.items)}
        return facts | {f"identity of {name}": told["identity"] for name, told in self.table.facts.items()}

    def to_json(self) -> dict[str, Any]:
        """Everything for machines."""
        study = self.study
        return {
            "made_with": self.made_with,
            "data": self.data,
            "told": dict(self.told),
            "items": len(self.table.items),
            "left_out": self.table.left_out,
            "not_scored": self.table.reasons,
            "reduction": self.conditions.reduction,
            "placement": self.conditions.shown,
            "seed": self.seed,
            "chance": study.chance,
            "gap_source": study.gap_source,
            "models": [
                {
                    "name": model.name,
                    "model": model.spec.model,
                    "adapter": model.spec.adapter,
                    "dtype": self.table.facts[model.name].get("dtype"),
                    "identity": self.table.facts[model.name]["identity"],
                    "texts_computed": self.table.asked[model.name],
                    "own_accuracy": estimate_json(study.own[model.name]),
                    "quality": study.quality[model.name],
                }
                for model in self.models
            ],
            "pairs": [
                {
                    "strong": result.strong,
                    "weak": result.weak,
                    "accuracy": estimate_json(result.accuracy),
                    "gap": result.gap,
                }
                for result in study.model_pairs
            ],
            "pearson": _correlation_json(study.pearson),
            "spearman": _correlation_json(study.spearman),
            "choice": _choice_json(self.choice),
            "advice": self.advice,
        }


def _spelt(model: NamedModel) -> str:
    """Model and adapter by the last parts of their paths."""
    adapter = model.spec.adapter
    return Path(model.spec.model).name + (f" + {'/'.join(Path(adapter).parts[-2:])}" if adapter else "")


def _counts(asked: dict[str, int]) -> str:
    """How many texts each model computed, shortly where all did the same."""
    if len(set(asked.values())) == 1:
        return f"{next(iter(asked.values())):,} by each of {len(asked)} models"
    return ", ".join(f"{name} {count:,}" for name, count in asked.items())


def gap_words(study: ModelPairStudy) -> str:
    """What gaps are differences of."""
    return "external score" if study.gap_source == "external scores" else "own log-prob accuracy (a token)"


def spread(bounds: tuple[float, float] | None) -> str:
    """An interval of correlations."""
    return "-" if bounds is None else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _correlation_json(correlation: Correlation | None) -> dict[str, Any] | None:
    if correlation is None:
        return None
    return {
        "value": correlation.value,
        "interval_by_models": correlation.by_models,
        "interval_by_items": correlation.by_items,
        "pairs": correlation.pairs,
        "ordered": correlation.ordered,
    }


def _choice_json(choice: ModelPairChoice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    return {
        "strong": choice.strong,
        "weak": choice.weak,
        "gap": choice.gap,
        "best_of": choice.best_of,
        "chosen_on": estimate_json(choice.chosen_on),
        "held_out": estimate_json(choice.held_out),
        "next": {"strong": choice.next_strong, "weak": choice.next_weak, "difference": estimate_json(choice.over_next)},
        "better_than_chance": choice.better_than_chance,
        "clear": choice.clear,
        "best_of_all": {"strong": choice.best_of_all[0], "weak": choice.best_of_all[1]},
    }
