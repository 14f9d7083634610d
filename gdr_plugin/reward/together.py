"""Two models at the same time, where both are computed on other machines. Knows nothing of what they are asked."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gdr_plugin.api.models import Elsewhere, LogprobModel

__all__ = ["at_once", "wait_elsewhere"]

Answer = TypeVar("Answer")


def wait_elsewhere(strong: LogprobModel, weak: LogprobModel) -> bool:
    """Whether these are two models that only wait for other machines, and may be asked at the same time."""
    return strong is not weak and all(isinstance(model, Elsewhere) and model.beside for model in (strong, weak))


def at_once(first: Callable[[], Answer], second: Callable[[], Answer]) -> tuple[Answer, Answer]:
    """What two calls return that run at the same time.

    Raises:
        Exception: What the first raised, else what the second raised, after both have ended: the same error each time.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="gdr-first")
    try:
        begun = pool.submit(first)
        try:
            later = second()
        except Exception:
            begun.result()  # its error goes first
            raise
        return begun.result(), later
    finally:
        pool.shutdown(wait=False)
