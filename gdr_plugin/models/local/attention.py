"""Attention over one packed row that holds a tree of tokens: shared prefix, prompts, responses.

Each segment of the row attends causally to itself and fully to its ancestors; partial results are merged by their
log-sum-exp, so no key is copied, no mask is built and nothing is padded but the segments' own causal blocks. Registered
with transformers as the attention implementation `gdr_tree`; with no row active it behaves as `sdpa`.
Passes on sliding windows and soft-capping as transformers gives them; refuses attention sinks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from gdr_plugin.models.local.kernels import Kernel

IMPLEMENTATION = "gdr_tree"

LayerKV = tuple[Tensor, Tensor]
"""Keys and values of one layer after rotary embedding, each `(1, kv heads, tokens, head dim)`."""


@dataclass(frozen=True)
class Cross:
    """Row queries `[start, stop)` see the ancestor's keys `[key_start, key_stop)`."""

    start: int
    stop: int
    key_start: int
    key_stop: int
    reach: int
    """Distance from the first key to the last query, in tokens."""


@dataclass(frozen=True)
class CausalBatch:
    """Segments of similar length that are padded together: `(segments, longest)` row indices and the valid places."""

    index: Tensor
    """Row index of each place, the segment's last token repeated in the padding; shape `(segments, longest)`."""
    valid: Tensor
    """Flat places that are not padding, shape `(tokens,)`."""


@dataclass
class RowLayout:
    """How the tokens of a packed row see each other; positions are those in their sequences."""

    positions: Tensor
    """Position of each row token, shape `(tokens,)`."""
    last: int
    """The largest position, stored because asking the device for it would make every layer wait."""
    causal: list[tuple[int, int]] = field(default_factory=list)
    """Segments that attend causally to themselves, one kernel call each."""
    batches: list[CausalBatch] = field(default_factory=list)
    """Segments that attend causally to themselves, several in a kernel call."""
    crosses: list[Cross] = field(default_factory=list)
    """Which row tokens see which ancestors in the row."""
    prefix: Sequence[LayerKV] | None = None
    """Keys and values, by layer, that every row token sees; None: there are none."""

    def on(self, device: torch.device) -> RowLayout:
        """This row with its tensors on the device of a layer: a sharded model has several."""
        if self.positions.device == device:
            return self
        batches = [CausalBatch(batch.index.to(device), batch.valid.to(device)) for batch in self.batches]
        return replace(self, positions=self.positions.to(device), batches=batches)


_ROW: ContextVar[RowLayout | None] = ContextVar("gdr_tree_row", default=None)


@contextmanager
def attending(row: RowLayout) -> Iterator[None]:
    """Make `row` the layout of every `gdr_tree` forward inside the block (this thread only)."""
    token = _ROW.set(row)
    try:
        yield
    finally:
        _ROW.reset(token)


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
    return sdpa_mask(*args, **kwargs) if _ROW.get() is None else None


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
    row = _ROW.get()
    if row is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if s_aux is not None:
        raise NotImplementedError("attention sinks are not supported by packed trees")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    kernel = Kernel(scale, sliding_window, softcap)
    row = row.on(query.device)
    prefix = row.prefix[int(module.layer_idx)] if row.prefix else None  # type: ignore[arg-type]
    out = attend(row, query.squeeze(0), key.squeeze(0), value.squeeze(0), prefix, kernel)
    return out.transpose(0, 1)[None].contiguous(), None


def attend(row: RowLayout, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, kernel: Kernel) -> Tensor:
    """Attention of one layer over the packed row.

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
    for start, stop in row.causal:
        cut = slice(start, stop)
        o, norm = kernel.causal(query[None, :, cut], key[None, :, cut], value[None, :, cut])
        out[:, cut], lse[:, cut] = o[0], norm[0]
    for batch in row.batches:
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
