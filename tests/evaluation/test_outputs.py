"""What `gdr evaluate` keeps: rows, CSV, LaTeX, RewardBench's scores, trackers, what the numbers were made with."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest

from gdr_plugin.api.errors import OutputError
from gdr_plugin.config.schema import Config
from gdr_plugin.data.item import Item
from gdr_plugin.data.items import load_items
from gdr_plugin.evaluation.run import Outputs, as_json, evaluate_data
from gdr_plugin.evaluation.track import numbers
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.scoring.items import samples
from gdr_plugin.version import __version__

Run: TypeAlias = Callable[..., tuple[int, str, str]]

CONFIG: dict[str, Any] = {"strong": "fake:a", "weak": "fake:b"}
ROWS: list[dict[str, Any]] = [
    {"id": n, "prompt": f"Question {n}?", "chosen": f"Good {n}.", "rejected": f"Bad {n}."}
    | {"chosen_model": "a", "rejected_model": "b", "subset": subset}
    for n, subset in enumerate(["math-prm", "math-prm", "hep-go", "llmbar-natural", "donotanswer"])
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gdr.yaml").write_text("strong: fake:a\nweak: fake:b\n")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_rows_hold_what_every_response_got(folder: Path) -> None:
    config = Config.model_validate(CONFIG)
    report, _ = evaluate_data("data.jsonl", config)
    ratio = GuidedDensityRatio.from_config(config)
    items = load_items("data.jsonl").items
    for item, row in zip(items, report.rows(), strict=True):
        chosen, rejected = ratio.score(samples(item))
        assert row["rewards"] == {"chosen": [chosen.reward], "rejected": [rejected.reward]}
        assert row["strong_logprobs"]["chosen"] == [chosen.strong_logprob]
        assert row["weak_logprobs"]["rejected"] == [rejected.weak_logprob]
        assert row["weak_tokens"] == {"chosen": [chosen.weak_tokens], "rejected": [rejected.weak_tokens]}
        assert row["worths"]["sum"] == row["correct"]
        assert (len(row["item"]), row["reduction"]) == (16, "sum")
    digests = [row["item"] for row in report.rows()]
    assert len(set(digests)) == len(digests)


def test_csv_has_every_accuracy(folder: Path) -> None:
    report, origin = evaluate_data("data.jsonl", Config.model_validate(CONFIG), Outputs(csv=folder / "out.csv"))
    rows = list(csv.DictReader(io.StringIO((folder / "out.csv").read_text())))
    found = {(row["part"], row["name"], row["by"]): row for row in rows}
    overall = report.main.overall
    assert overall.accuracy is not None
    row = found["all", "ratio", "sum"]
    assert float(row["accuracy"]) == overall.accuracy.value
    assert (row["items"], row["published_items"], row["data fingerprint"]) == ("5", "2985", origin["data fingerprint"])
    assert found["section Chat", "ratio", "mean"]["accuracy"] == ""
    assert found["subset hep-go", "strong log-prob", "sum"]["published_items"] == "164"
    assert ("all", "longer wins", "tokens") in found


def test_a_text_that_a_spreadsheet_would_run_is_text_in_csv(folder: Path) -> None:
    (folder / "=1+1.jsonl").write_text((folder / "data.jsonl").read_text())
    evaluate_data("=1+1.jsonl", Config.model_validate(CONFIG), Outputs(csv=folder / "out.csv"))
    rows = list(csv.DictReader(io.StringIO((folder / "out.csv").read_text())))
    assert {row["data"] for row in rows} == {"'=1+1.jsonl"}


def test_latex_is_a_table_that_says_what_is_partial(folder: Path) -> None:
    (folder / "a_b.jsonl").write_text((folder / "data.jsonl").read_text())
    report, _ = evaluate_data("a_b.jsonl", Config.model_validate(CONFIG), Outputs(latex=folder / "out.tex"))
    text = (folder / "out.tex").read_text()
    assert text.count(r"\begin{tabular}{lrrrr}") == text.count(r"\end{tabular}") == 1
    assert r"hep-go (partial: 1 of 164) & 1 & " in text
    assert "average of the sections (partial: 5 of 2,985) & 5 & -- & -- & --" in text
    accuracy = report.main.overall.accuracy
    assert accuracy is not None
    assert f"all (partial: 5 of 2,985) & 5 & {100 * accuracy.value:.1f} " in text
    assert "% data: a_b.jsonl\n" in text


def test_a_name_is_no_command_of_tex(folder: Path) -> None:
    rows = [{"prompt": f"{n}?", "chosen": "a", "rejected": "b", "subset": f"^^5cinput {n % 2}"} for n in range(6)]
    (folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate_data("odd.jsonl", Config.model_validate(CONFIG), Outputs(latex=folder / "out.tex"))
    text = (folder / "out.tex").read_text()
    assert r"\textasciicircum{}\textasciicircum{}5cinput 1" in text
    assert "^" not in text


def test_scores_in_rewardbenchs_form(folder: Path) -> None:
    report, _ = evaluate_data("data.jsonl", Config.model_validate(CONFIG), Outputs(scores=folder / "scores.json"))
    found = json.loads((folder / "scores.json").read_text())
    rows = list(report.rows())
    assert found["scores_chosen"] == [row["rewards"]["chosen"][0] for row in rows]
    assert found["scores_rejected"] == [row["rewards"]["rejected"][0] for row in rows]
    assert found["results"] == [int(row["correct"] == 1) for row in rows]
    assert found["id"] == ["0", "1", "2", "3", "4"]
    assert found["subset"] == [row["subset"] for row in ROWS]
    assert found["text_chosen"][0] == "user: Question 0?\n\nassistant: Good 0."
    assert found["model"] == "fake:a - fake:b"


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_tracker_is_given_the_numbers(tracker: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    run = SimpleNamespace(log=told.append, finish=lambda: told.append("finished"))
    module = SimpleNamespace(init=lambda **given: (told.append(given), run)[1], __spec__=object())
    monkeypatch.setitem(sys.modules, tracker, module)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    report, origin = evaluate_data("data.jsonl", Config.model_validate(CONFIG), Outputs(tracker=tracker))
    assert told == [
        {"project": "mine" if tracker == "wandb" else "gdr-evaluate", "config": origin},
        numbers(report),
        "finished",
    ]
    overall = report.main.overall.accuracy
    assert overall is not None
    assert told[1]["accuracy"] == overall.value
    assert "section/Reasoning (partial)" in told[1]
    assert "section/average of the sections (partial)" not in told[1]  # there is no such number


def test_a_tracker_that_fails_costs_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=object()))
    outputs = Outputs(tracker="wandb", rows=folder / "rows.jsonl", scores=folder / "scores.json")
    with pytest.raises(OutputError, match=r"^--report-to wandb: no network; the files are written$"):
        evaluate_data("data.jsonl", Config.model_validate(CONFIG), outputs)
    assert (folder / "rows.jsonl").is_file()
    assert (folder / "scores.json").is_file()


def test_a_tracker_that_is_missing_is_refused_first(folder: Path, gdr: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gdr_plugin.evaluation.track.find_spec", lambda _: None)
    code, out, error = gdr("evaluate", "data.jsonl", "--report-to", "trackio")
    assert (code, out) == (2, "")
    assert "--report-to trackio needs the package trackio" in error
    assert not (folder / ".gdr").exists()


def test_everything_says_what_it_was_made_with(folder: Path, gdr: Run) -> None:
    report, origin = evaluate_data("data.jsonl", Config.model_validate(CONFIG), Outputs(html=folder / "out.html"))
    told = as_json(report, origin)["origin"]
    assert told["gdr-plugin"] == __version__
    assert told["strong identity"] != told["weak identity"]
    assert told["router"] == "field, keyword, else chat"
    assert told["guidance ids"].endswith("(5)") or "), " in told["guidance ids"]
    assert told["date"].endswith("UTC")
    page = (folder / "out.html").read_text()
    for name in ("data fingerprint", "strong identity", "machine", "date", "router"):
        assert f"<dt>{name}</dt>" in page
    printed = gdr("evaluate", "data.jsonl")[1]
    assert "strong identity" not in printed  # a terminal has a few lines


def test_a_fingerprint_is_of_texts_whatever_the_file(folder: Path) -> None:
    config = Config.model_validate(CONFIG)
    first = evaluate_data("data.jsonl", config)[1]["data fingerprint"]
    (folder / "other.json").write_text(json.dumps(ROWS[::-1]))
    assert evaluate_data("other.json", config)[1]["data fingerprint"] == first
    (folder / "third.json").write_text(json.dumps([{**ROWS[0], "chosen": "Other."}, *ROWS[1:]]))
    assert evaluate_data("third.json", config)[1]["data fingerprint"] != first


def test_a_sample_has_items_of_every_subset(folder: Path, gdr: Run) -> None:
    code, out, _ = gdr("evaluate", "data.jsonl", "--sample", "4", "--seed", "3")
    assert code == 0
    assert "sample      4 of 5 items, drawn by subset" in out
    assert "subset donotanswer (partial: 1 of 136)" in out
    code, _, error = gdr("evaluate", "data.jsonl", "--sample", "3")
    assert (code, "the data have 4 subsets" in error) == (2, True)


def test_ties_and_missing_labels_are_told(folder: Path, gdr: Run) -> None:
    row = {"prompt": "Q?", "response_a": "Yes.", "response_b": "No."}
    labels = ["a", "b", "tie", None]
    (folder / "votes.jsonl").write_text("".join(json.dumps({**row, "label": label}) + "\n" for label in labels))
    code, out, _ = gdr("evaluate", "votes.jsonl")
    assert code == 0
    assert "2 (labelled), 2 scored" in out
    assert "left out: a tie     1 rows" in out
    assert "left out: no label  1 rows" in out


def test_items_of_their_own_conversations_are_scored_there(folder: Path) -> None:
    def talk(name: str) -> list[dict[str, str]]:
        said = ["Q?", f"{name}1", "More?", f"{name}2"]
        return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]

    row = {"conversation_a": talk("a"), "conversation_b": talk("b"), "winner": "model_a"}
    (folder / "arena.jsonl").write_text(json.dumps(row) + "\n")
    config = Config.model_validate(CONFIG)
    report, origin = evaluate_data("arena.jsonl", config)
    (item,) = load_items("arena.jsonl").items
    assert isinstance(item, Item)
    scores = GuidedDensityRatio.from_config(config).score(samples(item))
    (found,) = report.rows()
    assert found["rewards"] == {"chosen": [scores[0].reward], "rejected": [scores[1].reward]}
    assert origin["own conversations"].startswith("1 items")


def test_domains_that_routers_found_stand_beside_the_benchmarks(folder: Path, gdr: Run) -> None:
    rows = [{**ROWS[2], "prompt": "def add(a, b): what does this Python function return?"}, *ROWS[3:]]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report, _ = evaluate_data("data.jsonl", Config.model_validate(CONFIG))
    assert report.routed == {"code": {"code": 1}, "chat": {"chat": 1}, "safety": {"chat": 1}}
    code, out, _ = gdr("evaluate", "data.jsonl")
    assert code == 0
    assert [line.split("│")[2:] for line in out.splitlines() if line.startswith("safety ")] == [
        [" 0     ", " 0%   ", " chat 1"]
    ]
    (folder / "plain.jsonl").write_text(json.dumps({"prompt": "Q?", "chosen": "a", "rejected": "b"}) + "\n")
    assert evaluate_data("plain.jsonl", Config.model_validate(CONFIG))[0].routed == {}
