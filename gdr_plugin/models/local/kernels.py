"""Attention arithmetic that also gives the log-sum-exp: library kernels where they return it, plain blocks elsewhere.

Knows sliding windows and soft-capping; nothing of packed rows or of what the tokens mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gdr_plugin.models.local import cpu

LN_2 = math.log(2.0)
_PRODUCT_ROWS = 1024
_SCORES_BYTES = 32 << 20
"""Bound on one block of attention scores where they are materialised."""


@dataclass(frozen=True)
class Kernel:
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
        parts = [self._blocks(*heads, places, places, causal=True) for heads in zip(q, k, v, strict=True)]
        return torch.stack([o for o, _ in parts]), torch.stack([norm for _, norm in parts])

    def full(self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor, k_pos: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """Attention of all `(heads, tokens, width)` queries to all keys in front of them, but for the window.

        `reach` is the largest difference of their positions.
        """
        if self.softcap is None and (self.window is None or reach < self.window):
            heads, tokens, width = q.shape
            folded = q.reshape(k.shape[0], -1, width)
            if cpu.prefers_products(q):
                o, norm = products(folded, k, v, self.scale)
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


def products(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
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
