"""The faster CPU products: the same numbers, on our own models only, without touching torch's settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.api.types import TokenSpan
from gdr_plugin.models.local import cpu, kernels, open_loaded, open_local

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch build without oneDNN")


@needs_onednn
@pytest.mark.parametrize("maker", ["AMD", "other"])
def test_the_library_follows_from_the_processor_alone(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "maker", lambda: maker)
    expected = cpu.onednn_linear if maker == "AMD" and torch.backends.mkl.is_available() else nn.functional.linear
    for _ in range(3):
        cpu.fast_linear.cache_clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):  # a host program's setting must not decide it
            assert cpu.fast_linear() is expected
    cpu.fast_linear.cache_clear()


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_onednn_computes_true_float32(bias: bool) -> None:
    layer = nn.Linear(300, 70, bias=bias)
    x = torch.randn(2, 31, 300, generator=torch.Generator().manual_seed(0))
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)

    got = cpu.onednn_linear(x, layer.weight, layer.bias)

    assert got.shape == (2, 31, 70)
    assert (got - exact).abs().max() < 1e-5


@needs_onednn
def test_only_float32_linear_layers_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "fast_linear", lambda: cpu.onednn_linear)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).bfloat16(), nn.LayerNorm(4))

    assert cpu.use_fast_linears(model)

    assert ["forward" in vars(layer) for layer in model] == [True, False, False]


def test_nothing_changes_where_the_default_is_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "fast_linear", lambda: nn.functional.linear)
    model = nn.Sequential(nn.Linear(4, 4))

    assert not cpu.use_fast_linears(model)

    assert "forward" not in vars(model[0])


@needs_onednn
def test_scores_are_the_same_either_way(tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    spans = [TokenSpan(tuple(range(3, 60)), tuple(range(n, n + 20))) for n in range(5, 12)]
    scores: list[Any] = []
    for linear in (nn.functional.linear, cpu.onednn_linear):
        monkeypatch.setattr(cpu, "fast_linear", lambda linear=linear: linear)
        model = open_local(ModelSpec(model=str(tiny_model())))
        scores.append(model.score(spans))
        model.unload()

    for default, fast in zip(*scores, strict=True):
        assert abs(default - fast).max() < 2e-5


def test_a_model_of_somebody_else_is_left_alone(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(cpu, "fast_linear", lambda: cpu.onednn_linear)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_model())
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()

    open_loaded(theirs, AutoTokenizer.from_pretrained(tiny_model())).score([TokenSpan((3, 4), (5, 6))])

    assert not any("forward" in vars(module) for module in theirs.modules())
    assert theirs.config._attn_implementation == "sdpa"
    assert (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()) == before


@needs_onednn
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@torch.inference_mode()
def test_attention_by_products_equals_the_definition(dtype: torch.dtype, close: float) -> None:
    draw = torch.Generator().manual_seed(0)
    # Keys as a slice of a longer row: products must not depend on how their input lies in memory.
    q, row = (torch.randn(2, size, 16, generator=draw).to(dtype) for size in (1100, 90))
    k = v = row[:, 20:70]
    scores = q.double() @ k.double().transpose(1, 2) * 0.25

    out, lse = kernels.products(q, k, v, 0.25)

    assert out.dtype is dtype
    assert (out.double() - scores.softmax(-1) @ v.double()).abs().max() < close
    assert (lse.double() - scores.logsumexp(-1)).abs().max() < 1e-5
