from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gdr_plugin import GuidedDensityRatio, Plugins
from gdr_plugin.api.errors import ConfigError, DataError
from gdr_plugin.config.load import load_config
from gdr_plugin.data.item import Item
from gdr_plugin.data.items import read_items
from gdr_plugin.tuning.halving import evaluations, plan
from gdr_plugin.tuning.report import TuneReport
from gdr_plugin.tuning.split import Split, split
from gdr_plugin.tuning.split import pairs as pairs_of
from gdr_plugin.tuning.write import registration

Make = Callable[..., Path]
Run = Callable[..., TuneReport]


def parts_of(data: Path, seed: int = 0) -> Split:
    items = [one for one in read_items(data) if isinstance(one, Item)]
    return split(items, seed=seed)


def facts(report: TuneReport) -> dict[str, Any]:
    """Everything that a repeated run must repeat."""
    return {name: value for name, value in report.to_json().items() if name != "cost"}


def test_the_instruction_that_helps_is_found(
    run: Run, pairs: Make, instructions: Path, secret: str, agrees: Callable[..., bool], tmp_path: Path
) -> None:
    data = pairs()
    report = run(data, instructions=instructions)
    assert report.best.guidance is not None
    assert report.best.guidance.instruction == secret
    held_out = pairs_of(parts_of(data).held_out)
    assert len(held_out) == 45
    for estimate, guided in ((report.result.tuned, True), (report.result.unguided, False)):
        by_hand = sum(agrees(one.chosen[0].content, one.rejected[0].content, guided) for one in held_out) / len(
            held_out
        )
        assert estimate.value == pytest.approx(by_hand)
    assert report.result.configured == report.result.unguided
    assert report.configured == {"none": 45}
    assert report.verdict.use
    assert report.result.gain.low > 0.2
    assert (tmp_path / "found.yaml").exists()


def test_no_held_out_pair_is_asked_before_the_end_and_no_exemplar_ever(
    run: Run, pairs: Make, instructions: Path, planted: Any
) -> None:
    data = pairs()
    run(data, instructions=instructions)
    parts = parts_of(data)
    asked = [response for _, response in planted.asked]
    texts = {
        name: {turn.content for one in pairs_of(part) for turn in (*one.chosen, *one.rejected)}
        for name, part in (("pool", parts.pool), ("search", parts.search), ("held out", parts.held_out))
    }
    assert not texts["pool"] & set(asked)
    first = min(n for n, text in enumerate(asked) if text in texts["held out"])
    assert set(asked[:first]) <= texts["search"]
    assert set(asked[first:]) == texts["held out"]
    # Exemplars are shown, in the system turn, and come from the pool alone.
    contexts = "".join({context for context, _ in planted.asked})
    assert sum(text in contexts for text in texts["pool"]) == 2 * 2
    assert not any(text in contexts for text in texts["search"] | texts["held out"])


def test_each_text_is_computed_once(run: Run, pairs: Make, instructions: Path, planted: Any) -> None:
    data = pairs()
    report = run(data, instructions=instructions, budget=16)
    parts = parts_of(data)
    rounds = plan(16, len(parts.search))
    assert [len(one.ranking) for one in report.rounds] == [16, 8, 4, 2]
    assert [one.prompts for one in report.rounds] == [size for _, size in rounds]
    # Two responses a prompt; the held-out prompts under the winner and without guidance, which gdr.yaml shows as well.
    expected = 2 * (evaluations(rounds) + 2 * len(parts.held_out))
    assert len(planted.asked) == len(set(planted.asked)) == expected
    assert report.cost.computed == 2 * expected
    assert report.cost.saved == 2 * 2 * len(parts.held_out)
    again = run(data, instructions=instructions, budget=16)
    assert len(planted.asked) == expected
    assert (again.cost.computed, again.cost.saved) == (0, report.cost.computed + report.cost.saved)
    assert facts(again) == facts(report)


