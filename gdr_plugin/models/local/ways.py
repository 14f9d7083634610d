"""Which kernels attend over a packed row on this device: a list, fastest first, down to segment by segment.

A way is checked against attention written out, on a small tree, before a layer uses it for the first time; one that
fails, then or later, is left with a warning that says why. On CPUs there is no list: they go segment by segment.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gdr_plugin.api.errors import EngineWarning
from gdr_plugin.models.local import attention
from gdr_plugin.models.local.compiling import is_out_of_memory, reason
from gdr_plugin.models.local.flex import Flex
from gdr_plugin.models.local.kernels import Kernel
from gdr_plugin.models.local.row import Cross, LayerKV, RowLayout, Shape
from gdr_plugin.models.local.varlen import Varlen

_TOLERANCE = {torch.float32: 5e-3}
_TOLERANCE_HALF = 3e-2
"""Of values of about one. A wrong mask is off by tenths; float32 may be TF32 where the program allows it."""


class Way(Protocol):
    """One way to attend over a packed row."""

    name: str
    """For a person."""

    def refuses(self, row: RowLayout, query: Tensor, value: Tensor, kernel: Kernel) -> str | None:
        """Why this way cannot do a layer; None: it can."""

    def attend(
        self, row: RowLayout, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, kernel: Kernel
    ) -> Tensor:
        """Attention of one layer.

        Args:
            row: Which tokens see which; has a `shape`.
            query: `(heads, tokens, width)`.
            key: `(kv heads, tokens, width)`.
            value: `(kv heads, tokens, width)`.
            prefix: Keys and values that every query sees too, or None.
            kernel: Scale, window and soft-capping of the layer.

        Returns:
            `(tokens, heads, width)`, in the query's dtype.
        """


class Segments:
    """Segment by segment, as on CPUs: many calls a layer, and the way that takes every layer."""

    name = "segment by segment"

    def refuses(self, row: RowLayout, query: Tensor, value: Tensor, kernel: Kernel) -> str | None:
        """Nothing."""
        return None

    def attend(
        self, row: RowLayout, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, kernel: Kernel
    ) -> Tensor:
        """Attention of one layer; see `Way.attend`."""
        return attention.attend(row, query, key, value, prefix, kernel).transpose(0, 1)


class Ways:
    """The ways of one model, and what has become of them.

    Args:
        ways: The fastest first; `Segments` is added.
    """

    def __init__(self, ways: Sequence[Way]) -> None:
        self._left: list[Way] = [*ways, Segments()]
        self._passed: set[object] = set()
        self._used: dict[str, list[str]] = {}
        """Names of ways that have run, each with what faster ways refused."""
        self.dropped: dict[str, str] = {}
        """Names of ways that failed, with the reason."""

    @property
    def words(self) -> str:
        """Which ways have run, and why not a faster one: for a person."""
        used = [name + (f" for {', '.join(refused)}" if refused else "") for name, refused in list(self._used.items())]
        text = "; ".join(used) if used else f"{self._left[0].name} (expected; checked at the first pass)"
        return text + "".join(f"; not {name}: {why}" for name, why in list(self.dropped.items()))

    def attend(
        self, row: RowLayout, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, kernel: Kernel
    ) -> Tensor:
        """Attention of one layer by the first way that can; see `Way.attend`."""
        refused: list[str] = []
        for way in list(self._left):
            why = way.refuses(row, query, value, kernel)
            if why is not None:
                refused.append(why)
                continue
            if isinstance(way, Segments):
                out = way.attend(row, query, key, value, prefix, kernel)
            else:
                try:
                    self._check(way, query, key, kernel)
                    out = way.attend(row, query, key, value, prefix, kernel)
                except Exception as error:  # an operator that this build lacks, a compiler that fails, a wrong result
                    if is_out_of_memory(error):
                        raise
                    self.drop(way, reason(error) if not isinstance(error, _WrongError) else str(error))
                    continue
            self._used.setdefault(way.name, list(dict.fromkeys(refused)))
            return out
        raise AssertionError("segment by segment takes every layer")

    def drop(self, way: Way, why: str) -> None:
        """Leave a way for good, with a warning."""
        self._left.remove(way)
        self._used.pop(way.name, None)
        self.dropped[way.name] = why
        warnings.warn(
            f"{way.name} is not used: {why}; attention goes on by a slower way: {self._left[0].name}",
            EngineWarning,
            stacklevel=2,
        )

    def drop_used(self, why: str) -> bool:
        """Leave the fastest way that has run, when a forward's results were wrong.

        Returns:
            Whether there was one besides `Segments`.
        """
        way = next((way for way in self._left if way.name in self._used and not isinstance(way, Segments)), None)
        if way is not None:
            self.drop(way, why)
        return way is not None

    def _check(self, way: Way, query: Tensor, key: Tensor, kernel: Kernel) -> None:
        """Compare a way with attention written out, once for each kind of layer."""
        windowed = kernel.window is not None
        kind = (way.name, query.device, query.dtype, query.shape[0], key.shape[0], query.shape[-1], windowed, kernel)
        if kind in self._passed:
            return
        off = check(way, query, key, Kernel(kernel.scale, 9 if windowed else None, kernel.softcap))
        if not off <= _TOLERANCE.get(query.dtype, _TOLERANCE_HALF):
            raise _WrongError(f"on a small tree it is {off:.2g} off attention written out")
        self._passed.add(kind)


class _WrongError(Exception):
    """A way gave other numbers than attention written out."""


def check(way: Way, query: Tensor, key: Tensor, kernel: Kernel) -> float:
    """How far a way is off attention written out, on a small tree.

    Args:
        way: What is checked.
        query: Of a layer: its dtype, device, heads and width are used.
        key: Of the same layer.
        kernel: The layer's arithmetic.

    Returns:
        The largest difference. Where the way takes windows only while no row outgrows them, without one.
    """
    heads, width, kv_heads = query.shape[0], query.shape[-1], key.shape[0]
    bounds = (0, 5, 22, 23, 35, 38, 68, 69)  # three prompts, four answers; the last prompt has none
    shape = Shape(bounds, (-1, -1, -1, 0, 0, 1, 1), 23, (0, 5, 22), (0, 15, 46))
    before = 21
    starts = [before, before, before, before + 5, before + 5, before + 17, before + 17]
    positions = [start + place for start, (a, b) in zip(starts, shape.segments, strict=True) for place in range(b - a)]
    row = RowLayout(torch.tensor(positions, device=query.device), max(positions), shape=shape)
    row.crosses = [Cross(23, 38, 0, 5, 17), Cross(38, 69, 5, 22, 47)]
    # Made on the CPU: the device's own random numbers belong to the program.
    draw = torch.Generator().manual_seed(0)

    def values(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, device="cpu").to(query)

    tokens = bounds[-1]
    q, k, v = values(heads, tokens, width), values(kv_heads, tokens, width), values(kv_heads, tokens, width)
    prefix = values(1, kv_heads, before, width), values(1, kv_heads, before, width)
    if way.refuses(row, q, v, kernel) is not None:
        kernel = Kernel(kernel.scale, None, kernel.softcap)
    got = way.attend(row, q, k, v, prefix, kernel)
    return float((got.float() - written_out(row, q, k, v, prefix, kernel)).abs().max())


def written_out(
    row: RowLayout, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, kernel: Kernel
) -> Tensor:
    """The definition: all scores in float32 under a mask of tokens by tokens. For small rows; see `Way.attend`."""
    shape, tokens, device = row.shape, query.shape[1], query.device
    assert shape is not None
    before = prefix[0].shape[2] if prefix is not None else 0
    seen = torch.zeros(tokens, before + tokens, dtype=torch.bool)
    seen[:, :before] = True
    for (start, stop), parent in zip(shape.segments, shape.parents, strict=True):
        own = seen[start:stop, before + start : before + stop]
        own |= torch.ones_like(own).tril()
        if parent >= 0:
            first, last = shape.segments[parent]
            seen[start:stop, before + first : before + last] = True
    seen = seen.to(device)
    if kernel.window is not None:
        keys = torch.cat([torch.arange(before, device=device), row.positions])
        seen &= row.positions[:, None] - keys[None] < kernel.window
    group = query.shape[0] // key.shape[0]
    k, v = (
        torch.cat([front[0], x], dim=1).float().repeat_interleave(group, dim=0)
        for x, front in zip((key, value), prefix or (key[None, :, :0], value[None, :, :0]), strict=True)
    )
    scores = (query.float() @ k.transpose(1, 2)) * kernel.scale
    if kernel.softcap is not None:
        scores = torch.tanh(scores / kernel.softcap) * kernel.softcap
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1)


def ways_on(device: torch.device) -> Ways | None:
    """The ways of a device; None: there is one alone, segment by segment."""
    return Ways([Varlen(), Flex()]) if device.type == "cuda" else None
