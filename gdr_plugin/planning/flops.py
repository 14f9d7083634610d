"""Counts operations: of given token ids, and of so many prompts of such a length.

A multiplication and an addition are two operations. Element-wise operations, norms and softmax are left out.
Knows neither devices nor how anything is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gdr_plugin.api.types import TokenSpan

__all__ = ["Costs", "Flops", "expected_flops", "flops"]


@dataclass(frozen=True, slots=True)
class Flops:
    """The floating-point operations of some work on one model."""

    ideal: float
    """With every distinct prefix of every sequence once, and the head only where a response token is predicted."""
    naive: float
    """With every sequence by itself, and the head at every place."""

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.ideal + other.ideal, self.naive + other.naive)


@dataclass(frozen=True, slots=True)
class Costs:
    """What one model costs: operations for each token, each attended key and each predicted row."""

    token: float
    """The linear layers before the head, for one token."""
    pair: float
    """A query and a key in all layers: the score and the weighted value."""
    row: float
    """The head, for one state."""

    @classmethod
    def of(cls, config: Any, body: int) -> Costs:
        """The costs of a model.

        Args:
            config: The model's text configuration.
            body: How many weights of the linear layers before the head one token is multiplied with.
        """
        pair = 2.0 * config.num_attention_heads * sum(head_widths(config)) * attention_layers(config)
        return cls(2.0 * body, pair, 2.0 * config.hidden_size * config.vocab_size)


def head_widths(config: Any) -> tuple[int, int]:
    """The width of a head's keys and of its values, as they are multiplied."""
    if getattr(config, "kv_lora_rank", None) and getattr(config, "v_head_dim", None):  # latent attention, expanded
        return config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width, width


def attention_layers(config: Any) -> int:
    """How many layers attend to all earlier tokens or a window of them."""
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return int(config.num_hidden_layers)
    return sum("attention" in kind and "linear" not in kind for kind in kinds)


def flops(spans: Sequence[TokenSpan], config: Any, body: int) -> Flops:
    """Count the operations of given spans.

    Args:
        spans: The work.
        config: The model's text configuration.
        body: How many weights of the linear layers before the head one token is multiplied with.
    """
    costs = Costs.of(config, body)
    tokens = rows = 0
    keys = 0.0
    before: tuple[int, ...] = ()
    ordered = sorted((span.context + span.response[:-1], len(span.context)) for span in spans if span.response)
    naive = 0.0
    for ids, context in ordered:
        shared = next(
            (i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids))
        )
        tokens += len(ids) - shared
        keys += _triangle(len(ids)) - _triangle(shared)
        rows += len(ids) - max(shared, context - 1)
        before = ids
        # Read by itself, a sequence is run to its last token, which predicts nothing that is asked.
        whole = len(ids) + 1
        naive += whole * (costs.token + costs.row) + costs.pair * _triangle(whole)
    return Flops(costs.token * tokens + costs.pair * keys + costs.row * rows, naive)


def expected_flops(
    costs: Costs, *, guidance: float, prompt: float, response: float, prompts: float, samples: float
) -> Flops:
    """Count the operations of so many prompts behind one guidance, no two responses beginning alike.

    For tokens before the head that is `guidance + prompts * (prompt + samples * (response - 1))`.

    Args:
        costs: The model's.
        guidance: Tokens that all prompts begin with.
        prompt: Tokens of a prompt behind them, the template's included.
        response: Tokens of a response.
        prompts: How many.
        samples: Responses to each.
    """
    context, more = guidance + prompt, max(0.0, response - 1)
    tokens = guidance + prompts * (prompt + samples * more)
    branches = _triangle(context) - _triangle(guidance) + samples * (_triangle(context + more) - _triangle(context))
    keys = _triangle(guidance) + prompts * branches
    rows = prompts * (1 + samples * more)
    whole = context + response
    each = whole * (costs.token + costs.row) + costs.pair * _triangle(whole)
    return Flops(costs.token * tokens + costs.pair * keys + costs.row * rows, prompts * samples * each)


def _triangle(tokens: float) -> float:
    """Pairs of a query and a key at or before it."""
    return tokens * (tokens + 1) / 2
