"""Which margins are under the rounding error: by dtype, length and reduction."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gdr_plugin.arithmetic.noise import SURE, TOKEN_ERROR, RewardNoise


def test_the_coarser_precision_counts_and_an_unknown_one_leaves_it_open() -> None:
    assert RewardNoise.of(["float32", "bfloat16"], "sum") == RewardNoise(TOKEN_ERROR["bfloat16"], "sum")
    assert RewardNoise.of(["float32", None], "sum") is None
    assert RewardNoise.of(["float32", "float8"], "sum") is None
    assert RewardNoise.of([], "sum") is None
    assert TOKEN_ERROR["float32"] < TOKEN_ERROR["float16"] < TOKEN_ERROR["bfloat16"]


def test_the_error_grows_with_the_root_of_the_length() -> None:
    noise = RewardNoise(0.05, "sum")
    assert noise.response_sd("x", 100) == pytest.approx(0.5)
    assert noise.response_sd("x", 400) == pytest.approx(1.0)


def test_the_error_has_the_unit_of_the_reduction() -> None:
    text, tokens = "größer", 4
    assert RewardNoise(0.05, "mean").response_sd(text, tokens) == pytest.approx(0.05 * 2 / 4)
    assert RewardNoise(0.05, "per_byte").response_sd(text, tokens) == pytest.approx(0.05 * 2 / 8)
    assert RewardNoise(0.05, "mean").response_sd("", 0) == 0.0
    assert RewardNoise(0.05, "per_byte").response_sd("\ud800", 4) == pytest.approx(0.05 * 2 / 3)  # half a character
    assert RewardNoise.of(["float32 by tf32", "float32 by tf32"], "sum") is None


@pytest.mark.parametrize("reduction", ["sum", "mean", "per_byte"])
def test_a_margin_is_hidden_up_to_three_standard_deviations_of_both(reduction: Any) -> None:
    noise = RewardNoise(0.05, reduction)
    chosen, rejected = ("a longer answer", 9), ("short", 4)
    edge = SURE * math.hypot(noise.response_sd(*chosen), noise.response_sd(*rejected))
    assert noise.hides(edge * 0.999, chosen, rejected)
    assert noise.hides(-edge * 0.999, chosen, rejected)
    assert not noise.hides(edge * 1.001, chosen, rejected)


@pytest.mark.parametrize(("dtype", "sd"), [("float32", 1.3e-4), ("float16", 0.10), ("bfloat16", 0.51)])
def test_the_measured_error_of_a_hundred_tokens(dtype: str, sd: float) -> None:
    noise = RewardNoise.of([dtype, dtype], "sum")
    assert noise is not None
    assert noise.response_sd("x", 100) == pytest.approx(sd)


def test_a_margin_at_the_edge_is_not_hidden() -> None:
    # 3 x hypot(3, 4) / 16 = 15 / 16: every step is exact.
    noise, chosen, rejected = RewardNoise(1 / 16, "sum"), ("a", 9), ("b", 16)
    assert noise.hides(math.nextafter(0.9375, 0), chosen, rejected)
    assert not noise.hides(0.9375, chosen, rejected)
