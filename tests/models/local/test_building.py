"""Models are built one at a time, and complete or not at all."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from gdr_plugin.api.errors import ModelError
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.api.types import TokenSpan
from gdr_plugin.models.local import open_local
from gdr_plugin.models.local.building import load_complete
from gdr_plugin.models.local.source import locate, skeleton

TinyModel = Callable[..., Path]


def test_threads_that_load_at_once_leave_transformers_as_it_was(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers takes `tie_weights` away while it builds; a head that is not tied is random."""
    folders = [tiny_model("llama", seed=seed, tie_word_embeddings=True) for seed in range(4)]
    before = PreTrainedModel.tie_weights
    inside, most = [0], [0]
    build = transformers.LlamaForCausalLM.__init__

    def slowly(self: Any, *arguments: Any, **options: Any) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)  # without a lock all others begin within that time
        build(self, *arguments, **options)
        inside[0] -= 1

    monkeypatch.setattr(transformers.LlamaForCausalLM, "__init__", slowly)
    started = threading.Barrier(8)

    def load(number: int) -> PreTrainedModel:
        started.wait(30)
        if number % 2:
            return skeleton(locate(ModelSpec(model=str(folders[number // 2]))))
        return load_complete(folders[number // 2], dtype=torch.float32)

    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(load, range(8)))
    assert most == [1]
    assert PreTrainedModel.tie_weights is before
    for model in loaded[::2]:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_weights_that_are_missing_are_not_made_up(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama", tie_word_embeddings=False), folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    gone = ["lm_head.weight", "model.layers.0.mlp.up_proj.weight"]
    save_file({name: tensor for name, tensor in tensors.items() if name not in gone}, file, {"format": "pt"})
    model = open_local(ModelSpec(model=str(folder)))
    with pytest.raises(
        ModelError, match=r"lacks 2 of the weights of a LlamaForCausalLM \(lm_head\.weight, model\.layers"
    ):
        model.score([TokenSpan((1, 2), (3,))])


def test_tied_weights_are_not_missing(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama", tie_word_embeddings=True)
    right = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(load_complete(folder).lm_head.weight, right.lm_head.weight)
