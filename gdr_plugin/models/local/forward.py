"""Runs packs on a loaded model: as packed trees, with kept prefixes, as padded batches, or one sequence at a time.

The four strategies give the same numbers. `planner` decides what runs together; `head` makes log-probs of states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gdr_plugin.models.local import attention, tree
from gdr_plugin.models.local.fetch import Fetched
from gdr_plugin.models.local.head import select
from gdr_plugin.models.local.kvcache import BatchSegment, Front, PrefixCache, Segment
from gdr_plugin.models.local.network import Network
from gdr_plugin.models.local.planner import Pack, ResponseRow
from gdr_plugin.models.local.prefixes import Ids
from gdr_plugin.models.local.row import RowLayout, Shape, attending

if TYPE_CHECKING:
    from gdr_plugin.api.types import Logprobs


ComputeSegment = Callable[[Network, Ids, Tensor, "Segment | None"], Segment]
"""Computes the keys and values of ids at some positions behind a segment."""


def run_tree(net: Network, pack: Pack, kept: PrefixCache) -> list[Logprobs]:
    """Compute the prefix once per model, then all contexts and responses as one packed row without padding.

    Args:
        net: A network with a head, whose attention goes through transformers' attention interface.
        pack: From `plan_tree`: rows in the order of their contexts.
        kept: Prefixes of earlier packs; the pack's own is added.

    Returns:
        Log-probs of each of the pack's rows.
    """
    return start_tree(net, pack, kept).rows()


def start_tree(net: Network, pack: Pack, kept: PrefixCache) -> Fetched:
    """As `run_tree`, without waiting for a GPU: its work is queued, and the next pack can be laid out meanwhile."""
    assert net.head is not None
    prefix = _prefix(net, pack.prefix, kept, _packed_segment).layers if pack.prefix else None
    responses: list[list[Ids]] = [[] for _ in pack.tails]
    for row in pack.rows:
        responses[row.tail].append(row.response)
    branches = [tree.Branch(tail, own) for tail, own in zip(pack.tails, responses, strict=True)]
    packed = tree.lay_out(branches, prefix, net.device, net.ways)
    with attention.using(net.decoder_config):
        states = tree.states(net.decoder, packed)
    logprobs = net.head.logprobs(states, packed.which, packed.targets)
    return _fetched(logprobs, pack.rows)


def run_cached(net: Network, pack: Pack, kept: PrefixCache) -> Fetched:
    """Compute the prefix once per model, each context once, and the responses on top of them.

    Args:
        net: A network with a head.
        pack: From `plan_cached`.
        kept: Prefixes of earlier packs; the pack's own is added.

    Returns:
        Log-probs of each of the pack's rows.
    """
    start = len(pack.prefix)
    before = [BatchSegment(_prefix(net, pack.prefix, kept, _plain_segment))] if start else []
    tails = [len(tail) for tail in pack.tails]
    own = Segment() if pack.batches else None
    positions = torch.arange(start, start + max(tails), device=net.device)[None]
    states = net.states(net.tensor(pack.tails), front=Front(before, net.layers, own), positions=positions)
    last = torch.tensor(tails, device=states.device) - 1
    found = [states[torch.arange(len(tails), device=states.device), last]]
    places: list[list[int]] = [[row.tail] for row in pack.rows]
    filled = len(tails)
    del states
    for batch in pack.batches:
        rows = [pack.rows[place] for place in batch]
        states = _responses(net, rows, before, own, start, tails)
        lengths = [len(row.response) - 1 for row in rows]
        found.append(_valid(states, lengths))
        for place, length in zip(batch, lengths, strict=True):
            places[place].extend(range(filled, filled + length))
            filled += length
    return _finish(net, torch.cat(found), places, pack.rows)


def _prefix(net: Network, ids: Ids, kept: PrefixCache, compute: ComputeSegment) -> Segment:
    """The kept segment of exactly `ids`; its missing end is computed and kept."""
    length, segment = kept.longest(ids)
    if segment is None or length < len(ids):
        positions = torch.arange(length, len(ids), device=net.device)
        new = compute(net, ids[length:], positions, segment)
        segment = segment.followed_by(new) if segment is not None else new
        kept.put(ids, segment)
    return segment


def _plain_segment(net: Network, ids: Ids, positions: Tensor, before: Segment | None) -> Segment:
    """Compute keys and values of ids behind a segment by the model's own attention."""
    new = Segment()
    segments = [BatchSegment(before)] if before is not None else []
    net.states(net.tensor([ids]), front=Front(segments, net.layers, new), positions=positions[None])
    return new