def test_a_killed_run_goes_on_and_ends_the_same(
    run: Run, pairs: Make, instructions: Path, planted: Any, tmp_path: Path, config: Make
) -> None:
    data = pairs()
    clean = run(data, config(store={"path": "clean.sqlite"}), instructions=instructions)
    written = (tmp_path / "found.yaml").read_bytes()
    whole = len(planted.asked)
    (tmp_path / "found.yaml").unlink()
    planted.asked.clear()
    planted.fail_after = 700
    with pytest.raises(KeyboardInterrupt):
        run(data, instructions=instructions)
    assert not (tmp_path / "found.yaml").exists()
    planted.fail_after = None
    resumed = run(data, instructions=instructions)
    assert facts(resumed) == facts(clean)
    assert (tmp_path / "found.yaml").read_bytes() == written
    assert len(planted.asked) <= whole + 128  # the window that was not finished


def test_the_file_registers_and_shows_what_was_scored(
    run: Run, pairs: Make, instructions: Path, config: Make, planted: Any, tmp_path: Path
) -> None:
    path = config()
    report = run(pairs(), path, instructions=instructions, domain="contracts")
    guidance = report.best.guidance
    assert guidance is not None
    assert guidance.name == "contracts"
    lines = registration(load_config(path), tmp_path, tmp_path / "found.yaml", domain=report.domain, guidance=guidance)
    added = yaml.safe_load(lines)
    assert added == {
        "guidance": {
            "domains": {"chat": "none", "safety": "safety", "contracts": "contracts"},
            "files": ["found.yaml"],
        }
    }
    data = json.loads(path.read_text())
    data["guidance"].update(added["guidance"])
    path.write_text(json.dumps(data))
    ratio = GuidedDensityRatio.from_config(path, plugins=Plugins(planted, entry_points=False))
    assert ratio.rendered["contracts"].text == report.best.text
    head = (tmp_path / "found.yaml").read_text()
    assert head.startswith("# Written by gdr tune")
    assert report.fingerprint in head
    assert f"{report.result.tuned.value:.2f}" in head
    assert str(tmp_path) not in head
    # Tuning again against it: the file's own guidance takes part, and is what gdr.yaml shows.
    again = run(pairs(), path, instructions=instructions, domain="contracts")
    assert again.configured == {"contracts": 45}
    assert again.result.gain_over_configured.value == 0
    assert "not shown to do better than what gdr.yaml shows" in again.verdict.because
    assert guidance.name == again.best.guidance.name  # type: ignore[union-attr]


def test_exemplars_alone_can_be_the_guidance(run: Run, pairs: Make, secret: str) -> None:
    report = run(pairs(why=secret))
    assert report.best.guidance is not None
    assert [one.why for one in report.best.guidance.exemplars] == [secret]
    assert report.verdict.use


def test_more_exemplars_than_gdr_yaml_shows_are_said(run: Run, pairs: Make, config: Make, tmp_path: Path) -> None:
    path = config(guidance={"exemplars": 0, "domains": {"chat": "none"}})
    report = run(pairs(why="Name the clause that the answer rests on."), path, exemplars=2)
    assert report.best.guidance is not None
    assert len(report.best.guidance.exemplars) == 2
    lines = registration(load_config(path), tmp_path, tmp_path / "g.yaml", domain="x", guidance=report.best.guidance)
    assert yaml.safe_load(lines)["guidance"]["exemplars"] == 2
    assert not run(pairs(), path).best.label.count("exemplar")


def test_where_nothing_helps_nothing_is_recommended(run: Run, pairs: Make, config: Make, tmp_path: Path) -> None:
    path = config("fake:strong", "fake:weak", store={"path": "null.sqlite"})
    claimed = []
    for seed in range(20):
        report = run(pairs(60, f"null{seed}.jsonl", domain=f"d{seed}"), path, seed=seed, budget=8)
        if report.verdict.use:
            claimed.append(seed)
        else:
            assert "None is recommended" in report.verdict.because or "none is recommended" in report.verdict.because
            assert not (tmp_path / "found.yaml").exists()
    assert len(claimed) <= 1


