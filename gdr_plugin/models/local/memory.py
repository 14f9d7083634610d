"""How many tokens a forward may have: a fixed number on the CPU, on a GPU what its free memory holds.

An estimate from the configuration, on the safe side: an engine that runs out of memory all the same halves it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CPU_TOKENS = 2048
MOST_TOKENS, FEWEST_TOKENS = 16384, 1024
"""On a GPU: more would only hold up the first results, with fewer it would wait for the host."""
_SHARE = 0.5
"""Of the free memory: the rest is for what the allocator cannot reuse, and for who shares the GPU."""
_HEAD_BYTES = 1 << 30
"""Logits of a block of rows, and what is made of them."""


def token_budget(config: Any, dtype: torch.dtype, free: int | None) -> int:
    """Tokens in one forward.

    Args:
        config: The model's text configuration.
        dtype: Of its weights.
        free: Bytes of the device that are free once the weights are loaded; None: the CPU, or a device that cannot say.

    Returns:
        `CPU_TOKENS` for None; else as many as half of the free memory holds, within `FEWEST_TOKENS` and `MOST_TOKENS`.
    """
    if free is None:
        return CPU_TOKENS
    fit = int((free * _SHARE - _HEAD_BYTES) / bytes_per_token(config, dtype))
    return max(FEWEST_TOKENS, min(MOST_TOKENS, fit))


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """The most memory that one token of a packed row needs at a time: what one layer holds, and the states.

    Args:
        config: The model's text configuration.
        dtype: Of its weights.
    """

    def size(name: str) -> int:  # some have one for each layer, recurrent ones none
        found = getattr(config, name, None) or 0
        return int(max(found) if isinstance(found, list | tuple) else found)

    hidden = size("hidden_size")
    heads = size("num_attention_heads") or 1
    width = size("head_dim") or hidden // heads
    queries = heads * width
    keys = (size("num_key_value_heads") or heads) * width
    inner = size("intermediate_size") or 4 * hidden
    experts = size("num_experts_per_tok")
    if experts:  # a token's row once for each of its experts, before and behind them
        inner = max(inner, experts * ((size("moe_intermediate_size") or inner) + hidden))
    # The layer's input, its norm, the residual stream; then either attention, with three parts that are merged in
    # float32, or the feed-forward network: gate, up, their product.
    attention = 5 * queries + 4 * keys + 2 * 4 // dtype.itemsize * queries
    return dtype.itemsize * (4 * hidden + max(attention, 3 * inner))


def free_bytes(device: torch.device) -> int | None:
    """Bytes of a GPU that are free, with those that torch holds and does not use; None: not a GPU."""
    if device.type != "cuda":
        return None
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
