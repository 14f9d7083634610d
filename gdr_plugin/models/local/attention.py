"""Attention over one packed row that holds a tree of tokens: shared prefix, prompts, responses.

Each segment of the row attends causally to itself and fully to its ancestors; partial results are merged by their
log-sum-exp, so no key is copied, no mask is built and nothing is padded but the segments' own causal blocks. Registered
with transformers as the attention implementation `gdr_tree`; with no row active it behaves as `sdpa`.
Knows sliding windows and soft-capping as transformers passes them; refuses attention sinks.
"""

from __future__ import annotations

import math
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

from gdr_plugin.models.local import cpu

IMPLEMENTATION = "gdr_tree"
LN_2 = math.log(2.0)
_PRODUCT_ROWS = 1024
_SCORES_BYTES = 32 << 20
"""Bound on one block of attention scores where they are materialised."""

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
    """From the first key to the last query, in tokens."""


@dataclass(frozen=True)
class CausalBatch:
    """Segments of similar length that are padded together: `(segments, longest)` row indices and the valid places."""

    index: Tensor
    """Row index of each place, the segment's last token repeated in the padding; shape `(segments, longest)`."""
    valid: Tensor
    """Flat places that are not padding, shape `(tokens,)`."""


@dataclass
class Row:
    """How the tokens of a packed row see each other. Positions are the sequences'."""

    positions: Tensor
    """Position of each row token, shape `(tokens,)`."""
    last: int
    """The largest of them. Known here, since asking the device for it would make every layer wait."""
    causal: list[tuple[int, int]] = field(default_factory=list)
    """Segments that attend causally to themselves, one kernel call each."""
    batches: list[CausalBatch] = field(default_factory=list)
    """Segments that attend causally to themselves, several in a kernel call."""
    crosses: list[Cross] = field(default_factory=list)
    """Which row tokens see which ancestors in the row."""
    prefix: Sequence[LayerKV] | None = None
    """Keys and values, by layer, that every row token sees; None: none."""

    def on(self, device: torch.device) -> Row:
        """This row with its tensors on the device of a layer: a sharded model has several."""
        if self.positions.device == device:
            return self
        batches = [CausalBatch(one.index.to(device), one.valid.to(device)) for one in self.batches]
        return replace(self, positions=self.positions.to(device), batches=batches)


_ROW: ContextVar[Row | None] = ContextVar("gdr_tree_row", default=None)


@contextmanager
def attending(row: Row) -> Iterator[None]:
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
        raise NotImplementedError("attention sinks are not supported on the tree path")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    kernel = _Kernel(scale, sliding_window, softcap)
    row = row.on(query.device)
    prefix = row.prefix[int(module.layer_idx)] if row.prefix else None  # type: ignore[arg-type]
    out = attend(row, query.squeeze(0), key.squeeze(0), value.squeeze(0), prefix, kernel)
    return out.transpose(0, 1)[None].contiguous(), None


def attend(row: Row, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, kernel: _Kernel) -> Tensor:
    """Attention of one layer over the packed row.

    Args:
        row: Who sees whom.
        query: `(heads, tokens, head dim)`.
        key: `(kv heads, tokens, head dim)`.
        value: Like `key`.
        prefix: Keys and values that every query sees too, or None.
        kernel: Scale and what limits attention in this layer.

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


@dataclass(frozen=True)
class _Kernel:
    """One layer's attention arithmetic: a library kernel where it returns the log-sum-exp, else plain blocks."""

    scale: float
    window: int | None
    softcap: float | None

    def causal(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Causal self-attention of `(batch, heads, tokens, width)`; returns it and its `(batch, heads, tokens)` LSE."""
        tokens = q.shape[2]
        if self.softcap is None and (self.window is None or tokens <= self.window):
            return _library(q, k, v, self.scale, causal=True)
        places = torch.arange(tokens, device=q.device)
        parts = [self._blocks(*one, places, places, causal=True) for one in zip(q, k, v, strict=True)]
        return torch.stack([o for o, _ in parts]), torch.stack([norm for _, norm in parts])

    def full(self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor, k_pos: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """Attention of all `(heads, tokens, width)` queries to all keys in front of them, but for the window.

        `reach` is the largest difference of their positions.
        """
        if self.softcap is None and (self.window is None or reach < self.window):
            heads, tokens, width = q.shape
            folded = q.reshape(k.shape[0], -1, width)
            if cpu.prefers_products(q):
                o, norm = _products(folded, k, v, self.scale)
            else:
                o, norm = (x[0] for x in _library(folded[None], k[None], v[None], self.scale, causal=False))
            return o.reshape(heads, tokens, width), norm.reshape(heads, tokens)
        return self._blocks(q, k, v, q_pos, k_pos, causal=False)

    def _blocks(
        self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor, k_pos: Tensor, *, causal: bool
    ) -> tuple[Tensor, Tensor]:
        heads, tokens, width = q.shape
        q = q.reshape(k.shape[0], -1, tokens, width)
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        step = max(1, _SCORES_BYTES // (4 * heads * k.shape[1]))
        for start in range(0, tokens, step):
            cut = slice(start, min(start + step, tokens))
            scores = (q[:, :, cut] @ k.unsqueeze(1).transpose(-1, -2)).float() * self.scale
            if self.softcap is not None:
                scores = (scores / self.softcap).tanh_() * self.softcap
            distance = q_pos[cut, None] - k_pos[None]
            hidden = (
                distance >= self.window if self.window is not None else torch.zeros_like(distance, dtype=torch.bool)
            )
            if causal:
                hidden = hidden | (distance < 0)
            norm = scores.masked_fill_(hidden, -torch.inf).logsumexp(-1)
            # A query whose window starts behind every key sees nothing here: weight zero, not NaN.
            weights = (scores - norm.masked_fill(norm.isinf(), 0.0).unsqueeze(-1)).exp_()
            out[:, :, cut] = weights.to(v.dtype) @ v.unsqueeze(1)
            lse[:, :, cut] = norm
        return out.reshape(heads, tokens, width), lse.reshape(heads, tokens)


def _products(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Unmasked attention by plain products, where those are faster than the fused kernel; scores always in float32.

    Exponentials are taken to base two, see `cpu.LOG2_E`.
    """
    heads, tokens, _ = q.shape
    out = torch.empty_like(q)
    lse = torch.empty(heads, tokens, dtype=torch.float32)
    # Dense, since oneDNN falls back to a reference loop, a hundred times slower, for weights with gaps between rows.
    keys, values = (k.float() * (scale * cpu.LOG2_E)).contiguous(), v.transpose(1, 2).contiguous()
    for head in range(heads):
        for start in range(0, tokens, _PRODUCT_ROWS):
            rows = slice(start, start + _PRODUCT_ROWS)
            scores = cpu.product(q[head, rows].float(), keys[head])
            peak = scores.amax(-1, keepdim=True)
            total = scores.sub_(peak).exp2_().sum(-1, keepdim=True)
            out[head, rows] = cpu.product(scores.to(v.dtype), values[head]) / total
            lse[head, rows] = total.log2_().add_(peak).squeeze(-1).mul_(LN_2)
    return out, lse


def _library(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool) -> tuple[Tensor, Tensor]:
    """The device's fused kernel: attention `(batch, heads, tokens, width)` and its LSE `(batch, heads, tokens)`."""
    aten = torch.ops.aten
    if q.device.type == "cpu":
        o, norm = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=None, scale=scale)
        return o, norm
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if q.dtype == torch.float32:
        result = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    else:
        result = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    # The kernels round the log-sum-exp's length up to a multiple of their block.
    return result[0], result[1][..., : q.shape[2]].float()
