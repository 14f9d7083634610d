"""Picking chosen and rejected from scored candidates. Knows rewards and texts, nothing of models or files."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gdr_plugin.api.errors import ConfigError, unknown
from gdr_plugin.api.selectors import Candidate, Selector


def ranking(candidates: Sequence[Candidate]) -> list[int]:
    """Indices from the highest reward to the lowest; equal rewards keep the input's order."""
    return sorted(range(len(candidates)), key=lambda index: -candidates[index].reward)


@dataclass(slots=True)
class MaxMin:
    """The best candidate against the worst."""

    name: str = "max-min"

    def select(self, candidates: Sequence[Candidate], rng: random.Random) -> list[tuple[int, int]]:
        """One pair: highest reward, lowest reward."""
        order = ranking(candidates)
        return [(order[0], order[-1])]


@dataclass(slots=True)
class MaxRandom:
    """The best candidate against one drawn at random from the others."""

    name: str = "max-random"

    def select(self, candidates: Sequence[Candidate], rng: random.Random) -> list[tuple[int, int]]:
        """One pair: highest reward, any other."""
        order = ranking(candidates)
        return [(order[0], rng.choice(order[1:]))]


@dataclass(slots=True)
class TopK:
    """The best k against the worst k: the i-th best with the i-th worst, each candidate in one pair at most."""

    k: int = 2
    name: str = "top-k"

    def with_option(self, text: str) -> TopK:
        """The selector with another k, as in `top-k:3`."""
        if not text.isdecimal() or int(text) < 1:
            raise ConfigError(f"--select top-k:K takes a whole number of pairs from 1 on, not {text!r}: try top-k:2")
        return TopK(k=int(text))

    def select(self, candidates: Sequence[Candidate], rng: random.Random) -> list[tuple[int, int]]:
        """At most k pairs, and at most half as many as there are candidates."""
        order = ranking(candidates)
        return [(order[rank], order[-1 - rank]) for rank in range(min(self.k, len(order) // 2))]


def builtin_selectors() -> list[Selector]:
    """The selectors that come with the package."""
    return [MaxMin(), MaxRandom(), TopK()]


def find_selector(text: str, known: Mapping[str, Selector]) -> Selector:
    """The selector that `--select` names.

    Args:
        text: A name, or a name and an option: `max-min`, `top-k:3`.
        known: All registered selectors by name.

    Returns:
        The selector, with its option.

    Raises:
        ConfigError: There is none of that name, or it does not take that option.
    """
    name, colon, option = text.partition(":")
    if name not in known:
        raise ConfigError(f"--select: {unknown('selector', name, known)}")
    if not colon:
        return known[name]
    configure = getattr(known[name], "with_option", None)
    if configure is None:
        raise ConfigError(f"--select: the selector {name!r} takes no option: write --select {name}")
    configured: Selector = configure(option)
    return configured
