"""The sentence that an evaluation ends with, on data whose answer is known."""

from __future__ import annotations

import re

import pytest

from gdr_plugin.api.types import Message, Score
from gdr_plugin.data.item import Item, ItemScores
from gdr_plugin.data.responses import said
from gdr_plugin.evaluation.summary import report_of
from gdr_plugin.evaluation.verdict import verdict


def items(right: int, wrong: int, *, longer: int, strong: int) -> tuple[ItemScores, ...]:
    """Pairs of which the ratio gets `right` right; the chosen response is longer in the first `longer` of all, and the
    strong model's log-prob prefers it in the first `strong` of all."""
    made = []
    for at in range(right + wrong):
        reward = 1.0 if at < right else -1.0
        alone = 1.0 if at < strong else -1.0
        size = 2 if at < longer else 1
        chosen = score(reward, alone, size)
        rejected = score(0.0, 0.0, 3 - size)
        item = Item(str(at), (Message("user", "Hi"),), (said("a" * size),), (said("a" * (3 - size)),), None, "all")
        made.append(ItemScores(item, (chosen,), (rejected,)))
    return tuple(made)


def score(reward: float, strong: float, tokens: int) -> Score:
    # Divided by tokens later: sums are what is asked for here.
    return Score(reward, None, strong, strong - reward, tokens, tokens, "chat", "default", "none")


@pytest.mark.parametrize(
    ("right", "wrong", "longer", "strong", "begins"),
    [
        (20, 80, 50, 50, "The reward prefers the rejected responses (0.200, "),
        (52, 48, 50, 50, "The reward is not told from chance (0.520, "),
        (90, 10, 50, 50, "The reward beats chance (0.900, "),
    ],
)
def test_against_chance(right: int, wrong: int, longer: int, strong: int, begins: str) -> None:
    said = verdict(report_of(items(right, wrong, longer=longer, strong=strong), "sum"))
    assert said.startswith(begins)
    assert ("swapped?" in said) == (right < wrong)


def test_items_that_are_missing_are_counted() -> None:
    """55 of 100: an interval of 0.10 to either side must shrink to 0.05, which needs four times as many items."""
    said = verdict(report_of(items(55, 45, longer=50, strong=50), "sum"))
    found = re.search(r"about (\d+) more items would tell", said)
    assert found is not None
    assert int(found[1]) == pytest.approx(300, abs=70)


@pytest.mark.parametrize(
    ("longer", "strong", "ends"),
    [
        (60, 50, r" and the best baseline, 'longer wins' \(0\.600\), by 0\.\d+ to 0\.\d+\."),
        (30, 50, r" and the best baseline, 'shorter wins' \(0\.700\), by 0\.\d+ to 0\.\d+\."),
        (99, 50, r", but not 'longer wins' \(0\.990\): that is simpler and better here\."),
        (50, 88, r", but is not told from the strong model's log-prob alone by sum \(0\.880\); about \d+ more .*\."),
        (50, 91, r", but is not told from the strong model's log-prob alone by sum \(0\.910\)\."),
    ],
)
def test_against_the_best_baseline(longer: int, strong: int, ends: str) -> None:
    said = verdict(report_of(items(90, 10, longer=longer, strong=strong), "sum"))
    assert re.fullmatch(
        r"The reward beats chance \(0\.900, 95 % interval 0\.8\d+ to 0\.9\d+, chance 0\.50\)" + ends, said
    )


def test_a_handful_tells_nothing() -> None:
    said = verdict(report_of(items(19, 0, longer=9, strong=9), "sum"))
    assert said == "Only 19 items were scored: too few to tell what the reward is worth; give 100 or more."
    assert verdict(report_of(items(20, 0, longer=9, strong=9), "sum")).startswith("The reward beats chance (1.000")


def test_nothing_scored() -> None:
    (whole,) = items(1, 0, longer=0, strong=0)
    lost = Score(None, "too long", None, None, 0, 0, "chat", "default", "none")
    said = verdict(report_of((ItemScores(whole.item, (lost,), whole.rejected),), "sum"))
    assert said == "Nothing was scored: there is no verdict."
