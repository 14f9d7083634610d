"""The packed tree equals one sequence at a time, on every attention flavour that it claims."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from gdr_plugin.api.types import TokenSpan
from gdr_plugin.models.local.attention import using
from gdr_plugin.models.local.forward import run_tree
from gdr_plugin.models.local.kvcache import PrefixCache
from gdr_plugin.models.local.network import Network
from gdr_plugin.models.local.planner import DistinctSpan, Pack, ResponseRow, distinct, plan_tree

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FLAVOURS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 9}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "gemma2": ("gemma2", {"sliding_window": 9, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {"sliding_window": 9, "query_pre_attn_scalar": 8}),
    "phi3": ("phi3", {}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", {}),
    "gpt_neox": ("gpt_neox", {}),
    "cohere": ("cohere", {}),
    "smollm3": ("smollm3", {}),
}


def build(flavour: str) -> Any:
    kind, extra = FLAVOURS[flavour]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **extra}), dtype=torch.float32)
    for parameter in model.parameters():  # larger than the usual init, so that a wrong mask shows
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def plain(model: Any, context: list[int], response: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([context + response]), use_cache=False).logits[0, len(context) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def network(model: Any) -> Network:
    net = Network(model)
    net.find_head((5, 6, 7))
    assert net.head is not None
    assert net.takes_attention
    return net


@pytest.mark.parametrize("flavour", FLAVOURS)
@torch.inference_mode()
def test_tree_equals_one_at_a_time(flavour: str) -> None:
    model = build(flavour)
    rng = torch.Generator().manual_seed(1)

    def ids(n: int) -> list[int]:
        return torch.randint(3, 97, (n,), generator=rng).tolist()

    guidance = tuple(ids(23))
    tails = (tuple(ids(7)), tuple(ids(1)), tuple(ids(15)))
    sizes = [(0, 12), (0, 13), (0, 1), (0, 30), (1, 5), (2, 2), (2, 11)]
    rows = tuple(ResponseRow(tail, tuple(ids(size)), (place,)) for place, (tail, size) in enumerate(sizes))
    expected = [plain(model, [*guidance, *tails[row.tail]], list(row.response)) for row in rows]
    kept = PrefixCache(1 << 30)
    net = network(model)

    run_tree(
        net, Pack(guidance[:9], (guidance[9:],), (ResponseRow(0, (5, 6), (0,)),), ()), kept
    )  # half of the prefix is known
    got = run_tree(net, Pack(guidance, tails, rows, ()), kept)

    for logprobs, want in zip(got, expected, strict=True):
        assert np.abs(logprobs - want.numpy()).max() < 1e-4


@torch.inference_mode()
def test_without_an_active_row_the_implementation_is_plain_attention() -> None:
    model = build("llama")
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    expected = model(tokens, attention_mask=mask).logits

    with using(model.config):
        assert torch.equal(model(tokens, attention_mask=mask).logits, expected)

    assert model.config._attn_implementation == "sdpa"


@torch.inference_mode()
def test_siblings_do_not_see_each_other() -> None:
    net = network(build("llama"))

    def first(second: tuple[int, ...]) -> Any:
        rows = (ResponseRow(0, (6, 7, 8), (0,)), ResponseRow(0, second, (1,)), ResponseRow(1, (10, 11), (2,)))
        scored = run_tree(net, Pack((), ((4, 5), (9,)), rows, ()), [PrefixCache(0)])
        return np.concatenate([scored[0], scored[2]])

    assert np.allclose(first((20, 21, 22, 23)), first((60, 61, 62, 63)), atol=1e-6)


def test_a_context_with_more_responses_than_a_row_holds_becomes_a_prefix() -> None:
    context = tuple(range(3, 43))
    spans = [DistinctSpan(context, (n, n + 1, n + 2, n + 3, n + 4), (n,)) for n in range(30)]
    other = DistinctSpan((*context[:20], 90), (1, 2), (30,))

    packs = plan_tree([*spans, other], 64)

    assert sorted(row.places[0] for pack in packs for row in pack.rows) == list(range(31))
    split = [pack for pack in packs if pack.prefix == context[:-1]]
    assert len(split) == 3
    assert {pack.tails for pack in split} == {(context[-1:],)}
    assert all(sum(len(row.response) for row in pack.rows) <= 64 for pack in split)


contexts = st.lists(st.integers(0, 2), min_size=1, max_size=24).map(tuple)


@given(
    st.lists(st.tuples(contexts, st.lists(st.integers(0, 9), min_size=1, max_size=9).map(tuple)), max_size=20),
    st.integers(1, 80),
)
def test_every_job_is_planned_once_whatever_the_budget(pairs: list[Any], tokens: int) -> None:
    spans = distinct([TokenSpan(context, response) for context, response in pairs])

    packs = plan_tree(spans, tokens)

    planned = [(pack.context(row), row.response, row.places) for pack in packs for row in pack.rows]
    assert sorted(planned) == sorted((span.context, span.response, span.places) for span in spans)
    for pack in packs:
        assert all(pack.tails)
        assert [row.tail for row in pack.rows] == sorted(row.tail for row in pack.rows)
        size = sum(map(len, pack.tails)) + sum(len(row.response) - 1 for row in pack.rows)
        assert size <= tokens or len(pack.rows) == 1
