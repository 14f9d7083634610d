from __future__ import annotations

import math

import pytest

from gdr_plugin.tuning.halving import PromptResult
from gdr_plugin.tuning.verdict import HeldOut, compare, judge, sign_test


def results(worths: str) -> list[PromptResult | None]:
    """`1` right, `0` wrong, `=` tied, `-` not scored."""
    value = {"1": 1.0, "0": 0.0, "=": 0.5}
    return [None if one == "-" else PromptResult(value[one], value[one] - 0.5) for one in worths]


def result(tuned: str, unguided: str, configured: str | None = None) -> HeldOut:
    found = compare(results(tuned), results(unguided), results(configured or unguided))
    assert found is not None
    return found


def test_sign_test_by_hand() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(3, 3) == 1.0
    assert sign_test(6, 0) == 2 / 2**6
    assert sign_test(1, 9) == sign_test(9, 1) == 2 * (1 + 10) / 2**10


def test_only_prompts_that_all_three_score_are_compared() -> None:
    found = result("11-10=1", "0100=01", "01-0-01")
    assert (found.tuned.n, found.not_scored) == (5, 2)
    assert found.tuned.value == pytest.approx(4.5 / 5)
    assert found.unguided.value == pytest.approx(2 / 5)
    assert found.gain.value == pytest.approx(2.5 / 5)
    assert (found.better, found.worse) == (3, 0)
    assert compare(results("-1"), results("1-"), results("11")) is None


def test_a_clear_gain_is_recommended() -> None:
    found = result("1" * 18 + "00", "1" * 8 + "0" * 12)
    assert found.gain.value == pytest.approx(0.5)
    assert found.sign_p == 2 / 2**10
    verdict = judge(found, guided=True, configured_guided=False)
    assert verdict.use
    assert "today" not in verdict.because


def test_what_gdr_yaml_has_is_named_when_it_is_as_good() -> None:
    tuned, unguided = "1" * 18 + "00", "1" * 8 + "0" * 12
    assert (
        "not shown to do better" in judge(result(tuned, unguided, tuned), guided=True, configured_guided=True).because
    )
    assert "does better than what" in judge(result(tuned, unguided), guided=True, configured_guided=True).because


@pytest.mark.parametrize(
    ("tuned", "unguided", "says"),
    [
        ("1100110011", "0110110010", "includes 0"),
        ("0000011111", "0000011111", "includes 0"),
        ("0000000011", "1111111111", "worse than no guidance"),
        ("11100000", "00000000", "too few to tell"),  # the bootstrap alone would exclude 0
    ],
)
def test_nothing_is_recommended_without_evidence(tuned: str, unguided: str, says: str) -> None:
    verdict = judge(result(tuned, unguided), guided=True, configured_guided=False)
    assert not verdict.use
    assert says in verdict.because


def test_few_changes_exclude_zero_but_are_not_enough() -> None:
    found = result("11100000", "00000000")
    assert found.gain.low > 0
    assert found.sign_p == 0.25


def test_no_guidance_may_win() -> None:
    assert not judge(result("11", "11"), guided=False, configured_guided=False).use
    assert math.isfinite(result("11", "11").gain.high)
