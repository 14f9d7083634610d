"""Attention of a whole packed row by FlexAttention: one call a layer, with a block mask of the tree.

Windows and soft-capping are part of the mask and of the score. Row and keys are padded to a bucket of sizes, for which
torch compiles one kernel. Blocks in which no token sees another are left out; which they are follows from the segments
on the host, so no mask of tokens by tokens ever exists.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from gdr_plugin.models.local.compiling import recompiled
from gdr_plugin.models.local.kernels import Kernel
from gdr_plugin.models.local.row import LayerKV, RowLayout, Shape, to_device

BLOCK = 128
_NARROWEST = 16
_IN_PREFIX, _NO_PARENT, _PADDED_QUERY, _PADDED_KEY = -2, -1, -3, -4


class Flex:
    """FlexAttention with the tree as its mask: a `Way`.

    Args:
        run: `torch.nn.attention.flex_attention.flex_attention`, or that function compiled, which is the default.
    """

    name = "FlexAttention"

    def __init__(self, run: Callable[..., Any] | None = None) -> None:
        self._run = run

    def refuses(self, row: RowLayout, query: Tensor, value: Tensor, kernel: Kernel) -> str | None:
        """Why this way cannot do a layer; None: it can."""
        width = query.shape[-1]
        if self._run is None and (min(width, value.shape[-1]) < _NARROWEST):
            return f"heads of {width}"
        return None

    def attend(
        self, row: RowLayout, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, kernel: Kernel
    ) -> Tensor:
        """Attention of one layer; see `Way.attend`."""
        shape = row.shape
        assert shape is not None
        tokens = query.shape[1]
        before = prefix[0].shape[2] if prefix is not None else 0
        sizes = bucket(tokens), bucket(before + tokens)
        name = ("tree mask", before, kernel.window)
        mask = row.once(name, lambda: block_mask(shape, row.positions, before, sizes, kernel.window))
        keys, values = (
            pad(x if prefix is None else torch.cat([front[0], x], dim=1), (0, 0, 0, sizes[1] - before - tokens))
            for x, front in zip((key, value), prefix or (key[None], value[None]), strict=True)
        )
        run = self._run or _compiled()
        out: Tensor = run(
            pad(query, (0, 0, 0, sizes[0] - tokens))[None],
            keys[None],
            values[None],
            score_mod=_capped(kernel.softcap) if kernel.softcap is not None else None,
            block_mask=mask,
            scale=kernel.scale,
            enable_gqa=query.shape[0] != key.shape[0],
        )
        return out[0, :, :tokens].transpose(0, 1)


@cache
def _compiled() -> Callable[..., Any]:
    # `fullgraph`: an error instead of an uncompiled run, which holds all scores at once.
    return recompiled(torch.compile(_flex, fullgraph=True))


def _flex(*args: Any, **options: Any) -> Any:
    """Torch's function under a code object of our own, by which torch counts: a trainer may have compiled its own."""
    return flex_attention(*args, **options)


@cache
def _capped(cap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(score / cap) * cap

    return capped


def bucket(tokens: int) -> int:
    """The size that so many tokens are padded to: whole blocks, an eighth of the power of two below at a time."""
    step = max(BLOCK, 1 << max(0, tokens.bit_length() - 4))
    return -(-tokens // step) * step


def block_mask(shape: Shape, positions: Tensor, before: int, sizes: tuple[int, int], window: int | None) -> BlockMask:
    """The tree as a block mask.

    Args:
        shape: Where the segments are.
        positions: Of each row token, on the device.
        before: Tokens of the prefix, which all see and which stand before the row's keys.
        sizes: Queries and keys, padded.
        window: How far a token sees; None: any distance.

    Returns:
        The mask.
    """
    tokens = shape.bounds[-1]
    lengths = np.diff(shape.bounds)
    own = np.repeat(np.arange(len(lengths)), lengths)
    parents = np.repeat(np.asarray(shape.parents), lengths)
    fill = sizes[0] - tokens
    place = np.concatenate([np.full(before, -1), np.arange(tokens), np.zeros(sizes[1] - before - tokens, dtype=int)])
    row_keys = np.pad(own, (0, sizes[1] - before - tokens), constant_values=_PADDED_KEY)
    segment, parent, key_segment, key_place = to_device(
        positions.device,
        np.pad(own, (0, fill), constant_values=_PADDED_QUERY),
        np.pad(parents, (0, fill), constant_values=_PADDED_QUERY),
        np.concatenate([np.full(before, _IN_PREFIX), row_keys]),
        place,
    )
    position = pad(positions, (0, fill))
    front = torch.arange(before, device=positions.device)
    key_position = pad(torch.cat([front, positions]), (0, sizes[1] - before - tokens))

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        kind = key_segment[k]
        mine = (kind == segment[q]) | (kind == parent[q])
        return (kind == _IN_PREFIX) | (mine & (key_place[k] <= q))

    def near(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sees(batch, head, q, k) & (position[q] - key_position[k] < (window or 0))

    some, whole = _blocks(shape, before, sizes, window)
    count, index = _listed(some & ~whole, positions.device)
    full_count, full_index = _listed(whole, positions.device)
    return BlockMask.from_kv_blocks(
        count,
        index,
        full_count,
        full_index,
        BLOCK_SIZE=BLOCK,
        mask_mod=sees if window is None else near,
        seq_lengths=sizes,
    )


def _blocks(
    shape: Shape, before: int, sizes: tuple[int, int], window: int | None
) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Which blocks of keys each block of queries sees something of, and which it sees all of."""
    some = np.zeros((-(-sizes[0] // BLOCK), -(-sizes[1] // BLOCK)), dtype=bool)
    whole = np.zeros_like(some)
    some[:, : -(-before // BLOCK)] = True
    if window is None:
        whole[:, : before // BLOCK] = True
    segments = shape.segments
    for (start, stop), parent in zip(segments, shape.parents, strict=True):
        for block in range(start // BLOCK, (stop - 1) // BLOCK + 1):
            last = min(stop, (block + 1) * BLOCK) - 1
            some[block, (before + start) // BLOCK : (before + last) // BLOCK + 1] = True
            if parent >= 0:
                first, end = segments[parent]
                some[block, (before + first) // BLOCK : (before + end - 1) // BLOCK + 1] = True
    if window is not None:
        _leave_out(some, shape, before, window)
    return some, whole


def _leave_out(some: np.ndarray[Any, np.dtype[np.bool_]], shape: Shape, before: int, window: int) -> None:
    """Take out blocks of the prefix that lie before the window of every query."""
    lengths = np.diff(shape.bounds)
    starts = [before if parent < 0 else before + int(lengths[parent]) for parent in shape.parents]
    position = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
    for block in range(len(some)):
        mine = position[block * BLOCK : (block + 1) * BLOCK]
        if len(mine):
            gone = max(0, int(mine.min()) - window + 1) // BLOCK  # blocks whose last key is out of reach
            some[block, : min(gone, before // BLOCK)] = False


def _listed(blocks: np.ndarray[Any, np.dtype[np.bool_]], device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, `(1, 1, rows)`, and which, `(1, 1, rows, blocks)`, those it has first."""
    count, index = blocks.sum(1), np.argsort(~blocks, axis=1, kind="stable")
    counts, places = to_device(device, count, index.reshape(-1), dtype=torch.int32)
    return counts[None, None], places.reshape(1, 1, *blocks.shape)
