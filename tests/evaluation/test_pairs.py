"""All ordered pairs of models: numbers worked out by hand, one pass a model, choices that are not flattered."""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdr_plugin import hookimpl
from gdr_plugin.api.errors import EngineWarning, ModelError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Message, TokenSpan
from gdr_plugin.data.item import Item
from gdr_plugin.data.responses import said
from gdr_plugin.evaluation.pairs.choice import advice, choose
from gdr_plugin.evaluation.pairs.matrix import ModelPairStudy, study
from gdr_plugin.evaluation.pairs.run import ModelPairsOptions, compare_model_pairs
from gdr_plugin.evaluation.pairs.scoring import LogprobTable
from gdr_plugin.models.fake import FakeChat
from gdr_plugin.plugins.registry import Plugins

# Log-prob of the whole response by model; every response has one byte and an end of turn, so the mean is half of it.
TEXTS = {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E", "f": "F"}
TABLE = {
    "good": {"A": -2.0, "B": -6.0, "C": -2.0, "D": -6.0, "E": -4.0, "F": -4.0},
    "fair": {"A": -3.0, "B": -4.0, "C": -5.0, "D": -4.0, "E": -2.0, "F": -1.0},
    "poor": {"A": -5.0, "B": -1.0, "C": -4.0, "D": -8.0, "E": -1.0, "F": -3.0},
}
ROWS = [
    {"id": "1", "prompt": "p1", "chosen": "A", "rejected": "B"},
    {"id": "2", "prompt": "p2", "chosen": "C", "rejected": "D"},
    {"id": "3", "prompt": "p3", "chosen": "E", "rejected": "F"},
]
# Margins chosen - rejected: good (4, 4, 0), fair (1, -1, -1), poor (-4, 4, 2). Worth of strong - weak by item:
MATRIX = {
    ("good", "fair"): (3, 5, 1),
    ("good", "poor"): (8, 0, -2),
    ("fair", "poor"): (5, -5, -3),
}


class TableModel:
    """Log-probs from `TABLE`; counts what it was asked."""

    def __init__(self, name: str, log: Counter[tuple[str, str, bytes]], *, shown: bool) -> None:
        self.name, self.identity, self.chat = name, f"table {name}", FakeChat(Limits())
        self._log, self._shown = log, shown

    def score(self, spans: Sequence[TokenSpan]) -> list[Any]:
        results = []
        for span in spans:
            text = bytes(span.response[:-1]).decode()
            context = bytes(id for id in span.context if id < 256)
            self._log[self.name, text, context] += 1
            # With guidance in the prompt the log-prob is one nat less, to tell the two apart.
            total = TABLE[self.name][text] - (self._shown and b"system" in context)
            results.append(np.full(len(span.response), total / len(span.response), dtype=np.float32))
        return results

    def describe(self) -> dict[str, str]:
        return {"dtype": "bfloat16" if self.name == "poor" and self._shown else "float32"}

    def unload(self) -> None:
        pass


class TableModels:
    """The scheme `table:`."""

    def __init__(self, *, shown: bool = False) -> None:
        self.log: Counter[tuple[str, str, bytes]] = Counter()
        self._shown = shown

    @hookimpl
    def gdr_open_model(self, spec: ModelSpec, limits: Limits) -> Any:
        return TableModel(spec.target, self.log, shown=self._shown) if spec.scheme == "table" else None


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


MODELS = ["table:good", "table:fair", "table:poor"]


def worth(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def test_the_matrix_is_the_one_worked_out_by_hand(data: Path) -> None:
    found = compare_model_pairs(MODELS, data, plugins=Plugins(TableModels())).study
    assert found.names == ("good", "fair", "poor")
    for (strong, weak), margins in MATRIX.items():
        assert found.worth[strong, weak].tolist() == [worth(margin) for margin in margins]
        assert found.worth[weak, strong].tolist() == [worth(-margin) for margin in margins]
        assert found.model_pair(strong, weak).accuracy.value == pytest.approx(sum(map(worth, margins)) / 3)
        assert found.model_pair(strong, weak).accuracy.n == 3
    assert [(one.strong, one.weak) for one in found.model_pairs][:2] == [("good", "fair"), ("poor", "fair")]
    # Quality: each model's own log-prob a token; E and F have equal ones under `good`.
    assert found.quality == pytest.approx({"good": 2.5 / 3, "fair": 1 / 3, "poor": 2 / 3})
    assert found.model_pair("good", "fair").gap == pytest.approx(0.5)
    assert found.model_pair("fair", "good").gap == pytest.approx(-0.5)
    assert found.chance == 0.5


def test_each_model_is_asked_each_text_once_however_many_pairs_there_are(data: Path) -> None:
    plugin = TableModels()
    report = compare_model_pairs(MODELS, data, plugins=Plugins(plugin))
    texts = Counter((name, text) for name, text, _ in plugin.log.elements())
    assert texts == {(name, text): 1 for name in TABLE for text in "ABCDEF"}
    assert report.table.asked == {"good": 6, "fair": 6, "poor": 6}
    again = compare_model_pairs(MODELS, data, plugins=Plugins(plugin))  # the store of the first run
    assert sum(plugin.log.values()) == 18
    assert again.table.asked == {"good": 0, "fair": 0, "poor": 0}
    assert again.study.worth.keys() == report.study.worth.keys()


def test_a_killed_run_goes_on_where_it_stopped(data: Path) -> None:
    plugin = TableModels()

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage.startswith("fair") and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_model_pairs(MODELS, data, plugins=Plugins(plugin), progress=stop)
    assert {name for name, *_ in plugin.log} == {"good", "fair"}
    compare_model_pairs(MODELS, data, plugins=Plugins(plugin))
    assert sum(plugin.log.values()) == 18


GUIDED = """
strong: "fake:unused-a"
weak: "fake:unused-b"
guidance: {{placement: {placement}, exemplars: 0, domains: {{chat: none, safety: safety}}}}
routing: {{routers: [field], default_domain: safety}}
reward: {{reduction: mean}}
store: {{path: s.sqlite}}
"""


@pytest.mark.parametrize(("placement", "contexts"), [("both", 1), ("none", 1), ("strong", 2)])
def test_guidance_reductions_and_store_come_from_the_configuration(
    data: Path, placement: str, contexts: int, recwarn: pytest.WarningsRecorder
) -> None:
    Path("gdr.yaml").write_text(GUIDED.format(placement=placement))
    plugin = TableModels(shown=True)
    options = ModelPairsOptions(config="gdr.yaml")
    report = compare_model_pairs(MODELS, data, options, plugins=Plugins(plugin))
    assert sum(plugin.log.values()) == 18 * contexts
    assert set(plugin.log.values()) == {1}
    guided = sum(b"system" in context for _, _, context in plugin.log.elements())
    assert guided == (0 if placement == "none" else 18)
    # Two tokens a response, and one nat less with guidance, which the strong side of `strong` alone has.
    shift = {"both": (1, 1), "none": (0, 0), "strong": (1, 0)}[placement]
    for name in TABLE:
        values = np.array([TABLE[name][text] for text in "ABCDEF"])
        assert report.table.strong[name] == pytest.approx((values - shift[0]) / 2)
        assert report.table.weak[name] == pytest.approx((values - shift[1]) / 2)
    assert Path("s.sqlite").exists()
    assert any(isinstance(one.message, EngineWarning) and "one dtype" in str(one.message) for one in recwarn)


def test_other_reductions_need_no_second_pass(data: Path) -> None:
    plugin = TableModels()
    for reduction, size in (("sum", 1), ("mean", 2), ("per_byte", 1)):
        options = ModelPairsOptions(reduction=reduction)  # type: ignore[arg-type]
        table = compare_model_pairs(MODELS, data, options, plugins=Plugins(plugin)).table
        assert table.strong["good"] == pytest.approx(np.array([TABLE["good"][text] for text in "ABCDEF"]) / size)
    assert sum(plugin.log.values()) == 18


def test_pairs_are_judged_on_the_items_that_every_model_scored(data: Path) -> None:
    Path("tight.yaml").write_text(
        'strong: "fake:a"\nweak: "fake:b"\nlimits: {max_length: 60}\nrouting: {routers: [], default_domain: chat}\n'
    )
    long = {"id": "4", "prompt": "p" * 80, "chosen": "A", "rejected": "B"}
    with data.open("a") as file:
        file.write(json.dumps(long) + "\n")
    options = ModelPairsOptions(config="tight.yaml")
    report = compare_model_pairs(["fake:a", "fake:b", "fake:c"], data, options)
    assert [item.id for item in report.table.items] == ["1", "2", "3"]
    assert report.table.left_out == 1
    assert all(count == 2 for count in report.table.reasons.values())
    assert all("exceed N" in reason or "exceed" in reason for reason in report.table.reasons)
    assert "1 items that not every model could score" in report.facts["left out"]
    data.write_text(json.dumps(long) + "\n")
    with pytest.raises(ModelError, match="could score no response"):
        compare_model_pairs(["fake:a", "fake:b"], data, options)


def table_of(strong: dict[str, list[float]], items: int, each: int = 1) -> LogprobTable:
    """A table in which each item is one pair of responses with the margin given for its model; `each` a prompt."""
    flat = {name: np.array([[margin, 0.0] for margin in margins]).ravel() for name, margins in strong.items()}
    pair = [
        Item(str(n), (Message("user", f"{n // each}?"),), (said("yes"),), (said("no"),), None, "all")
        for n in range(items)
    ]
    return LogprobTable(tuple(strong), tuple(pair), 0, flat, flat, flat, {}, {}, {})


def graded(items: int = 400, models: int = 6, seed: int = 0) -> tuple[ModelPairStudy, list[float]]:
    """Models whose margins carry a signal of growing strength: accuracy must grow with the gap."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(1.0, 1.0, items)
    strength = [0.0, *np.linspace(0.2, 2.0, models - 1)]
    margins = {f"m{n}": (s * truth + rng.normal(0, 0.6, items)).tolist() for n, s in enumerate(strength)}
    return study(table_of(margins, items), quality=dict(zip(margins, strength, strict=True))), strength


def test_accuracy_grows_with_the_gap_where_it_does() -> None:
    found, _ = graded()
    for one in (found.pearson, found.spearman):
        assert one is not None
        assert one.pairs == 15  # each pair of models once
        assert one.value > 0.8
        assert one.by_items is not None
        assert one.by_models is not None
        assert one.by_items[0] < one.value < one.by_items[1] + 1e-9
        assert one.by_models[0] > 0
        assert one.ordered is not None
        assert one.ordered > one.value - 0.05  # mirror images pull it up
    again, _ = graded()
    assert again.pearson == found.pearson


def test_pearson_and_spearman_are_numpys_and_scipys_numbers() -> None:
    found, strength = graded()
    gaps, accuracies = [], []
    for one in found.model_pairs:
        if one.gap > 0:
            gaps.append(one.gap)
            accuracies.append(one.accuracy.value)
    assert found.pearson is not None
    assert found.pearson.value == pytest.approx(np.corrcoef(gaps, accuracies)[0, 1])
    assert found.model_pair("m3", "m0").gap == pytest.approx(strength[3])


def test_two_models_have_no_correlation_and_three_no_interval_over_models(data: Path) -> None:
    two = compare_model_pairs(MODELS[:2], data, plugins=Plugins(TableModels())).study
    assert two.pearson is None
    three = compare_model_pairs(MODELS, data, plugins=Plugins(TableModels())).study
    assert three.pearson is not None
    assert three.pearson.by_models is None
    # Gaps 1/2 (good, fair), 1/6 (good, poor), 1/3 (poor, fair); accuracies 1, 1/2, 2/3.
    assert three.pearson.value == pytest.approx(np.corrcoef([1 / 2, 1 / 6, 1 / 3], [1, 1 / 2, 2 / 3])[0, 1])
    assert three.spearman is not None
    assert three.spearman.value == pytest.approx(1.0)


def test_the_pair_is_chosen_on_one_half_and_judged_on_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of noise alone: the winner of one half is at chance on the other."""
    monkeypatch.setattr("gdr_plugin.evaluation.pairs.correlation.DRAWS", 10)
    held, chosen = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        found = study(table_of({f"m{n}": rng.normal(size=100).tolist() for n in range(8)}, 100))
        choice = choose(found, seed=seed)
        assert choice is not None
        assert choice.best_of == 56
        assert choice.chosen_on.n == choice.held_out.n == 50
        chosen.append(choice.chosen_on.value)
        held.append(choice.held_out.value)
    assert np.mean(chosen) > 0.6  # what "the best of 56" looks like on its own items
    assert abs(np.mean(held) - 0.5) < 0.05


@pytest.mark.parametrize("each", [1, 2])
def test_the_halves_share_no_prompt(each: int) -> None:
    rng = np.random.default_rng(0)
    found = study(table_of({f"m{n}": rng.normal(n / 4, 1, 102).tolist() for n in range(4)}, 102, each))
    choice = choose(found, seed=3)
    assert choice is not None
    whole = found.worth[choice.strong, choice.weak]
    prompts = np.arange(102) // each
    here = np.isin(prompts, np.random.default_rng(3).permutation(102 // each)[: 51 // each])
    assert choice.chosen_on.value == pytest.approx(whole[here].mean())
    assert choice.held_out.value == pytest.approx(whole[~here].mean())
    assert choice.chosen_on.n + choice.held_out.n == 102


def test_the_held_out_half_has_no_part_in_telling_equals_apart() -> None:
    """Few items, so that pairs tie: quality as the held-out half sees it must not matter."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        found = study(table_of({f"m{n}": rng.normal(size=20).tolist() for n in range(5)}, 20))
        there = ~np.isin(np.arange(20), np.random.default_rng(0).permutation(20)[:10])
        changed = replace(
            found,
            own_worth={name: np.where(there, 1 - worth, worth) for name, worth in found.own_worth.items()},
            model_pairs=tuple(replace(one, gap=-one.gap) for one in found.model_pairs),
        )
        one, other = choose(found), choose(changed)
        assert one is not None
        assert other is not None
        assert (one.strong, one.weak, one.next_strong) == (other.strong, other.weak, other.next_strong)


def test_advice_names_the_pair_its_interval_its_rival_and_its_gap() -> None:
    found, _ = graded()
    choice = choose(found)
    text = advice(found, choice)
    assert choice is not None
    assert text.startswith(f"Use {choice.strong} over {choice.weak}: accuracy {choice.held_out.value:.3f}")
    assert f"best of {len(found.model_pairs)}" in text
    assert f"{choice.next_strong} over {choice.next_weak}" in text
    assert ("cannot be told" in text) is not choice.clear
    assert "Its gap in quality is +" in text


def test_advice_warns_of_chance_and_of_few_items(data: Path) -> None:
    rng = np.random.default_rng(1)
    noise = study(table_of({f"m{n}": rng.normal(size=60).tolist() for n in range(4)}, 60))
    text = advice(noise, choose(noise))
    assert "none of these model pairs" in text
    assert "wide intervals" in text
    one = study(table_of({"a": [1.0], "b": [0.0]}, 1))
    assert choose(one) is None
    assert "not enough" in advice(one, None)


def test_best_of_four_has_its_own_chance(data: Path) -> None:
    rows = [
        {"id": str(n), "prompt": "p", "chosen": ["A"], "rejected": ["B", "C", "D"], "subset": "math"} for n in range(3)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = compare_model_pairs(["table:good", "table:poor"], data, plugins=Plugins(TableModels()))
    # good - poor: A 3, B -5, C 2, D 2: A wins.
    assert report.study.model_pair("good", "poor").accuracy.value == 1.0
    assert report.study.model_pair("poor", "good").accuracy.value == 0.0
    assert report.study.chance == pytest.approx(0.25)


def test_external_scores_set_the_gap(data: Path) -> None:
    Path("scores.csv").write_text("model,score,votes\ngood, 1200,7\nother,1,1\npoor,900,9\nfair,1000,8\n")
    options = ModelPairsOptions(gap_scores=Path("scores.csv"))
    found = compare_model_pairs(MODELS, data, options, plugins=Plugins(TableModels())).study
    assert found.quality == {"good": 1200.0, "fair": 1000.0, "poor": 900.0}
    assert found.model_pair("poor", "good").gap == -300
    assert found.gap_source == "external scores"


# The command

Gdr = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gdr(gdr: Gdr, data: Path) -> Gdr:
    return gdr


def test_the_command_prints_the_matrix_the_ranking_and_the_advice(gdr: Gdr) -> None:
    code, out, err = gdr("pairs", "fake:a", "b=fake:b", "fake:c", "data.jsonl")
    assert code == 0, err
    for part in ("accuracy by pair", "ranking", "own log-prob a token", "does accuracy grow with the gap?", "chance"):
        assert part in out
    assert "items that had no part in the choice" in " ".join(out.split())


def test_json_is_complete_and_reproducible(gdr: Gdr) -> None:
    code, out, _ = gdr("pairs", "fake:a", "fake:b", "fake:c", "data.jsonl", "--json", "--seed", "4")
    assert code == 0
    first = json.loads(out)
    assert len(first["pairs"]) == 6
    assert [one["name"] for one in first["models"]] == ["a", "b", "c"]
    assert first["models"][0]["texts_computed"] == 6
    assert first["choice"]["best_of"] == 6
    assert first["seed"] == 4
    second = json.loads(gdr("pairs", "fake:a", "fake:b", "fake:c", "data.jsonl", "--json", "--seed", "4")[1])
    assert second["models"][0].pop("texts_computed") == 0
    for one in (*first["models"], *second["models"]):
        one.pop("texts_computed", None)
    assert second == first


def test_plots_and_page_are_written(gdr: Gdr) -> None:
    code, _, err = gdr("pairs", "fake:a", "fake:<b>", "fake:c", "data.jsonl", "--plots", "plots", "--html", "page.html")
    assert code == 0, err
    assert sorted(path.name for path in Path("plots").iterdir()) == [
        "accuracy.pdf",
        "accuracy.png",
        "accuracy.svg",
        "gap.pdf",
        "gap.png",
        "gap.svg",
    ]
    assert Path("plots/accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert Path("plots/gap.pdf").read_bytes().startswith(b"%PDF")
    page = Path("page.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fake:a", "data.jsonl"], "needs two models"),
        (["fake:a", "fake:b", "gone.jsonl"], "gone.jsonl"),
        (["fake:a", "fake:b", "data.jsonl", "--html", "data.jsonl"], "is an input"),
        (["fake:a", "fake:b", "data.jsonl", "--html", "no/folder.html"], "there is no folder no"),
        (["fake:a", "fake:b", "data.jsonl", "--plots", "data.jsonl"], "is a file"),
        (["fake:a", "fake:b", "data.jsonl", "--gap-scores", "gone.csv"], "gone.csv: cannot be read"),
        (["fake:a", "fake:b", "data.jsonl", "--format", "plian"], "unknown format 'plian'"),
        (["fake:a", "nowhere:b", "data.jsonl"], "unknown scheme 'nowhere'"),
        (["fake:a", "fake:b", "data.jsonl", "-c", "gone.yaml"], "gone.yaml"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_scored(gdr: Gdr, arguments: list[str], message: str) -> None:
    before = Path("data.jsonl").read_text()
    code, out, err = gdr("pairs", *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not Path(".gdr").exists()
    assert Path("data.jsonl").read_text() == before


def test_an_unknown_domain_is_refused_where_a_router_would_take_it(gdr: Gdr) -> None:
    Path("gdr.yaml").write_text(GUIDED.format(placement="both"))
    Path("d.jsonl").write_text(json.dumps({**ROWS[0], "domain": "saftey"}) + "\n")
    code, _, err = gdr("pairs", "fake:a", "fake:b", "d.jsonl", "-c", "gdr.yaml")
    assert code == 2
    assert "did you mean 'safety'" in err
    assert gdr("pairs", "fake:a", "fake:b", "d.jsonl")[0] == 0


def test_without_matplotlib_plots_are_refused_first_and_the_page_has_none(
    gdr: Gdr, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name == "matplotlib" or name.startswith("matplotlib.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = gdr("pairs", "fake:a", "fake:b", "data.jsonl", "--plots", "plots")
    assert code == 2
    assert "gdr-plugin[plots]" in err
    assert not Path("plots").exists()
    assert gdr("pairs", "fake:a", "fake:b", "data.jsonl", "--html", "page.html")[0] == 0
    assert "gdr-plugin[plots]" in Path("page.html").read_text()


@pytest.fixture
def tuned(tiny_model: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A tiny base and a LoRA adapter for it that changes what it says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_model()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft and transformers about each other
        torch.manual_seed(3)
        config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "lora")
    return base, tmp_path / "lora"


def test_the_matrix_is_that_of_the_guided_density_ratio(data: Path, tuned: tuple[Path, Path]) -> None:
    """An adapter on a base is a model of its own, and a pair's reward is the one that `gdr score` gives."""
    from gdr_plugin.api.types import Sample
    from gdr_plugin.reward.reward import GuidedDensityRatio

    base, lora = tuned
    report = compare_model_pairs([f"base={base}", f"tuned={base}+{lora}"], data)
    assert report.table.asked == {"base": 6, "tuned": 6}
    ratio = GuidedDensityRatio.from_models(ModelSpec(model=str(base), adapter=str(lora)), ModelSpec(model=str(base)))
    samples = [Sample((Message("user", row["prompt"]),), row[key]) for row in ROWS for key in ("chosen", "rejected")]
    expected = np.array([score.reward for score in ratio.score(samples)])
    assert np.abs(expected).min() > 0.01
    assert report.table.strong["tuned"] - report.table.weak["base"] == pytest.approx(expected, abs=1e-4)
