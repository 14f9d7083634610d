"""Decides from token ids alone which contexts share a prefix that is worth computing once and keeping.

Knows nothing of responses, budgets, or how a prefix is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Ids: TypeAlias = tuple[int, ...]

SHORTEST_PREFIX = 16
"""A shared prefix of fewer tokens is not worth a pass of its own."""


def families(
    wanted: Collection[Ids], known: Sequence[Ids] = (), seen: Sequence[Ids] = ()
) -> Iterator[tuple[Ids, list[Ids]]]:
    """Group contexts by a shared prefix that is worth keeping.

    Args:
        wanted: Distinct contexts that are to be computed; membership is looked up often.
        known: Prefixes whose keys and values are kept already; they are used where they fit.
        seen: Contexts of earlier calls: a prefix shared with one of them is worth keeping too.

    Yields:
        A prefix, which may be empty, and the wanted contexts that begin with it; every context once.
    """
    order = sorted({*wanted, *seen})
    for places, depth in _clusters(order):
        contexts = [order[place] for place in places if order[place] in wanted]
        if contexts:
            yield contexts[0][: _boundary(contexts, depth, known)], contexts


def _boundary(contexts: Sequence[Ids], depth: int, known: Sequence[Ids]) -> int:
    """How many leading ids of a cluster's contexts are its kept prefix."""
    limit = min(depth or len(contexts[0]), *(len(context) - 1 for context in contexts))
    shared = contexts[0][:limit]
    kept = max((len(ids) for ids in known if len(ids) <= limit and shared[: len(ids)] == ids), default=0)
    # Prompts that happen to begin alike must not bring a new prefix next to the one that is kept.
    return kept if depth == 0 or (kept > 0 and limit - kept < SHORTEST_PREFIX) else limit


def _clusters(order: Sequence[Ids]) -> list[tuple[list[int], int]]:
    """Group contexts by a prefix that they share, so that many tokens are saved.

    A context has one prefix at most, so a group that shares a long prefix competes with a wider one that shares a
    shorter: either saves `(contexts - 1) * depth` tokens. The tree of common prefixes is walked bottom-up, with the
    stack of its open nodes; each node takes over the groups below it that gain by its shorter prefix.

    Args:
        order: Distinct contexts in lexicographic order.

    Returns:
        Groups, each with the places of its contexts and how many ids they share; 0 for a context alone.
    """
    stack: list[_Node] = []
    groups: list[tuple[list[int], int]] = [([0], 0)] if order else []
    for place in range(1, len(order) + 1):
        shared = _common(order[place - 1], order[place]) if place < len(order) else -1
        while stack and stack[-1].depth > shared:
            stack[-1].groups += groups
            groups = stack.pop().regrouped()
        if place == len(order):
            break
        if not stack or stack[-1].depth < shared:
            stack.append(_Node(shared))
        stack[-1].groups += groups
        groups = [([place], 0)]
    return groups


@dataclass
class _Node:
    """A common prefix whose last context is not reached yet, and the groups of contexts that begin with it."""

    depth: int
    groups: list[tuple[list[int], int]] = field(default_factory=list)

    def regrouped(self) -> list[tuple[list[int], int]]:
        if self.depth < SHORTEST_PREFIX:
            return self.groups
        mine: list[int] = []
        others: list[tuple[list[int], int]] = []
        gain = -self.depth
        for places, depth in self.groups:
            more = self.depth * len(places) - depth * (len(places) - 1)
            if more > 0:
                mine += places
                gain += more
            else:
                others.append((places, depth))
        return [(mine, self.depth), *others] if gain > 0 else self.groups


def _common(a: Ids, b: Ids) -> int:
    """Length of the longest common prefix, by bisection (slices compare faster than a loop)."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
