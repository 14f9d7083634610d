"""The selector contract: what picks preference pairs, and the candidates that it picks from."""

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
    """Picks preference pairs from the candidates of one prompt.

    A selector may also have `with_option(text) -> Selector`: called when `--select` gives it an option after a colon,
    as in `top-k:3`. It raises `ConfigError` for an option that it does not understand.
    """

    name: str
    """The name that `gdr annotate --select` uses."""

    def select(self, candidates: Sequence[Candidate], rng: random.Random) -> list[tuple[int, int]]:
        """Pick pairs of candidates.

        Args:
            candidates: The scored candidates of one prompt, in the input's order: at least two, with different texts.
            rng: The only source of randomness; seeded by the run's seed and the prompt's id.

        Returns:
            `(chosen, rejected)` indices, best pair first; empty for none. Filters run afterwards.
        """
        ...
