"""The layout of one packed row that holds a tree of tokens: which tokens see which, in data.

Knows segments, positions and devices; computes no attention. `tree` makes rows of token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from gdr_plugin.models.local.kernels import Kernel

LayerKV = tuple[Tensor, Tensor]
"""Keys and values of one layer after rotary embedding, each `(1, kv heads, tokens, head dim)`."""

_LENGTH_RATIO = 1.15
"""Segments share a kernel call while the longest is at most this times the shortest."""
T = TypeVar("T")
Numbers = Sequence[int] | np.ndarray[Any, np.dtype[Any]]


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


@dataclass(frozen=True)
class Shape:
    """Where the segments of a row are, for kernels that take a whole tree at once.

    All prompts stand first, those with answers before the others; the answers follow, in the order of their prompts. So
    prompts and answers are two runs of the row, and nothing has to be gathered.
    """

    bounds: tuple[int, ...]
    """Where segments begin, and the end of the last: from 0 to the number of tokens."""
    parents: tuple[int, ...]
    """Which segment each one continues; -1: a prompt, which continues the prefix alone."""
    prompts: int
    """Tokens of all prompts: the answers' first place."""
    asked: tuple[int, ...]
    """Bounds of the prompts that have answers, from 0; `(0,)`: none has."""
    answers: tuple[int, ...]
    """Bounds of each such prompt's answers, counted from `prompts`."""

    @classmethod
    def single(cls, tokens: int) -> Shape:
        """One segment: a prefix by itself."""
        return cls((0, tokens), (-1,), tokens, (0,), (0,))

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Start and end of each segment."""
        return list(pairwise(self.bounds))


class WholeRow(Protocol):
    """What attends over a whole row at once, or chooses who does; see `ways.Way.attend`."""

    def attend(
        self, row: RowLayout, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, kernel: Kernel
    ) -> Tensor:
        """Attention of one layer, `(tokens, heads, width)`."""


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
    shape: Shape | None = None
    """Where the segments are, when `ways` are given."""
    ways: WholeRow | None = None
    """Kernels that take the whole row at once, when the device has some; None: segment by segment."""
    _made: dict[object, object] = field(default_factory=dict)

    def on(self, device: torch.device) -> RowLayout:
        """This row with its tensors on the device of a layer: a sharded model has several."""
        if self.positions.device == device:
            return self

        def copy() -> RowLayout:
            batches = [CausalBatch(batch.index.to(device), batch.valid.to(device)) for batch in self.batches]
            return replace(self, positions=self.positions.to(device), batches=batches, _made={})

        return self.once(device, copy)

    def once(self, name: object, make: Callable[[], T]) -> T:
        """What `make` gives, made at the first call for `name`: layers of one row share masks and bounds."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]  # type: ignore[return-value]

    def grouped(self) -> tuple[list[tuple[int, int]], list[CausalBatch]]:
        """`causal` and `batches`, made of `shape` where the row was laid out for `ways`."""
        if self.shape is None:
            return self.causal, self.batches
        segments = self.shape.segments
        return self.once("grouped", lambda: group(segments, self.positions.device))


_ROW: ContextVar[RowLayout | None] = ContextVar("gdr_tree_row", default=None)


def active() -> RowLayout | None:
    """The row of the forward that this thread runs; None outside of `attending`."""
    return _ROW.get()


@contextmanager
def attending(row: RowLayout) -> Iterator[None]:
    """Make `row` the layout of every `gdr_tree` forward inside the block (this thread only)."""
    token = _ROW.set(row)
    try:
        yield
    finally:
        _ROW.reset(token)


def group(segments: Sequence[tuple[int, int]], device: torch.device) -> tuple[list[tuple[int, int]], list[CausalBatch]]:
    """Put segments of similar length into one kernel call; the others run alone."""
    single: list[tuple[int, int]] = []
    batches: list[CausalBatch] = []
    ordered = sorted(segments, key=lambda s: s[1] - s[0])
    while ordered:
        shortest = ordered[0][1] - ordered[0][0]
        longest = max(shortest * _LENGTH_RATIO, shortest + 4)
        count = sum(stop - start <= longest for start, stop in ordered)
        members, ordered = ordered[:count], ordered[count:]
        if count == 1:
            single += members
            continue
        starts = torch.tensor([start for start, _ in members])
        sizes = torch.tensor([stop - start for start, stop in members])
        places = torch.arange(int(sizes[-1]))
        index = starts[:, None] + torch.minimum(places[None], sizes[:, None] - 1)
        valid = (places[None] < sizes[:, None]).flatten().nonzero().squeeze(1)
        batches.append(CausalBatch(index.to(device), valid.to(device)))
    return single, batches


def to_device(device: torch.device, *lists: Numbers, dtype: torch.dtype = torch.long) -> list[Tensor]:
    """Whole numbers as tensors on a device; on a GPU in a single copy out of pinned memory, for which nobody waits."""
    if device.type != "cuda":
        return [torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True) for values in lists]
    kind = np.int64 if dtype == torch.long else np.int32
    joined = torch.from_numpy(np.concatenate([np.asarray(values, dtype=kind) for values in lists]))
    parts = torch.split(joined.pin_memory().to(device, non_blocking=True), [len(values) for values in lists])
    # Kernels want their bounds aligned as an own tensor is; these are small.
    return [part.clone() for part in parts]
