"""Controllability with planted models: what wins is known beforehand, and the numbers are counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.guidance import Guidance
from gdr_plugin.api.types import Logprobs, Message, TokenSpan
from gdr_plugin.config.load import parse_config
from gdr_plugin.config.schema import Config
from gdr_plugin.evaluation.controllability.measure import (
    ALL,
    NO_GUIDANCE,
    Controllability,
    controllability,
    score_prompts,
)
from gdr_plugin.evaluation.controllability.prompts import ControlPrompt, read_control_prompts
from gdr_plugin.evaluation.controllability.report import ControllabilityReport, run_controllability
from gdr_plugin.models.fake import FakeChat, FakeModel
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import RouterChain

CRITERIA = {name: Guidance(name=name, instruction=f"Please be {name}.") for name in ("red", "green", "blue")}
COLOURS = {"red": "r" * 4, "green": "g" * 4, "blue": "b" * 4}

Judge = Callable[[str, str], float]
"""Context and response to the log-prob of each of the response's bytes."""


class PlantedModel:
    """A `LogprobModel` over bytes whose every log-prob comes from a function of two texts."""

    def __init__(self, name: str, judge: Judge) -> None:
        self.name = self.identity = name
        self.chat = FakeChat()
        self.judge = judge
        self.seen: list[TokenSpan] = []
        self.unloaded = 0

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        self.seen += spans
        return [
            np.full(len(one.response), self.judge(_text(one.context), _text(one.response)), dtype=np.float32)
            for one in spans
        ]

    def describe(self) -> dict[str, str]:
        return {}

    def unload(self) -> None:
        self.unloaded += 1


def _text(ids: Sequence[int]) -> str:
    return bytes(one for one in ids if one < 256).decode()


def obedient(context: str, response: str) -> float:
    """Likes what it was told to like: -1 a byte instead of -3."""
    told = next((name for name in CRITERIA if f"be {name}." in context), None)
    return -1.0 if told and COLOURS[told][0] in response else -3.0


def indifferent(context: str, response: str) -> float:
    return -2.0


def red_lover(context: str, response: str) -> float:
    """Likes red, whatever it is told."""
    return -1.0 if "r" in response else -2.0


def prompt(identifier: str, responses: Mapping[str, str] = COLOURS) -> ControlPrompt:
    return ControlPrompt(identifier, (Message("user", f"Question {identifier}?"),), responses)


def measured(
    strong: Judge, weak: Judge, prompts: Sequence[ControlPrompt] = (prompt("a"), prompt("b"))
) -> Controllability:
    ratio = GuidedDensityRatio(
        PlantedModel("strong", strong), PlantedModel("weak", weak), domains={"all": None}, chain=RouterChain([], "all")
    )
    return controllability(score_prompts(ratio, prompts, CRITERIA))


def test_a_strong_model_that_follows_every_criterion_gives_one_and_no_guidance_a_half() -> None:
    result = measured(obedient, indifferent)
    for setting in ("both", "strong", "pmi", "logprob"):
        for reduction in ("sum", "mean", "per_byte"):
            assert result.shares[ALL][setting][reduction].value == 1.0
    for setting in ("unguided", "pmi_weak", "logprob_unguided"):
        assert {one.value for one in result.shares[ALL][setting].values()} == {0.5}
    assert result.gains[ALL]["both"]["sum"].value == 0.5
    assert result.winners["both"]["mean"] == {
        NO_GUIDANCE: pytest.approx({"red": 1 / 3, "green": 1 / 3, "blue": 1 / 3}),
        "red": {"red": 1.0, "green": 0.0, "blue": 0.0},
        "green": {"red": 0.0, "green": 1.0, "blue": 0.0},
        "blue": {"red": 0.0, "green": 0.0, "blue": 1.0},
    }


def test_indifferent_models_give_a_half_everywhere() -> None:
    result = measured(indifferent, indifferent)
    values = [one.value for table in result.shares.values() for row in table.values() for one in row.values()]
    assert set(values) == {0.5}