def test_what_does_not_fit_is_lost_and_counted(run: Run, pairs: Make, config: Make, tmp_path: Path) -> None:
    instructions = tmp_path / "long.txt"
    instructions.write_text("Be long. " * 300 + "\nBe kind.\n")
    report = run(pairs(40), config(limits={"max_length": 2000}), instructions=instructions, budget=4)
    accuracy = {report.candidates[i].label: value for i, value in report.rounds[0].ranking}
    assert accuracy["instruction 1"] == 0
    assert sum(report.not_scored.values()) == 2 * report.rounds[0].prompts
    assert report.result.not_scored == 0


def test_nothing_scored_is_an_error_with_the_reason(run: Run, pairs: Make, config: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no held-out pair could be scored \(strong model: the prompt .* exceed"):
        run(pairs(20), config(limits={"max_length": 16}), budget=2)
    assert not (tmp_path / "found.yaml").exists()


def test_rows_of_one_domain_are_taken(run: Run, pairs: Make, tmp_path: Path, instructions: Path) -> None:
    both = tmp_path / "both.jsonl"
    rows = [pairs(30, "law.jsonl", domain="law"), pairs(30, "chat.jsonl", first=200, domain="chat")]
    both.write_text("".join(path.read_text() for path in rows))
    notes: list[str] = []
    report = run(both, notes=notes, domain="law", instructions=instructions)
    assert (report.pairs, report.domain) == (30, "law")
    assert notes[0].startswith("30 prompts are few")
    notes.clear()
    everything = run(both, notes=notes)
    assert everything.pairs == 60
    assert "2 domains (chat, law)" in notes[0]
    assert everything.domain == "tuned"
    # `law` is not a domain of gdr.yaml yet: today its rows take the default domain, and are not errors.
    assert run(rows[0]).configured == {"none": 14}


def test_pairs_that_are_exemplars_already_are_left_out(run: Run, pairs: Make, tmp_path: Path) -> None:
    guidance = tmp_path / "own.yaml"
    one = {"id": "x", "prompt": "question 107: may I  LEAVE?", "good": "g", "bad": "b", "why": "w"}
    guidance.write_text(json.dumps({"name": "own", "exemplars": [one]}))
    notes: list[str] = []
    report = run(pairs(60), notes=notes, instructions=guidance)
    assert report.pairs == 59
    assert notes[0].endswith("guidances that are tried: 1")


@pytest.mark.parametrize(
    ("rows", "sections", "options", "error", "says"),
    [
        (19, {}, {}, DataError, "give 20 at least"),
        (60, {"guidance": {"placement": "none"}}, {}, ConfigError, "placement is none"),
        (60, {"guidance": {"instruction": False}}, {}, ConfigError, "instruction is false"),
        (60, {}, {"domain": "none"}, ConfigError, "--domain 'none'"),
        (60, {}, {"exemplars": -1}, ConfigError, "--exemplars must be 0 or more"),
        (60, {}, {"columns": {"chosen": "better"}}, DataError, "'better'"),
    ],
)
def test_wrong_input_is_refused_before_a_model_is_opened(
    run: Run,
    pairs: Make,
    config: Make,
    planted: Any,
    rows: int,
    sections: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        run(pairs(rows), config(**sections), **options)
    assert planted.opened == 0


def test_one_model_in_memory_at_a_time_gives_the_same(
    run: Run, pairs: Make, config: Make, instructions: Path, planted: Any
) -> None:
    data = pairs(60)
    together = run(data, config(store={"path": "a.sqlite"}), instructions=instructions)
    apart = run(data, config(store={"path": "b.sqlite"}, load="sequential"), instructions=instructions)
    assert facts(apart) == facts(together)
