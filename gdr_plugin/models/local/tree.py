"""Lays out prompts and their responses as one packed row, and runs a transformer's body over it.

Knows token ids and the row's layout; `attention` computes attention, `head` the log-probs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gdr_plugin.models.local.row import Cross, LayerKV, RowLayout, Shape, WholeRow, attending, group, to_device


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


def lay_out(
    branches: Sequence[Branch], prefix: Sequence[LayerKV] | None, device: torch.device, ways: WholeRow | None = None
) -> PackedRow:
    """Lay out branches behind a shared prefix.

    A response's last token predicts nothing that is needed, so it is not in the row. Each prompt is followed by its
    responses; for `ways`, which take a whole row at once, all prompts stand first.

    Args:
        branches: Prompts with their responses.
        prefix: Keys and values, by layer, of the shared prefix; None: there is none.
        device: Where the tensors go.
        ways: How the device attends over a whole row; None: segment by segment.

    Returns:
        The packed row.
    """
    offset = prefix[0][0].shape[2] if prefix else 0
    places = _interleaved(branches) if ways is None else _prompts_first(branches)
    ids: list[int] = [0] * places.tokens
    positions: list[int] = [0] * places.tokens
    crosses: list[Cross] = []
    predictors: list[int] = []
    which: list[int] = []
    targets: list[int] = []
    for branch, (start, stop), answers in zip(branches, places.prompts, places.answers, strict=True):
        after = offset + len(branch.tail)
        ids[start:stop] = branch.tail
        positions[start:stop] = range(offset, after)
        shared = len(predictors)
        predictors.append(stop - 1)  # the prompt's last token predicts the first token of every response
        for response, (first, end) in zip(branch.responses, answers, strict=True):
            ids[first:end] = response[:-1]
            positions[first:end] = range(after, after + len(response) - 1)
            which += (shared, *range(len(predictors), len(predictors) + len(response) - 1))
            predictors += range(first, end)
            targets += response
        if answers and answers[-1][1] > answers[0][0]:
            longest = max(end - first for first, end in answers)
            crosses.append(Cross(answers[0][0], answers[-1][1], start, stop, len(branch.tail) + longest - 1))
    on_device = to_device(device, ids, positions, predictors, which, targets)
    row = RowLayout(on_device[1], max(positions), crosses=crosses, prefix=prefix)
    if ways is None:
        segments = places.prompts + [found for answers in places.answers for found in answers if found[1] > found[0]]
        row.causal, row.batches = group(segments, device)
    else:
        row.shape, row.ways = _shape(places), ways
    return PackedRow(on_device[0], row, *on_device[2:])


@dataclass(frozen=True)
class _Places:
    """Where the segments of branches stand in a row, each as its start and end."""

    tokens: int
    prompts: list[tuple[int, int]]
    answers: list[list[tuple[int, int]]]
    """Of each branch; those of responses of one token are empty."""


def _interleaved(branches: Sequence[Branch]) -> _Places:
    """Each prompt followed by its responses."""
    end = 0
    prompts: list[tuple[int, int]] = []
    answers: list[list[tuple[int, int]]] = []
    for branch in branches:
        prompts.append((end, end := end + len(branch.tail)))
        answers.append([(end, end := end + len(response) - 1) for response in branch.responses])
    return _Places(end, prompts, answers)


def _prompts_first(branches: Sequence[Branch]) -> _Places:
    """All prompts, those with responses of several tokens before the others, then the responses in the same order."""
    order = sorted(range(len(branches)), key=lambda i: all(len(response) == 1 for response in branches[i].responses))
    end = 0
    prompts: list[tuple[int, int]] = [(0, 0)] * len(branches)
    answers: list[list[tuple[int, int]]] = [[] for _ in branches]
    for i in order:
        prompts[i] = (end, end := end + len(branches[i].tail))
    for i in order:
        answers[i] = [(end, end := end + len(response) - 1) for response in branches[i].responses]
    return _Places(end, prompts, answers)


def _shape(places: _Places) -> Shape:
    """The shape of a row whose prompts stand first."""
    order = sorted(range(len(places.prompts)), key=lambda i: places.prompts[i])
    first = max(stop for _, stop in places.prompts)
    bounds, parents = [0], []
    for i in order:
        bounds.append(places.prompts[i][1])
        parents.append(-1)
    asked, answers = [0], [0]
    for rank, i in enumerate(order):
        ends = [stop for start, stop in places.answers[i] if stop > start]
        bounds += ends
        parents += [rank] * len(ends)
        if ends:
            asked.append(places.prompts[i][1])
            answers.append(ends[-1] - first)
    return Shape(tuple(bounds), tuple(parents), first, tuple(asked), tuple(answers))


def states(body: nn.Module, packed: PackedRow) -> Tensor:
    """Run a transformer's body over a packed row.

    Args:
        body: The transformer without its head; `gdr_tree` must be its attention implementation, see `attention.using`.
        packed: The row.

    Returns:
        Final hidden states of the row's predictors, `(predictors, hidden)`.
    """
    # Given a mask of this form, which the attention ignores, transformers does not look at the positions for one: on a
    # GPU the host would wait for them.
    mask = None if packed.row.ways is None else torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.ids.device)
    with attending(packed.row):
        out = body(
            input_ids=packed.ids[None],
            attention_mask=mask,
            position_ids=packed.row.positions[None],
            use_cache=False,
        )
    hidden: Tensor = out.last_hidden_state
    return hidden[0, packed.predictors.to(hidden.device)]
