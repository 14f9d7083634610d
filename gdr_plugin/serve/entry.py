"""A sample on its way to the models: its key, the requests that wait for it, and its outcome."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Final, TypeAlias

from gdr_plugin.api.errors import GDRError, ModelError
from gdr_plugin.api.types import Sample, Score

TOKEN_FIELDS: Final = (
    "strong_token_logprobs",
    "weak_token_logprobs",
    "token_ratios",
    "token_rewards",
    "strong_token_offsets",
    "weak_token_offsets",
    "reduction",
)
"""The fields of a score that are about tokens; they are set on request only."""

Outcome: TypeAlias = "Score | Exception"
"""The result of a sample. An exception is a value here: every waiting request raises it for itself."""


@dataclass(eq=False, slots=True)
class Entry:
    """A sample on its way to the models, shared by every request that asks for it."""

    sample: Sample
    tokens: bool
    key: bytes | None
    done: asyncio.Future[Outcome]
    arrived: float = field(default_factory=time.monotonic)
    waiters: int = 1


def content_key(sample: Sample) -> bytes | None:
    """A hash of everything that the sample's score depends on; None when its fields have no JSON form."""
    turns = [
        [turn.role, turn.content, turn.reasoning, list(map(astuple, turn.tool_calls)), turn.tool_call_id, turn.name]
        for turn in (*sample.prompt, sample.turn)
    ]
    try:
        text = json.dumps([turns, sample.finished, dict(sample.fields)], sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return None
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def characters(sample: Sample) -> int:
    """How long the texts of a sample are together, reasoning and tool calls included."""
    return sum(len(turn.text) for turn in (*sample.prompt, sample.turn))


def without_tokens(score: Score, entry: Entry) -> Score:
    """The score without token log-probs, unless the entry's request asked for them."""
    if entry.tokens or score.strong_token_logprobs is None:
        return score
    nothing: dict[str, Any] = dict.fromkeys(TOKEN_FIELDS)
    return replace(score, **nothing)


def unwrap(outcome: Outcome) -> Score:
    """The score.

    Raises:
        GDRError: What the sample failed with; any other exception as a ModelError.
    """
    if isinstance(outcome, Score):
        return outcome
    if isinstance(outcome, GDRError):
        raise outcome
    raise ModelError(f"the model failed on a sample: {type(outcome).__name__}: {outcome}") from outcome