def _packed_segment(net: Network, ids: Ids, positions: Tensor, before: Segment | None) -> Segment:
    """As `_plain_segment`, by the attention of packed rows, which applies windows at any length."""
    new = Segment()
    last = len(ids) - 1 + (before.length if before is not None else 0)
    row = RowLayout(positions, last, [(0, len(ids))], prefix=before.layers if before is not None else None)
    if net.ways is not None:
        row.shape, row.ways = Shape.single(len(ids)), net.ways
    with attention.using(net.decoder_config), attending(row):
        net.states(net.tensor([ids]), front=Front([], net.layers, new), positions=positions[None])
    return new


def _responses(
    net: Network,
    rows: Sequence[ResponseRow],
    before: list[BatchSegment],
    own: Segment | None,
    start: int,
    tails: list[int],
) -> Tensor:
    """States of responses (all but their last tokens) behind their contexts."""
    assert own is not None
    single = len(tails) == 1
    of = [row.tail for row in rows]
    segments = [*before, BatchSegment(own, None if single else torch.tensor(of, device=net.device))]
    ids = net.tensor([row.response[:-1] for row in rows])
    lengths = torch.tensor([tails[tail] for tail in of], device=net.device)[:, None]
    width = ids.shape[1]
    positions = start + lengths + torch.arange(width, device=net.device)
    mask = None
    if any(tails[tail] != max(tails) for tail in of):  # padding between a context and its responses must not be seen
        place = torch.arange(start + max(tails) + width, device=net.device)[None]
        mask = ((place < start + lengths) | (place >= start + max(tails))).long()
    return net.states(ids, front=Front(segments, net.layers), positions=positions, mask=mask)


def run_padded(net: Network, pack: Pack) -> Fetched:
    """Run whole sequences, right-padded, with the head on response tokens only: exact for every causal architecture.

    Args:
        net: Any network; where its head cannot be taken apart, the whole model makes the logits.
        pack: From `plan_padded`.

    Returns:
        Log-probs of each of the pack's rows.
    """
    contexts = [pack.context(row) for row in pack.rows]
    ids = net.tensor([context + row.response[:-1] for context, row in zip(contexts, pack.rows, strict=True)])
    starts = [len(context) - 1 for context in contexts]
    places, filled = [], 0
    for row in pack.rows:
        places.append(list(range(filled, filled + len(row.response))))
        filled += len(row.response)
    lengths = [len(row.response) for row in pack.rows]
    if net.head is not None:
        return _finish(net, _valid(net.states(ids), lengths, starts), places, pack.rows)
    keep = ids.shape[1] - min(starts)
    logits = _valid(net.logits(ids, keep), lengths, [start - min(starts) for start in starts]).float()
    targets = torch.tensor([token for row in pack.rows for token in row.response], device=logits.device)
    return _fetched(select(logits, torch.arange(len(targets), device=logits.device), targets), pack.rows)


def run_plain(net: Network, pack: Pack) -> Fetched:
    """Run one sequence at a time through the model's own forward and head: slow, and the reference for the others.

    Args:
        net: Any network.
        pack: Any pack.

    Returns:
        Log-probs of each of the pack's rows.
    """
    found: list[Tensor] = []
    for row in pack.rows:
        count = len(row.response)
        logits = net.logits(net.tensor([pack.context(row) + row.response[:-1]]), count)[0].float()
        targets = torch.tensor(row.response, device=logits.device)
        places = torch.arange(count, device=logits.device)
        found.append(select(logits, places, targets))
    return _fetched(torch.cat(found), pack.rows)


def _valid(states: Tensor, lengths: Sequence[int], starts: Sequence[int] | None = None) -> Tensor:
    """Drop the padding of `(rows, tokens, width)`: the rows' real entries as `(sum of lengths, width)`."""
    width = states.shape[1]
    offsets = starts if starts is not None else [0] * len(lengths)
    flat = np.concatenate(
        [np.arange(n) + place * width + start for place, (n, start) in enumerate(zip(lengths, offsets, strict=True))]
    )
    return states.flatten(0, 1)[torch.from_numpy(flat).to(states.device, non_blocking=True)]


def _finish(net: Network, states: Tensor, places: Sequence[Sequence[int]], rows: Sequence[ResponseRow]) -> Fetched:
    """Log-probs of rows whose response tokens are predicted by the states at `places`."""
    assert net.head is not None
    which = np.fromiter((place for found in places for place in found), dtype=np.int64)
    targets = np.fromiter((token for row in rows for token in row.response), dtype=np.int64)
    result = net.head.logprobs(states, torch.from_numpy(which), torch.from_numpy(targets))
    return _fetched(result, rows)


def _fetched(logprobs: Tensor, rows: Sequence[ResponseRow]) -> Fetched:
    return Fetched(logprobs, [len(row.response) for row in rows])
