"""Ablations with planted models: which part of the guidance works is known beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.types import Logprobs, Message, TokenSpan
from gdr_plugin.config.load import parse_config
from gdr_plugin.config.schema import Config
from gdr_plugin.data.item import Item
from gdr_plugin.data.preference_formats import LABEL
from gdr_plugin.data.responses import said
from gdr_plugin.evaluation.ablations.ablate import Ablations, Line, ablate
from gdr_plugin.evaluation.ablations.report import as_figure, as_html, as_json, summary, tables
from gdr_plugin.models.fake import FakeChat, FakeModel
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.resolve import resolve_names
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import RouterChain
from gdr_plugin.scoring.items import score_items
from gdr_plugin.store.store import LogprobStore

RULES = """guidances:
  - name: polite
    instruction: INSTRUCTION to be polite.
    exemplars: [{id: one, prompt: Hi, good: GOOD day, bad: What, why: EXEMPLAR of manners.}]
"""
Judge = Callable[[str, str], float]


class PlantedModel:
    """A `LogprobModel` over bytes whose every log-prob comes from a function of context and response."""

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


def instructed(context: str, response: str) -> float:
    """Likes `good` responses where it reads the instruction, and nothing else."""
    return -1.0 if "INSTRUCTION" in context and "good" in response else -2.0


def shown(context: str, response: str) -> float:
    """Likes `good` responses where it sees an exemplar, and dislikes them otherwise."""
    return (-1.0 if "EXEMPLAR" in context else -3.0) if "good" in response else -2.0


def flat(context: str, response: str) -> float:
    return -1.5


def items(count: int = 8, domain: str | None = "manners") -> list[Item]:
    return [
        Item(
            str(at), (Message("user", f"Question {at}?"),), (said(f"good {at}"),), (said(f"evil {at}"),), domain, "all"
        )
        for at in range(count)
    ]


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return path


@pytest.fixture
def made(tmp_path: Path, rules: Path) -> Callable[..., GuidedDensityRatio]:
    """`made(strong, weak, **guidance)`: a reward with the domains chat (no guidance) and manners (polite)."""

    def make(strong: object, weak: object, *, load: str = "together", **guidance: object) -> GuidedDensityRatio:
        config = configured(rules, load=load, **guidance)
        resolved = resolve_names(config, Plugins())
        ratio = GuidedDensityRatio(
            strong,  # type: ignore[arg-type]
            weak,  # type: ignore[arg-type]
            domains=resolved.guidances,
            chain=RouterChain(resolved.routers, config.routing.default_domain),
            guidance=config.guidance,
            reward=config.reward,
            store=LogprobStore(tmp_path / "store.sqlite"),
            sequential=load == "sequential",
        )
        ratio.config = config
        return ratio

    return make


def configured(rules: Path, *, load: str = "together", **guidance: object) -> Config:
    domains = {"chat": "none", "manners": "polite"}
    section = {"domains": domains, "files": [str(rules)], **guidance}
    return parse_config({"strong": "fake:a", "weak": "fake:b", "guidance": section, "load": load})


def values(result: Ablations, what: str) -> dict[str, float]:
    return {line.name: line.accuracy.value for line in result.lines if line.question == what and line.accuracy}


def line(result: Ablations, what: str, name: str) -> Line:
    return next(one for one in result.lines if (one.question, one.name) == (what, name))


def test_the_part_of_the_guidance_that_works_is_found(made: Callable[..., GuidedDensityRatio]) -> None:
    result = ablate(made(PlantedModel("s", instructed), PlantedModel("w", flat)), items())
    assert values(result, "configured") == {"as in gdr.yaml": 1.0}
    assert values(result, "guidance") == {"none": 0.5, "instruction only": 1.0, "exemplars only": 0.5, "both": 1.0}
    gap = line(result, "guidance", "exemplars only").difference
    assert gap is not None
    assert (gap.value, gap.low, gap.high, gap.n) == (-0.5, -0.5, -0.5, 8)
    assert line(result, "guidance", "both").configured
    assert line(result, "guidance", "both").difference is None


def test_exemplars_that_work_are_found_too(made: Callable[..., GuidedDensityRatio]) -> None:
    result = ablate(made(PlantedModel("s", shown), PlantedModel("w", flat)), items())
    assert values(result, "guidance") == {"none": 0.0, "instruction only": 0.0, "exemplars only": 1.0, "both": 1.0}
    assert values(result, "guidance to") == {"both models": 1.0, "strong only": 1.0, "none": 0.0}
    # Told as configured, its log-prob alone says the same; told nothing, the opposite.
    assert set(values(result, "strong log-prob alone").values()) == {1.0}
    assert set(values(result, "its log-prob, no guidance").values()) == {0.0}
    # The weak model is flat, so that it adds nothing, whatever the guidance.
    for what in ("strong log-prob alone", "its log-prob, no guidance"):
        assert {one.difference.value for one in result.lines if one.question == what and one.difference} == {0.0}


def test_guidance_to_both_cancels_where_both_models_follow_it(made: Callable[..., GuidedDensityRatio]) -> None:
    result = ablate(made(PlantedModel("s", instructed), PlantedModel("w", instructed)), items())
    assert values(result, "guidance to") == {"both models": 0.5, "strong only": 1.0, "none": 0.5}
    assert result.grid["instruction"]["strong", "mean"].value == 1.0  # type: ignore[union-attr]
    assert result.grid["instruction"]["both", "mean"].value == 0.5  # type: ignore[union-attr]
    assert set(result.grid) == {"none", "instruction", "exemplars", "both"}
    assert all(len(cells) == 6 for cells in result.grid.values())


def test_the_router_is_set_against_the_data(made: Callable[..., GuidedDensityRatio]) -> None:
    """Without the rows' domain, every prompt takes the default domain, which has no guidance."""
    ratio = made(PlantedModel("s", instructed), PlantedModel("w", flat))
    result = ablate(
        ratio, [*items(6), *[Item("x", (Message("user", "Hm?"),), (said("good"),), (said("evil"),), None, "all")]]
    )
    assert values(result, "router") == {
        "as configured": pytest.approx(6.5 / 7),
        "the data's domain": pytest.approx(6.5 / 7),
        "without the data's domain": 0.5,
    }
    assert (result.items, result.guided, result.named) == (7, 6, 6)
    assert result.agreement is not None
    assert (result.agreement.value, result.agreement.n) == (0.0, 6)


