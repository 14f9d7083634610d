"""The smaller benchmark scripts run on tiny models, and divide and count rightly. Nothing here is about speed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.types import TokenSpan
from gdr_plugin.config.load import load_config

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SCRIPTS = sorted({path.stem for path in (REPOSITORY / "benchmarks").glob("[a-z]*.py")} - {"peer_lm_eval"})
"""All but the one that runs in an environment of its own."""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks` is not installed: it is found in the repository."""
    monkeypatch.syspath_prepend(REPOSITORY)


@pytest.fixture
def tiny_config(tiny_model: Any, tmp_path: Path) -> Path:
    config = tmp_path / "gdr.yaml"
    config.write_text(
        f"strong: {tiny_model('llama', seed=0)}\nweak: {tiny_model('llama', seed=1)}\n"
        "guidance: {domains: {chat: none, safety: safety}}\n"
        "routing: {routers: [likelihood], default_domain: chat}\n"
    )
    return config


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_finds_what_it_imports(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def test_the_power_of_tuning_is_that_of_the_real_search() -> None:
    from benchmarks.tune_power import once

    use, right, search, held_out = once(seed=0, prompts=300, gain=0.3)
    assert (use, right) == (True, True)
    assert search > 0.8
    assert held_out > 0.8


def test_work_is_split_by_prompt_and_evenly() -> None:
    from benchmarks.threads import shares

    spans = [TokenSpan((prompt,), (1,) * length) for prompt in range(5) for length in (prompt + 1, prompt + 1)]
    parts = shares(spans, 2)
    assert sorted(map(repr, parts[0] + parts[1])) == sorted(map(repr, spans))
    assert {span.context for span in parts[0]}.isdisjoint(span.context for span in parts[1])
    costs = [sum(len(span.response) for span in part) for part in parts]
    assert abs(costs[0] - costs[1]) <= 2


@pytest.mark.thorough
def test_threads_and_processes_are_run_in_turn(tiny_config: Path) -> None:
    from benchmarks.threads import Way, measure, rows

    spans = [TokenSpan((3, 4, prompt), (5, 6, 7)) for prompt in (8, 9)]
    found = measure(tiny_config, spans, rounds=2, cores=2, say=lambda what: None)
    assert {way for way, _, _ in found} >= {Way(1, 1, False), Way(1, 2, False), Way(2, 1, False)}
    assert all(len(seconds) == 2 and min(seconds) > 0 for _, _, seconds in found)
    assert all(row["over_one_thread"] > 0 for row in rows(found))


def test_distinct_prefixes_are_counted_once() -> None:
    from benchmarks.routing import tokens

    spans = [TokenSpan((1, 2, 3), (4, 5)), TokenSpan((1, 2, 3), (4, 6, 7)), TokenSpan((1, 9), (4,))]
    read = {(span.context + span.response[:-1])[:n] for span in spans for n in range(1, 9)}
    assert tokens(spans) == len(read)


def test_both_orders_of_routing_are_measured(tiny_config: Path) -> None:
    from benchmarks.routing import measure
    from benchmarks.work import Candidates
    from gdr_plugin.api.types import Message

    prompts = [
        Candidates((Message("user", text),), (("A reply.", True), ("Another.", True))) for text in ("Why?", "How so?")
    ]
    found = measure(load_config(tiny_config), prompts, 2, 1)
    assert found["responses"] == 4
    assert found["tokens"]["prompt_first"] > 0
    assert 0 < found["routing_share"] < 1


def test_the_pipeline_is_measured_stage_by_stage(tiny_config: Path, tmp_path: Path) -> None:
    pipeline = importlib.import_module("benchmarks.pipeline")
    pair, watch = pipeline.CostlessPair(tiny_config), pipeline.Stopwatch()
    given = pipeline.rows(2, 3, "t")
    assert len({response["text"] for row in given for response in row["responses"]}) == 6
    pipeline.stages(watch, pair, pipeline.write(tmp_path / "rows.jsonl", pipeline.score_rows_of(given)), tmp_path)
    assert len(watch.stages) == 11
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 6
    work = pipeline.facts(pair, given)
    assert (work["responses"], work["prompts"]) == (6, 2)
    table = pipeline.report({"work": work, "stages": {"route": 6e-3}, "whole": {}})
    assert "route 1,000.0 1,000" in " ".join(table.split())
