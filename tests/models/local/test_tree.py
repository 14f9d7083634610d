"""The packed tree equals one sequence at a time, on every attention flavour that it claims."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gdr_plugin.models.local.attention import IMPLEMENTATION, register
from gdr_plugin.models.local.tree import Branch, pack, prefix_kv, run

CPU = torch.device("cpu")
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
    model.set_attn_implementation("eager")
    logits = model(torch.tensor([context + response]), use_cache=False).logits[0, len(context) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def logits_of(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The model's own head, with whatever scale or cap it applies, on given hidden states."""
    body = model.get_decoder()
    forward = body.forward
    body.forward = lambda *a, **k: type(
        "Out", (dict,), {"__getattr__": dict.get, "__getitem__": lambda s, i: hidden[None]}
    )(last_hidden_state=hidden[None])
    try:
        return model(torch.zeros(1, hidden.shape[0], dtype=torch.long)).logits[0]
    finally:
        body.forward = forward


@pytest.mark.parametrize("flavour", FLAVOURS)
@torch.inference_mode()
def test_tree_equals_one_at_a_time(flavour: str) -> None:
    model = build(flavour)
    rng = torch.Generator().manual_seed(1)

    def ids(n: int) -> list[int]:
        return torch.randint(3, 97, (n,), generator=rng).tolist()

    guidance = ids(23)
    branches = [
        Branch(ids(7), [ids(12), ids(13), ids(1), ids(30)]),
        Branch(ids(1), [ids(5)]),
        Branch(ids(15), [ids(2), ids(11)]),
    ]
    expected = [plain(model, [*guidance, *b.tail], list(r)) for b in branches for r in b.responses]

    register()
    model.set_attn_implementation(IMPLEMENTATION)
    body = model.get_decoder()
    packed = pack(branches, prefix_kv(body, guidance, CPU), CPU)
    hidden = run(body, packed.ids, packed.row)[packed.predictors]
    logprobs = logits_of(model, hidden).double().log_softmax(-1).gather(1, packed.targets[:, None])[:, 0]

    assert packed.lengths == [len(r) for b in branches for r in b.responses]
    for got, want in zip(logprobs.split(packed.lengths), expected, strict=True):
        assert (got - want).abs().max() < 1e-4


@torch.inference_mode()
def test_without_an_active_row_the_implementation_is_plain_attention() -> None:
    model = build("llama")
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    model.set_attn_implementation("sdpa")
    expected = model(tokens, attention_mask=mask).logits

    register()
    model.set_attn_implementation(IMPLEMENTATION)

    assert torch.equal(model(tokens, attention_mask=mask).logits, expected)


@torch.inference_mode()
def test_siblings_do_not_see_each_other() -> None:
    model = build("llama")
    register()
    model.set_attn_implementation(IMPLEMENTATION)
    body = model.get_decoder()

    def hidden(second: list[int]) -> torch.Tensor:
        packed = pack([Branch([4, 5], [[6, 7, 8], second]), Branch([9], [[10, 11]])], None, CPU)
        states = run(body, packed.ids, packed.row)[packed.predictors]
        return torch.cat([states[:3], states[-2:]])

    assert torch.allclose(hidden([20, 21, 22, 23]), hidden([60, 61, 62, 63]), atol=1e-6)
