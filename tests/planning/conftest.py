"""Configurations of models that nobody needs to have: folders with config.json alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QWEN_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
LLAMA_70B: dict[str, Any] = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}

Described = Callable[..., Path]


@pytest.fixture
def described(tmp_path: Path) -> Described:
    """`described(name, arch, **config)`: a folder with a configuration and nothing else."""
    from transformers import AutoConfig

    def make(name: str, arch: str = "qwen2", **config: Any) -> Path:
        AutoConfig.for_model(arch, **config).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make
