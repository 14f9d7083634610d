"""Whether what a server answered is one log-prob for each id that was asked, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gdr_plugin.api.errors import ModelError
from gdr_plugin.api.types import Logprobs

__all__ = ["ROUNDING", "Served", "as_list", "logprobs_of", "looked_up"]

ROUNDING: Final = 1e-3
"""By how much a log-prob may be above 0."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says of the model that it is asked for."""

    kind: str
    """The server's kind and version, for people."""
    name: str
    """What requests call the model."""
    longest: int | None
    """The most tokens of context and response together; None where the server does not say."""
    tokenizers: tuple[str, ...]
    """Folders and hub ids where its tokenizer may be, the likeliest first."""
    facts: tuple[tuple[str, str], ...] = ()
    """What the server tells of the weights (`root`, `weight version`, `dtype`), as part of the model's identity."""
    adapter: str | None = None
    """The LoRA adapter that the server puts on its base; None for none."""


def logprobs_of(values: Sequence[Any], count: int) -> Logprobs:
    """A server's numbers as log-probs.

    Args:
        values: What it answered for the response's ids, in order.
        count: How many ids were asked.

    Returns:
        float32, shape `(count,)`.

    Raises:
        ModelError: There are fewer or more, or one is missing, not finite or above 0.
    """
    if len(values) != count:
        raise ModelError(f"it answered {len(values)} log-probs for {count} tokens")
    for value in values:
        if value is None or isinstance(value, bool) or not isinstance(value, int | float | np.floating):
            raise ModelError("a log-prob is missing in its answer")
    found = np.asarray(values, dtype=np.float32).reshape(count)
    if not np.isfinite(found).all():
        raise ModelError("a log-prob in its answer is not a finite number")
    if count and float(found.max()) > ROUNDING:
        raise ModelError(f"it answered a log-prob of {float(found.max()):.3f}: a probability above 1")
    return found


def looked_up(answer: Any, *path: str | int) -> Any:
    """What stands in an answer behind some keys and places.

    Raises:
        ModelError: It is not there.
    """
    found = answer
    for step in path:
        try:
            found = found[step]
        except (KeyError, IndexError, TypeError):
            where = ".".join(map(str, path))
            raise ModelError(f"its answer has no {where}: it is a server of another kind or version") from None
    return found


def as_list(found: Any, what: str) -> list[Any]:
    """A list of an answer.

    Raises:
        ModelError: It is none.
    """
    if not isinstance(found, list):
        raise ModelError(f"its answer has no list of {what}")
    return found
