"""Keys and values of token runs: kept, found again, and shown to transformers as one cache.

A `Segment` holds what a model computed for a run of tokens. A `Front` strings segments together (guidance, then
prompts) and hands each layer the concatenation, so that one layer at a time is expanded in memory.
Knows nothing of what the tokens mean.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from gdr_plugin.models.local.prefixes import Ids


@dataclass
class Segment:
    """Keys and values (after rotary embedding) of a run of tokens, by layer."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values, each `(sequences, kv heads, tokens, head dim)`."""

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    @property
    def length(self) -> int:
        """How many tokens the run has."""
        return self.layers[0][0].shape[2]

    def followed_by(self, other: Segment) -> Segment:
        """This run and the next as one segment; both hold a single sequence."""
        return Segment(
            [
                (torch.cat([k, more_k], dim=2), torch.cat([v, more_v], dim=2))
                for (k, v), (more_k, more_v) in zip(self.layers, other.layers, strict=True)
            ]
        )


@dataclass(frozen=True)
class BatchSegment:
    """A segment as the rows of a batch see it."""

    segment: Segment
    rows: Tensor | None = None
    """Which of the segment's sequences each row of the batch follows, shape `(batch,)`; None: it holds one
    sequence, which all follow."""

    def layer(self, index: int, batch: int) -> tuple[Tensor, Tensor]:
        """One layer's keys and values for the whole batch, as views where possible."""
        keys, values = self.segment.layers[index]
        if self.rows is None:
            return keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)
        rows = self.rows.to(keys.device)
        return keys.index_select(0, rows), values.index_select(0, rows)


class _FrontLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer of a front: returns keys and values of its segments plus the new ones; stores the new ones if asked."""

    def __init__(self, index: int, segments: Sequence[BatchSegment], length: int, kept: Segment | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._index, self._segments, self._length, self._kept = index, segments, length, kept

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._kept is not None:  # a copy: the states may be views of a larger tensor
            self._kept.layers.append((key_states.clone(), value_states.clone()))
        if not self._segments:
            return key_states, value_states
        past = [part.layer(self._index, key_states.shape[0]) for part in self._segments]
        return (
            torch.cat([*(keys for keys, _ in past), key_states], dim=2),
            torch.cat([*(values for _, values in past), value_states], dim=2),
        )

    def get_seq_length(self, *args: Any) -> int:
        return self._length

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        # Releases before 5.2 pass the new tokens' positions instead of their number.
        new = len(query_length) if isinstance(query_length, Tensor) else query_length
        return self._length + new, 0


class Front(Cache):
    """The cache of one forward: segments in front of the tokens that are about to be computed.

    Args:
        segments: In the order of their tokens, from the first token on.
        layers: How many layers the model has.
        kept: Filled with the new tokens' keys and values, when given.
    """

    def __init__(self, segments: Sequence[BatchSegment], layers: int, kept: Segment | None = None) -> None:
        length = sum(part.segment.length for part in segments)
        super().__init__(layers=[_FrontLayer(index, segments, length, kept) for index in range(layers)])


class PrefixCache:
    """Keeps segments of guidance prefixes under a byte budget; the least recently used leave first.

    Args:
        budget: Bytes of keys and values; 0 keeps nothing.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: OrderedDict[Ids, Segment] = OrderedDict()
        self.nbytes = 0
        """Memory held, in bytes."""

    @property
    def known(self) -> list[Ids]:
        """The prefixes that are kept."""
        return list(self._kept)

    def get(self, ids: Ids) -> Segment | None:
        """The segment of exactly these ids, marked as used."""
        segment = self._kept.get(ids)
        if segment is not None:
            self._kept.move_to_end(ids)
        return segment

    def longest(self, ids: Ids) -> tuple[int, Segment | None]:
        """The longest kept prefix of `ids`: its length and segment; `(0, None)` when there is none."""
        best = max((known for known in self._kept if ids[: len(known)] == known), key=len, default=())
        return len(best), self.get(best) if best else None

    def put(self, ids: Ids, segment: Segment) -> None:
        """Keep a segment; the least recently used ones leave until the budget is met, this one not before `trim`."""
        self._kept[ids] = segment
        self.nbytes = sum(held.nbytes for held in self._kept.values())
        self._shrink(1)

    def trim(self) -> None:
        """Meet the budget, even if the newest segment leaves: called when no pack needs it any more."""
        self._shrink(0)

    def _shrink(self, least: int) -> None:
        while self.nbytes > self._budget and len(self._kept) > least:
            _, old = self._kept.popitem(last=False)
            self.nbytes -= old.nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.nbytes = 0
