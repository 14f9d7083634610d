"""Prompts with given responses and a configuration of fake models, for the tests of annotation."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.config.load import parse_config
from gdr_plugin.config.schema import Config

MakePrompts = Callable[..., Path]
MakeConfig = Callable[..., Config]


@pytest.fixture
def prompts(tmp_path: Path) -> MakePrompts:
    """`prompts(rows=100, responses=4) -> Path`: a JSONL file, the same each time."""

    def make(rows: int = 100, responses: int | None = 4, name: str = "prompts.jsonl", **more: Any) -> Path:
        rng = random.Random(0)
        words = ["river", "stone", "über", "code", "雨", "because", "if", "then\n"]
        path = tmp_path / name
        with path.open("w", encoding="utf-8") as file:
            for number in range(rows):
                row: dict[str, Any] = {"id": f"p{number}", "prompt": f"Tell me about {number} " + rng.choice(words)}
                if responses is not None:
                    texts = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(responses)]
                    row["responses"] = texts
                if number % 3 == 0:
                    row["domain"] = "safety"
                file.write(json.dumps({**row, **more}) + "\n")
        return path

    return make


@pytest.fixture
def fake_config() -> MakeConfig:
    """`fake_config(**sections) -> Config`: two fake models, chat unguided, safety guided."""

    def make(**sections: Any) -> Config:
        data = {
            "strong": "fake:strong",
            "weak": "fake:weak",
            "guidance": {"domains": {"chat": "none", "safety": "safety"}},
            "routing": {"routers": ["field"], "default_domain": "chat"},
        }
        return parse_config({**data, **sections})

    return make
