"""Many requests, some at once: what runs first, what follows it, and what is kept when one fails.

Knows neither servers nor models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

__all__ = ["flow"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def _nothing(_: object) -> tuple[()]:
    return ()


def flow(
    work: Callable[[Item], Result],
    first: Iterable[Item],
    then: Callable[[Item], Sequence[Item]] = _nothing,
    *,
    at_once: int,
) -> tuple[dict[Item, Result], dict[Item, Exception]]:
    """Do work in threads, a few pieces at a time.

    After a failure nothing new is begun; what is under way ends, so that its results are kept.

    Args:
        work: Called with one item, in a thread of its own.
        first: The items to begin with, in their order; none may come twice.
        then: The items that may be begun once an item is done.
        at_once: How many are under way at most.

    Returns:
        The results by item, and the failures by item, which are none where all went well.
    """
    done: dict[Item, Result] = {}
    failed: dict[Item, Exception] = {}
    waiting = list(first)
    running: dict[Future[Result], Item] = {}
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="gdr-server")
    try:
        at = 0
        while running or (at < len(waiting) and not failed):
            while at < len(waiting) and len(running) < at_once and not failed:
                running[pool.submit(work, waiting[at])] = waiting[at]
                at += 1
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                error = future.exception()
                if error is None:
                    done[item] = future.result()
                    waiting += then(item)
                elif isinstance(error, Exception):
                    failed[item] = error
                else:
                    raise error
    finally:
        pool.shutdown(wait=not running, cancel_futures=True)
    return done, failed
