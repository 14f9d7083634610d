"""The policy for responses that were not scored: what may be written, and what a trainer then gets."""

from __future__ import annotations

import math

import pytest

from gdr_plugin.api.errors import ConfigError, DataError
from gdr_plugin.api.unscored import RAISE, Unscored


@pytest.mark.parametrize(
    ("given", "action", "number"),
    [
        ("raise", "raise", 0.0),
        ("none", "none", 0.0),
        ("-3", "number", -3.0),
        (-2.5, "number", -2.5),
        (0, "number", 0.0),
    ],
)
def test_what_may_be_written(given: object, action: str, number: float) -> None:
    policy = Unscored.of(given, masks=True)
    assert (policy.action, policy.number) == (action, number)
    assert Unscored.of(policy, masks=True) is policy


@pytest.mark.parametrize("given", ["nan", "inf", math.inf, math.nan, "zero", "", None, True, [1.0]])
def test_everything_else_is_refused(given: object) -> None:
    with pytest.raises(ConfigError, match="--unscored must be raise, none or a number, not"):
        Unscored.of(given, masks=True, name="--unscored")


def test_none_needs_a_trainer_that_masks() -> None:
    with pytest.raises(ConfigError, match="turns a missing reward into 0"):
        Unscored.of("none")


def test_a_reward_passes_unchanged_and_a_missing_one_follows_the_policy() -> None:
    for policy in (RAISE, Unscored("none"), Unscored("number", -4.0)):
        assert policy.reward(0.0, None, "item 2") == 0.0
    assert Unscored("none").reward(None, "too long", "item 2") is None
    assert Unscored("number", -4.0).reward(None, "too long", "item 2") == -4.0
    with pytest.raises(DataError, match="item 2 was not scored: too long"):
        RAISE.reward(None, "too long", "item 2")


def test_as_text() -> None:
    assert [str(policy) for policy in (RAISE, Unscored("none"), Unscored("number", -4.0))] == ["raise", "none", "-4"]