def test_guidance_that_both_models_follow_alike_cancels_and_to_the_strong_one_alone_does_not() -> None:
    result = measured(obedient, obedient)
    assert result.shares[ALL]["both"]["sum"].value == 0.5
    assert result.shares[ALL]["strong"]["sum"].value == 1.0
    assert result.shares[ALL]["pmi"]["sum"].value == result.shares[ALL]["pmi_weak"]["sum"].value == 1.0


def test_a_taste_that_no_guidance_moves_is_seen_by_criterion() -> None:
    result = measured(red_lover, indifferent)
    for setting in ("unguided", "both", "strong"):
        found = {name: table[setting]["sum"].value for name, table in result.shares.items()}
        # Green and blue lose against red and tie with each other: (0 + 0.5) / 2.
        assert found == {"red": 1.0, "green": 0.25, "blue": 0.25, ALL: 0.5}
    assert result.gains["red"]["both"]["sum"].value == 0.0
    assert result.winners["both"]["sum"]["blue"] == {"red": 1.0, "green": 0.0, "blue": 0.0}
    assert result.shares["red"]["pmi"]["sum"].value == 0.5  # the taste is the same told or not


def test_shares_by_hand_over_prompts_with_other_criteria_and_lengths() -> None:
    def judge(context: str, response: str) -> float:
        return -1.0 if "be red." in context and "r" in response else -2.0

    long = {"red": "r" * 8, "green": "g" * 2}
    result = measured(judge, lambda context, response: -1.5, [prompt("a"), prompt("b", long)])
    assert result.criteria == {"red": 2, "green": 2, "blue": 1}
    assert (result.prompts, result.responses, result.not_scored) == (2, 5, 0)
    # strong - weak a byte is +0.5 for red when told red, else -0.5; the end of turn adds one: n + 1 bytes.
    # By sum in prompt b, told green: red has -4.5, green -1.5: green wins, by length alone. Told nothing: likewise.
    assert result.shares["green"]["both"]["sum"].value == 0.75  # prompt a: all tie; prompt b: 1
    assert result.shares["green"]["both"]["mean"].value == 0.5
    assert result.shares["red"]["both"]["sum"].value == 1.0
    assert result.shares["red"]["unguided"]["sum"].value == 0.25
    assert result.gains["red"]["both"]["sum"].value == 0.75
    # All: five prompt-criterion shares, 1 + 1 (red), 0.5 + 1 (green), 0.5 (blue).
    assert result.shares[ALL]["both"]["sum"].value == pytest.approx(4 / 5)
    assert result.shares[ALL]["both"]["sum"].n == 2  # prompts are resampled


def test_an_unscored_response_leaves_its_comparisons_out_and_is_counted() -> None:
    def judge(context: str, response: str) -> float:
        return float("nan") if "b" in response else obedient(context, response)

    result = measured(judge, indifferent)
    assert result.not_scored == 2 * 4  # blue of two prompts, told nothing and each of three criteria
    assert result.shares["blue"]["both"]["sum"] is None
    assert result.shares["red"]["both"]["sum"].value == 1.0
    assert result.winners["both"]["sum"]["blue"] == {"red": 0.5, "green": 0.5, "blue": 0.0}


def test_each_model_sees_each_text_once() -> None:
    strong, weak = PlantedModel("strong", obedient), PlantedModel("weak", indifferent)
    ratio = GuidedDensityRatio(strong, weak, domains={"all": None}, chain=RouterChain([], "all"))
    score_prompts(ratio, [prompt(str(number)) for number in range(20)], CRITERIA)
    for model in (strong, weak):
        assert len(model.seen) == len(set(model.seen)) == 20 * 3 * 4


