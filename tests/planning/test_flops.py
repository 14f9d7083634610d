"""The count of operations: against torch's own counter on the real engine, and against the cost model's figures."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import TokenSpan
from gdr_plugin.planning.flops import Costs, expected_flops, flops

SEVEN_B = Costs.of(
    SimpleNamespace(
        num_attention_heads=28, num_key_value_heads=4, hidden_size=3584, num_hidden_layers=28, vocab_size=152064
    ),
    body=6_525_288_448,
)


def group(seed: int, *, guidance: int, prompt: int, response: int, prompts: int, samples: int) -> list[TokenSpan]:
    draw = np.random.default_rng(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.integers(10, 40_000, count).tolist())

    shared = ids(guidance)
    contexts = [shared + ids(prompt) for _ in range(prompts)]
    return [TokenSpan(context, ids(response)) for context in contexts for _ in range(samples)]


def counted(work: Any) -> float:
    """Operations that torch counts while `work` runs, those of oneDNN's and the CPU's own kernels included."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def linear(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * math.prod(x) * weight[0]

    def attention(
        q: tuple[int, ...], k: Any, v: Any, dropout: float, causal: bool, *_: Any, out_shape: Any = None, **__: Any
    ) -> int:
        batch, heads, tokens, width = q
        pairs = tokens * (tokens + 1) // 2 if causal else tokens * k[2]
        return int(2 * batch * heads * pairs * (width + v[3]))

    kernels = {
        torch.ops.mkldnn._linear_pointwise: linear,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    }
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        work()
    return float(counter.get_total_flops())


@pytest.mark.thorough
def test_the_count_is_what_the_engine_does_on_the_demo_model(smol_dir: Path) -> None:
    """Three prompts with four responses each behind shared guidance, scored by the tree: equal within 0.1 %."""
    from gdr_plugin.models.local import open_local
    from gdr_plugin.models.local.strategies import Strategy
    from gdr_plugin.planning.models import open_planned

    spec, shape = ModelSpec(model=str(smol_dir)), {"guidance": 400, "prompt": 50, "response": 60}
    model = open_local(spec, Limits(kv_cache_mb=0))
    model.score(group(0, **shape, prompts=3, samples=4))  # the first call also checks itself
    engine = model._engine
    assert engine is not None
    assert engine.strategy is Strategy.TREE
    engine.forget()
    spans = group(1, **shape, prompts=3, samples=4)
    measured = counted(lambda: model.score(spans))
    planned = open_planned(spec, Limits(), on_cpu=True)
    assert planned.parameters == 134_515_008  # SmolLM2-135M, tied embeddings once
    assert planned.active == 106_168_320
    config = model.source.config
    assert flops(spans, config, planned.active).ideal == pytest.approx(measured, rel=1e-3)
    assert expected_flops(planned.costs, **shape, prompts=3, samples=4).ideal == pytest.approx(measured, rel=1e-3)
    model.unload()


def test_the_naive_count_is_what_a_plain_forward_does(tiny_model: Any) -> None:
    """Torch's counter takes attention for full, ours for causal: only that differs."""
    import torch
    from transformers import AutoModelForCausalLM

    from gdr_plugin.planning.models import open_planned

    folder = tiny_model("llama")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").train(False)
    (span,) = group(0, guidance=0, prompt=30, response=20, prompts=1, samples=1)
    ids = torch.tensor([[token % 300 for token in span.context + span.response]])
    with torch.inference_mode():
        measured = counted(lambda: plain(input_ids=ids))
    costs = open_planned(ModelSpec(model=str(folder)), Limits(), on_cpu=True).costs
    expected = expected_flops(costs, guidance=0, prompt=30, response=20, prompts=1, samples=1).naive
    assert expected + costs.pair * (50 * 50 - 50 * 51 / 2) == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize(
    ("guidance", "samples", "ratio"), [(600, 2, 2.8), (600, 8, 3.3), (600, 64, 3.4), (2000, 8, 7.4)]
)
def test_what_naive_scoring_wastes_at_7b(guidance: int, samples: int, ratio: float) -> None:
    """The figures of the cost model: prompts of 150 tokens, responses of 300, many prompts behind one guidance."""
    total = expected_flops(SEVEN_B, guidance=guidance, prompt=150, response=300, prompts=100_000, samples=samples)
    assert total.naive / total.ideal == pytest.approx(ratio, abs=0.16)


def test_both_counts_agree_on_the_same_work() -> None:
    config = SimpleNamespace(num_attention_heads=4, hidden_size=32, num_hidden_layers=2, vocab_size=320)
    for shape in ({"guidance": 9, "prompt": 4, "response": 6}, {"guidance": 0, "prompt": 4, "response": 1}):
        spans = group(3, **shape, prompts=3, samples=4)
        exact = flops(spans, config, body=1000)
        mean = expected_flops(Costs.of(config, 1000), **shape, prompts=3, samples=4)
        assert mean.ideal == pytest.approx(exact.ideal)
        assert mean.naive == pytest.approx(exact.naive)


def test_latent_attention_and_layers_without_attention_are_counted_as_they_are() -> None:
    base = {"num_attention_heads": 8, "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 10}
    plain = Costs.of(SimpleNamespace(**base), 1)
    assert plain.pair == 4 * 8 * 8 * 4
    latent = SimpleNamespace(**base, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=4, v_head_dim=12)
    assert Costs.of(latent, 1).pair == 2 * 8 * (16 + 12) * 4
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    assert Costs.of(SimpleNamespace(**base, layer_types=kinds), 1).pair == plain.pair / 4
