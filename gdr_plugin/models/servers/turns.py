"""Who may ask a vLLM server now: a base and its adapters take turns.

vLLM's CPU build dies when requests for both are under way at once (with its V1 runner even of two for the base, which
only `server.concurrency: 1` prevents). Knows addresses only.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

__all__ = ["adapters_at", "taking_turns", "with_adapters"]

_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
_adapted: set[str] = set()


def with_adapters(urls: Sequence[str]) -> None:
    """Note that an adapter is asked for at these servers, so that all who ask there take turns."""
    _adapted.update(urls)


def adapters_at(urls: Sequence[str]) -> bool:
    """Whether models at one of these servers take turns."""
    return not _adapted.isdisjoint(urls)


@contextmanager
def taking_turns(urls: Sequence[str]) -> Iterator[None]:
    """Wait until no other model asks these servers, where an adapter is asked for at one of them."""
    with ExitStack() as stack:
        if adapters_at(urls):
            for url in sorted(urls):  # in one order, so that no two wait for each other
                stack.enter_context(_locks[url])
        yield
