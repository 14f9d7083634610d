"""Three parts of the labelled pairs that share no prompt: exemplars, search, held-out.

Knows prompts and a seed; nothing of models. The parts depend on the prompts' contents and the seed alone, not on the
rows' order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gdr_plugin.api.errors import DataError
from gdr_plugin.data.item import Item

Prompted: TypeAlias = "tuple[Item, ...]"
"""All pairs of one prompt, which stay together: they are not independent of each other."""

MINIMUM = 20
"""Prompts below which nothing can be shown: the held-out part would have fewer than eight."""
ADVISED = 50
"""Prompts below which only a large gain can be shown."""
_POOL_SHARE, _POOL_MOST = 0.1, 20


@dataclass(frozen=True, slots=True)
class Split:
    """The parts, each a sequence of prompts with their pairs, in a seeded order."""

    pool: tuple[Prompted, ...]
    """What exemplars are drawn from; never scored. Empty when none are drawn."""
    search: tuple[Prompted, ...]
    """What candidates are compared on."""
    held_out: tuple[Prompted, ...]
    """What the reported numbers come from; scored once, after the search."""


def split(items: Iterable[Item], *, seed: int = 0, exemplars: bool = True) -> Split:
    """Part the pairs by prompt: a tenth for exemplars (3 to 20 prompts), the rest halved for search and held-out.

    Prompts that differ only in white space or case count as one.

    Args:
        items: The labelled pairs.
        seed: Which prompts go where.
        exemplars: Whether a part is kept for exemplars.

    Returns:
        The parts.

    Raises:
        DataError: There are fewer than `MINIMUM` prompts.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(_key(item), []).append(item)
    if len(groups) < MINIMUM:
        raise DataError(
            f"{len(groups)} different prompts with pairs are too few to search and to test on: give {MINIMUM} at "
            f"least, better {ADVISED} to 500"
        )
    order = sorted(groups, key=lambda key: hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest())
    prompts = [tuple(groups[key]) for key in order]
    pool, search, _ = parts(len(prompts), exemplars=exemplars)
    return Split(tuple(prompts[:pool]), tuple(prompts[pool : pool + search]), tuple(prompts[pool + search :]))


def parts(prompts: int, *, exemplars: bool = True) -> tuple[int, int, int]:
    """How many prompts go to exemplars, search and held-out."""
    pool = min(max(3, round(_POOL_SHARE * prompts)), _POOL_MOST) if exemplars else 0
    search = (prompts - pool) // 2
    return pool, search, prompts - pool - search


def pairs(prompts: Sequence[Prompted]) -> list[Item]:
    """All pairs of some prompts."""
    return [item for prompt in prompts for item in prompt]


def _key(item: Item) -> str:
    return json.dumps([(turn.role, " ".join(turn.text.split()).casefold()) for turn in item.prompt])
