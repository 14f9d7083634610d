"""Attention of a whole packed row by variable-length flash attention: three calls and a merge in each layer.

One call has every segment attend causally to itself, one all answers to their prompts, one everything to the prefix.
Each gives its log-sum-exp, by which the merge weighs the parts, in float32 and rounded once. Grouped heads are the
kernel's own: no key is copied. Needs half precision; knows neither windows that a row outgrows nor soft-capping.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from gdr_plugin.models.local.compiling import Fused
from gdr_plugin.models.local.kernels import Kernel
from gdr_plugin.models.local.row import LayerKV, RowLayout, Shape, to_device

Flash = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, bool, float], tuple[Tensor, Tensor]]
"""`(q, k, v, bounds of q, bounds of k, longest q, longest k, causal, scale)`: attention of sequences that follow each
other, q `(tokens, heads, width)`, k and v `(tokens, kv heads, width)`, bounds in int32; gives `(tokens, heads, width)`
and the log-sum-exp `(heads, tokens)`."""
Merge = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None], Tensor]

_WIDEST = 256


def library_flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_bounds: Tensor,
    k_bounds: Tensor,
    longest_q: int,
    longest_k: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Torch's flash attention; see `Flash`."""
    # Told that no sequence has more than one query, the kernel folds grouped heads into the queries and gives the
    # log-sum-exp in another order: a longest of two keeps it from that and costs nothing.
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, q_bounds, k_bounds, max(2, longest_q), longest_k, 0.0, causal, False, scale=scale
    )
    if lse.shape != (q.shape[1], q.shape[0]):
        raise RuntimeError(f"the log-sum-exp is {tuple(lse.shape)}, not (heads, tokens)")
    return out, lse


def merge(
    own: Tensor,
    own_lse: Tensor,
    cross: Tensor | None,
    cross_lse: Tensor | None,
    prefix: Tensor | None,
    prefix_lse: Tensor | None,
) -> Tensor:
    """Fold partial softmaxes into one.

    Args:
        own: Attention to the own segment, `(tokens, heads, width)`.
        own_lse: Its log-sum-exp, `(heads, tokens)`.
        cross: Attention of the row's last tokens to their prompts, `(fewer tokens, heads, width)`.
        cross_lse: Its log-sum-exp.
        prefix: Attention to the prefix, as `own`.
        prefix_lse: Its log-sum-exp.

    Returns:
        `(tokens, heads, width)`, in the dtype of `own`.
    """
    parts = [(own, own_lse)]
    if cross is not None and cross_lse is not None:
        before = own.shape[0] - cross.shape[0]
        parts.append((pad(cross, (0, 0, 0, 0, before, 0)), pad(cross_lse, (before, 0), value=-torch.inf)))
    if prefix is not None and prefix_lse is not None:
        parts.append((prefix, prefix_lse))
    top = own_lse
    for _, lse in parts[1:]:
        top = torch.maximum(top, lse)
    weight = torch.exp(own_lse - top)
    total, out = weight, own.float() * weight.transpose(0, 1).unsqueeze(-1)
    for part, lse in parts[1:]:
        weight = torch.exp(lse - top)
        total, out = total + weight, out + part.float() * weight.transpose(0, 1).unsqueeze(-1)
    return (out / total.transpose(0, 1).unsqueeze(-1)).to(own.dtype)


class Varlen:
    """Variable-length flash attention: a `Way`.

    Args:
        flash: The kernel; torch's by default.
        fold: The merge; compiled into one kernel by default.
    """

    name = "variable-length flash attention"

    def __init__(self, flash: Flash = library_flash, fold: Merge | None = None) -> None:
        self._flash = flash
        self._merge: Merge = fold or Fused(merge, "the merge of partial attention")

    def refuses(self, row: RowLayout, query: Tensor, value: Tensor, kernel: Kernel) -> str | None:
        """Why this way cannot do a layer; None: it can."""
        if kernel.softcap is not None:
            return "soft-capping"
        if kernel.window is not None and row.last >= kernel.window:
            return f"a window of {kernel.window} tokens"
        if query.dtype not in (torch.bfloat16, torch.float16) and self._flash is library_flash:
            return f"{str(query.dtype).removeprefix('torch.')} (it takes half precision)"
        width = query.shape[-1]
        if width > _WIDEST or width % 8 or value.shape[-1] != width:
            return f"heads of {width} and {value.shape[-1]}"
        return None

    def attend(
        self, row: RowLayout, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, kernel: Kernel
    ) -> Tensor:
        """Attention of one layer; see `Way.attend`."""
        shape = row.shape
        assert shape is not None
        tokens = query.shape[1]
        ends = [0, prefix[0].shape[2]] if prefix is not None else [0]
        name = ("bounds", ends[-1])
        own, asked, answers, all_of_it, before = row.once(name, lambda: _bounds(shape, ends, tokens, query.device))
        q, k, v = (x.transpose(0, 1) for x in (query, key, value))
        longest = _longest(shape.bounds)
        out, lse = self._flash(q, k, v, own, own, longest, longest, True, kernel.scale)
        cross = cross_lse = front = front_lse = None
        if len(shape.asked) > 1:
            first, keys = shape.prompts, shape.asked[-1]
            longest_q, longest_k = _longest(shape.answers), _longest(shape.asked)
            q_part, k_part, v_part = q[first:], k[:keys], v[:keys]
            cross, cross_lse = self._flash(
                q_part, k_part, v_part, answers, asked, longest_q, longest_k, False, kernel.scale
            )
        if prefix is not None:
            k, v = (x[0].transpose(0, 1) for x in prefix)
            front, front_lse = self._flash(q, k, v, all_of_it, before, tokens, len(k), False, kernel.scale)
        if cross is None and front is None:
            return out
        return self._merge(out, lse, cross, cross_lse, front, front_lse)


def _bounds(shape: Shape, ends: list[int], tokens: int, device: torch.device) -> list[Tensor]:
    lists = (shape.bounds, shape.asked, shape.answers, (0, tokens), ends)
    return to_device(device, *lists, dtype=torch.int32)


def _longest(bounds: tuple[int, ...]) -> int:
    return max(stop - start for start, stop in pairwise(bounds))
