"""Which model pair to use, and how good it is without flattering it.

The best of many model pairs looks better than it is: it was picked for its luck as well. So the pair is chosen on one
half of the prompts and judged on the other. Knows a `ModelPairStudy`; nothing of how it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gdr_plugin.arithmetic.statistics import Column, Estimate, difference, share
from gdr_plugin.evaluation.pairs.matrix import ModelPairStudy
from gdr_plugin.report.tables import estimate_text

__all__ = ["ModelPairChoice", "advice", "choose"]

FEW = 100
"""Held-out items below which the advice warns that its intervals are wide."""


@dataclass(frozen=True, slots=True)
class ModelPairChoice:
    """The model pair that came out first on one half of the prompts, and what it did on the other."""

    strong: str
    weak: str
    gap: float
    chosen_on: Estimate
    """Accuracy on the items that it was chosen by: too high."""
    held_out: Estimate
    """Accuracy on the other items: what to expect."""
    best_of: int
    """How many ordered pairs it was chosen from."""
    next_strong: str
    next_weak: str
    over_next: Estimate
    """Held-out accuracy less that of the pair that came second, on the same items."""
    best_of_all: tuple[str, str]
    """The pair that is first on all items together."""
    chance: float
    """The accuracy of a coin."""

    @property
    def better_than_chance(self) -> bool:
        """Whether the held-out interval is above a coin's accuracy."""
        return self.held_out.low > self.chance

    @property
    def clear(self) -> bool:
        """Whether it beats the next one on the held-out half."""
        return self.over_next.low > 0


def choose(study: ModelPairStudy, *, seed: int = 0) -> ModelPairChoice | None:
    """Choose a model pair on the items of one half of the prompts, drawn at random, and judge it on the others.

    Args:
        study: All ordered pairs.
        seed: Seed of the halves and of all resampling.

    Returns:
        The choice, or None with fewer than two prompts: there is nothing to hold out.
    """
    prompts = len(set(study.prompts))
    if prompts < 2:
        return None
    drawn = np.random.default_rng(seed).permutation(prompts)[: prompts // 2]
    first_half = np.isin(study.prompts, drawn)
    here, there = np.flatnonzero(first_half), np.flatnonzero(~first_half)
    # Among equals the larger gap is the better bet, as far as this half knows it: the other has no part in the choice.
    # Names make the choice independent of the models' order.
    quality = study.quality_on(here)
    ranked = sorted(
        study.worth,
        key=lambda pair: (-float(study.worth[pair][here].mean()), quality[pair[1]] - quality[pair[0]], pair),
    )
    first, second = ranked[0], ranked[1]
    best = study.model_pairs[0]
    return ModelPairChoice(
        strong=first[0],
        weak=first[1],
        gap=study.model_pair(*first).gap,
        chosen_on=_share(study.worth[first][here], seed),
        held_out=_share(study.worth[first][there], seed),
        best_of=len(ranked),
        next_strong=second[0],
        next_weak=second[1],
        over_next=_difference(study.worth[first][there], study.worth[second][there], seed),
        best_of_all=(best.strong, best.weak),
        chance=study.chance,
    )


def advice(study: ModelPairStudy, choice: ModelPairChoice | None) -> str:
    """One plain paragraph: which model pair to use and why, or why none."""
    if choice is None:
        return "One prompt is not enough to choose a model pair: give at least two, better a few hundred."
    name = f"{choice.strong} over {choice.weak}"
    held = choice.held_out
    on_both = f"{estimate_text(held)} on the {held.n} items that had no part in the choice"
    seen = f"{choice.chosen_on.value:.3f} on the {choice.chosen_on.n} that it was chosen by, best of {choice.best_of}"
    if not choice.better_than_chance:
        parts = [
            f"Use none of these model pairs on this evidence: the best, {name}, has accuracy {on_both}, which is not "
            f"above chance, {choice.chance:.2f} ({seen}).",
            "Try models that differ more in how they were aligned, or more items.",
        ]
    else:
        parts = [f"Use {name}: accuracy {on_both} ({seen})."]
        rival = f"{choice.next_strong} over {choice.next_weak}"
        ahead = estimate_text(choice.over_next, signed=True)
        if choice.clear:
            parts.append(f"It beats the next one, {rival}, by {ahead} on the same items.")
        else:
            parts.append(
                f"It cannot be told from the next one, {rival}: {ahead} on the same items; take whichever is cheaper."
            )
        parts.append(_gap_sentence(study, choice))
    if choice.best_of_all != (choice.strong, choice.weak):
        strong, weak = choice.best_of_all
        parts.append(f"On all items together {strong} over {weak} comes first.")
    if held.n < FEW:
        parts.append(f"{held.n} held-out items give wide intervals: a few hundred would tell more.")
    return " ".join(parts)


def _gap_sentence(study: ModelPairStudy, choice: ModelPairChoice) -> str:
    """Where the pair's gap stands among all gaps."""
    gaps = [result.gap for result in study.model_pairs]
    place = 1 + sum(gap > choice.gap for gap in gaps)
    return f"Its gap in quality is {choice.gap:+.3g} ({study.gap_source}), rank {place} of {len(gaps)}."


def _share(worth: Column, seed: int) -> Estimate:
    found = share(worth, seed=seed)
    assert found is not None  # neither half is empty
    return found


def _difference(first: Column, other: Column, seed: int) -> Estimate:
    found = difference(first, other, seed=seed)
    assert found is not None
    return found
