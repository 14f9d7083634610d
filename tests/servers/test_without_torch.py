"""Models on servers need a tokenizer here, and no torch: `make test-python` runs this where there is none."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from tests.conftest import Gdr, save_tokenizer
from tests.servers.fake import FakeServer, Numbers

QUESTION, GOOD, POOR = "How many days has a leap year?", "A leap year has 366 days.", "So they have: five"


def numbers(scale: float) -> Numbers:
    """Log-probs that each id alone decides."""
    return lambda ids: np.array([np.nan, *(-scale * (1 + id % 7) for id in ids[1:])])


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_pairs_are_annotated(kind: str, gdr: Gdr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    monkeypatch.chdir(tmp_path)
    save_tokenizer(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    config: dict[str, Any] = {"guidance": {"domains": {"chat": "none"}}}
    Path("many.jsonl").write_text(json.dumps({"id": "a", "prompt": QUESTION, "responses": [POOR, GOOD]}))
    with ExitStack() as stack:
        for side, scale in (("strong", 0.125), ("weak", 0.25)):
            options = {"root": str(tmp_path / "tokenizer"), "tokenizer": tokenizer}
            fake = stack.enter_context(FakeServer(kind, {"tiny": numbers(scale)}, **options).running())
            config[side] = f"{kind}:{fake.url}/tiny"
        Path("gdr.yaml").write_text(json.dumps(config))
        code, _, err = gdr("annotate", "many.jsonl", "-o", "out")
    assert code == 0, err

    def reward(answer: str) -> float:
        ids = tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
        return sum(0.125 * (1 + id % 7) for id in ids)

    (pair,) = parquet.read_table("out/preferences.parquet").to_pylist()
    found = {pair[f"gdr_{side}_reward"] for side in ("chosen", "rejected")}
    assert found == {reward(GOOD), reward(POOR)}
    assert pair["gdr_chosen_reward"] > pair["gdr_rejected_reward"]
