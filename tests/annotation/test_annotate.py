"""Annotation end to end with fake models and given responses: the numbers, the files, the errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gdr_plugin.annotation.annotate import annotate
from gdr_plugin.annotation.filters import Filters
from gdr_plugin.annotation.options import AnnotateOptions
from gdr_plugin.annotation.tables import TABLES
from gdr_plugin.annotation.windows import WINDOW
from gdr_plugin.api.errors import ConfigError, DataError, GDRError, OutputError
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.config.schema import Config
from gdr_plugin.data.prompts import parse_prompt, prompt_of
from gdr_plugin.data.sources import read_rows
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.sampling.sample import Sampling

MakePrompts = Callable[..., Path]
MakeConfig = Callable[..., Config]
Row = dict[str, Any]


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def data_files(out: Path) -> dict[str, bytes]:
    names = [f"{table}.{kind}" for table in TABLES for kind in ("parquet", "jsonl")]
    return {name: (out / name).read_bytes() for name in [*names, "rejects.jsonl"]}


def test_pairs_equal_an_independent_computation(tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig) -> None:
    source, config = prompts(rows=70, responses=5), fake_config()
    result = annotate(source, config, tmp_path / "out", AnnotateOptions(select="top-k:2"))

    ratio = GuidedDensityRatio.from_config(config)
    expected = []
    for row in lines(source):
        samples = [
            Sample((Message("user", row["prompt"]),), text, fields={"domain": row.get("domain")})
            for text in row["responses"]
        ]
        scores = ratio.score(samples)
        first = {" ".join(text.split()): index for index, text in reversed(list(enumerate(row["responses"])))}
        order = sorted(first.values(), key=lambda index: (-(scores[index].reward or 0), index))
        for rank in range(min(2, len(order) // 2)):
            good, bad = order[rank], order[-1 - rank]
            expected.append((row["id"], row["responses"][good], row["responses"][bad], scores[good], scores[bad]))

    pairs = lines(tmp_path / "out" / "preferences.jsonl")
    assert len(pairs) == len(expected) == result.summary["pairs"] > 100
    for pair, (identifier, chosen, rejected, good, bad) in zip(pairs, expected, strict=True):
        assert pair["gdr_id"] == identifier
        assert pair["chosen"] == [{"role": "assistant", "content": chosen}]
        assert pair["rejected"] == [{"role": "assistant", "content": rejected}]
        assert (pair["gdr_chosen_reward"], pair["gdr_rejected_reward"]) == (good.reward, bad.reward)
        assert pair["gdr_margin"] == good.reward - bad.reward > 0
        assert (pair["gdr_chosen_tokens"], pair["gdr_rejected_tokens"]) == (good.strong_tokens, bad.strong_tokens)
        assert (pair["gdr_domain"], pair["gdr_router"]) == (good.domain, good.router)
        assert (pair["gdr_guidance"], pair["gdr_exemplars"]) == (good.guidance, list(good.exemplars))
    assert {pair["gdr_domain"] for pair in pairs} == {"chat", "safety"}


def test_every_scored_response_is_kept(tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig) -> None:
    source, config = prompts(rows=40, responses=3), fake_config()
    annotate(source, config, tmp_path / "out")
    kept = lines(tmp_path / "out" / "candidates.jsonl")
    rows = lines(source)
    assert [(row["gdr_id"], row["gdr_candidate"], row["response"]) for row in kept] == [
        (row["id"], number, text) for row in rows for number, text in enumerate(row["responses"])
    ]
    for row in kept:
        assert row["gdr_reward"] == row["gdr_strong_logprob"] - row["gdr_weak_logprob"]


def test_parquet_and_jsonl_say_the_same(tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig) -> None:
    annotate(prompts(), fake_config(), tmp_path / "out")
    for name, schema in TABLES.items():
        table = pq.read_table(tmp_path / "out" / f"{name}.parquet")
        assert table.schema.equals(schema)
        assert table.to_pylist() == lines(tmp_path / "out" / f"{name}.jsonl") != []


def test_guidance_never_reaches_the_prompt_and_a_system_turn_stays(tmp_path: Path, fake_config: MakeConfig) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    source = tmp_path / "in.jsonl"
    row = {"prompt": messages, "domain": "safety", "responses": ["yes", {"text": "no way", "finished": False}]}
    source.write_text(json.dumps(row))
    annotate(source, fake_config(), tmp_path / "out")
    (pair,) = lines(tmp_path / "out" / "preferences.jsonl")
    assert pair["prompt"] == messages
    assert pair["gdr_guidance"].startswith("safety")
    sides = {pair[side][0]["content"]: pair[f"gdr_{side}_finished"] for side in ("chosen", "rejected")}
    assert sides == {"yes": True, "no way": False}


def test_column_names_that_trainers_give_a_meaning_to_are_avoided() -> None:
    suffixes = ("_logps", "_input_ids", "_attention_mask", "_labels", "_pixel_values")
    for name, schema in TABLES.items():
        ours = set(schema.names) - {"prompt", "chosen", "rejected", "completion", "label", "response", "finished"}
        assert all(column.startswith("gdr_") and not column.endswith(suffixes) for column in ours), name


def test_kto_rows_are_the_pairs_taken_apart(tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig) -> None:
    annotate(prompts(rows=50), fake_config(), tmp_path / "out")
    pairs, kto = (lines(tmp_path / "out" / f"{name}.jsonl") for name in ("preferences", "kto"))
    expected = [(pair["gdr_id"], pair[side], side == "chosen") for pair in pairs for side in ("chosen", "rejected")]
    assert [(row["gdr_id"], row["completion"], row["label"]) for row in kto] == expected


def test_prompts_without_a_pair_say_why(tmp_path: Path, fake_config: MakeConfig) -> None:
    source = tmp_path / "in.jsonl"
    rows = [
        {"id": "one", "prompt": "a", "responses": ["x"]},
        {"id": "same", "prompt": "a", "responses": ["x y", "x  y"]},
        {"id": "fine", "prompt": "a", "responses": ["x", "some other text"]},
        {"id": "empty", "prompt": "a", "responses": ["", ""]},
        {"id": "bad", "prompt": ""},
    ]
    source.write_text("\n".join([*map(json.dumps, rows), "{oops"]))
    config = fake_config(reward={"end_of_turn": "never"})
    summary = annotate(source, config, tmp_path / "out", AnnotateOptions(skip_bad=True)).summary
    rejects = {row["id"]: (row["reason"], row["row"]) for row in lines(tmp_path / "out" / "rejects.jsonl")}
    few = "fewer than two scored candidates"
    assert rejects == {
        "one": (few, 1),
        "same": ("all scored candidates are identical", 2),
        "empty": (few, 4),
        "bad": ("bad row", 5),
        "row-000006": ("bad row", 6),
    }
    assert summary["rejects"] == {few: 2, "bad row": 2, "all scored candidates are identical": 1}
    assert (summary["rows"], summary["pairs"], summary["prompts_with_pair"]) == (6, 1, 1)
    source.write_text(json.dumps(rows[3]))
    with pytest.raises(DataError, match="response 0 was not scored: the response has no tokens"):
        annotate(source, config, tmp_path / "strict", AnnotateOptions(strict=True))


def test_no_pair_at_all_leaves_readable_tables(tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig) -> None:
    out = tmp_path / "out"
    summary = annotate(prompts(rows=3), fake_config(), out, AnnotateOptions(filters=Filters(min_margin=1e9))).summary
    assert summary["rejects"] == {"margin below the minimum": 3}
    assert summary["margin"] is None
    table = pq.read_table(out / "preferences.parquet")
    assert (table.num_rows, table.schema) == (0, TABLES["preferences"])
    assert (out / "preferences.jsonl").read_text() == ""


def test_a_finished_run_is_not_done_again(tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig) -> None:
    source, out = prompts(), tmp_path / "out"
    first = annotate(source, fake_config(), out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = annotate(source, fake_config(), out)
    assert (first.already_complete, again.already_complete) == (False, True)
    assert again.summary == json.loads((out / "summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*data_files(out), "README.md", "summary.json", "run.json"]
    )


def test_another_configuration_or_input_is_refused(
    tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig
) -> None:
    source, out = prompts(), tmp_path / "out"
    annotate(source, fake_config(), out)
    cases: list[tuple[Path, Config, AnnotateOptions, str]] = [
        (source, fake_config(weak="fake:other"), AnnotateOptions(), r"config\.weak\.model was \"fake:weak\""),
        (source, fake_config(), AnnotateOptions(sampling=Sampling(seed=1)), r"options\.seed was 0, is 1"),
        (source, fake_config(), AnnotateOptions(limit=50), r"input\.rows was 100, is 50"),
        (prompts(name="b.jsonl", domain="chat"), fake_config(), AnnotateOptions(), r"input\.content was"),
    ]
    for path, config, options, message in cases:
        with pytest.raises(OutputError, match=f"belongs to another run.*{message}"):
            annotate(path, config, out, options)
    # What changes the cost only may change: a run that did not fit can go on with less.
    cheaper = fake_config(load="sequential", limits={"token_budget": 64})
    assert annotate(source, cheaper, out).already_complete


@pytest.mark.parametrize("store", [None, "store.sqlite"])
def test_one_model_after_the_other_gives_the_same(
    tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig, store: str | None
) -> None:
    source = prompts(rows=75)
    section = {"store": {"path": str(tmp_path / store)}} if store else {}
    annotate(source, fake_config(), tmp_path / "together")
    annotate(source, fake_config(load="sequential", **section), tmp_path / "sequential")
    assert data_files(tmp_path / "together") == data_files(tmp_path / "sequential")
    assert not (tmp_path / "sequential" / "work").exists()


def test_input_formats_and_renamed_columns_give_the_same(
    tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig
) -> None:
    import pyarrow as pa

    source = prompts(rows=12)
    rows = lines(source)
    renamed = [{("instruction" if key == "prompt" else key): value for key, value in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(renamed), tmp_path / "in.parquet")
    annotate(source, fake_config(), tmp_path / "a")
    annotate(tmp_path / "in.parquet", fake_config(), tmp_path / "b", AnnotateOptions(columns={"prompt": "instruction"}))
    assert data_files(tmp_path / "a") == data_files(tmp_path / "b")


@pytest.mark.parametrize(
    ("content", "options", "error", "message"),
    [
        (None, AnnotateOptions(), DataError, "does not exist"),
        (
            '{"prompt": "a", "responses": ["x", "y"]}\n{"prompt"\n',
            AnnotateOptions(),
            DataError,
            "line 2: malformed JSON",
        ),
        ('{"prompt": "a"}', AnnotateOptions(), DataError, "no `responses`.*--policy"),
        ('{"prompt": " ", "responses": ["x", "y"]}', AnnotateOptions(), DataError, "empty"),
        (
            '{"id": 1, "prompt": "a", "responses": []}\n{"id": 1, "prompt": "b", "responses": []}',
            None,
            DataError,
            "duplicate",
        ),
        (
            '{"prompt": "a", "responses": ["x", "y"], "domain": "safty"}',
            None,
            DataError,
            "line 1.*unknown domain 'safty'",
        ),
        ('{"q": "a"}', AnnotateOptions(columns={"prompt": "question"}), DataError, "unknown column 'question'"),
        ('{"prompt": "a", "responses": []}', AnnotateOptions(select="best"), ConfigError, "unknown selector 'best'"),
        ('{"prompt": "a"}', AnnotateOptions(policy="no/such/folder"), GDRError, "no/such/folder"),
        ('{"prompt": "a"}', AnnotateOptions(policy="fake:x"), ConfigError, "--policy fake:x: only local models"),
    ],
)
def test_bad_input_stops_before_anything_is_made(
    tmp_path: Path,
    fake_config: MakeConfig,
    content: str | None,
    options: AnnotateOptions | None,
    error: type[GDRError],
    message: str,
) -> None:
    source = tmp_path / "in.jsonl"
    if content is not None:
        source.write_text(content)
    with pytest.raises(error, match=message) as caught:
        annotate(source, fake_config(), tmp_path / "out", options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_windows_that_are_there_are_not_scored_again(
    tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, rows = prompts(rows=3 * WINDOW + 5), 3 * WINDOW + 5
    annotate(source, fake_config(), tmp_path / "whole")
    seen: list[int] = []
    score = GuidedDensityRatio.score

    def stop_at_third(self: GuidedDensityRatio, samples: list[Sample], **options: Any) -> Any:
        seen.append(len(samples))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return score(self, samples, **options)

    monkeypatch.setattr(GuidedDensityRatio, "score", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        annotate(source, fake_config(), tmp_path / "cut")
    told: list[tuple[str, int, int]] = []
    annotate(source, fake_config(), tmp_path / "cut", progress=lambda *step: told.append(step))
    assert seen[3:] == [4 * WINDOW, 4 * 5]
    assert told[0] == ("scoring", 2 * WINDOW, rows)
    assert [step for step in told if step[0] == "scoring"][-1] == ("scoring", rows, rows)
    assert told[-1] == ("writing", rows, rows)
    assert data_files(tmp_path / "cut") == data_files(tmp_path / "whole")


def test_tool_calls_of_prompts_are_scored_and_kept(tmp_path: Path, fake_config: MakeConfig) -> None:
    """Neither dropped before scoring nor an empty assistant turn in the data set, whoever reads it."""
    call = {"type": "function", "id": "c1", "function": {"name": "timer", "arguments": {"minutes": 5}}}
    other = {"type": "function", "function": {"name": "mail", "arguments": {"to": {"name": "Zoë"}, "copies": []}}}
    turns = [
        {"role": "user", "content": "Set a timer."},
        {"role": "assistant", "content": "", "reasoning_content": "Five.", "tool_calls": [call, other]},
        {"role": "tool", "content": "ok", "tool_call_id": "c1", "name": "timer"},
        {"role": "user", "content": "Is it running?"},
    ]
    source = tmp_path / "in.jsonl"
    rows = [{"id": "x", "prompt": turns}, {"id": "y", "prompt": "Well?"}]
    source.write_text("".join(json.dumps({**row, "responses": ["Yes.", "No."]}) + "\n" for row in rows))
    annotate(source, fake_config(), tmp_path / "out")
    prompts = [turns, [{"role": "user", "content": "Well?"}]]
    for table, times in (("preferences", 1), ("kto", 2), ("candidates", 2)):
        expected = [prompt for prompt in prompts for _ in range(times)]
        assert [row["prompt"] for row in lines(tmp_path / "out" / f"{table}.jsonl")] == expected
        parquet = tmp_path / "out" / f"{table}.parquet"
        assert [row.data["prompt"] for row in read_rows(parquet)] == expected
        datasets = pytest.importorskip("datasets")
        loaded = datasets.Dataset.from_parquet(str(parquet), cache_dir=str(tmp_path / "cache"))
        assert list(loaded["prompt"]) == expected
    (first, second) = lines(tmp_path / "out" / "candidates.jsonl")[:2]
    ratio = GuidedDensityRatio.from_config(fake_config())
    whole, bare = (parse_prompt(given) for given in (turns, [*turns[:1], {**turns[1], "tool_calls": None}, *turns[2:]]))
    for row in (first, second):
        scores = ratio.score([Sample(prompt, row["response"]) for prompt in (whole, bare)])
        assert row["gdr_reward"] == scores[0].reward != scores[1].reward


def test_tools_are_shown_to_the_models_and_kept_in_a_column(tmp_path: Path, fake_config: MakeConfig) -> None:
    timer = {"type": "function", "function": {"name": "timer", "parameters": {"type": "object", "properties": {}}}}
    mail = {"type": "function", "function": {"name": "mail", "description": "Sends.", "parameters": {"to": [1, "a"]}}}
    rows = [{"id": "x", "prompt": "Set it.", "tools": [timer, mail]}, {"id": "y", "prompt": "Well?", "tools": []}]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({**row, "responses": ["Yes.", "No."]}) + "\n" for row in rows))
    annotate(source, fake_config(), tmp_path / "out")
    for table, times in (("preferences", 1), ("kto", 2), ("candidates", 2)):
        prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows for _ in range(times)]
        tools = [found for found in ([timer, mail], None) for _ in range(times)]
        written = lines(tmp_path / "out" / f"{table}.jsonl")
        assert ([row["prompt"] for row in written], [row["tools"] for row in written]) == (prompts, tools)
        parquet = tmp_path / "out" / f"{table}.parquet"
        assert [row.data["tools"] for row in read_rows(parquet)] == tools
        datasets = pytest.importorskip("datasets")
        loaded = datasets.Dataset.from_parquet(str(parquet), cache_dir=str(tmp_path / "cache"))
        assert list(loaded["tools"]) == tools
        assert str(pq.read_schema(parquet).field("prompt").type).startswith("list<element: struct<")
    first = lines(tmp_path / "out" / "candidates.jsonl")[0]
    ratio = GuidedDensityRatio.from_config(fake_config())
    told, bare = (prompt_of({"tools": given}, "Set it.").turns for given in ([timer, mail], None))
    scores = ratio.score([Sample(prompt, first["response"]) for prompt in (told, bare)])
    assert first["gdr_reward"] == scores[0].reward != scores[1].reward


def test_prompts_of_texts_keep_their_columns(tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig) -> None:
    annotate(prompts(rows=3), fake_config(), tmp_path / "out")
    schema = pq.read_schema(tmp_path / "out" / "preferences.parquet")
    assert str(schema.field("prompt").type) == "list<element: struct<role: string, content: string>>"
