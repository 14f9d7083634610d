"""Adapters that are added in place give what peft's own layers give."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from gdr_plugin.api.errors import ModelError
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.local import LocalModel, open_local, weights
from gdr_plugin.models.local.lora import Active, InPlace, _plain
from gdr_plugin.models.local.network import Network

TinyModel = Callable[..., Path]
TinyAdapter = Callable[..., Path]
Spans = Callable[..., list[TokenSpan]]
Truth = Callable[[Network, Sequence[TokenSpan]], list[Logprobs]]


def local(folder: Path, adapter: Path, **options: Any) -> LocalModel:
    return open_local(ModelSpec(model=str(folder), adapter=str(adapter), **options))


def by_peft(folder: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> Network:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), adapter)
    return Network(model.get_base_model())


def mean_off(got: Sequence[Logprobs], expected: Sequence[Logprobs]) -> float:
    return float(np.abs(np.concatenate(got) - np.concatenate(expected)).mean())


@pytest.mark.parametrize(
    ("arch", "config", "lora", "in_place"),
    [
        ("llama", {}, {"target_modules": "all-linear", "lora_alpha": 32, "lora_dropout": 0.5}, 14),
        ("llama", {}, {"r": 4, "use_rslora": True, "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 3}}, 4),
        ("llama", {}, {"lora_bias": True}, 0),
        ("llama", {}, {"use_dora": True}, 0),
        ("llama", {}, {"target_modules": ["embed_tokens", "q_proj"]}, 2),
        ("llama", {"tie_word_embeddings": False}, {"target_modules": ["lm_head", "q_proj"]}, 3),
        (
            "gpt2",
            {"n_positions": 512, "n_embd": 32, "n_head": 4, "n_layer": 2},
            {"target_modules": ["c_attn"], "fan_in_fan_out": True},
            2,
        ),
    ],
)
def test_in_place_equals_peft(
    arch: str,
    config: dict[str, Any],
    lora: dict[str, Any],
    in_place: int,
    tiny_model: TinyModel,
    tiny_adapter: TinyAdapter,
    hard_spans: Spans,
    one_by_one: Truth,
) -> None:
    folder = tiny_model(arch, **config)
    adapter, spans = tiny_adapter(folder, 1, **lora), hard_spans()
    expected = one_by_one(by_peft(folder, adapter), spans)
    model = local(folder, adapter)
    got = model.score(spans)
    assert max(float(np.abs(a - b).max()) for a, b in zip(got, expected, strict=True) if len(b)) <= 1e-4
    with model.running() as network:
        assert sum(isinstance(vars(module).get("forward"), InPlace) for module in network.modules()) == in_place
    model.unload()


def test_half_precision_is_no_less_accurate_than_peft(
    tiny_model: TinyModel, tiny_adapter: TinyAdapter, hard_spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model()
    adapter, spans = tiny_adapter(folder, 1, target_modules="all-linear"), hard_spans()
    exact = local(folder, adapter)
    ours = local(folder, adapter, dtype="bfloat16")
    off = mean_off(ours.score(spans), exact.score(spans))
    ours.unload()
    monkeypatch.setattr(weights, "run_in_place", lambda *_: False)
    theirs = local(folder, adapter, dtype="bfloat16")
    assert off <= 1.1 * mean_off(theirs.score(spans), exact.score(spans))
    theirs.unload()
    exact.unload()


def test_a_share_is_rounded_with_the_sum_alone() -> None:
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        layer = Linear(nn.Linear(64, 96, bias=False).bfloat16(), "a", config=LoraConfig(init_lora_weights=False), r=8)
        assert _plain(layer, "a")
        forward = InPlace(layer, Active("a"))
        forward.names.add("a")
        x = torch.randn(1, 3000, 64).bfloat16()
        base = layer.base_layer(x).double()
        share = layer.lora_B["a"].weight.double() @ layer.lora_A["a"].weight.double() @ x[0].double().T
        exact = base + layer.scaling["a"] * share.T
        rounded = (exact.bfloat16() - exact).square().mean().sqrt()
        assert (forward(x) - exact).square().mean().sqrt() <= 1.01 * rounded


def test_adapters_leave_without_a_trace(tiny_model: TinyModel, tiny_adapter: TinyAdapter, hard_spans: Spans) -> None:
    folder, spans = tiny_model(), hard_spans()
    base = open_local(ModelSpec(model=str(folder)))
    before = base.score(spans)
    with base.running() as network:
        names = [name for name, _ in network.named_modules()]
    model = local(folder, tiny_adapter(folder, 1))
    model.score(spans)
    model.unload()
    with base.running() as network:
        assert [name for name, _ in network.named_modules()] == names
    assert mean_off(base.score(spans), before) <= 1e-6
    base.unload()


def test_adapters_that_train_the_bases_biases_are_refused(tiny_model: TinyModel, tiny_adapter: TinyAdapter) -> None:
    """peft writes them into the base, which the weak model shares."""
    folder = tiny_model("gpt_neox")
    with pytest.raises(ModelError, match="bias"):
        local(folder, tiny_adapter(folder, 1, target_modules=["query_key_value"], bias="lora_only"))
