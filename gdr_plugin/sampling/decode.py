"""Drawing token ids from a causal model: exact, repeatable, several prompts at once.

Knows tensors and token ids; nothing of templates, texts or rewards. The loop is our own rather than `generate()`: a
model's generation defaults (repetition penalty, top-k, forced tokens) would change the distribution unasked, a prompt
would be computed anew for each of its samples, and the random numbers would be the global generator's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from gdr_plugin.api.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NUCLEUS = 256
"""Likeliest tokens that are looked at first for top-p; the whole vocabulary where these do not hold it."""


def uniforms(seed: int, row: str, sample: int, count: int) -> npt.NDArray[np.float64]:
    """The random numbers of one response: values in `[0, 1)`, shape `(count,)`.

    They come from the extendable hash SHAKE-256: the same on every machine and with every version, whatever ran before;
    a longer limit only adds to them.

    Args:
        seed: The run's seed.
        row: The row's id.
        sample: The number of the response among those to the row.
        count: How many; one a token.
    """
    key = f"gdr sample\0{seed}\0{sample}\0{row}".encode()
    raw = np.frombuffer(hashlib.shake_256(key).digest(4 * count), dtype="<u4")
    values: npt.NDArray[np.float64] = raw.astype(np.float64) / float(1 << 32)
    return values


def draw(logits: torch.Tensor, uniform: torch.Tensor, *, temperature: float, top_p: float) -> torch.Tensor:
    """Draw one token a row by inverting the cumulative distribution.

    Args:
        logits: Shape `(rows, vocabulary)`.
        uniform: One value of `uniforms` a row, float64, shape `(rows,)`.
        temperature: Above 0.
        top_p: Above 0, at most 1. Tokens exactly as likely as the least likely one kept are kept too.

    Returns:
        Token ids, shape `(rows,)`; never one of probability 0.

    Raises:
        ModelError: The logits are not finite.
    """
    probs = torch.softmax(logits.float() / temperature, dim=-1)
    if not bool(torch.isfinite(probs[:, 0]).all()):  # one NaN or infinity makes its whole row NaN
        raise ModelError("the policy's logits are not finite: try dtype float32 or bfloat16")
    if top_p < 1:
        probs = torch.where(probs >= _nucleus_bound(probs, top_p), probs, 0)
    cumulative = probs.double().cumsum(dim=-1)
    # A uniform is at most 1 - 2**-32: the product stays below the total, and the first entry above it has probability.
    target = uniform.unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def _nucleus_bound(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """The least probability in each row's nucleus, shape `(rows, 1)`."""
    size = probs.shape[-1]
    top = probs.topk(min(_NUCLEUS, size), dim=-1).values
    if bool((top.double().sum(dim=-1) < top_p).any()):
        top = probs.sort(dim=-1, descending=True).values
    before = top.double().cumsum(dim=-1) - top
    return torch.where(before < top_p, top, torch.inf).amin(dim=-1, keepdim=True)


@dataclass(slots=True)
class _OpenRows:
    """The responses that are still being drawn, one in each row of the batch."""

    index: torch.Tensor
    """Which response each row is, shape `(rows,)`."""
    mask: torch.Tensor
    """1 for real tokens, 0 for padding, shape `(rows, tokens so far)`."""
    cache: Any
    """The model's keys and values."""

    def keep(self, rows: torch.Tensor) -> None:
        """Drop the other rows."""
        self.index, self.mask = self.index[rows], self.mask[rows]
        self.cache.batch_select_indices(rows)


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    contexts: Sequence[Sequence[int]],
    uniform: npt.NDArray[np.float64],
    *,
    end_ids: Collection[int],
    temperature: float,
    top_p: float,
) -> list[list[int]]:
    """Draw responses to several contexts together; each context is computed once.

    Args:
        model: A causal model with a cache whose batch rows can be repeated and selected.
        contexts: Token ids that end with the generation prompt, each at least one.
        uniform: Random numbers, shape `(contexts * samples, limit)`: the samples of a context stand together.
        end_ids: Ids that end a response.
        temperature: See `draw`.
        top_p: See `draw`.

    Returns:
        For every row of `uniform` the drawn ids: the last one is an end id, or there are `limit` of them.

    Raises:
        ModelError: The logits are not finite.
    """
    device = next(model.get_input_embeddings().parameters()).device
    total, limit = uniform.shape
    repeats = total // len(contexts)
    numbers = torch.from_numpy(np.ascontiguousarray(uniform)).to(device)
    ends = torch.tensor(sorted(end_ids), device=device)
    drawn = torch.full((total, limit), -1, dtype=torch.long, device=device)

    logits, rows = _prefill(model, contexts, repeats, device)
    for step in range(limit):
        ids = draw(logits, numbers[rows.index, step], temperature=temperature, top_p=top_p)
        drawn[rows.index, step] = ids
        open_rows = (~torch.isin(ids, ends)).nonzero().squeeze(-1)
        if not len(open_rows) or step + 1 == limit:
            break
        if len(open_rows) < len(ids):
            rows.keep(open_rows)
            ids = ids[open_rows]
        logits = _step(model, ids, rows)
    return [[token for token in row if token >= 0] for row in drawn.tolist()]


def _prefill(
    model: PreTrainedModel, contexts: Sequence[Sequence[int]], repeats: int, device: torch.device
) -> tuple[torch.Tensor, _OpenRows]:
    """Run the contexts once, left-padded, and give every sample its copy of the keys and values."""
    width = max(map(len, contexts))
    ids = torch.tensor([[0] * (width - len(context)) + list(context) for context in contexts], device=device)
    mask = torch.tensor([[0] * (width - len(context)) + [1] * len(context) for context in contexts], device=device)
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=-1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = out.past_key_values
    if not hasattr(cache, "batch_repeat_interleave"):
        raise ModelError(f"{type(model).__name__} keeps no cache that samples can share: it cannot be a policy here")
    cache.batch_repeat_interleave(repeats)
    rows = _OpenRows(
        torch.arange(len(contexts) * repeats, device=device), mask.repeat_interleave(repeats, dim=0), cache
    )
    return out.logits[:, -1].repeat_interleave(repeats, dim=0), rows


def _step(model: PreTrainedModel, ids: torch.Tensor, rows: _OpenRows) -> torch.Tensor:
    """Feed one token a row and return the logits of the next, shape `(rows, vocabulary)`."""
    rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(ids), 1)], dim=-1)
    out = model(
        input_ids=ids.unsqueeze(-1),
        attention_mask=rows.mask,
        position_ids=rows.mask.sum(dim=-1, keepdim=True) - 1,
        past_key_values=rows.cache,
        use_cache=True,
    )
    logits: torch.Tensor = out.logits[:, -1]
    return logits
