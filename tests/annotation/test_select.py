"""Which candidates make a pair: selectors and filters, with numbers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdr_plugin.annotation.filters import IDENTICAL, NO_MARGIN, SMALL_MARGIN, UNBALANCED, Filters, Picked, choose
from gdr_plugin.annotation.selectors import MaxMin, MaxRandom, TopK, builtin_selectors, find_selector
from gdr_plugin.api.errors import ConfigError, PluginError
from gdr_plugin.api.selectors import Candidate, Selector

KNOWN = {selector.name: selector for selector in builtin_selectors()}


def made(*rewards: float, tokens: int = 10) -> list[Candidate]:
    return [Candidate(f"text {number}", reward, tokens) for number, reward in enumerate(rewards)]


def test_max_min_takes_best_and_worst() -> None:
    assert MaxMin().select(made(1.0, -2.0, 5.0, 3.0), random.Random(0)) == [(2, 1)]


def test_top_k_pairs_by_rank() -> None:
    candidates = made(1.0, -2.0, 5.0, 3.0, 0.0)
    assert TopK(k=1).select(candidates, random.Random(0)) == [(2, 1)]
    assert TopK(k=2).select(candidates, random.Random(0)) == [(2, 1), (3, 4)]
    assert TopK(k=9).select(candidates, random.Random(0)) == [(2, 1), (3, 4)]


def test_max_random_draws_every_other_equally_often() -> None:
    candidates = made(1.0, 9.0, 2.0, 3.0)
    drawn = [MaxRandom().select(candidates, random.Random(seed))[0] for seed in range(3000)]
    assert {chosen for chosen, _ in drawn} == {1}
    for other in (0, 2, 3):
        assert sum(rejected == other for _, rejected in drawn) == pytest.approx(1000, abs=120)


def test_equal_rewards_keep_the_input_order() -> None:
    assert TopK(k=2).select(made(1.0, 1.0, 1.0, 1.0), random.Random(0)) == [(0, 3), (1, 2)]


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12), st.integers(0, 5), st.sampled_from(["top-k:3", *KNOWN]))
def test_pairs_are_valid_and_ordered(rewards: list[float], seed: int, name: str) -> None:
    candidates = made(*rewards)
    pairs = find_selector(name, KNOWN).select(candidates, random.Random(seed))
    assert pairs
    for chosen, rejected in pairs:
        assert chosen != rejected
        assert candidates[chosen].reward >= candidates[rejected].reward
    margins = [candidates[chosen].reward - candidates[rejected].reward for chosen, rejected in pairs]
    assert margins == sorted(margins, reverse=True)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.floats(-9, 9), st.integers(1, 40)), min_size=0, max_size=10),
    st.floats(0, 5),
    st.none() | st.floats(1, 4),
    st.sampled_from(["top-k:3", *KNOWN]),
)
def test_every_pair_passes_the_filters(
    rows: list[tuple[str, float, int]], margin: float, balance: float | None, name: str
) -> None:
    candidates = [Candidate(*row) for row in rows]
    choice = choose(candidates, find_selector(name, KNOWN), Filters(margin, balance), random.Random(0))
    assert (choice.reason is None) == bool(choice.pairs)
    for chosen, rejected in choice.pairs:
        good, bad = candidates[chosen], candidates[rejected]
        assert good.response != bad.response
        assert good.reward - bad.reward >= margin
        assert good.reward > bad.reward
        if balance is not None:
            assert max(good.tokens, bad.tokens) <= balance * min(good.tokens, bad.tokens)


def reason(candidates: list[Candidate], filters: Filters | None = None) -> str | None:
    return choose(candidates, MaxMin(), filters or Filters(), random.Random(0)).reason


def test_reasons_for_no_pair() -> None:
    assert reason([]) == reason(made(1.0)) == "fewer than two scored candidates"
    assert reason([Candidate("a b", 1.0, 2), Candidate(" a\n b ", 2.0, 3)]) == IDENTICAL
    assert reason(made(2.0, 2.0)) == NO_MARGIN
    assert reason(made(2.0, 1.5), Filters(min_margin=0.6)) == SMALL_MARGIN
    assert reason(made(2.0, 1.5), Filters(min_margin=0.5)) is None
    uneven = [Candidate("a", 1.0, 10), Candidate("b", 0.0, 21)]
    assert reason(uneven, Filters(length_balance=2.0)) == UNBALANCED
    assert reason(uneven, Filters(length_balance=2.1)) is None


def test_copies_of_a_text_count_once_and_indices_refer_to_the_input() -> None:
    candidates = [Candidate("x", 5.0, 1), Candidate("x ", 9.0, 1), Candidate("y", 1.0, 1), Candidate("z", 0.0, 1)]
    assert choose(candidates, TopK(k=2), Filters(), random.Random(0)) == Picked(((0, 3),), None)


def test_a_selector_that_returns_nonsense_is_named() -> None:
    class Broken:
        name = "broken"

        def select(self, candidates: object, rng: random.Random) -> list[tuple[int, int]]:
            return [(0, 7)]

    with pytest.raises(PluginError, match=r"'broken' returned \(0, 7\) for 2 candidates"):
        choose(made(1.0, 2.0), Broken(), Filters(), random.Random(0))


def test_names_and_options() -> None:
    assert all(isinstance(selector, Selector) for selector in builtin_selectors())
    assert find_selector("top-k:3", KNOWN) == TopK(k=3)
    assert find_selector("top-k", KNOWN) == TopK(k=2)
    with pytest.raises(ConfigError, match=r"unknown selector 'max-mni'.*did you mean 'max-min'"):
        find_selector("max-mni", KNOWN)
    with pytest.raises(ConfigError, match="'max-min' takes no option"):
        find_selector("max-min:2", KNOWN)
    for wrong in ("", "0", "-1", "two", "1.5"):
        with pytest.raises(ConfigError, match="takes a whole number"):
            find_selector(f"top-k:{wrong}", KNOWN)


@pytest.mark.parametrize("filters", [{"min_margin": -1.0}, {"min_margin": float("nan")}, {"length_balance": 0.5}])
def test_impossible_filters_are_refused(filters: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="or more"):
        Filters(**filters)
