"""Which texts are asked first, so that a server's prefix cache has what the others begin with.

Of the texts that go to one server: one of each group that shares a beginning (a domain's guidance), then one of each
context, then all the others. Knows token ids; nothing of servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

import numpy as np

from gdr_plugin.api.types import TokenSpan

__all__ = ["Order", "home_of", "ordered"]

SHARED: Final = 64
"""Ids that two contexts must begin with alike, so that one of them waits for the other."""


@dataclass(slots=True)
class Order:
    """Spans by their places, in the order to be asked."""

    first: list[int] = field(default_factory=list)
    """Those that wait for nothing."""
    after: dict[int, list[int]] = field(default_factory=dict)
    """Those that wait for another one."""

    def then(self, place: int) -> list[int]:
        """What may be asked once a span is done."""
        return self.after.get(place, [])


def home_of(context: tuple[int, ...]) -> int:
    """A number that is the same for equal contexts, in every process: it says which server has it in its cache."""
    return crc32(np.asarray(context, dtype="<u4").tobytes())


def ordered(spans: Sequence[TokenSpan], places: Sequence[int], *, servers: int, reuses: bool) -> Order:
    """The order to ask spans in.

    Args:
        spans: All spans.
        places: Those of them that are asked.
        servers: How many servers share the work; a context always goes to the same one.
        reuses: Whether they keep what they have seen. Otherwise nothing waits.
    """
    if not reuses:
        return Order(first=list(places))
    by_context: dict[tuple[int, ...], list[int]] = {}
    for place in places:
        by_context.setdefault(spans[place].context, []).append(place)
    order = Order()
    guides: dict[tuple[int, tuple[int, ...]], int] = {}
    waiting: dict[int, list[int]] = {}
    for context, (leader, *_) in by_context.items():
        begins = home_of(context) % servers, context[:SHARED]
        guide = guides.setdefault(begins, leader) if len(context) > SHARED else leader
        if guide == leader:
            order.first.append(leader)
        else:
            waiting.setdefault(guide, []).append(leader)
    for leader, *siblings in by_context.values():
        order.after[leader] = waiting.get(leader, []) + siblings
    return order
