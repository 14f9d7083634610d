"""One model after the other: how a job runs where both models do not fit into memory together.

The only home of that order. What is scored, and in which windows, is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gdr_plugin.api.types import Sample, Side
from gdr_plugin.reward.reward import GuidedDensityRatio

__all__ = ["Work", "warm_one_model_at_a_time"]

Work = Callable[[Side], Iterable[tuple[GuidedDensityRatio, Sequence[Sample]]]]
"""Says what is to be scored under one model: batches of samples, each with the reward that will score them later."""


def warm_one_model_at_a_time(work: Work) -> None:
    """Score everything into the store under the strong model, then under the weak one; each leaves memory afterwards.

    Later calls of `score` for the same samples find all log-probs in the store and load no model.

    Args:
        work: Called once for each side; its batches may be made while they are asked for, and it may report progress.

    Raises:
        ConfigError: A reward has no store.
        ModelError: A model cannot be loaded or fails.
    """
    sides: tuple[Side, ...] = ("strong", "weak")
    for side in sides:
        used: GuidedDensityRatio | None = None
        for ratio, samples in work(side):
            ratio.warm(side, samples)
            used = ratio
        if used is not None:
            used.unload()
