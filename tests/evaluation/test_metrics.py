"""Measures of hand-made scores, and scoring with models that ship."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gdr_plugin.api.types import Message, Score
from gdr_plugin.config.schema import Config
from gdr_plugin.data.item import Item, ItemScores
from gdr_plugin.data.responses import said
from gdr_plugin.evaluation.measures.calibration import calibration
from gdr_plugin.evaluation.measures.metrics import lengths, measure, rewards
from gdr_plugin.evaluation.summary import evaluate_items, report_of
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.scoring.items import WINDOW, score_items

PROMPT = (Message("user", "Hi"),)


def score(strong: float | None, weak: float = 0.0, tokens: int = 1, domain: str = "chat", **others: Any) -> Score:
    reward = None if strong is None else strong - weak
    facts: dict[str, Any] = {"reason": None if reward is not None else "too long: 5,120 tokens", "guidance": "none"}
    facts |= {"domain": domain, "router": "default", **others}
    return Score(
        reward=reward, strong_logprob=strong, weak_logprob=weak, strong_tokens=tokens, weak_tokens=tokens, **facts
    )


def pair(chosen: Score, rejected: Score, subset: str = "all", id: str = "x") -> ItemScores:
    item = Item(id, PROMPT, (said("aa" * chosen.strong_tokens),), (said("aa" * rejected.strong_tokens),), None, subset)
    return ItemScores(item, (chosen,), (rejected,))


def margins(scored: Sequence[ItemScores], **how: Any) -> list[float | None]:
    found = measure("x", "sum", rewards(**{"kind": "ratio", "reduction": "sum", **how}), scored)
    return [None if one is None else one.margin for one in found.comparisons]


def test_accuracy_ties_and_items_without_a_score() -> None:
    scored = [
        pair(score(2.0), score(1.0), "a"),
        pair(score(1.0), score(1.0), "a"),
        pair(score(0.0), score(1.0), "b"),
        pair(score(None), score(1.0), "b"),
    ]
    report = report_of(tuple(scored), "sum")
    overall = report.main.overall
    assert overall.accuracy is not None
    assert (overall.items, overall.ties, overall.accuracy.value, overall.accuracy.n) == (4, 1, 0.5, 3)
    assert {name: part.accuracy.value for name, part in report.main.subsets.items() if part.accuracy} == {
        "a": 0.75,
        "b": 0.0,
    }
    assert report.main.domains == {}  # all in one
    assert report.not_scored == {"too long: N tokens": 1}


def test_three_reductions_of_one_pass_may_disagree() -> None:
    # Ratio 2 over 4 tokens against ratio 1 over 1 token: right by sum, wrong by mean and per byte.
    report = report_of((pair(score(2.0, tokens=4), score(1.0, tokens=1)),), "mean")
    assert list(report.ratio) == ["mean", "sum", "per_byte"]
    assert {name: one.overall.accuracy.value for name, one in report.ratio.items() if one.overall.accuracy} == {
        "mean": 0.0,
        "sum": 1.0,
        "per_byte": 0.0,
    }
    assert [one.margin for one in report.ratio["per_byte"].comparisons if one] == [2 / 8 - 1 / 2]


def test_baselines() -> None:
    scored = (
        pair(score(-5.0, -9.0, tokens=4), score(-2.0, -1.0, tokens=2)),
        pair(score(-1.0, -9.0, tokens=1), score(-8.0, -9.0, tokens=2)),
        pair(score(None, tokens=9), score(-8.0, -9.0, tokens=2)),
    )
    report = report_of(scored, "sum")
    found = {(one.name, one.reduction): one.overall.accuracy.value for one in report.baselines if one.overall.accuracy}
    # Strong alone by sum: -5 < -2 wrong, -1 > -8 right; by token: -1.25 < -1 wrong, -1 > -4 right.
    assert found[("strong log-prob", "sum")] == found[("strong log-prob", "mean")] == 0.5
    assert found[("longer wins", "tokens")] == found[("shorter wins", "tokens")] == 0.5
    # All on the same items: what the reward could not score, no baseline is judged on.
    assert {one.overall.accuracy.n for one in report.baselines if one.overall.accuracy} == {2}


def test_length_bias() -> None:
    scored = [
        pair(score(3.0, tokens=1), score(0.0, tokens=3)),
        pair(score(0.0, tokens=1), score(1.0, tokens=2)),
        pair(score(1.0, tokens=2), score(0.0, tokens=2)),
        pair(score(0.0, tokens=5), score(2.0, tokens=2)),
        pair(score(None, tokens=0), score(2.0, tokens=2)),  # too long: of unknown length, not short
    ]
    bias = measure("x", "sum", rewards("ratio", "sum"), scored).length
    assert [part.items for part in (bias.shorter, bias.equal, bias.longer)] == [2, 1, 1]
    assert [part.accuracy.value for part in (bias.shorter, bias.equal, bias.longer) if part.accuracy] == [0.5, 1.0, 0.0]
    assert bias.correlation is not None
    assert bias.correlation.value == pytest.approx(np.corrcoef([3, -1, 1, -2], [-2, -1, 0, 3])[0, 1])
    always = measure("x", "tokens", lengths(-1), scored)
    assert [one.worth for one in always.comparisons if one] == [1.0, 1.0, 0.5, 0.0]
    assert always.calibration is None


def test_domains_are_those_that_prompts_were_routed_to() -> None:
    scored = (
        pair(score(2.0, domain="math", router="keyword", guidance="math"), score(1.0, domain="math")),
        pair(score(1.0), score(2.0)),
    )
    report = report_of(scored, "sum")
    assert {name: part.accuracy.value for name, part in report.main.domains.items() if part.accuracy} == {
        "math": 1.0,
        "chat": 0.0,
    }
    assert (report.routers, report.guided) == ({"keyword": 1, "default": 1}, 1)


def test_best_of_n_and_the_style_matrix_reach_the_report() -> None:
    item = Item("s", PROMPT, tuple(map(said, "abc")), tuple(map(said, "def")), None, "chat")
    scores = ItemScores(item, (score(1.0), score(2.0), score(3.0)), (score(0.5), score(2.5), score(2.7)))
    best = report_of((scores,), "sum")
    assert [one.worth for one in best.main.comparisons if one] == [1.0]
    assert best.main.styles is None
    styles = report_of((scores,), "sum", format="rm-bench")
    assert [one.worth for one in styles.main.comparisons if one] == [pytest.approx(5 / 9)]
    assert styles.main.styles == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    found = {one.name: one.estimate and one.estimate.value for one in styles.main.sections}
    assert (found["chat"], found["chat, easy"], found["average"]) == (pytest.approx(5 / 9), 1.0, None)


def test_calibration_by_hand() -> None:
    # Two items: margins ln 3 (right) and -ln 3 (wrong): claimed 0.75, reached 0.5.
    found = calibration([math.log(3), -math.log(3)], [1.0, 0.0])
    assert found is not None
    assert found.error == pytest.approx(0.25)
    assert len(found.bins) == 1
    assert found.bins[0].confidence == pytest.approx(0.75)
    # The mean margin is zero: no finite temperature is the best.
    assert (found.temperature, found.error_fitted) == (None, None)


def test_the_temperature_makes_the_claims_come_true() -> None:
    # Margin 4 is right 3 times in 4: the likeliest T has sigmoid(4 / T) = 3/4.
    found = calibration([4.0, 4.0, 4.0, -4.0], [1.0, 1.0, 1.0, 0.0])
    assert found is not None
    assert found.temperature == pytest.approx(4 / math.log(3))
    assert found.error_fitted == pytest.approx(0.0, abs=1e-9)


def test_margins_drawn_from_their_own_claim_have_temperature_one() -> None:
    rng = np.random.default_rng(0)
    size = rng.exponential(2.0, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-size))
    found = calibration(list(np.where(right, size, -size)), list(right.astype(float)))
    assert found is not None
    assert found.temperature == pytest.approx(1.0, abs=0.05)
    assert found.error < 0.01
    assert [one.accuracy.n for one in found.bins] == [2000] * 10
    assert all(left.high <= right.low for left, right in zip(found.bins, found.bins[1:], strict=False))


@pytest.mark.parametrize("margin", [[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]])
def test_margins_without_a_best_temperature(margin: list[float]) -> None:
    found = calibration(margin, [float(one > 0) for one in margin])
    assert found is not None
    assert found.temperature is None
    assert calibration([None], [None]) is None


def items(count: int, responses: int = 2) -> list[Item]:
    return [
        Item(
            f"{n}",
            (Message("user", f"Question {n}"),),
            (said(f"Yes {n}"),),
            tuple(said(f"No {n} {k}") for k in range(responses - 1)),
            None,
            "all",
        )
        for n in range(count)
    ]


def test_scores_come_in_order_window_by_window_and_agree_with_single_ones() -> None:
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b")
    given = items(100, 3)
    told: list[tuple[str, int, int | None]] = []
    scored = list(score_items(ratio, given, progress=lambda *now: told.append(now)))
    assert [one.item for one in scored] == given
    assert isinstance(ratio.strong, FakeModel)
    assert ratio.strong.calls == math.ceil(100 / (WINDOW // 3))
    assert told[0] == ("scoring", 0, 100)
    assert told[-1] == ("scoring", 100, 100)
    assert next(iter(score_items(ratio, given[57:58]))) == scored[57]
    assert list(score_items(ratio, iter(given[:3]))) == scored[:3]


def test_an_item_larger_than_a_window_stays_whole() -> None:
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b")
    (scored,) = score_items(ratio, items(1, WINDOW + 5))
    assert len(scored.rejected) == WINDOW + 4


@pytest.mark.parametrize("stored", [True, False])
def test_models_that_are_loaded_one_after_the_other_see_everything_in_one_go(
    stored: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    score = FakeModel.score

    def noted(self: FakeModel, spans: Sequence[Any]) -> list[Any]:
        asked.extend([self.name] * len(spans))
        return score(self, spans)

    monkeypatch.setattr(FakeModel, "score", noted)
    config = Config.model_validate({"strong": "fake:a", "weak": "fake:b", "load": "sequential"})
    ratio = GuidedDensityRatio.from_config(config, store=tmp_path / "store.sqlite" if stored else None)
    scored = list(score_items(ratio, items(200)))
    assert asked == ["fake:a"] * 400 + ["fake:b"] * 400
    together = GuidedDensityRatio.from_config(config.model_copy(update={"load": "together"}))
    assert scored == list(score_items(together, items(200)))


def test_the_json_is_valid_and_the_rows_are_one_an_item() -> None:
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b")
    given = [*items(3), Item("bytes", PROMPT, (said(""),), (said("b"),), None, "odd")]
    report = evaluate_items(ratio, given)
    found = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert (found["items"], found["scored"], found["reduction"]) == (4, 4, "sum")
    assert set(found["reward"]) == {"sum", "mean", "per_byte"}
    assert found["reward"]["per_byte"]["accuracy"]["n"] == 3  # an empty response has no bytes to divide by
    assert set(found["reward"]["sum"]["subsets"]) == {"all", "odd"}
    rows = list(report.rows())
    assert [row["id"] for row in rows] == ["0", "1", "2", "bytes"]
    last = rows[-1]
    assert last["margins"]["per_byte"] is None
    assert last["correct"] == float(last["margins"]["sum"] > 0)
    assert last["strong_tokens"] == {"chosen": [1], "rejected": [2]}  # the end-of-turn token counts
