"""Successive halving: all candidates on few prompts, the better half on twice as many, until one is left.

Knows results and how candidates are ranked by them; nothing of guidance or models. Slices are nested, so that no
candidate is asked about a prompt twice.

Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization" (AISTATS 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

FIRST = 16
"""Prompts of the first slice at least: with fewer, a good candidate leaves by chance."""


@dataclass(frozen=True, slots=True)
class PromptResult:
    """What a reward makes of one prompt's pairs."""

    worth: float
    """1 when it agrees with the label, 0.5 for a tie, 0 when not; the mean over the prompt's pairs."""
    margin: float
    """Mean reward of chosen minus rejected responses, in the reward's unit."""


PromptResults = Sequence["PromptResult | None"]
"""One a prompt, in order; None where a response could not be scored."""

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Round(Generic[Name]):
    """One comparison of the search."""

    prompts: int
    """Size of the slice."""
    ranking: tuple[tuple[Name, float], ...]
    """The candidates with their accuracy on the slice, the best first."""


def plan(candidates: int, prompts: int) -> list[tuple[int, int]]:
    """The rounds of a search.

    Args:
        candidates: How many there are; at least 1.
        prompts: Size of the search part.

    Returns:
        `(candidates, prompts)` of every round. The last slice is the whole search part, unless slices of `FIRST`
        prompts are whole earlier; one candidate needs no round.
    """
    rounds = math.ceil(math.log2(candidates)) if candidates > 1 else 0
    size = min(prompts, max(FIRST, math.ceil(prompts / 2 ** max(0, rounds - 1))))
    planned = []
    while candidates > 1:
        planned.append((candidates, size))
        candidates, size = math.ceil(candidates / 2), min(prompts, 2 * size)
    return planned


def evaluations(planned: Sequence[tuple[int, int]]) -> int:
    """How often a candidate meets a prompt in a plan: slices are nested, so only what is new counts."""
    sizes = [0, *(size for _, size in planned)]
    return sum(count * (size - before) for (count, size), before in zip(planned, sizes, strict=False))


def halve(
    candidates: Sequence[Name],
    prompts: int,
    ask: Callable[[Sequence[Name], int, int], Mapping[Name, PromptResults]],
) -> list[Round[Name]]:
    """Search for the best candidate.

    Candidates are ranked by accuracy; a prompt that a candidate cannot score is lost for it, since a reward that is
    not there cannot be used. Ties go to the larger mean margin in units of its spread, then to the earlier candidate.

    Args:
        candidates: In the order in which ties are resolved; no two equal.
        prompts: Size of the search part.
        ask: `ask(names, start, stop)` gives the results of candidates on the prompts `start` to `stop`.

    Returns:
        The rounds; the winner is the first of the last one's ranking. Empty for a single candidate.
    """
    rounds: list[Round[Name]] = []
    known: dict[Name, list[PromptResult | None]] = {name: [] for name in candidates}
    alive, seen = list(candidates), 0
    for _, size in plan(len(candidates), prompts):
        for name, results in ask(alive, seen, size).items() if size > seen else ():
            known[name].extend(results)
        seen = size
        alive.sort(key=lambda name: _rank(known[name]))  # stable: the order of before resolves what is left of ties
        rounds.append(Round(size, tuple((name, accuracy(known[name])) for name in alive)))
        alive = alive[: math.ceil(len(alive) / 2)]
    return rounds


def accuracy(results: PromptResults) -> float:
    """The share of prompts on which the reward agrees with the labels; one that is not scored counts as lost."""
    return math.fsum(result.worth for result in results if result is not None) / len(results)


def _rank(results: PromptResults) -> tuple[float, float]:
    margins = [result.margin for result in results if result is not None]
    if not margins:
        return -accuracy(results), 0.0
    mean = math.fsum(margins) / len(margins)
    spread = math.sqrt(math.fsum((margin - mean) ** 2 for margin in margins) / len(margins))
    return -accuracy(results), -mean / spread if spread else -math.copysign(math.inf, mean) if mean else 0.0
