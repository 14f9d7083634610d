"""Attention over one packed row that holds a tree of tokens: shared prefix, prompts, responses.

Each segment of the row attends causally to itself and fully to its ancestors; partial results are merged by their
log-sum-exp, so no key is copied, no mask is built and nothing is padded but the segments' own causal blocks. Where a
device has kernels that take the whole row at once, `ways` chooses among them. Registered with transformers as the
attention implementation `gdr_tree`; with no row active it behaves as `sdpa`.
Passes on sliding windows and soft-capping as transformers gives them; refuses attention sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from gdr_plugin.models.local.kernels import Kernel
from gdr_plugin.models.local.row import LayerKV, RowLayout, active

IMPLEMENTATION = "gdr_tree"


@contextmanager
def using(config: PreTrainedConfig) -> Iterator[None]:
    """Make `gdr_tree` the attention implementation of the model with this configuration inside the block."""
    AttentionInterface.register(IMPLEMENTATION, _forward)
    AttentionMaskInterface.register(IMPLEMENTATION, _mask)
    before = config._attn_implementation_internal
    config._attn_implementation_internal = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return sdpa_mask(*args, **kwargs) if active() is None else None


def _forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    row = active()
    if row is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if s_aux is not None:
        raise NotImplementedError("attention sinks are not supported by packed trees")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    kernel = Kernel(scale, sliding_window, softcap)
    row = row.on(query.device)
    prefix = row.prefix[int(module.layer_idx)] if row.prefix else None  # type: ignore[arg-type]
    query, key, value = query.squeeze(0), key.squeeze(0), value.squeeze(0)
    if row.ways is not None:
        return row.ways.attend(row, query, key, value, prefix, kernel)[None].contiguous(), None
    return attend(row, query, key, value, prefix, kernel).transpose(0, 1)[None].contiguous(), None


def attend(row: RowLayout, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, kernel: Kernel) -> Tensor:
    """Attention of one layer over the packed row, segment by segment.

    Args:
        row: Which tokens see which.
        query: `(heads, tokens, head dim)`.
        key: `(kv heads, tokens, head dim)`.
        value: `(kv heads, tokens, head dim)`.
        prefix: Keys and values that every query sees too, or None.
        kernel: The layer's attention arithmetic.

    Returns:
        `(heads, tokens, head dim)`, in the query's dtype.
    """
    heads, tokens = query.shape[:2]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=query.device)
    pos = row.positions
    causal, batches = row.grouped()
    for start, stop in causal:
        cut = slice(start, stop)
        o, norm = kernel.causal(query[None, :, cut], key[None, :, cut], value[None, :, cut])
        out[:, cut], lse[:, cut] = o[0], norm[0]
    for batch in batches:
        flat, valid = batch.index.reshape(-1), batch.valid
        q, k, v = (x[:, batch.index].transpose(0, 1) for x in (query, key, value))
        o, norm = kernel.causal(q, k, v)
        places = flat[valid]
        out[:, places] = o.transpose(0, 1).flatten(1, 2)[:, valid]
        lse[:, places] = norm.transpose(0, 1).flatten(1, 2)[:, valid]
    for cross in row.crosses:
        cut, keys = slice(cross.start, cross.stop), slice(cross.key_start, cross.key_stop)
        o, norm = kernel.full(query[:, cut], key[:, keys], value[:, keys], pos[cut], pos[keys], cross.reach)
        _merge(out[:, cut], lse[:, cut], o, norm)
    if prefix is not None:
        k, v = (x[0] for x in prefix)
        o, norm = kernel.full(query, k, v, pos, torch.arange(k.shape[1], device=pos.device), row.last)
        _merge(out, lse, o, norm)
    return out


def _merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Fold a second partial softmax into the first, in place."""
    total = torch.logaddexp(lse, other_lse)
    out.mul_((lse - total).exp_().unsqueeze(-1)).addcmul_(other, (other_lse - total).exp_().unsqueeze(-1).to(out.dtype))
    lse.copy_(total)
