"""What tells two items or two data sets apart: digests of their texts. Knows items; nothing of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from gdr_plugin.api.types import Message
from gdr_plugin.data.item import Item

__all__ = ["fingerprint", "item_digest"]


def fingerprint(items: Iterable[Item]) -> str:
    """A digest of the items' texts, the same in whatever order and file format they come.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for row in sorted(map(_texts_of, items)):
        digest.update(row.encode() + b"\n")
    return digest.hexdigest()


def item_digest(item: Item) -> str:
    """A digest of one item's prompt and responses.

    Returns:
        16 hexadecimal digits.
    """
    return hashlib.blake2b(_texts_of(item).encode(), digest_size=8).hexdigest()


def _texts_of(item: Item) -> str:
    own = [[list(map(_turn, context)) for context in item.contexts]] if item.contexts else []
    return json.dumps([list(map(_turn, item.prompt)), *(_texts(side) for side in (item.chosen, item.rejected)), *own])


def _texts(side: tuple[Message, ...]) -> list[object]:
    return [_turn(turn) if turn.reasoning or turn.tool_calls else turn.content for turn in side]


def _turn(turn: Message) -> list[object]:
    """What counts of a turn, with what it holds besides its text where it does."""
    calls = [[call.name, call.arguments] for call in turn.tool_calls]
    return [turn.role, turn.content, *([turn.reasoning, calls] if turn.reasoning or calls else [])]
