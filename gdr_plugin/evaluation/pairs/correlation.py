"""How the accuracy of model pairs goes with the gap between their models, and how sure that is.

Pairs share models, so they are not independent: an interval from resampled pairs would be too narrow. Instead the items
(other prompts, the same models) and the models (other models, the same prompts) are resampled. Knows arrays only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gdr_plugin.arithmetic.statistics import DRAWS, Column, correlation, ranks

__all__ = ["Correlation", "correlate"]

_LEAST_MODELS = 3
"""Different models that a resample must have: two make one model pair."""
_SAME = 1e-9
"""Gaps smaller than this, relative to the largest, are rounding errors only."""
_DIGITS = 9
"""Decimals of gaps and accuracies that count."""

Both: TypeAlias = "tuple[float | None, float | None]"
"""Pearson's and Spearman's correlation; None where it is not defined."""


@dataclass(frozen=True, slots=True)
class Correlation:
    """How accuracy goes with the gap, over model pairs."""

    value: float
    by_items: tuple[float, float] | None
    """95 % interval over resamples of the items: what other prompts would give for these models."""
    by_models: tuple[float, float] | None
    """95 % interval over resamples of the models: what other models would give. None with fewer than four models: too
    few to resample."""
    pairs: int
    """Unordered model pairs that differ in quality, each taken once, the better model being the strong one."""
    ordered: float | None
    """The same over all ordered pairs: higher by construction, since a pair's two orders are mirror images."""


def correlate(
    worth: Column, quality: Column, own_worth: Column | None, *, seed: int = 0
) -> tuple[Correlation | None, Correlation | None]:
    """Pearson's and Spearman's correlation of gap and accuracy, with intervals.

    Args:
        worth: What each item is worth by ordered pair, `(strong, weak, items)`; the diagonal is not used.
        quality: The quality of each model, `(models,)`.
        own_worth: What each item is worth by each model alone, `(models, items)`, where quality is its mean: it is then
            resampled with the items. None: quality comes from elsewhere.
        seed: Seed of all resampling.

    Returns:
        Both, each None with fewer than three pairs or where gaps or accuracies do not vary.
    """
    models, items = len(quality), worth.shape[2]
    gap, accuracy = _pairs(worth, quality, own_worth, np.ones(items))
    better = _better(gap)
    values = _correlations(gap[better], accuracy[better])
    rng = np.random.default_rng(seed)
    by_items = list(_over_items(worth, quality, own_worth, rng))
    by_models = list(_over_models(gap, accuracy, better, rng)) if models > _LEAST_MODELS else []
    different = ~np.eye(models, dtype=bool)
    ordered = _correlations(gap[different], accuracy[different])
    count = int(better.sum())
    pearson, spearman = (
        None
        if value is None
        else Correlation(value, _interval(by_items, at), _interval(by_models, at), count, ordered[at])
        for at, value in enumerate(values)
    )
    return pearson, spearman


def _pairs(worth: Column, quality: Column, own_worth: Column | None, counts: Column) -> tuple[Column, Column]:
    """Gap and accuracy of every ordered pair, `(models, models)` each, with the items counted so often."""
    weight = counts / counts.sum()
    quality = quality if own_worth is None else own_worth @ weight
    gap: Column = quality[:, None] - quality[None, :]
    accuracy: Column = worth @ weight
    return gap, accuracy


def _better(gap: Column) -> npt.NDArray[np.bool_]:
    """One of the two orders of each pair whose models differ: that with the better model as the strong one."""
    better: npt.NDArray[np.bool_] = gap > _SAME * max(1.0, float(np.abs(gap).max()))
    return better


def _over_items(worth: Column, quality: Column, own_worth: Column | None, rng: np.random.Generator) -> Iterator[Both]:
    items = worth.shape[2]
    for _ in range(DRAWS):
        counts = np.bincount(rng.integers(0, items, items), minlength=items).astype(np.float64)
        gap, accuracy = _pairs(worth, quality, own_worth, counts)
        better = _better(gap)
        yield _correlations(gap[better], accuracy[better])


def _over_models(
    gap: Column, accuracy: Column, better: npt.NDArray[np.bool_], rng: np.random.Generator
) -> Iterator[Both]:
    models = len(gap)
    for _ in range(DRAWS):
        times = np.bincount(rng.integers(0, models, models), minlength=models)
        if np.count_nonzero(times) >= _LEAST_MODELS:
            # A pair comes as often as its two models do together; a model and its own copy are no pair.
            weight = np.outer(times, times)[better]
            yield _correlations(gap[better].repeat(weight), accuracy[better].repeat(weight))


def _interval(values: Sequence[Both], at: int) -> tuple[float, float] | None:
    known = [both[at] for both in values if both[at] is not None]
    if not known:
        return None
    low, high = np.percentile(np.array(known, dtype=np.float64), [2.5, 97.5])
    return float(low), float(high)


def _correlations(x: Column, y: Column) -> Both:
    # Sums over items in another order differ in the last digit: such values are equal, for ranks too.
    x, y = x.round(_DIGITS), y.round(_DIGITS)
    return correlation(x, y), correlation(ranks(x), ranks(y))