def test_a_second_run_computes_nothing(tmp_path: Path) -> None:
    model, other = FakeModel("a"), FakeModel("b")

    def ratio() -> GuidedDensityRatio:
        from gdr_plugin.store.store import LogprobStore

        store = LogprobStore(tmp_path / "store.sqlite")
        return GuidedDensityRatio(model, other, domains={"all": None}, chain=RouterChain([], "all"), store=store)

    prompts = [prompt(str(number)) for number in range(5)]
    first = controllability(score_prompts(ratio(), prompts, CRITERIA))
    assert model.scored_spans == other.scored_spans == 5 * 3 * 4
    assert controllability(score_prompts(ratio(), prompts, CRITERIA)) == first
    assert model.scored_spans == other.scored_spans == 5 * 3 * 4


def test_one_model_after_the_other_loads_each_once() -> None:
    strong, weak = PlantedModel("strong", obedient), PlantedModel("weak", indifferent)
    chain = RouterChain([], "all")
    ratio = GuidedDensityRatio(strong, weak, domains={"all": None}, chain=chain, sequential=True)
    score_prompts(ratio, [prompt(str(number)) for number in range(20)], CRITERIA)
    assert strong.unloaded == weak.unloaded == 1


def fake_config(**changes: object) -> Config:
    return parse_config({"strong": "fake:a", "weak": "fake:b", **changes})


@pytest.fixture(scope="module")
def hashed() -> ControllabilityReport:
    """Two models without sense on the data of the package."""
    return run_controllability(fake_config(reward={"reduction": "mean"}), store=None)


def test_hashed_models_stay_around_a_half_on_our_data(hashed: ControllabilityReport) -> None:
    report = hashed
    for setting in ("both", "strong", "pmi"):
        found = report.result.shares[ALL][setting]["mean"]
        assert found.n == len(read_control_prompts())
        assert found.low - 0.02 < 0.5 < found.high + 0.02
    # Every response is asked for once, so that each comparison is counted from both sides.
    assert report.result.shares[ALL]["unguided"]["sum"].value == pytest.approx(0.5)
    assert "52 prompts, 324 responses, 10 criteria" in report.summary


def test_one_model_on_both_sides_leaves_out_what_would_be_zero() -> None:
    report = run_controllability(fake_config(weak="fake:a", guidance={"placement": "strong"}), store=None)
    assert list(report.result.shares[ALL]) == ["strong", "logprob", "logprob_unguided"]
    assert NO_GUIDANCE not in report.result.winners["strong"]["sum"]
    names = ("ratio, strong guided", "strong alone, guided")
    assert report.tables()[1].headers == ("criterion", "prompts", *names)


def test_tables_json_and_page_hold_the_same_numbers(hashed: ControllabilityReport) -> None:
    report = hashed
    data = json.loads(json.dumps(report.json(), allow_nan=False))
    assert data["criteria"]["spanish"] == {"instruction": "Answer in Spanish.", "prompts": 28}
    cell = data["shares"]["bullets"]["both"]["mean"]
    text = f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
    assert text in {row[0]: row[3] for row in report.tables()[1].rows}["bullets"]
    page = str(report.html())
    assert text in page
    assert page.count("<table") == 1 + 3 + 3 * 3  # overall; by criterion; winners: both, strong, pmi
    assert page.count("<h2>") == 1


def test_a_criterion_without_guidance_is_refused_before_a_model_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "Why?", "responses": {"concise": "So.", "rhyming": "So, though."}}))
    with pytest.raises(DataError, match="unknown criterion 'rhyming'"):
        run_controllability(fake_config(strong="no/such-model-at-all"), path, store=None)


def test_a_sample_of_prompts_is_drawn_by_seed_and_told() -> None:
    config = parse_config({"strong": "fake:a", "weak": "fake:b"})
    first = run_controllability(config, store=None, sample=2)
    assert first.result.prompts == 2
    assert first.data == "controllability.jsonl of the package (2 of 52 prompts)"
    assert run_controllability(config, store=None, sample=2, seed=1).result.shares != first.result.shares
    with pytest.raises(DataError, match="--sample must be 1 or more, not 0"):
        run_controllability(config, store=None, sample=0)
