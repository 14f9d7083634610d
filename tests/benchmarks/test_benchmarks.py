"""The benchmarks run end to end on tiny models, and count and compare rightly. Nothing here is about speed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gdr_plugin.api.types import TokenSpan

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RATIOS = [
    "fp32_over_naive",
    "fp32_over_padded",
    "bf16_over_naive",
    "fp32_over_lm_eval",
    "fp32_over_trl",
    "bf16_over_vllm_cpu",
    "warm_store_over_cold",
]


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks` is not installed: it is found in the repository."""
    monkeypatch.syspath_prepend(REPOSITORY)


@pytest.mark.thorough
def test_quick_run_writes_the_promised_figures(tiny_model: Any, tmp_path: Path) -> None:
    config = tmp_path / "gdr.yaml"
    config.write_text(f"strong: {tiny_model('llama', seed=0)}\nweak: {tiny_model('llama', seed=1)}\n")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--threads=1", f"--config={config}", f"--out={tmp_path}"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "latest.json").read_text())
    assert list(results) == [
        "machine",
        "workloads",
        "ratios",
        "useful_mfu",
        "max_token_error_fp32",
        "decision_flips",
    ]
    keys = ["name", "method", "dtype", "threads", "seconds", "median_s", "peak_mb"]
    assert all(list(row) == keys for row in results["workloads"])
    ways = {(row["method"], row["dtype"]) for row in results["workloads"] if row["name"] == "annotation"}
    fp32 = {"naive", "padded", "trl", "ours", "ours, warm store"}
    assert ways == {(way, "float32") for way in fp32} | {("ours", "bfloat16")}
    assert [key for key in results["ratios"] if not key.endswith("_reason")] == RATIOS
    for name in RATIOS:
        if name in ("fp32_over_lm_eval", "bf16_over_vllm_cpu"):
            assert results["ratios"][name] is None
            assert "make bench" in results["ratios"][f"{name}_reason"]
        else:
            assert results["ratios"][name] > 0
    assert set(results["useful_mfu"]) == {"fp32", "bf16"}
    assert 0 <= results["max_token_error_fp32"] < 1e-4
    assert 0 <= results["decision_flips"]["bf16"] <= 1
    details = json.loads((tmp_path / "details.json").read_text())
    assert details["flop_model_ratio"] > 1
    assert "fp32_over_naive" in done.stdout


@pytest.mark.usefixtures("importable")
def test_operations_are_those_of_the_prefix_tree() -> None:
    from benchmarks.work import flops

    config = SimpleNamespace(num_attention_heads=2, hidden_size=8, head_dim=4, num_hidden_layers=3, vocab_size=11)
    body = 100
    spans = [
        TokenSpan((1, 2, 3), (4, 5, 6)),
        TokenSpan((1, 2, 3), (4, 7)),
        TokenSpan((1, 2, 3), (8,)),
        TokenSpan((1, 2, 9, 9), (4, 5)),
    ]
    read = {(span.context + span.response[:-1])[:n] for span in spans for n in range(1, 40)} - {()}
    predicting = {span.context + span.response[:n] for span in spans for n in range(len(span.response))}
    pair, row = 4 * 8 * 3, 2 * 8 * 11
    counted = flops(spans, config, body)
    assert counted.ideal == 2 * body * len(read) + pair * sum(map(len, read)) + row * len(predicting)
    whole = [len(span.context + span.response) for span in spans]
    assert counted.naive == sum(n * (2 * body + row) + pair * n * (n + 1) / 2 for n in whole)


@pytest.mark.usefixtures("importable")
def test_all_ways_agree_on_the_numbers(tiny_model: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks import methods
    from gdr_plugin.api.settings import ModelSpec
    from gdr_plugin.models.local import open_local
    from gdr_plugin.models.local.strategies import Strategy

    folder = tiny_model("llama")
    draw = np.random.default_rng(0)
    contexts = [tuple(draw.integers(3, 300, size).tolist()) for size in (30, 40)]
    spans = [TokenSpan(context, tuple(draw.integers(3, 300, n).tolist())) for context in contexts for n in (1, 5, 9, 2)]
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train(False)
    model = open_local(ModelSpec(model=str(folder), dtype="float32"))
    ways = [
        methods.naive(plain, spans),
        methods.padded(plain, spans),
        methods.ours(model, spans, "float32"),
        methods.held(model, spans, "float32", Strategy.CACHED),
        methods.held(model, spans, "float32", Strategy.PADDED),
    ]
    found = [{place: row for part in way.parts for place, row in part().items()} for way in ways]
    for logprobs in found:
        assert sorted(logprobs) == list(range(len(spans)))
        for place, row in logprobs.items():
            np.testing.assert_allclose(row, found[0][place], atol=1e-4)


@pytest.mark.usefixtures("importable")
def test_flips_and_winners_are_counted_within_groups() -> None:
    from benchmarks.precision import compare

    truth = np.array([0.0, 1.0, 5.0, 0.0, 0.5])
    other = np.array([0.0, 1.0, 5.0, 1.0, 0.5])
    counted = compare(truth, other, [[0, 1, 2], [3, 4]])
    assert counted["pairs"] == 4
    assert counted["flipped"] == 0.25
    assert counted["same_best"] == 0.5
    assert counted["error_max"] == 1.0
    assert math.isclose(counted["error_sd"], 0.4)
    assert counted["flipped_clear"] == 0.0
    other[0] = np.nan
    assert compare(truth, other, [[0, 1, 2], [3, 4]])["pairs"] == 2


@pytest.mark.usefixtures("importable")
def test_memory_is_that_of_the_work_alone() -> None:
    from benchmarks.measure import peak_above

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not tell a process's peak memory")
    kept = np.ones(8 << 20)
    peak = peak_above(lambda: kept.sum(), lambda: np.ones(4 << 20).sum())
    assert peak is not None
    assert 30 <= peak <= 40
