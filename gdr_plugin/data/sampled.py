"""A sample of preference data: from each subset in proportion to its size.

Knows items; nothing of files. What belongs together (RewardBench 2's tied questions and their reference) is drawn
together.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from gdr_plugin.api.errors import DataError
from gdr_plugin.data.item import Item

__all__ = ["sampled"]


def sampled(items: Sequence[Item], size: int, *, seed: int = 0) -> list[Item]:
    """Draw items so that every subset has its share.

    Args:
        items: All of them.
        size: How many to draw; at least one of every subset. Items that belong together count as many as they are, so
            that there may be one more.
        seed: Seed: the same items for the same seed, and more with a larger size add to them within a subset.

    Returns:
        The sample, in the order of `items`.

    Raises:
        DataError: There are more subsets than items asked for.
    """
    subsets: dict[str, dict[str, list[int]]] = {}
    for at, item in enumerate(items):
        subsets.setdefault(item.subset, {}).setdefault(_unit(item), []).append(at)
    if size < len(subsets):
        raise DataError(f"--sample {size}: the data have {len(subsets)} subsets, of which each needs an item")
    shares = _shares({name: sum(map(len, units.values())) for name, units in subsets.items()}, size)
    drawn: set[int] = set()
    for name, units in subsets.items():
        order = sorted(units)
        random.Random(f"{seed}/{name}").shuffle(order)
        left = shares[name]
        for unit in order:
            if left <= 0:
                break
            drawn.update(units[unit])
            left -= len(units[unit])
    return [items[at] for at in sorted(drawn)]


def _unit(item: Item) -> str:
    """What is drawn together: an item, or a tied question with its reference."""
    kind, colon, question = item.id.partition(":")
    return question if colon and kind in ("tied", "ref") else f"item {item.id}"


def _shares(sizes: dict[str, int], size: int) -> dict[str, int]:
    """How many of each subset: in proportion, the largest remainders first, at least one of each."""
    total = sum(sizes.values())
    exact = {name: own * size / total for name, own in sizes.items()}
    shares = {name: max(1, int(number)) for name, number in exact.items()}
    rest = size - sum(shares.values())
    for name in sorted(exact, key=lambda name: shares[name] - exact[name])[: max(0, rest)]:
        shares[name] += 1
    while rest < 0:  # small subsets were rounded up
        largest = max(shares, key=lambda name: shares[name] - exact[name] if shares[name] > 1 else float("-inf"))
        shares[largest] -= 1
        rest += 1
    return shares
