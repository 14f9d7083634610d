"""From log-probs of N models to what N * (N - 1) ordered pairs of them are worth.

Knows arithmetic on a `LogprobTable`; nothing of models, files or advice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
import numpy.typing as npt

from gdr_plugin.arithmetic.statistics import Column, Estimate, share
from gdr_plugin.data.item import Item
from gdr_plugin.evaluation.measures.item_rules import chance, compare, rule_of
from gdr_plugin.evaluation.pairs.correlation import Correlation, correlate
from gdr_plugin.evaluation.pairs.scoring import LogprobTable

__all__ = ["GapSource", "ModelPairResult", "ModelPairStudy", "study"]

GapSource = Literal["external scores", "own log-prob accuracy"]


@dataclass(frozen=True, slots=True)
class ModelPairResult:
    """One ordered model pair as a reward."""

    strong: str
    weak: str
    accuracy: Estimate
    """Share of items that `log p_strong - log p_weak` gets right, a tie being half; resampled by item."""
    gap: float
    """The strong model's quality less the weak model's."""


@dataclass(frozen=True)
class ModelPairStudy:
    """What is known of all ordered model pairs."""

    names: tuple[str, ...]
    chance: float
    """The accuracy of a coin: 0.5 where each item is a pair of responses."""
    model_pairs: tuple[ModelPairResult, ...]
    """All ordered model pairs, the most accurate first; equals in the order given."""
    worth: dict[tuple[str, str], Column]
    """`(strong, weak)` -> what each item is worth, from 0 (wrong) to 1 (right), `(items,)`."""
    prompts: tuple[int, ...]
    """Which prompt each item belongs to, `(items,)`: items of one prompt are not independent."""
    quality: dict[str, float]
    """Name -> the quality that gaps are differences of."""
    own: dict[str, Estimate]
    """Name -> accuracy of the model's own log-prob a token, without a weak model."""
    own_worth: dict[str, Column]
    """Name -> what each item is worth by that, `(items,)`."""
    gap_source: GapSource
    pearson: Correlation | None
    """Over pairs turned so that the strong model is the better one. None with fewer than three models, or where gaps or
    accuracies do not vary."""
    spearman: Correlation | None

    def model_pair(self, strong: str, weak: str) -> ModelPairResult:
        """The result of one ordered model pair."""
        return next(result for result in self.model_pairs if (result.strong, result.weak) == (strong, weak))

    def quality_on(self, items: npt.NDArray[np.intp]) -> dict[str, float]:
        """Name -> quality as far as some items (their places) tell it; external scores are the same for all items."""
        if self.gap_source == "external scores":
            return self.quality
        return {name: float(worth[items].mean()) for name, worth in self.own_worth.items()}


def study(
    table: LogprobTable, *, format: str = "plain", quality: Mapping[str, float] | None = None, seed: int = 0
) -> ModelPairStudy:
    """Judge all ordered model pairs on the same items, by the rules of `gdr evaluate`.

    Args:
        table: Log-probs from `score_models`.
        format: The data's format: it says what makes an item right.
        quality: Name -> external score; default: the accuracy of each model's own log-prob a token on the same items.
        seed: Seed of all resampling.

    Returns:
        Accuracies with intervals, gaps, and how the two go together.
    """
    own_worth = {name: _worth(table.items, table.per_token[name], format) for name in table.names}
    own = {name: _estimate(worth, seed) for name, worth in own_worth.items()}
    worths = {
        (strong, weak): _worth(table.items, table.strong[strong] - table.weak[weak], format)
        for strong, weak in permutations(table.names, 2)
    }
    external = quality is not None
    known = dict(quality) if quality is not None else {name: accuracy.value for name, accuracy in own.items()}
    results = [
        ModelPairResult(strong, weak, _estimate(worth, seed), known[strong] - known[weak])
        for (strong, weak), worth in worths.items()
    ]
    results.sort(key=lambda result: result.accuracy.value, reverse=True)
    none = np.zeros(len(table.items))
    pearson, spearman = correlate(
        np.array([[worths.get((strong, weak), none) for weak in table.names] for strong in table.names]),
        np.array([known[name] for name in table.names]),
        None if external else np.array([own_worth[name] for name in table.names]),
        seed=seed,
    )
    return ModelPairStudy(
        names=table.names,
        chance=chance(table.items, format),
        model_pairs=tuple(results),
        worth=worths,
        prompts=_prompts(table.items),
        quality={name: known[name] for name in table.names},
        own=own,
        own_worth=own_worth,
        gap_source="external scores" if external else "own log-prob accuracy",
        pearson=pearson,
        spearman=spearman,
    )


def _worth(items: Sequence[Item], rewards: Column, format: str) -> Column:
    """What each item is worth under these rewards: `(responses,)` -> `(items,)`."""
    worths = []
    start = 0
    flat = rewards.tolist()
    for item in items:
        middle = start + len(item.chosen)
        end = middle + len(item.rejected)
        worths.append(compare((flat[start:middle], flat[middle:end]), rule_of(format, item.subset)).worth)
        start = end
    return np.array(worths)


def _prompts(items: Sequence[Item]) -> tuple[int, ...]:
    """The number of each item's prompt, in order of appearance."""
    known: dict[object, int] = {}
    return tuple(known.setdefault(item.prompt, len(known)) for item in items)


def _estimate(worth: Column, seed: int) -> Estimate:
    found = share(worth, seed=seed)
    assert found is not None  # a table has at least one item
    return found