def test_no_line_on_the_data_s_domain_where_the_data_have_none(made: Callable[..., GuidedDensityRatio]) -> None:
    result = ablate(made(PlantedModel("s", instructed), PlantedModel("w", flat)), items(domain=None))
    assert "the data's domain" not in values(result, "router")
    assert result.agreement is None
    assert "No prompt's domain has guidance" in summary(result)


def test_a_benchmark_s_own_domain_is_the_oracle_s(made: Callable[..., GuidedDensityRatio]) -> None:
    """The routers do not see it; what the reward would be with perfect routing can be told nevertheless."""
    marked = [replace(item, fields={LABEL: "manners"}) for item in items(6, domain=None)]
    odd = replace(items(7, domain=None)[6], fields={LABEL: "cooking"})
    result = ablate(made(PlantedModel("s", instructed), PlantedModel("w", flat)), [*marked, odd])
    assert values(result, "router") == {
        "as configured": 0.5,
        "the data's domain": pytest.approx(6.5 / 7),  # there is no domain cooking: it takes the default
        "without the data's domain": 0.5,
    }
    assert result.named == 6
    assert result.agreement is not None
    assert (result.agreement.value, result.agreement.n) == (0.0, 6)


def test_rows_of_an_unknown_domain_are_left_out_of_the_oracle_s_line_and_counted(
    made: Callable[..., GuidedDensityRatio],
) -> None:
    ratio = made(PlantedModel("s", instructed), PlantedModel("w", flat)).variant(chain=RouterChain([], "manners"))
    stranger = Item("x", (Message("user", "Hm?"),), (said("good"),), (said("evil"),), "cooking", "all")
    result = ablate(ratio, [*items(6), stranger])
    assert values(result, "router") == {"as configured": 1.0, "the data's domain": 1.0}
    (row,) = [row for row in tables(result)[0].rows if row[1] == "the data's domain"]
    assert row[2] == "1.000 [1.000, 1.000], n = 6"


def test_reductions_and_lengths_by_hand(made: Callable[..., GuidedDensityRatio]) -> None:
    """-0.5 a byte for good, -0.6 for evil: by sum the shorter wins, by mean the good one."""
    ratio = made(
        PlantedModel("s", lambda _, text: -1.0 if "good" in text else -1.1), PlantedModel("w", lambda *_: -0.5)
    )
    prompt = (Message("user", "Well?"),)
    pairs = [("good" + "!" * 9, "evil"), ("good", "evil!"), ("good" + "!" * 6, "evil..")]
    data = [
        Item(str(at), prompt, (said(good),), (said(evil),), "manners", "all") for at, (good, evil) in enumerate(pairs)
    ]
    result = ablate(ratio, data)
    assert values(result, "reduction") == {"sum": pytest.approx(1 / 3), "mean": 1.0, "per_byte": 1.0}
    assert values(result, "length") == {
        "the shorter wins": pytest.approx(1 / 3),
        "the longer wins": pytest.approx(2 / 3),
    }
    assert line(result, "reduction", "mean").difference.value == pytest.approx(2 / 3)  # type: ignore[union-attr]


