"""A store that is done without while it cannot be used: scores are computed again rather than refused."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from gdr_plugin.api.errors import StoreError
from gdr_plugin.api.types import Logprobs
from gdr_plugin.logs import logger
from gdr_plugin.store.store import LogprobStore

__all__ = ["OptionalStore"]

log = logger("gdr_plugin.store")
T = TypeVar("T")

WAIT_S: Final = 2.0
"""Seconds that another process may hold the file before it is done without."""
RETRY_S: Final = 60.0
"""Seconds until a store that failed is tried again."""


class OptionalStore(LogprobStore):
    """Log-probs on disk, for a server whose clients wait: a file that is locked, full or broken is a cache less.

    Args:
        path: The file; made, with its folder, when missing.

    Raises:
        StoreError: The file cannot be made, or is no store: a wrong path is said at the start. One that is there, and
            that another process or a full disk keeps closed, is not waited for: a server that was killed comes back.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, wait_s=WAIT_S, now=False)
        self.failures = 0
        """How often it was found unusable."""
        self._again = 0.0
        was_there = self.path.is_file()
        try:
            self._file.open()
        except StoreError as error:
            if not (was_there and isinstance(error.__cause__, sqlite3.OperationalError)):
                raise
            self._do_without(error)

    def __reduce__(self) -> tuple[type[LogprobStore], tuple[Path]]:
        return OptionalStore, (self.path,)

    def read(self, keys: Sequence[bytes]) -> list[Logprobs | None]:
        """See `LogprobStore.read`; nothing is known while the file cannot be used."""
        return self._unless_down(lambda: super(OptionalStore, self).read(keys), [None] * len(keys))

    def write(self, identity: str, name: str, keys: Sequence[bytes], logprobs: Sequence[Logprobs]) -> int:
        """See `LogprobStore.write`; nothing is kept while the file cannot be used."""
        return self._unless_down(lambda: super(OptionalStore, self).write(identity, name, keys, logprobs), 0)

    def _unless_down(self, use: Callable[[], T], otherwise: T) -> T:
        if time.monotonic() < self._again:
            return otherwise
        try:
            result = use()
        except StoreError as error:
            self._do_without(error)
            return otherwise
        return result

    def _do_without(self, error: StoreError) -> None:
        self._again = time.monotonic() + RETRY_S
        self.failures += 1
        log.warning("%s; scores are computed without it, and it is tried again in %g seconds", error, RETRY_S)
