"""Rewards by token and by step: they add up to the response's reward, wherever tokens and steps begin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdr_plugin.api.types import Message, Reduction, Sample, Score
from gdr_plugin.arithmetic.steps import Step, cut, step_rewards
from gdr_plugin.reward.reward import GuidedDensityRatio

PROMPT = (Message("user", "Add 17 and 25."),)
ANSWER = "First add the tens: 30.\n\nThen the units: 12 — zwölf.\n  So it is 42. 👍"


def made(offsets: tuple[tuple[int, int], ...], strong: tuple[float, ...], reduction: Reduction = "sum") -> Score:
    """A score whose weak model gives every token -1, with the same tokens on both sides."""
    weak = (-1.0,) * len(strong)
    totals = math.fsum(strong), math.fsum(weak)
    return Score(
        *(totals[0] - totals[1], None, *totals, len(strong), len(strong), "all", "default", "none"),
        strong_token_logprobs=strong,
        weak_token_logprobs=weak,
        strong_token_offsets=offsets,
        weak_token_offsets=offsets,
        reduction=reduction,
    )


@pytest.mark.parametrize("reduction", ["sum", "mean", "per_byte"])
def test_tokens_and_steps_add_up(reduction: Reduction) -> None:
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b", reduction=reduction)
    (score,) = ratio.score([Sample(PROMPT, ANSWER)], tokens=True)
    assert score.reward is not None
    assert score.token_rewards is not None
    assert len(score.token_rewards) == score.strong_tokens == len(ANSWER.encode()) + 1  # the end of turn included
    assert math.fsum(score.token_rewards) == pytest.approx(score.reward, abs=1e-6)
    for by in ("line", ". ", "zw", "absent"):
        steps = step_rewards(score, ANSWER, by=by)
        assert steps is not None
        assert math.fsum(step.reward for step in steps) == pytest.approx(score.reward, abs=1e-6)
        assert "".join(step.text for step in steps) == ANSWER


@pytest.mark.parametrize("reduction", ["sum", "mean", "per_byte"])
def test_models_with_different_tokenizers(tiny_model: Callable[..., Path], reduction: Reduction) -> None:
    ratio = GuidedDensityRatio.from_models(str(tiny_model()), "fake:b", reduction=reduction)
    (score,) = ratio.score([Sample(PROMPT, ANSWER)], tokens=True)
    assert score.reward is not None
    assert score.token_ratios is score.token_rewards is None
    assert score.strong_token_offsets is not None
    assert score.strong_tokens == len(score.strong_token_offsets) < score.weak_tokens
    steps = step_rewards(score, ANSWER)
    assert steps is not None
    assert [step.text.split()[0] for step in steps] == ["First", "Then", "So"]
    assert math.fsum(step.reward for step in steps) == pytest.approx(score.reward, abs=1e-6)
    assert len({round(step.reward, 6) for step in steps}) == 3


def test_a_token_counts_to_the_step_in_which_it_begins() -> None:
    text = "ab\ncd"
    # `b`, newline and `c` are one token: it begins in the first line; so does the second line's share of it.
    score = made(((0, 1), (1, 4), (4, 5), (5, 5)), (-0.5, -4.0, -0.25, -3.0))
    assert step_rewards(score, text) == [Step("ab\n", 0, 3, 0.5 - 3.0), Step("cd", 3, 5, 0.75 - 2.0)]
    assert step_rewards(score, text, by="c") == [Step("ab\nc", 0, 4, 0.5 - 3.0), Step("d", 4, 5, 0.75 - 2.0)]


def test_each_models_tokens_are_placed_by_themselves() -> None:
    text = "ab\ncd\nef"
    score = Score(
        *(-30.0 / 4 + 6.0 / 3, None, -30.0, -6.0, 4, 3, "all", "default", "none"),
        strong_token_logprobs=(-2.0, -4.0, -8.0, -16.0),
        weak_token_logprobs=(-1.0, -2.0, -3.0),
        strong_token_offsets=((0, 3), (3, 5), (5, 7), (7, 8)),
        weak_token_offsets=((0, 2), (2, 6), (6, 8)),
        reduction="mean",
    )
    # Of the weak model's tokens two begin in the first line, none in the second, one in the third.
    steps = step_rewards(score, text)
    assert steps == [
        Step("ab\n", 0, 3, -2.0 / 4 + 3.0 / 3),
        Step("cd\n", 3, 6, (-4.0 - 8.0) / 4),
        Step("ef", 6, 8, -16.0 / 4 + 3.0 / 3),
    ]
    assert math.fsum(step.reward for step in steps) == score.reward


def test_units_of_steps_are_those_of_the_reward() -> None:
    score = made(((0, 1), (1, 2)), (-2.0, -4.0), "mean")
    assert step_rewards(score, "ab") == [Step("ab", 0, 2, (-6.0 + 2.0) / 2)]


def test_empty_response_is_one_step() -> None:
    score = made(((0, 0),), (-3.0,))
    assert step_rewards(score, "") == [Step("", 0, 0, -2.0)]


@pytest.mark.parametrize(
    ("text", "by", "steps"),
    [
        ("one\ntwo", "line", ["one\n", "two"]),
        ("\n\none\n\n \ntwo\n", "line", ["\n\none\n\n \n", "two\n"]),
        ("one\r\ntwo", "line", ["one\r\n", "two"]),
        ("a\nb\n\nc\n\n\n\nd", "\n\n", ["a\nb\n\n", "c\n\n\n\n", "d"]),
        ("One. Two. Three.", ". ", ["One. ", "Two. ", "Three."]),
        ("\n \n", "line", ["\n \n"]),
        ("none", ";", ["none"]),
        ("", "line", [""]),
    ],
)
def test_cut(text: str, by: str, steps: list[str]) -> None:
    assert [text[start:stop] for start, stop in cut(text, by=by)] == steps


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab \n.;\N{SNOWMAN}"), max_size=30), st.sampled_from(["line", "\n\n", ";", "ab", "."]))
def test_cut_loses_nothing(text: str, by: str) -> None:
    spans = cut(text, by=by)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    assert [start for start, _ in spans[1:]] == [stop for _, stop in spans[:-1]]
    (score,) = GuidedDensityRatio.from_models("fake:a", "fake:b").score([Sample(PROMPT, text)], tokens=True)
    steps = step_rewards(score, text, by=by)
    assert steps is not None
    assert math.fsum(step.reward for step in steps) == pytest.approx(score.reward, abs=1e-6)


def test_lines_are_the_default() -> None:
    assert cut("one\ntwo") == [(0, 4), (4, 7)]


@pytest.mark.parametrize("missing", ["strong_token_logprobs", "weak_token_logprobs", "reduction"])
def test_a_score_that_lacks_one_part_of_its_tokens_is_refused(missing: str) -> None:
    score = made(((0, 1), (1, 2)), (-2.0, -4.0))
    with pytest.raises(ValueError, match="score with tokens=True"):
        step_rewards(replace(score, **{missing: None}), "ab")


@pytest.mark.parametrize("side", ["strong", "weak"])
def test_one_model_without_offsets_is_enough_to_refuse(side: str) -> None:
    score = made(((0, 1), (1, 2)), (-2.0, -4.0))
    with pytest.raises(ValueError, match="does not say where tokens are"):
        step_rewards(replace(score, **{f"{side}_token_offsets": None}), "ab")


@pytest.mark.parametrize("side", ["strong", "weak"])
def test_a_token_behind_the_responses_end_belongs_to_another_response(side: str) -> None:
    score = made(((0, 1), (1, 2)), (-2.0, -4.0))
    longer: dict[str, Any] = {f"{side}_token_offsets": ((0, 1), (1, 3))}  # by one character
    with pytest.raises(ValueError, match="another response"):
        step_rewards(replace(score, **longer), "ab")
    assert step_rewards(replace(score, **longer), "abc") is not None


def test_a_place_for_every_log_prob() -> None:
    with pytest.raises(ValueError, match="shorter"):
        step_rewards(made(((0, 1),), (-2.0, -4.0)), "ab")


def test_what_cannot_be_divided() -> None:
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b")
    (plain,) = ratio.score([Sample(PROMPT, ANSWER)])
    assert plain.reduction is plain.token_rewards is plain.strong_token_offsets is None
    with pytest.raises(ValueError, match="score with tokens=True"):
        step_rewards(plain, ANSWER)
    (score,) = ratio.score([Sample(PROMPT, ANSWER)], tokens=True)
    with pytest.raises(ValueError, match="another response"):
        step_rewards(score, ANSWER[:10])
    with pytest.raises(ValueError, match="the text is empty"):
        step_rewards(score, ANSWER, by="")
    unscored = Score(None, "why", None, None, 0, 0, "all", "default", "none")
    assert step_rewards(unscored, ANSWER) is None
