"""What is read from a configuration: sizes of dense, mixture, tied and quantised models, and of servers' models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.errors import ConfigError, ModelError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.planning.models import open_planned

from .conftest import QWEN_7B, Described


def planned(model: object, *, on_cpu: bool = False, **spec: Any) -> Any:
    return open_planned(ModelSpec(model=str(model), **spec), Limits(), on_cpu=on_cpu)


def test_a_dense_model_with_grouped_queries(described: Described) -> None:
    """Qwen2.5-7B: 7.62 billion weights, 6.53 of them in the layers, and 57 KB of keys and values a token."""
    model = planned(described("seven", **QWEN_7B))
    assert model.parameters == 7_615_616_512
    assert model.active == 6_525_288_448
    assert (model.dtype, model.weight_bytes) == ("bfloat16", 2 * model.parameters)
    assert model.kv_bytes == 57_344
    assert model.chat is None
    assert any("characters / 4" in note for note in model.notes)


def test_on_a_cpu_auto_means_float32(described: Described) -> None:
    model = planned(described("seven", **QWEN_7B), on_cpu=True)
    assert (model.dtype, model.weight_bytes) == ("float32", 4 * model.parameters)


def test_of_experts_only_those_that_are_chosen_cost_anything(described: Described) -> None:
    """A layer has 8 experts of three matrices; a token goes through 2 of them."""
    sizes = {
        "hidden_size": 32,
        "moe_intermediate_size": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 320,
        "tie_word_embeddings": False,
    }
    model = planned(described("experts", "qwen3_moe", **sizes), on_cpu=True)
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    router, expert = 32 * 8, 3 * 32 * 16
    assert model.active == 3 * (attention + router + 2 * expert)
    everything = 3 * (attention + router + 8 * expert) + 2 * 320 * 32
    assert everything < model.parameters < everything + 1000  # the rest is norms


def test_a_real_folder_is_counted_as_its_weights(tiny_model: Any) -> None:
    from transformers import AutoModelForCausalLM

    for arch in ("llama", "gpt_neox", "gemma2"):
        folder = tiny_model(arch)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        model = planned(folder, on_cpu=True)
        assert model.parameters == sum(weight.numel() for weight in loaded.parameters())
        linear = [m for m in loaded.get_decoder().modules() if type(m).__name__ == "Linear"]
        assert model.active == sum(layer.weight.numel() for layer in linear)
        assert model.chat is not None


def test_an_adapter_costs_its_matrices(tiny_model: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}')
    folder = tiny_model("llama")
    bare, model = planned(folder, on_cpu=True), planned(folder, on_cpu=True, adapter=str(tmp_path))
    assert model.adapter_parameters == 2 * 4 * (32 + 32)
    assert model.costs.token == bare.costs.token + 2 * model.adapter_parameters
    assert model.base == bare.base
    with pytest.raises(ModelError, match=r"adapter_config\.json cannot be read"):
        planned(folder, adapter=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4}, 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}, 4),
    ],
)
def test_a_quantised_checkpoint_takes_the_bits_that_it_says(
    described: Described, settings: dict[str, Any], bits: int
) -> None:
    model = planned(described("small", **QWEN_7B, quantization_config=settings))
    rest = model.parameters - 6_525_288_448
    assert model.weight_bytes == 6_525_288_448 * bits // 8 + 2 * rest
    assert any(f"{bits} bits" in note for note in model.notes)


def test_a_quantisation_that_is_not_known_is_counted_unpacked_and_said(described: Described) -> None:
    model = planned(described("odd", **QWEN_7B, quantization_config={"quant_method": "new"}))
    assert model.weight_bytes == 2 * model.parameters
    assert any("not known here" in note for note in model.notes)


def test_a_servers_model_is_read_by_its_name_or_its_tokenizer(described: Described) -> None:
    folder = described("seven", **QWEN_7B)
    spec = ModelSpec(model="vllm:http://10.0.0.1:8000/served", tokenizer=str(folder))
    model = open_planned(spec, Limits(), on_cpu=False)
    assert (model.served, model.parameters) == (True, 7_615_616_512)
    assert any("is a server's" in note for note in model.notes)


def test_what_cannot_be_read_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vllm:http://host:1/no such name.*set `tokenizer:`"):
        planned("vllm:http://host:1/no such name")
    with pytest.raises(ConfigError, match="a model without weights needs no plan"):
        planned("fake:a")
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        planned(tmp_path)


def test_a_gguf_is_described_by_its_metadata(smol_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is converted: the cache stays empty."""
    monkeypatch.setenv("GDR_CACHE", str(tmp_path))
    model = planned(smol_gguf)
    assert (model.parameters, model.dtype) == (134_515_008, "bfloat16")
    assert model.chat is not None
    assert not list(tmp_path.glob("gguf/*"))
