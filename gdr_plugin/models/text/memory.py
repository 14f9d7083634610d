"""Texts whose ids are remembered, the latest used ones, up to a bound. Knows no tokenizer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

__all__ = ["IdMemory"]


class IdMemory:
    """Ids by text. Safe to use from several threads.

    Args:
        limit: Tokens that are kept, or so: short texts count for more than their tokens.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ids: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many texts are remembered."""
        return len(self._ids)

    def recall(self, texts: Iterable[str]) -> dict[str, tuple[int, ...] | None]:
        """Each text's ids, or None where they are not known; a text that comes twice once."""
        with self._lock:
            known = {text: self._ids.get(text) for text in texts}
            for text, ids in known.items():
                if ids is not None:
                    self._ids.move_to_end(text)
        return known

    def remember(self, found: Mapping[str, tuple[int, ...]]) -> None:
        """Keep texts; those that were not used for longest go."""
        with self._lock:
            for text, ids in found.items():
                if self._ids.setdefault(text, ids) is ids:
                    self._weight += _weight(text, ids)
            while self._weight > self._limit:
                self._weight -= _weight(*self._ids.popitem(last=False))


def _weight(text: str, ids: tuple[int, ...]) -> int:
    return 16 + len(ids) + len(text) // 16
