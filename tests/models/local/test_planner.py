from __future__ import annotations

import time
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdr_plugin.api.types import TokenSpan
from gdr_plugin.models.local.planner import Budget, DistinctSpan, Pack, distinct, plan_cached, plan_padded
from gdr_plugin.models.local.prefixes import SHORTEST_PREFIX, Ids, _clusters

# Few distinct ids and fixed stems make shared prefixes, duplicates and contexts that begin one another likely.
STEMS = [tuple(range(40)), tuple(range(20)), (*range(20), *range(60, 90)), (7,) * 18]
tails = st.lists(st.integers(0, 2), max_size=6).map(tuple)
contexts = st.builds(lambda stem, tail: (*stem, *tail) or (1,), st.sampled_from([(), *STEMS]), tails)
responses = st.lists(st.integers(0, 2), max_size=9).map(tuple)
span_lists = st.lists(st.builds(TokenSpan, contexts, responses), max_size=24)
budgets = st.builds(Budget, st.sampled_from([1, 7, 32, 100, 4096]), st.booleans())


def scored(packs: list[Pack]) -> list[tuple[int, Ids, Ids]]:
    return sorted(
        (place, pack.context(row), row.response) for pack in packs for row in pack.rows for place in row.places
    )


def asked(spans: list[TokenSpan]) -> list[tuple[int, Ids, Ids]]:
    return [(place, span.context, span.response) for place, span in enumerate(spans) if span.response]


@given(span_lists, budgets, st.lists(contexts, max_size=3), st.lists(contexts, max_size=3))
@settings(deadline=None, max_examples=60)
def test_shared_plan_scores_every_span_once(
    spans: list[TokenSpan], budget: Budget, known: list[Ids], seen: list[Ids]
) -> None:
    packs = plan_cached(distinct(spans), budget, known, seen)
    assert scored(packs) == asked(spans)
    for pack in packs:
        assert all(pack.tails), "a context needs a token of its own behind the prefix"
        assert {row.tail for row in pack.rows} == set(range(len(pack.tails)))
        run = sorted(place for batch in pack.batches for place in batch)
        assert run == [place for place, row in enumerate(pack.rows) if len(row.response) > 1]
        assert budget.merge or len(pack.tails) == 1


@given(span_lists, budgets)
@settings(deadline=None, max_examples=60)
def test_padded_plan_scores_every_span_once(spans: list[TokenSpan], budget: Budget) -> None:
    packs = plan_padded(distinct(spans), budget)
    assert scored(packs) == asked(spans)
    for pack in packs:
        longest = max(len(pack.context(row)) + len(row.response) - 1 for row in pack.rows)
        assert len(pack.rows) == 1 or longest * len(pack.rows) <= budget.tokens


@given(span_lists, budgets)
@settings(deadline=None, max_examples=60)
def test_no_forward_exceeds_the_budget_unless_one_sequence_does(spans: list[TokenSpan], budget: Budget) -> None:
    for pack in plan_cached(distinct(spans), budget):
        longest = max(map(len, pack.tails))
        assert len(pack.tails) == 1 or longest * len(pack.tails) <= budget.tokens
        for batch in pack.batches:
            width = max(len(pack.rows[place].response) - 1 for place in batch)
            assert len(batch) == 1 or width * len(batch) <= budget.tokens


@given(span_lists)
@settings(deadline=None, max_examples=60)
def test_plans_depend_on_nothing_but_their_input(spans: list[TokenSpan]) -> None:
    assert plan_cached(distinct(spans), Budget(64)) == plan_cached(distinct(spans), Budget(64))


