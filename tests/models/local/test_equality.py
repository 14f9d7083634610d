"""Every way of running a model gives what one sequence at a time gives, within 1e-4 nats a token in float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.local.engine import Engine
from gdr_plugin.models.local.network import Network
from gdr_plugin.models.local.strategies import Strategy

ARCHITECTURES: list[Any] = [
    pytest.param("llama", {}, id="llama-gqa"),
    pytest.param("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}, id="llama-tied"),
    pytest.param("qwen2", {}, id="qwen2"),
    pytest.param("qwen3", {}, id="qwen3"),
    pytest.param("mistral", {}, id="mistral"),
    pytest.param("mistral", {"sliding_window": 16}, id="mistral-window"),
    pytest.param("gemma2", {}, id="gemma2-softcap-window"),
    pytest.param("gemma2", {"sliding_window": 4096}, id="gemma2-softcap"),
    pytest.param("gemma3_text", {}, id="gemma3-local-global"),
    pytest.param("phi3", {}, id="phi3"),
    pytest.param("gpt_neox", {}, id="gpt_neox"),
    pytest.param("cohere", {}, id="cohere-logit-scale"),
    pytest.param("granite", {}, id="granite-logits-scaling"),
    pytest.param("gpt2", {"n_positions": 512, "n_embd": 32, "n_head": 4, "n_layer": 2}, id="gpt2-learned-positions"),
    pytest.param("bloom", {"n_head": 4, "n_layer": 2}, id="bloom-alibi"),
    pytest.param("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}, id="moe"),
    pytest.param(
        "gpt_oss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 16},
        id="gpt_oss-sinks-window",
    ),
    pytest.param(
        "deepseek_v3",
        {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
        | {"num_key_value_heads": 4, "first_k_dense_replace": 1, "rope_interleave": False},
        id="deepseek_v3-compressed-keys",
    ),
    pytest.param(
        "phi3",
        {"original_max_position_embeddings": 64}
        | {
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
            | {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
        },
        id="phi3-longrope",
    ),
]
WAYS = [
    (min(Strategy), False),
    (Strategy.CACHED, False),
    (Strategy.CACHED, True),
    (Strategy.PADDED, False),
    (Strategy.PLAIN, False),
]


def off_by(got: Sequence[Logprobs], expected: Sequence[Logprobs]) -> float:
    return max((float(np.abs(a - b).max()) for a, b in zip(got, expected, strict=True) if len(b)), default=0.0)


def run(
    net: Network, spans: list[TokenSpan], strategy: Strategy, *, merge: bool = False, tokens: int = 96
) -> list[Logprobs]:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")  # the self-check must pass, too
        engine = Engine(net, tokens=tokens, kept_bytes=1 << 20)
        engine.strategy = max(engine.strategy, strategy)
        engine.merge = merge and net.takes_positions
        return engine.score(spans)


@pytest.mark.parametrize(("arch", "config"), ARCHITECTURES)
def test_all_ways_agree(
    arch: str,
    config: dict[str, Any],
    tiny_model: Callable[..., Any],
    network: Callable[..., Network],
    hard_spans: Callable[..., list[TokenSpan]],
    one_by_one: Callable[..., list[Logprobs]],
) -> None:
    net = network(tiny_model(arch, **config))
    spans = hard_spans()
    expected = one_by_one(net, spans)
    assert len({round(float(x.sum()), 3) for x in expected if len(x) > 5}) > 10, "the test would see no mistake"
    for strategy, merge in WAYS:
        got = run(net, spans, strategy, merge=merge)
        assert [(x.shape, x.dtype) for x in got] == [((len(s.response),), np.float32) for s in spans]
        assert off_by(got, expected) <= 1e-4, (strategy, merge)


@pytest.mark.parametrize("tokens", [1, 17, 4096])
def test_the_budget_changes_nothing_but_speed(
    tokens: int,
    tiny_model: Callable[..., Any],
    network: Callable[..., Network],
    hard_spans: Callable[..., list[TokenSpan]],
    one_by_one: Callable[..., list[Logprobs]],
) -> None:
    net = network(tiny_model("llama"))
    spans = hard_spans(seed=3)
    expected = one_by_one(net, spans)
    for merge in (False, True):
        assert off_by(run(net, spans, Strategy.CACHED, merge=merge, tokens=tokens), expected) <= 1e-4
    assert off_by(run(net, spans, Strategy.PADDED, tokens=tokens), expected) <= 1e-4


def test_kept_prefixes_change_nothing_but_speed(
    tiny_model: Callable[..., Any],
    network: Callable[..., Network],
    hard_spans: Callable[..., list[TokenSpan]],
    one_by_one: Callable[..., list[Logprobs]],
) -> None:
    net = network(tiny_model("qwen3"))
    spans = hard_spans()
    expected = one_by_one(net, spans)
    for kept in (0, 40_000, 1 << 30):  # nothing, some, everything
        with torch.inference_mode():
            engine = Engine(net, kept_bytes=kept)
            for _ in range(2):
                assert off_by(engine.score(spans), expected) <= 1e-4
            for span, wanted in zip(spans, expected, strict=True):  # one at a time, as some frameworks ask
                assert off_by(engine.score([span]), [wanted]) <= 1e-4
        assert engine.kept.nbytes <= kept


def test_windowed_models_share_prefixes_while_the_window_holds(
    tiny_model: Callable[..., Any], network: Callable[..., Network], hard_spans: Callable[..., list[TokenSpan]]
) -> None:
    engine = Engine(network(tiny_model("mistral", sliding_window=40)))
    engine.strategy = Strategy.CACHED
    assert engine.window == 40
    with torch.inference_mode():
        plan = engine.plan(hard_spans(guidance=20))
    lengths = {
        strategy: [
            len(pack.context(row)) + len(row.response) - 1
            for found, pack in plan
            if found is strategy
            for row in pack.rows
        ]
        for strategy in (Strategy.CACHED, Strategy.PADDED)
    }
    assert max(lengths[Strategy.CACHED]) <= 40 < min(lengths[Strategy.PADDED])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(
    dtype: torch.dtype,
    tiny_model: Callable[..., Any],
    network: Callable[..., Network],
    hard_spans: Callable[..., list[TokenSpan]],
    one_by_one: Callable[..., list[Logprobs]],
) -> None:
    folder = tiny_model("llama")
    spans = hard_spans()
    expected = one_by_one(network(folder), spans)
    got = run(network(folder, dtype=dtype), spans, Strategy.CACHED)
    mean = float(np.mean(np.abs(np.concatenate(got) - np.concatenate(expected))))
    assert mean < (5e-3 if dtype == torch.float16 else 4e-2)


@pytest.mark.slow
def test_the_real_model_agrees(
    smol_dir: Any,
    network: Callable[..., Network],
    hard_spans: Callable[..., list[TokenSpan]],
    one_by_one: Callable[..., list[Logprobs]],
) -> None:
    net = network(smol_dir)
    spans = hard_spans(vocabulary=49152, guidance=60, prompts=1)[::5]
    expected = one_by_one(net, spans)
    for strategy, merge in [(Strategy.CACHED, False), (Strategy.CACHED, True), (Strategy.PADDED, False)]:
        assert off_by(run(net, spans, strategy, merge=merge, tokens=2048), expected) <= 1e-4
