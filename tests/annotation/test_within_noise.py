"""What annotate says of margins under the rounding error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.annotation.annotate import annotate
from gdr_plugin.arithmetic.noise import SURE, TOKEN_ERROR
from gdr_plugin.config.load import parse_config


def _prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    responses = ["Yes.", "No, but a longer answer may help.", "It depends on the river.", "Nobody knows the stone."]
    rows = [{"prompt": f"Question {number}?", "responses": responses} for number in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("error", [TOKEN_ERROR["bfloat16"], 1.5, 50.0])
def test_annotate_marks_pairs_and_counts_them(
    error: float, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOKEN_ERROR, "bfloat16", error)
    model = {"model": str(tiny_model("llama", seed=0)), "dtype": "bfloat16"}
    config = parse_config({"strong": model, "weak": {**model, "model": str(tiny_model("llama", seed=1))}})
    done = annotate(_prompts(tmp_path), config, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "preferences.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        tokens = row["gdr_chosen_tokens"] + row["gdr_rejected_tokens"]
        assert row["gdr_within_noise"] == (row["gdr_margin"] < SURE * error * math.sqrt(tokens))
    marked = sum(row["gdr_within_noise"] for row in rows)
    assert marked == {0.051: 0, 50.0: 6}.get(error, marked)
    assert len(rows) == done.summary["pairs"] == 6  # marked ones are kept
    assert done.summary["pairs_within_noise"] == marked
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert f"| pairs whose margin may be rounding | {marked} |" in card
    assert ("`gdr_within_noise` marks" in card) == bool(marked)


def test_annotate_says_nothing_where_the_precision_is_not_known(tmp_path: Path) -> None:
    done = annotate(_prompts(tmp_path), parse_config({"strong": "fake:strong", "weak": "fake:weak"}), tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "preferences.jsonl").read_text("utf-8").splitlines()]
    assert {row["gdr_within_noise"] for row in rows} == {None}
    assert done.summary["pairs_within_noise"] is None
    assert "rounding" not in (tmp_path / "out" / "README.md").read_text("utf-8")