@given(st.lists(contexts, max_size=7, unique=True))
@settings(deadline=None, max_examples=60)
def test_clusters_save_about_as_much_as_any_cut_of_the_sorted_contexts(found: list[Ids]) -> None:
    order = sorted(found)

    def shared(start: int, stop: int) -> int:
        columns = zip(*order[start:stop], strict=False)
        return next((i for i, column in enumerate(columns) if len(set(column)) > 1), min(map(len, order[start:stop])))

    def saved(start: int, stop: int) -> int:
        depth = shared(start, stop) if stop - start > 1 else 0
        return depth * (stop - start - 1) if depth >= SHORTEST_PREFIX else 0

    @cache
    def best(start: int) -> int:
        return max((saved(start, stop) + best(stop) for stop in range(start + 1, len(order) + 1)), default=0)

    cut = _clusters(order)
    assert sorted(place for places, _ in cut for place in places) == list(range(len(order)))
    for places, depth in cut:
        assert depth == 0 or len({order[place][:depth] for place in places}) == 1
    # Bottom-up grouping is not always the best there is; it is never far from it.
    assert sum(depth * (len(places) - 1) for places, depth in cut) >= 0.9 * best(0)


GUIDANCE = tuple(range(100, 160))


def span(*tail: int, response: Ids = (1, 2, 3)) -> DistinctSpan:
    return DistinctSpan((*GUIDANCE, *tail), response, (0,))


def test_guidance_is_the_prefix_of_its_prompts() -> None:
    packs = plan_cached([span(1, 2), span(3), span(4, 5, 6)], Budget(2048))
    assert {pack.prefix for pack in packs} == {GUIDANCE}
    assert sorted(pack.tails for pack in packs) == [((1, 2),), ((3,),), ((4, 5, 6),)]


def test_a_kept_prefix_is_used_when_prompts_happen_to_begin_alike() -> None:
    packs = plan_cached([span(9, 1), span(9, 2)], Budget(2048), known=[GUIDANCE])
    assert {pack.prefix for pack in packs} == {GUIDANCE}


def test_a_kept_prefix_gives_way_to_a_much_longer_one() -> None:
    more = tuple(range(200, 240))
    packs = plan_cached([span(*more, 1), span(*more, 2)], Budget(2048), known=[GUIDANCE])
    assert {pack.prefix for pack in packs} == {GUIDANCE + more}


def test_a_lone_prompt_shares_with_what_was_seen_before() -> None:
    assert plan_cached([span(1)], Budget(2048))[0].prefix == ()
    assert plan_cached([span(1)], Budget(2048), seen=[(*GUIDANCE, 5, 6)])[0].prefix == GUIDANCE
    assert plan_cached([span(1)], Budget(2048), known=[GUIDANCE])[0].prefix == GUIDANCE


def test_a_context_that_begins_another_keeps_a_token_of_its_own() -> None:
    packs = plan_cached([span(), span(1)], Budget(2048))
    assert {pack.prefix for pack in packs} == {GUIDANCE[:-1]}


def test_responses_of_one_prompt_share_its_forward_and_are_padded_little() -> None:
    lengths = [180, 163, 146, 129, 112, 95, 78, 61]
    spans = [span(1, response=(1,) * length) for length in lengths]
    (pack,) = plan_cached(spans, Budget(2048))
    inputs = [[len(pack.rows[place].response) - 1 for place in batch] for batch in pack.batches]
    padded = sum(max(batch) * len(batch) for batch in inputs)
    assert padded <= 1.2 * sum(map(sum, inputs))


def test_merged_contexts_have_similar_lengths() -> None:
    spans = [span(length, *range(length - 1)) for length in (1, 2, 3, 400, 401)]
    packs = plan_cached(spans, Budget(2048, merge=True))
    assert sorted(sorted(map(len, pack.tails)) for pack in packs) == [[1, 2, 3], [400, 401]]


@pytest.mark.parametrize("same", [True, False])
def test_planning_a_window_takes_no_time_to_speak_of(same: bool) -> None:
    stem = tuple(range(500))
    spans = [TokenSpan((*stem[: None if same else i % 400], i, i + 1), tuple(range(i % 150 + 1))) for i in range(2000)]
    start = time.process_time()
    plan_cached(distinct(spans), Budget(2048))
    assert time.process_time() - start < 2