def test_each_model_sees_each_text_once(made: Callable[..., GuidedDensityRatio]) -> None:
    strong, weak = FakeModel("a"), FakeModel("b")
    ratio, data = made(strong, weak), items(40)
    list(score_items(ratio, data))  # what `gdr evaluate` has done before
    assert strong.scored_spans == weak.scored_spans == 80
    result = ablate(ratio, data)
    assert strong.scored_spans == weak.scored_spans == 80 * 4  # no guidance, instruction, exemplars, both
    assert result.misses == 2 * 80 * 3
    again = ablate(ratio, data)
    assert (again.misses, strong.scored_spans) == (0, 80 * 4)
    assert again.lines == result.lines


def test_one_model_after_the_other_loads_each_once(made: Callable[..., GuidedDensityRatio]) -> None:
    loads: list[str] = []

    class Loading(PlantedModel):
        """Notes when weights would be loaded."""

        loaded = False

        def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
            if spans and not self.loaded:
                loads.append(self.name)
                self.loaded = True
            return super().score(spans)

        def unload(self) -> None:
            self.loaded = False

    result = ablate(made(Loading("s", instructed), Loading("w", flat), load="sequential"), items(200))
    assert loads == ["s", "w"]
    assert result.misses == 2 * 400 * 4
    assert values(result, "guidance")["instruction only"] == 1.0


@pytest.mark.parametrize(
    ("guidance", "form"),
    [
        ({"exemplars": 0}, "instruction only"),
        ({"instruction": False}, "exemplars only"),
        ({"placement": "none"}, "none"),
        ({"instruction": False, "exemplars": 0}, "none"),
    ],
)
def test_the_configured_line_is_the_configured_reward(
    made: Callable[..., GuidedDensityRatio], guidance: dict[str, object], form: str
) -> None:
    ratio, data = made(FakeModel("a"), FakeModel("b"), **guidance), items(30)
    result = ablate(ratio, data)
    rights = [one.chosen[0].reward > one.rejected[0].reward for one in score_items(ratio, data)]  # type: ignore[operator]
    assert values(result, "configured") == {"as in gdr.yaml": pytest.approx(sum(rights) / 30)}
    assert [one.name for one in result.lines if one.question == "guidance" and one.configured] == [form]
    assert set(values(result, "guidance")) == {"none", "instruction only", "exemplars only", "both"}


def test_one_model_on_both_sides_has_no_lines_that_would_be_zero(made: Callable[..., GuidedDensityRatio]) -> None:
    model = PlantedModel("s", instructed)
    result = ablate(made(model, model, placement="strong"), items())
    assert values(result, "guidance") == {"instruction only": 1.0, "exemplars only": 0.5, "both": 1.0}
    assert values(result, "guidance to") == {"strong only": 1.0}
    assert set(result.grid) == {"instruction", "exemplars", "both"}
    with pytest.raises(ConfigError, match="every reward is 0"):
        ablate(made(model, model, placement="strong", instruction=False, exemplars=0), items())


def test_without_a_store_nothing_is_scored(rules: Path) -> None:
    config = configured(rules)
    ratio = GuidedDensityRatio.from_config(config)
    with pytest.raises(ConfigError, match="with a store"):
        ablate(ratio, items())


def test_tables_page_json_and_figure(made: Callable[..., GuidedDensityRatio]) -> None:
    result = ablate(made(FakeModel("a"), FakeModel("b")), items(30))
    data = json.loads(json.dumps(as_json(result), allow_nan=False))
    first = data["lines"][0]
    assert (first["what"], first["configured"], first["difference"]) == ("configured", True, None)
    text = f"{first['accuracy']['value']:.3f} [{first['accuracy']['low']:.3f}, {first['accuracy']['high']:.3f}]"
    main, grid = tables(result)
    assert main.rows[0] == ("configured", "as in gdr.yaml", text, "(configured)")
    assert len(main.rows) == len(result.lines) == len(data["lines"])
    assert len(grid.headers) == 7
    assert len(data["grid"]) == 4 * 6
    page = str(as_html(result))
    assert page.count(text) >= 1
    assert page.count("<table") == 2
    pytest.importorskip("matplotlib")
    axes = as_figure(result).axes[0]
    drawn = [label.get_text() for label in axes.get_yticklabels()]
    assert len(drawn) == len(result.lines) - sum(line.configured for line in result.lines)
    at = drawn.index("guidance: exemplars only")
    line = next(line for line in result.lines if line.name == "exemplars only")
    assert line.difference is not None
    assert (axes.lines[1].get_xdata()[at], axes.lines[0].get_xdata()[0]) == (line.difference.value, 0.0)
    assert "guidance: both" not in drawn  # it is the configured one
