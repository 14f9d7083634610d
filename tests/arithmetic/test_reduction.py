"""From log-probs to one number: every reduction by hand, and every reason why there is none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from gdr_plugin.api.types import Message, Reduction, Score, TokenSpan
from gdr_plugin.arithmetic.reduction import REDUCTIONS, UNITS, Answer, divisors, reduce, token_details, value
from gdr_plugin.data.item import Item
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.scoring.items import score_items

PROMPT = (Message("user", "Hi"),)


def answer(*logprobs: float, ids: tuple[int, ...] | None = None) -> Answer:
    """An answer with these log-probs; its response ids are counted from 0 unless given."""
    response = ids if ids is not None else tuple(range(len(logprobs)))
    return Answer(np.array(logprobs, dtype=np.float32), TokenSpan((7, 8), response))


STRONG, WEAK = answer(-1.0, -0.5, -2.5), answer(-2.0, -4.0)


@pytest.mark.parametrize(("reduction", "pair"), [("sum", (1, 1)), ("mean", (3, 2)), ("per_byte", (4, 4))])
def test_what_each_side_is_divided_by(reduction: Reduction, pair: tuple[int, int]) -> None:
    assert divisors("ab\N{LATIN SMALL LETTER E WITH ACUTE}", 3, 2, reduction) == pair


def test_every_reduction_has_its_unit() -> None:
    assert get_args(Reduction) == REDUCTIONS
    assert UNITS == {"sum": "nats", "mean": "nats a token", "per_byte": "nats a byte"}


def test_half_a_character_counts_three_bytes_and_an_empty_text_none() -> None:
    assert divisors("\ud800", 1, 1, "per_byte") == (3, 3)
    assert divisors("", 2, 1, "per_byte") == (0, 0)


@pytest.mark.parametrize(("reduction", "reward"), [("sum", 2.0), ("mean", -4.0 / 3 + 6.0 / 2), ("per_byte", 0.25)])
def test_a_reward_by_hand(reduction: Reduction, reward: float) -> None:
    assert reduce("eightbyt", STRONG, WEAK, reduction) == (pytest.approx(reward, abs=0), None)


def test_sums_are_taken_in_double_precision() -> None:
    # In float32 the small terms would vanish beside 2**24.
    many = answer(-16777216.0, *[-0.5] * 64)
    assert many.total == many.finite_total == -16777248.0


@pytest.mark.parametrize(
    ("strong", "weak", "reason"),
    [
        (Answer(reason="strong: too long"), WEAK, "strong: too long"),
        (STRONG, Answer(reason="weak: too long"), "weak: too long"),
        (Answer(reason="strong: too long"), Answer(reason="weak: too long"), "strong: too long"),
        (answer(-1.0, math.nan), WEAK, "strong model: log-probs are not finite (try dtype float32 or bfloat16)"),
        (STRONG, answer(-math.inf), "weak model: log-probs are not finite (try dtype float32 or bfloat16)"),
        (answer(), WEAK, "the response has no tokens to score"),
        (STRONG, answer(), "the response has no tokens to score"),
    ],
)
@pytest.mark.parametrize("reduction", ["sum", "mean", "per_byte"])
def test_no_reward_without_a_number(strong: Answer, weak: Answer, reason: str, reduction: Reduction) -> None:
    assert reduce("text", strong, weak, reduction) == (None, reason)


def test_an_empty_response_has_no_reward_a_byte() -> None:
    assert reduce("", STRONG, WEAK, "per_byte") == (None, "the response is empty: it has no bytes to divide by")
    assert reduce("", STRONG, WEAK, "sum") == (2.0, None)


def test_an_answer_without_numbers_says_so() -> None:
    nothing, overflowed = Answer(reason="why"), answer(-1.0, -math.inf)
    assert (nothing.total, nothing.finite_total, nothing.tokens) == (None, None, 0)
    assert (overflowed.total, overflowed.finite_total, overflowed.tokens) == (-math.inf, None, 2)


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 2), ("per_byte", 4)])
def test_tokens_in_the_rewards_unit(reduction: Reduction, divisor: int) -> None:
    assert token_details("four", answer(-1.0, -0.5), answer(-2.0, -4.0), reduction) == {
        "strong_token_logprobs": (-1.0, -0.5),
        "weak_token_logprobs": (-2.0, -4.0),
        "reduction": reduction,
        "token_ratios": (1.0, 3.5),
        "token_rewards": (1.0 / divisor, 3.5 / divisor),
    }


@pytest.mark.parametrize(
    "weak", [answer(-2.0, -4.0, ids=(0, 2)), answer(-2.0), Answer(np.array([-2.0, -4.0], dtype=np.float32))]
)
def test_tokens_of_other_ids_are_not_subtracted(weak: Answer) -> None:
    found: dict[str, Any] = token_details("four", answer(-1.0, -0.5), weak, "sum")
    assert found.keys() == {"strong_token_logprobs", "weak_token_logprobs", "reduction"}


def test_a_score_is_reduced_again() -> None:
    given = Score(1.0, None, -6.0, -8.0, 3, 4, "chat", "default", "none")
    missing = replace(given, strong_logprob=None)
    assert value(given, "é!") == 2.0
    assert value(given, "é!", reduction="mean") == -6.0 / 3 + 8.0 / 4
    assert value(given, "é!", reduction="per_byte") == pytest.approx(2 / 3)
    assert value(given, "é!", kind="strong", reduction="mean") == -2.0
    assert value(given, "é!", kind="weak") == -8.0
    assert value(given, "", reduction="per_byte") is None
    assert value(missing, "a") is None
    assert value(missing, "a", kind="weak") == -8.0


def test_reduced_again_is_what_the_reward_computes_itself() -> None:
    item = Item("a", PROMPT, ("Yes, of course.", "é"), ("No.", ""), None, "all")
    for reduction in ("sum", "mean", "per_byte"):
        ratio = GuidedDensityRatio.from_models("fake:a", "fake:b", reduction=reduction)
        (scored,) = score_items(ratio, [item])
        for own, response in zip((*scored.chosen, *scored.rejected), (*item.chosen, *item.rejected), strict=True):
            again = value(own, response, reduction=reduction)
            assert (again is None) == (own.reward is None)
            assert own.reward is None or again == pytest.approx(own.reward, rel=1e-12)


@pytest.mark.parametrize(
    "without",
    [
        {"strong_logprob": None}, {"weak_logprob": None}, {"strong_tokens": 0}, {"weak_tokens": 0},
    ],
)  # fmt: skip
@pytest.mark.parametrize("reduction", ["sum", "mean", "per_byte"])
def test_a_score_that_lacks_a_part_has_no_number_that_needs_it(without: dict[str, Any], reduction: Reduction) -> None:
    given = replace(Score(1.0, None, -6.0, -8.0, 3, 4, "chat", "default", "none"), **without)
    lacking = next(iter(without)).partition("_")[0]
    assert value(given, "text", reduction=reduction) is None
    for kind in ("strong", "weak"):
        found = value(given, "text", kind=kind, reduction=reduction)  # type: ignore[arg-type]
        assert (found is None) == (kind == lacking)
