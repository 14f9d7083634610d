"""`gdr evaluate` as a user runs it: what it reads, prints, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from gdr_plugin.api.errors import DataError, ModelError, OutputError
from gdr_plugin.api.types import Message, Sample, ToolCall
from gdr_plugin.config.schema import Config
from gdr_plugin.evaluation.run import Outputs, as_json, evaluate_data
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.reward.reward import GuidedDensityRatio

Run: TypeAlias = Callable[..., tuple[int, str, str]]

CONFIG: dict[str, Any] = {"strong": "fake:a", "weak": "fake:b"}
ROWS: list[dict[str, Any]] = [
    {
        "id": f"r{n}",
        "prompt": f"Question {n}?",
        "chosen": "Yes." + "!" * n,
        "rejected": "No. " * n,
        "subset": "ab"[n % 2],
    }
    for n in range(12)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a gdr.yaml and data.jsonl."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gdr.yaml").write_text("strong: fake:a\nweak: fake:b\n")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


@pytest.fixture
def gdr(folder: Path, gdr: Run) -> Run:
    """Runs the command in the working folder: exit code, standard output, standard error."""
    return partial(gdr, "evaluate")


def test_a_run_prints_tables_and_writes_what_it_is_asked_for(folder: Path, gdr: Run) -> None:
    code, out, error = gdr("data.jsonl", "--html", "out.html", "--rows", "out.jsonl")
    assert (code, error) == (0, "")
    for line in (
        "accuracy (95 % interval; a tie counts half)",
        "subset a",
        "longer wins",
        "best T",
        "items       12 (plain)",
    ):
        assert line in out
    found = json.loads(gdr("data.jsonl", "--json")[1])
    assert (found["items"], found["scored"], found["origin"]["data"]) == (12, 12, "data.jsonl")
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    accuracy = sum(row["correct"] for row in rows) / 12
    assert found["reward"]["sum"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert f"{accuracy:.3f} [" in out
    assert (folder / ".gdr" / "store.sqlite").exists()


def test_margins_are_those_of_the_reward(folder: Path) -> None:
    report, _ = evaluate_data("data.jsonl", Config.model_validate(CONFIG))
    ratio = GuidedDensityRatio.from_config(Config.model_validate(CONFIG))
    for row, found in zip(ROWS, report.rows(), strict=True):
        chosen, rejected = ratio.score(
            [Sample((Message("user", row["prompt"]),), row[side]) for side in ("chosen", "rejected")]
        )
        assert chosen.reward is not None
        assert rejected.reward is not None
        assert found["margins"]["sum"] == chosen.reward - rejected.reward
        assert found["correct"] == float(chosen.reward > rejected.reward)


def test_tool_calls_and_reasoning_are_part_of_what_is_judged(folder: Path) -> None:
    def turn(minutes: int, **more: str) -> list[dict[str, Any]]:
        call = {"function": {"name": "timer", "arguments": {"minutes": minutes}}}
        return [{"role": "assistant", "content": "On it.", "tool_calls": [call], **more}]

    prompt = [{"role": "user", "content": "Set a timer for 5 minutes."}]
    rows = [
        {"prompt": prompt, "chosen": turn(5), "rejected": turn(50)},
        {"prompt": prompt, "chosen": turn(5, thinking="Five."), "rejected": turn(5)},
        {"prompt": prompt, "chosen": turn(5), "rejected": "On it."},
    ]
    (folder / "tools.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report, _ = evaluate_data("tools.jsonl", Config.model_validate(CONFIG))
    ratio = GuidedDensityRatio.from_config(Config.model_validate(CONFIG))
    asked = (Message("user", "Set a timer for 5 minutes."),)
    five, fifty = ((ToolCall("timer", json.dumps({"minutes": minutes})),) for minutes in (5, 50))
    rewards = [
        score.reward
        for score in ratio.score(
            [
                Sample(asked, "On it.", tool_calls=five),
                Sample(asked, "On it.", tool_calls=fifty),
                Sample(asked, "On it.", reasoning="Five.", tool_calls=five),
                Sample(asked, "On it."),
            ]
        )
    ]
    found = [row["margins"]["sum"] for row in report.rows()]
    expected = [(0, 1), (2, 0), (0, 3)]
    assert found == [rewards[one] - rewards[other] for one, other in expected]  # type: ignore[operator]
    assert len(set(found)) == 3
    assert 0.0 not in found
    # What is divided by: 6 bytes of text, 5 of the name, 14 of the arguments (15 with 50).
    sums = [row["margins"]["per_byte"] for row in report.rows()]
    assert sums[0] == pytest.approx(rewards[0] / 25 - rewards[1] / 26)  # type: ignore[operator]


def test_a_second_run_computes_nothing_and_says_the_same(folder: Path, gdr: Run) -> None:
    first, second = (json.loads(gdr("data.jsonl", "--json")[1]) for _ in range(2))
    assert first.pop("origin")["store"] == "0 hits, 48 misses"
    assert second.pop("origin")["store"] == "48 hits, 0 misses"
    assert first == second


def test_a_run_that_stopped_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**ROWS[0], "id": str(n), "prompt": f"Question {n}?"} for n in range(100)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = FakeModel.score

    def failing(self: FakeModel, spans: Any) -> Any:
        if self.calls:
            raise ModelError("out of memory")
        return score(self, spans)

    monkeypatch.setattr(FakeModel, "score", failing)
    with pytest.raises(ModelError):
        evaluate_data("data.jsonl", Config.model_validate(CONFIG))
    monkeypatch.setattr(FakeModel, "score", score)
    report, origin = evaluate_data("data.jsonl", Config.model_validate(CONFIG))
    assert origin["store"] == "256 hits, 144 misses"  # 64 pairs under two models
    (folder / ".gdr" / "store.sqlite").unlink()
    whole, _ = evaluate_data("data.jsonl", Config.model_validate(CONFIG))
    assert report.as_json() == whole.as_json()


def test_bad_rows_are_refused_before_a_model_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeModel, "score", lambda *_: pytest.fail("a model was asked"))
    with (folder / "data.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "Hi", "chosen": 1, "rejected": "b"}) + "\n")
    with pytest.raises(DataError, match=r"data\.jsonl line 13: `chosen` must be a text"):
        evaluate_data("data.jsonl", Config.model_validate(CONFIG))
    assert not (folder / ".gdr").exists()
    monkeypatch.undo()


def test_bad_rows_can_be_left_out(folder: Path, gdr: Run) -> None:
    with (folder / "data.jsonl").open("a") as file:
        file.write("{broken\n")
    code, _, error = gdr("data.jsonl")
    assert code == 2
    assert error.startswith("gdr: data.jsonl line 13: malformed JSON")
    assert error.count("\n") == 1
    code, out, _ = gdr("data.jsonl", "--skip-bad")
    assert code == 0
    assert "bad rows left out  1 (first: data.jsonl line 13" in out


def test_standard_input_and_limit(folder: Path, gdr: Run) -> None:
    code, out, _ = gdr("-", "--limit", "3", stdin=(folder / "data.jsonl").read_text())
    assert code == 0
    assert "3 (plain), 3 scored" in out
    assert "standard input" in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["data.jsonl", "--html", "no/out.html"], "there is no folder no: make it first"),
        (["data.jsonl", "--rows", "data.jsonl"], "--rows data.jsonl is an input: name another file"),
        (["data.jsonl", "--html", "."], "is a folder: name a file"),
        (["data.jsonl", "--html", "out", "--rows", "./out"], "name the same file"),
        (["data.jsonl", "--format", "rm_bench"], "unknown format 'rm_bench'"),
        (["none.jsonl"], "none.jsonl does not exist"),
        (["data.jsonl", "-c", "none.yaml"], "none.yaml"),
        (["data.jsonl", "--map", "prompt=instruction"], "unknown column 'instruction'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments: list[str], problem: str, folder: Path, gdr: Run) -> None:
    before = (folder / "data.jsonl").read_text()
    code, out, error = gdr(*arguments)
    assert (code, out) == (2, "")
    assert problem in error
    assert error.count("\n") == 1
    assert (folder / "data.jsonl").read_text() == before


def test_a_row_of_an_unknown_domain_is_bad_only_where_a_router_reads_it(folder: Path) -> None:
    (folder / "data.jsonl").write_text(json.dumps({**ROWS[0], "domain": "maths"}) + "\n")
    with pytest.raises(DataError, match=r"line 1: column 'domain': unknown domain 'maths': .*did you mean 'math'"):
        evaluate_data("data.jsonl", Config.model_validate(CONFIG))
    config = Config.model_validate({**CONFIG, "routing": {"routers": ["keyword"]}})
    report, _ = evaluate_data("data.jsonl", config)
    assert report.routers == {"default": 1}


def test_domains_of_rows_are_those_that_guidance_is_chosen_by(folder: Path) -> None:
    rows = [{**row, "domain": domain} for row, domain in zip(ROWS[:2], ("math", "safety"), strict=True)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report, _ = evaluate_data("data.jsonl", Config.model_validate(CONFIG))
    assert list(report.main.domains) == ["math", "safety"]
    assert (report.guided, report.routers) == (2, {"field": 2})


def test_items_that_do_not_fit_are_counted_with_their_reason(folder: Path) -> None:
    config = Config.model_validate({**CONFIG, "limits": {"max_length": 60}, "routing": {"routers": []}})
    (folder / "data.jsonl").write_text(
        json.dumps(ROWS[0]) + "\n" + json.dumps({**ROWS[1], "prompt": "long " * 50}) + "\n"
    )
    report, _ = evaluate_data("data.jsonl", config, Outputs(rows=folder / "rows.jsonl"))
    ((reason, count),) = report.not_scored.items()
    assert (count, reason.startswith("strong model: the prompt (N tokens)")) == (1, True)
    row = json.loads((folder / "rows.jsonl").read_text().splitlines()[1])
    assert (row["correct"], row["margins"]["sum"]) == (None, None)
    assert "tokens" in row["reason"]
    assert report.main.overall.accuracy is not None
    assert report.main.overall.accuracy.n == 1


def test_nothing_scored_at_all_is_still_a_report(folder: Path) -> None:
    config = Config.model_validate({**CONFIG, "limits": {"max_length": 16}, "routing": {"routers": []}})
    report, origin = evaluate_data("data.jsonl", config, Outputs(html=folder / "o.html"), format="plain")
    assert report.main.overall.accuracy is None
    assert as_json(report, origin)["reward"]["sum"]["accuracy"] is None


def test_an_output_that_cannot_be_written_is_found_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeModel, "score", lambda *_: pytest.fail("a model was asked"))
    with pytest.raises(OutputError):
        evaluate_data("data.jsonl", Config.model_validate(CONFIG), Outputs(html=folder / "no" / "x.json"))


def test_the_benchmarks_numbers_reach_the_output(folder: Path, gdr: Run) -> None:
    rows = [
        {
            "id": n,
            "prompt": f"Question {n}?",
            "chosen": f"Good {n}.",
            "rejected": f"Bad {n}.",
            "chosen_model": "a",
            "rejected_model": "b",
            "subset": subset,
        }
        for n, subset in enumerate(["math-prm", "math-prm", "hep-go", "llmbar-natural"])
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = gdr("data.jsonl", "--rows", "out.jsonl")
    assert code == 0
    correct = [json.loads(line)["correct"] for line in (folder / "out.jsonl").read_text().splitlines()]
    found = json.loads(gdr("data.jsonl", "--json")[1])["reward"]["sum"]["sections"]
    reasoning = (984 * (correct[0] + correct[1]) / 2 + 164 * correct[2]) / (984 + 164)
    assert found["Reasoning"]["value"] == pytest.approx(reasoning)
    assert found["Chat Hard"]["value"] == correct[3]
    assert found["Chat"] is None
    assert {name: found["Chat Hard"][name] for name in ("items", "expected", "partial")} == {
        "items": 1,
        "expected": 456,
        "partial": True,
    }
    assert found["average of the sections"] is None
    assert "rewardbench Reasoning (partial: 3 of 1,431)" in out
    assert "subset llmbar-natural (partial: 1 of 100)" in out
    assert "all (partial: 4 of 2,985)" in out
    assert "the margin with the length difference (partial: 4 of 2,985)" in " ".join(out.split())
    assert "No number for Chat, Safety, average of the sections" in out
    assert "partial: 4 of 2,985" in out.rpartition("\n\n")[2]  # and in the verdict


class Outline(HTMLParser):
    """Which elements a page has, and whether they are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_asks_no_network(folder: Path) -> None:
    rows = [{**row, "subset": "<b>&" if row["subset"] == "a" else "c"} for row in ROWS]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report, _ = evaluate_data("data.jsonl", Config.model_validate(CONFIG), Outputs(html=folder / "out.html"))
    text = (folder / "out.html").read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert "subset &lt;b&gt;&amp;" in text
    assert "<b>" not in text
    assert not any("src" in attributes or "href" in attributes for tag, attributes in outline.found if tag != "a")
    captions = [tag for tag, _ in outline.found].count("caption")
    assert captions == 5
    dot = next(attributes for tag, attributes in outline.found if tag == "circle")
    assert report.main.overall.accuracy is not None
    assert float(dot["cx"] or 0) == pytest.approx(4 + 136 * report.main.overall.accuracy.value, abs=0.06)
