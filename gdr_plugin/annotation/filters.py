"""Which selected pairs are kept, and why a prompt ends without one. Knows candidates, nothing of models or files."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gdr_plugin.api.errors import ConfigError, PluginError
from gdr_plugin.api.selectors import Candidate, Selector

IDENTICAL = "all scored candidates are identical"
NO_MARGIN = "chosen is not better than rejected"
SMALL_MARGIN = "margin below the minimum"
UNBALANCED = "lengths out of balance"
NOT_SELECTED = "the selector picked no pair"


@dataclass(frozen=True, slots=True)
class Filters:
    """What a pair must fulfil, besides that its texts differ and that the chosen reward is the higher one."""

    min_margin: float = 0.0
    """Least difference of the rewards, chosen minus rejected, in the reward's own unit."""
    length_balance: float | None = None
    """Greatest ratio of the longer to the shorter response, in the strong model's tokens; None for any."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min_margin) and self.min_margin >= 0):
            raise ConfigError(f"--min-margin must be 0 or more, not {self.min_margin}")
        if self.length_balance is not None and not (math.isfinite(self.length_balance) and self.length_balance >= 1):
            raise ConfigError(f"--length-balance is longer/shorter, so 1 or more, not {self.length_balance}")

    def objection(self, chosen: Candidate, rejected: Candidate) -> str | None:
        """Why the two make no pair, or None when they do."""
        margin = chosen.reward - rejected.reward
        if not margin > 0:
            return NO_MARGIN
        if margin < self.min_margin:
            return SMALL_MARGIN
        shorter, longer = sorted((chosen.tokens, rejected.tokens))
        if self.length_balance is not None and longer > self.length_balance * shorter:
            return UNBALANCED
        return None


@dataclass(frozen=True, slots=True)
class Picked:
    """The pairs of one prompt, or why there are none."""

    pairs: tuple[tuple[int, int], ...]
    """`(chosen, rejected)` indices into the candidates."""
    reason: str | None
    """Why there is no pair; None when there is one."""


def choose(candidates: Sequence[Candidate], selector: Selector, filters: Filters, rng: random.Random) -> Picked:
    """Select pairs from the scored candidates of one prompt and filter them.

    Candidates whose texts differ in white space only count as one, the first: a selector never sees two of them.

    Args:
        candidates: All scored candidates of one prompt, in the input's order.
        selector: Picks the pairs.
        filters: What a pair must fulfil.
        rng: For the selector.

    Returns:
        The pairs kept, or the reason for having none (the most frequent objection).

    Raises:
        PluginError: The selector returned indices that make no pair.
    """
    if len(candidates) < 2:
        return Picked((), "fewer than two scored candidates")
    first: dict[str, int] = {}
    for index, candidate in enumerate(candidates):
        first.setdefault(" ".join(candidate.response.split()), index)
    distinct = list(first.values())
    if len(distinct) < 2:
        return Picked((), IDENTICAL)
    offered = [candidates[index] for index in distinct]
    pairs: list[tuple[int, int]] = []
    objections: Counter[str] = Counter()
    for chosen, rejected in selector.select(offered, rng):
        if chosen == rejected or not (0 <= chosen < len(offered) and 0 <= rejected < len(offered)):
            raise PluginError(
                f"the selector {selector.name!r} returned ({chosen}, {rejected}) for {len(offered)} candidates: "
                "it must return two different indices of them"
            )
        objection = filters.objection(offered[chosen], offered[rejected])
        if objection is None:
            pairs.append((distinct[chosen], distinct[rejected]))
        else:
            objections[objection] += 1
    if pairs:
        return Picked(tuple(pairs), None)
    return Picked((), objections.most_common(1)[0][0] if objections else NOT_SELECTED)
