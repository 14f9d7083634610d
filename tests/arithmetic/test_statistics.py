"""Intervals and correlations against hand computation and against other ways to compute them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gdr_plugin.arithmetic.statistics import (
    Column,
    Estimate,
    Resampled,
    average,
    correlation,
    difference,
    pearson,
    ranks,
    ratios,
    share,
)


def known(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


def known_draws(resampled: Resampled | None) -> Column:
    assert resampled is not None
    return resampled.draws


def test_a_share_is_the_mean_and_its_interval_that_of_a_binomial() -> None:
    worths = [1.0] * 60 + [0.0] * 40
    found = known(share(worths))
    assert (found.value, found.n) == (0.6, 100)
    # Exact percentiles of Binomial(100, 0.6) / 100.
    assert (found.low, found.high) == (0.5, 0.7)


def test_ties_count_half_and_what_was_not_scored_is_left_out() -> None:
    found = known(share([1.0, 0.5, None, 0.0, float("nan")]))
    assert (found.value, found.n) == (0.5, 3)


def test_a_share_is_the_same_in_every_run_and_differs_by_seed() -> None:
    worths = list(np.random.default_rng(3).random(50))
    assert share(worths) == share(worths)
    assert share(worths) != share(worths, seed=1)


def test_weights() -> None:
    found = known(share([1.0, 0.0], weights=[3.0, 1.0]))
    assert found.value == 0.75
    assert (found.low, found.high) == (0.0, 1.0)
    assert share([1.0, 0.0], weights=[0.0, 0.0]) is None


def test_no_items_give_no_estimate() -> None:
    assert share([]) is None
    assert share([None, None]) is None
    assert pearson([], []) is None
    assert difference([None], [1.0]) is None


def test_counts_of_values_are_resampled_as_items_would_be() -> None:
    worths = np.random.default_rng(0).choice([0.0, 0.5, 1.0], size=200)
    quick = known(share(worths))
    low, high = np.percentile(np.random.default_rng(1).choice(worths, size=(10_000, 200)).mean(axis=1), [2.5, 97.5])
    assert quick.value == pytest.approx(worths.mean())
    assert (quick.low, quick.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))


def test_the_interval_covers_the_truth_in_about_95_of_100_samples() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        found = known(share((rng.random(100) < 0.65).astype(float), seed=seed))
        covered += found.low <= 0.65 <= found.high
    assert 180 <= covered <= 199


def test_a_paired_difference_drops_items_that_lack_one_side() -> None:
    found = known(difference([1.0, 1.0, None, 0.0], [0.0, 1.0, 1.0, 0.0]))
    assert found.value == pytest.approx(1 / 3)
    assert found.n == 3


def test_a_paired_difference_is_narrower_than_two_separate_intervals() -> None:
    rng = np.random.default_rng(2)
    first = (rng.random(300) < 0.6).astype(float)
    second = np.where(rng.random(300) < 0.1, 1 - first, first)
    paired, alone = known(difference(first, second)), known(share(first))
    assert paired.high - paired.low < alone.high - alone.low


def test_correlations_by_hand() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 5.0]
    assert known(pearson(x, y)).value == pytest.approx(6.5 / math.sqrt(5 * 8.75))
    assert known(pearson(x, [-one for one in y])).value == pytest.approx(-6.5 / math.sqrt(5 * 8.75))
    assert correlation(ranks(np.array(x)), ranks(np.array(y))) == 1.0
    tied = ranks(np.array([1.0, 2.0, 2.0, 9.0]))
    assert tied.tolist() == [1.0, 2.5, 2.5, 4.0]
    assert correlation(tied, np.array(x)) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_a_column_that_does_not_vary_has_no_correlation() -> None:
    assert pearson([0.1] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert pearson([1.0, 2.0], [1.0, 2.0]) is None
    assert known(pearson([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])).value == pytest.approx(0.5)  # three are enough


def test_a_correlation_of_small_numbers_is_found() -> None:
    x = np.random.default_rng(0).random(50)
    assert known(pearson(x * 1e-9, x * 1e-9)).value == pytest.approx(1.0)


def test_a_small_spread_around_a_large_mean_is_no_rounding_error() -> None:
    x, y = np.array([0.0, 10.0, 20.0, 30.0, 40.0]), np.array([0.0, 10.0, 10.0, 20.0, 30.0])
    by_hand = correlation(x, y)
    assert by_hand == pytest.approx(700 / math.sqrt(1000 * 520))
    assert correlation(x + 1e6, y - 1e6) == pytest.approx(by_hand, rel=1e-9)
    assert known(pearson(x + 1e6, y - 1e6)).value == pytest.approx(by_hand, rel=1e-9)


def test_rounding_errors_of_a_large_constant_are_no_spread() -> None:
    wobble = np.array([0.0, 1.0, -1.0, 1.0, 0.0]) * np.spacing(1e6)
    assert correlation(1e6 + wobble, np.arange(5.0)) is None
    assert correlation(np.arange(5.0), 1e6 + wobble) is None


def test_the_seed_is_zero_unless_given() -> None:
    x, y = np.random.default_rng(5).random((2, 40))
    assert share(x) == share(x, seed=0) != share(x, seed=1)
    assert difference(x, y) == difference(x, y, seed=0) != difference(x, y, seed=1)
    assert pearson(x, y) == pearson(x, y, seed=0) != pearson(x, y, seed=1)
    drawn = [ratios([x], [y], **seed) for seed in ({}, {"seed": 0}, {"seed": 1})]
    assert [np.array_equal(known_draws(drawn[0]), known_draws(other)) for other in drawn] == [True, True, False]


@pytest.mark.parametrize("chunk", [1, 100, 4_000_000])
def test_how_many_are_drawn_at_a_time_changes_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.random.default_rng(6).random((2, 20))
    whole, correlated = ratios([x], [y]), pearson(x, y)
    monkeypatch.setattr("gdr_plugin.arithmetic.statistics._CHUNK", chunk)
    np.testing.assert_allclose(known_draws(ratios([x], [y])), known_draws(whole), rtol=1e-12)
    found, before = known(pearson(x, y)), known(correlated)
    assert (found.low, found.high) == (pytest.approx(before.low), pytest.approx(before.high))


def test_a_share_is_resampled_ten_thousand_times() -> None:
    assert known_draws(ratios([[1.0, 0.0]], [[1.0, 1.0]])).shape == (10_000,)


def test_an_interval_of_a_correlation_is_the_percentiles_of_its_resamples() -> None:
    x, y = np.random.default_rng(7).normal(size=(2, 30))
    drawn = np.random.default_rng(0).integers(0, 30, (2_000, 30))
    values = [np.corrcoef(x[places], y[places])[0, 1] for places in drawn]
    low, high = np.percentile(values, [2.5, 97.5])
    found = known(pearson(x, y))
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))
    assert (found.value, found.n) == (pytest.approx(np.corrcoef(x, y)[0, 1]), 30)


def test_a_correlation_stays_within_its_bounds() -> None:
    x, y = np.array([0.6, 0.3, 0.0, 0.0]), np.array([2.4599999999999995, 1.2299999999999998, 0.0, 0.0])
    a, b = x - x.mean(), y - y.mean()
    assert (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()) > 1  # by rounding
    assert correlation(x, y) == 1.0
    assert correlation(x, -y) == -1.0


def test_resamples_without_weight_are_left_out_of_the_interval() -> None:
    # One item in five carries weight: a third of the resamples miss it and say nothing.
    found = ratios([[3.0, 0.0, 0.0, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0, 0.0]])
    assert np.isnan(known_draws(found)).mean() == pytest.approx(0.8**5, abs=0.02)
    assert found is not None
    assert found.estimate == Estimate(3.0, 3.0, 3.0, 5)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="different lengths: 2, 3"):
        pearson([1.0, 2.0], [1.0, 2.0, 3.0])


def test_a_sum_of_ratios_and_averages_of_parts() -> None:
    whole = ratios([[1, 0, 1, 1], [1, 1, 0, 0]], [[1, 1, 1, 1], [1, 1, 0, 0]], (0.5, 0.25))
    assert whole is not None
    assert whole.value == 0.5 * 0.75 + 0.25
    assert ratios([[0.0]], [[0.0]]) is None
    one, other = ratios([[1.0] * 30], [[1.0] * 30]), ratios([[1.0, 0.0] * 50], [[1.0] * 100], seed=1)
    mean = average([(1.0, one), (3.0, other), (5.0, None)])
    assert mean is not None
    assert mean.value == pytest.approx((1 + 3 * 0.5) / 4)
    assert mean.n == 130
    assert mean.estimate.high - mean.estimate.low == pytest.approx(0.75 * 2 * 1.96 * 0.05, abs=0.01)
    assert average([(1.0, None)]) is None
