"""Samples of preference data: shares of subsets, seeds, and what belongs together."""

from __future__ import annotations

from collections import Counter

import pytest

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Message
from gdr_plugin.data.item import Item
from gdr_plugin.data.responses import said
from gdr_plugin.data.sampled import sampled


def item(id: str, subset: str) -> Item:
    return Item(id, (Message("user", id),), (said("a"),), (said("b"),), None, subset)


ITEMS = [item(f"{name}{n}", name) for name, size in (("a", 100), ("b", 60), ("c", 3)) for n in range(size)]


@pytest.mark.parametrize(("size", "shares"), [(40, (24, 15, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (163, (100, 60, 3))])
def test_every_subset_has_its_share(size: int, shares: tuple[int, int, int]) -> None:
    found = Counter(one.subset for one in sampled(ITEMS, size))
    assert (found["a"], found["b"], found["c"]) == shares


def test_a_seed_decides_and_the_order_stays() -> None:
    first, again, other = sampled(ITEMS, 40, seed=1), sampled(ITEMS, 40, seed=1), sampled(ITEMS, 40, seed=2)
    assert first == again
    assert first != other
    assert [ITEMS.index(one) for one in first] == sorted(ITEMS.index(one) for one in first)
    assert {one.id for one in first if one.subset == "a"} <= {one.id for one in sampled(ITEMS, 80, seed=1)}


def test_tied_questions_are_drawn_with_their_reference() -> None:
    ties = [item(f"{kind}:{n}", "Ties") for n in range(20) for kind in ("tied", "ref")]
    found = sampled(ties, 10)
    assert len(found) == 10
    assert set(Counter(one.id.partition(":")[2] for one in found).values()) == {2}


def test_fewer_items_than_subsets_are_refused() -> None:
    with pytest.raises(DataError, match="--sample 2: the data have 3 subsets"):
        sampled(ITEMS, 2)
