"""Numbers with intervals: shares, correlations, paired differences. Knows arrays; nothing of rewards or data sets.

Every interval is a 95 % percentile bootstrap over items, with a fixed seed, so that a number is reproducible to its
last digit. Values that are None (not scored) are left out. A share of 0 or 1 has an interval without width: it says
nothing of what the next item would be, and `n` must be read with it.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Column: TypeAlias = "npt.NDArray[np.float64]"
Values: TypeAlias = "Sequence[float | None] | Sequence[float] | npt.NDArray[np.float64]"

SHARE_DRAWS = 10_000
"""Resamples of a share: cheap, since only counts are drawn."""
DRAWS = 2_000
"""Resamples of a correlation."""
_CHUNK = 4_000_000
"""Counts drawn at a time."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, its 95 % interval, and how many items it rests on."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Resampled:
    """A number with its bootstrap distribution, so that several can be averaged."""

    value: float
    draws: Column
    """Shape `(SHARE_DRAWS,)`; NaN where a resample had nothing to compute it from."""
    n: int

    @property
    def estimate(self) -> Estimate:
        """The number with its interval."""
        low, high = np.nanpercentile(self.draws, [2.5, 97.5])
        return Estimate(self.value, float(low), float(high), self.n)


def share(worths: Values, *, weights: Values | None = None, seed: int = 0) -> Estimate | None:
    """The mean worth of items: the accuracy, when an item is worth 1 if right, 0.5 if tied, 0 if wrong.

    Args:
        worths: One an item; None where it was not scored.
        weights: How much each item counts; default: all the same. Resampled with their items.
        seed: Seed of the resampling.

    Returns:
        The weighted mean with its interval, or None without items (or without weight).
    """
    values, weight = columns(worths, weights if weights is not None else np.ones(len(worths)))
    resampled = ratios([values * weight], [weight], seed=seed)
    return resampled.estimate if resampled else None


def ratios(
    numerators: Sequence[Values], denominators: Sequence[Values], factors: Sequence[float] = (1.0,), *, seed: int = 0
) -> Resampled | None:
    """A sum of ratios of sums over items: `sum_k factor_k * sum(numerator_k) / sum(denominator_k)`.

    A weighted mean is one, and so is a score made of several means over the same items. Resampling changes only how
    often each item's values come, so the resamples are drawn as counts of the distinct values: the same distribution as
    drawing items, at a fraction of the cost.

    Args:
        numerators: `K` columns of shape `(items,)`, without gaps.
        denominators: `K` columns of the same items; 0 where an item does not count.
        factors: `K` numbers.
        seed: Seed of the resampling.

    Returns:
        The number with its distribution, or None where a denominator is zero.
    """
    k, table = len(numerators), np.array([*numerators, *denominators], dtype=np.float64)
    n = table.shape[1]
    if not n or (table[k:].sum(axis=1) <= 0).any():
        return None
    distinct, counts = np.unique(table, axis=1, return_counts=True)
    rng, size = np.random.default_rng(seed), max(1, _CHUNK // len(counts))

    def evaluate(drawn: npt.NDArray[np.int64]) -> Column:
        sums = drawn @ distinct.T
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = np.where(sums[:, k:] > 0, sums[:, :k] / sums[:, k:], np.nan)
        values: Column = parts @ np.asarray(factors)
        return values

    draws = [
        evaluate(rng.multinomial(n, counts / n, size=min(size, SHARE_DRAWS - start)))
        for start in range(0, SHARE_DRAWS, size)
    ]
    return Resampled(float(evaluate(counts[None, :])[0]), np.concatenate(draws), n)


def average(parts: Sequence[tuple[float, Resampled | None]]) -> Resampled | None:
    """The weighted mean of numbers that rest on different items; each part is resampled within itself.

    Args:
        parts: Weight and number; parts without a number are left out, and the other weights make up for them. Resample
            the parts with different seeds.

    Returns:
        The mean with its distribution, or None where every part is.
    """
    known = [(weight, part) for weight, part in parts if part is not None]
    total = sum(weight for weight, _ in known)
    if total <= 0:
        return None
    value = sum(weight * part.value for weight, part in known) / total
    draws = np.sum([weight * part.draws for weight, part in known], axis=0) / total
    return Resampled(float(value), draws, sum(part.n for _, part in known))


def difference(a: Values, b: Values, *, seed: int = 0) -> Estimate | None:
    """The mean of `a - b` over the items that have both: is one way better than the other on the same items?

    Args:
        a: One value an item; None where there is none.
        b: One value for each of the same items, in the same order; None where there is none.
        seed: Seed of the resampling.

    Returns:
        The mean difference with its interval, or None when no item has both.
    """
    first, second = columns(a, b)
    return share(first - second, seed=seed)


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided sign test: McNemar's, where an item is right or wrong under each of two ways.

    Args:
        wins: Items on which one way is better.
        losses: Items on which the other is. Items on which they are equal say nothing.

    Returns:
        The chance of a split at least as uneven where both ways are equally good; 1 where there is no such item.

    Source: Conover, "Practical Nonparametric Statistics" (1999), section 3.4; McNemar (1947).
    """
    n = wins + losses
    if not n:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(min(wins, losses) + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log - n * math.log(2)) for log in logs))


def pearson(x: Values, y: Values, *, seed: int = 0) -> Estimate | None:
    """Pearson's correlation of two columns, with its interval; None where `correlation` has none."""
    first, second = columns(x, y)
    n = len(first)
    value = correlation(first, second)
    if value is None:
        return None
    rng, size, found = np.random.default_rng(seed), max(1, _CHUNK // n), []
    for start in range(0, DRAWS, size):
        drawn = rng.integers(0, n, (min(size, DRAWS - start), n))
        found.append(_correlations(first[drawn], second[drawn]))
    low, high = np.nanpercentile(np.concatenate(found), [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)


def correlation(x: Column, y: Column) -> float | None:
    """Pearson's correlation of two columns without gaps; Spearman's, of their `ranks`.

    Args:
        x: Shape `(items,)`.
        y: Shape `(items,)`, the same items.

    Returns:
        The correlation, or None with fewer than three items or where a column does not vary.
    """
    value = float(_correlations(x[None, :], y[None, :])[0]) if len(x) > 2 else np.nan
    return value if np.isfinite(value) else None


def ranks(values: Column) -> Column:
    """Ranks from 1, equal values sharing their mean rank; round values that differ by rounding errors before."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    found: Column = ((2 * last - counts + 1) / 2)[which]
    return found


def columns(*values: Values) -> tuple[Column, ...]:
    """The columns as arrays of shape `(items,)`, without the items that lack a value in one of them.

    Raises:
        ValueError: The columns are not of one length.
    """
    arrays = [np.array([np.nan if value is None else value for value in column], dtype=np.float64) for column in values]
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(f"columns of different lengths: {', '.join(str(len(array)) for array in arrays)}")
    known = np.logical_and.reduce([np.isfinite(array) for array in arrays])
    return tuple(array[known] for array in arrays)


def _correlations(x: Column, y: Column) -> Column:
    """The correlation of each row, of shapes `(rows, items)`; NaN where a column does not vary in it."""
    a, b = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    # A constant column's deviations are rounding errors, not zero: they are measured against the values' size.
    tiny = 1e-12 * x.shape[1] * np.abs(x).max(axis=1) * np.abs(y).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Column = np.where(scale > tiny, ((a * b).sum(axis=1) / scale).clip(-1.0, 1.0), np.nan)
    return found
