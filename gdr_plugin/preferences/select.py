"""Picking chosen and rejected from scored candidates. Knows rewards and texts, nothing of models or files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Candidate:
    """One scored response to a prompt."""

    response: str
    reward: float
    tokens: int
    """The response's length in the strong model's tokens."""


@runtime_checkable
class Selector(Protocol):
    """Picks preference pairs from the candidates of one prompt."""

    name: str
    """What `gdr annotate --select` calls it."""

    def select(self, candidates: Sequence[Candidate], rng: random.Random) -> list[tuple[int, int]]:
        """Pairs of candidates.

        Args:
            candidates: The scored candidates of one prompt, two at least, in the input's order.
            rng: The only source of randomness; seeded by the run's seed and the prompt's id.

        Returns:
            `(chosen, rejected)` indices, best pair first; empty for none. Filters run afterwards.
        """
        ...
