"""Do margins say how sure a reward is? Accuracy by size of margin, calibration error, the best temperature.

A margin `m` in nats reads as the chance `sigmoid(m)` that the chosen response is the better one (Bradley-Terry). Knows
margins; nothing of where they come from.

Sources: Guo et al., "On Calibration of Modern Neural Networks" (2017), for the error and the temperature; equal-count
bins as in Nixon et al., "Measuring Calibration in Deep Learning" (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gdr_plugin.arithmetic.statistics import Column, Estimate, columns, share

BINS = 10
"""At most; each has at least `BIN_ITEMS` items."""
BIN_ITEMS = 20
_STEPS = 200


@dataclass(frozen=True, slots=True)
class Bin:
    """Items with margins of like size."""

    low: float
    """Least |margin|, in the reduction's unit."""
    high: float
    """Greatest |margin|."""
    confidence: float
    """Mean of `sigmoid(|margin|)`: the accuracy that the margins claim."""
    accuracy: Estimate
    """What it is."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well the size of margins agrees with their being right."""

    error: float
    """Expected calibration error: mean |confidence - accuracy| over the bins, by their items."""
    temperature: float | None
    """The T that makes `sigmoid(margin / T)` the likeliest: above 1, margins are too sure. None where no finite,
    positive one does: every margin is positive, or margins speak against the preferences on the whole."""
    error_fitted: float | None
    """The calibration error at that temperature, on the same items."""
    bins: tuple[Bin, ...]
    """By rising |margin|, with equally many items; at temperature 1."""


def calibration(margins: Sequence[float | None], worths: Sequence[float | None]) -> Calibration | None:
    """Measure the calibration of margins.

    Args:
        margins: One an item; None where it was not scored.
        worths: One an item: 1 right, 0 wrong, 0.5 tied; None where it was not scored.

    Returns:
        The measures, or None without a scored item.
    """
    margin, worth = columns(margins, worths)
    if not len(margin):
        return None
    bins = _bins(margin, worth, 1.0)
    temperature = _temperature(margin)
    fitted = None if temperature is None else _error(_bins(margin, worth, temperature))
    return Calibration(_error(bins), temperature, fitted, bins)


def _bins(margin: Column, worth: Column, temperature: float) -> tuple[Bin, ...]:
    size = np.abs(margin)
    order = np.argsort(size, kind="stable")
    bins = []
    for own in np.array_split(order, max(1, min(BINS, len(size) // BIN_ITEMS))):
        accuracy = share(worth[own])
        assert accuracy is not None
        confidence = float(_sigmoid(size[own] / temperature).mean())
        bins.append(Bin(float(size[own].min()), float(size[own].max()), confidence, accuracy))
    return tuple(bins)


def _error(bins: Sequence[Bin]) -> float:
    total = sum(own.accuracy.n for own in bins)
    return sum(abs(own.confidence - own.accuracy.value) * own.accuracy.n for own in bins) / total


def _temperature(margin: Column) -> float | None:
    """Minimise the mean of `log(1 + exp(-margin / T))`: convex in 1/T, so its slope's zero is found by bisection."""
    scale = float(np.abs(margin).mean())
    if not scale or margin.mean() <= 0 or (margin >= 0).all():
        return None

    def slope(inverse: float) -> float:
        return -float((margin * _sigmoid(-margin * inverse)).mean())

    low, high = 0.0, 1.0 / scale
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / high


def _sigmoid(x: Column) -> Column:
    half: Column = 0.5 * (1 + np.tanh(x / 2))
    return half
