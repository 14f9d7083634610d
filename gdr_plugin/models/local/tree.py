"""Lays out prompts and their responses as one packed row, and runs a transformer's body over it.

Knows token ids and the row's layout; `attention` computes attention, `head` the log-probs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gdr_plugin.models.local.attention import CausalBatch, Cross, LayerKV, RowLayout, attending

_LENGTH_RATIO = 1.15
"""Segments share a kernel call while the longest is at most this times the shortest."""


@dataclass(frozen=True)
class Branch:
    """One prompt of a pack: what follows the shared prefix, and the responses to it."""

    tail: Sequence[int]
    """Context ids behind the prefix; at least one."""
    responses: Sequence[Sequence[int]]
    """Response ids; none of them empty."""


@dataclass(frozen=True)
class PackedRow:
    """A row that is ready to run, and where its predictions are."""

    ids: Tensor
    """Token ids, shape `(tokens,)`."""
    row: RowLayout
    predictors: Tensor
    """RowLayout places whose states predict something, each once, shape `(predictors,)`."""
    which: Tensor
    """Which predictor each response token has, shape `(response tokens,)`."""
    targets: Tensor
    """The response tokens, branch by branch, response by response, shape `(response tokens,)`."""


def lay_out(branches: Sequence[Branch], prefix: Sequence[LayerKV] | None, device: torch.device) -> PackedRow:
    """Lay out branches behind a shared prefix.

    A response's last token predicts nothing that is needed, so it is not in the row.

    Args:
        branches: Prompts with their responses.
        prefix: Keys and values, by layer, of the shared prefix; None: there is none.
        device: Where the tensors go.

    Returns:
        The packed row.
    """
    offset = prefix[0][0].shape[2] if prefix else 0
    ids: list[int] = []
    positions: list[int] = []
    prompts: list[tuple[int, int]] = []
    answers: list[tuple[int, int]] = []
    crosses: list[Cross] = []
    predictors: list[int] = []
    which: list[int] = []
    targets: list[int] = []
    for branch in branches:
        start, stop = len(ids), len(ids) + len(branch.tail)
        after = offset + len(branch.tail)
        ids += branch.tail
        positions += range(offset, after)
        prompts.append((start, stop))
        shared = len(predictors)
        predictors.append(stop - 1)  # the prompt's last token predicts the first token of every response
        for response in branch.responses:
            first = len(ids)
            ids += response[:-1]
            positions += range(after, after + len(response) - 1)
            which += (shared, *range(len(predictors), len(predictors) + len(response) - 1))
            predictors += range(first, len(ids))
            targets += response
            if len(response) > 1:
                answers.append((first, len(ids)))
        if len(ids) > stop:
            crosses.append(Cross(stop, len(ids), start, stop, max(positions[stop:]) - positions[start]))
    single, batches = _group(prompts + answers, device)
    row = RowLayout(_tensor(positions, device), max(positions), single, batches, crosses, prefix)
    return PackedRow(
        _tensor(ids, device), row, _tensor(predictors, device), _tensor(which, device), _tensor(targets, device)
    )


def states(body: nn.Module, packed: PackedRow) -> Tensor:
    """Run a transformer's body over a packed row.

    Args:
        body: The transformer without its head; `gdr_tree` must be its attention implementation, see `attention.using`.
        packed: The row.

    Returns:
        Final hidden states of the row's predictors, `(predictors, hidden)`.
    """
    with attending(packed.row):
        out = body(input_ids=packed.ids[None], position_ids=packed.row.positions[None], use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden[0, packed.predictors.to(hidden.device)]


def _group(segments: list[tuple[int, int]], device: torch.device) -> tuple[list[tuple[int, int]], list[CausalBatch]]:
    """Put segments of similar length into one kernel call; the others run alone."""
    single: list[tuple[int, int]] = []
    batches: list[CausalBatch] = []
    ordered = sorted(segments, key=lambda s: s[1] - s[0])
    while ordered:
        shortest = ordered[0][1] - ordered[0][0]
        longest = max(shortest * _LENGTH_RATIO, shortest + 4)
        count = sum(stop - start <= longest for start, stop in ordered)
        group, ordered = ordered[:count], ordered[count:]
        if count == 1:
            single += group
            continue
        starts = torch.tensor([start for start, _ in group])
        sizes = torch.tensor([stop - start for start, stop in group])
        places = torch.arange(int(sizes[-1]))
        index = starts[:, None] + torch.minimum(places[None], sizes[:, None] - 1)
        valid = (places[None] < sizes[:, None]).flatten().nonzero().squeeze(1)
        batches.append(CausalBatch(index.to(device), valid.to(device)))
    return single, batches


def _tensor(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.long).to(device, non_blocking=True)
