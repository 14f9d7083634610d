"""The log-prob store: caches log-probs across this, later and concurrent runs.

Knows the key of a result (model identity, context ids, response ids) and how it is kept. It knows nothing of prompts,
guidance or rewards: guidance is part of the context ids, so that other guidance misses by itself, and so does another
model. Several processes and threads may use one file, and a process that is killed leaves a readable one.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from gdr_plugin.api.errors import StoreError
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.store.file import StoreFile, checksum, damaged, is_whole
from gdr_plugin.store.usage import ModelUsage, prune, today, usage

__all__ = ["DEFAULT_STORE", "LogprobStore", "ModelUsage", "span_keys"]

DEFAULT_STORE = Path(".gdr", "store.sqlite")
"""Where the commands that measure a reward keep log-probs when gdr.yaml names no store."""
_KEYS_A_QUERY = 500  # SQLite before 3.32 takes at most 999 parameters


def span_keys(identity: str, spans: Sequence[TokenSpan]) -> list[bytes]:
    """The store's key of each span: a 16-byte hash of identity, context ids and response ids.

    Lengths are hashed before contents, so no two different (identity, context, response) hash the same bytes.

    Args:
        identity: The model's identity.
        spans: What is looked up; faster when spans of one context follow each other.
    """
    name = identity.encode()
    head = hashlib.blake2b(struct.pack("<Q", len(name)) + name, digest_size=16)
    keys = []
    context: tuple[int, ...] | None = None
    with_context = head
    for span in spans:
        if span.context != context:
            context = span.context
            with_context = head.copy()
            with_context.update(struct.pack("<Q", len(context)) + _packed(context))
        whole = with_context.copy()
        whole.update(_packed(span.response))
        keys.append(whole.digest())
    return keys


def _packed(ids: tuple[int, ...]) -> bytes:
    """Ids as little-endian 32-bit numbers."""
    packed = array("I", ids)  # an array knows one format; `struct` would read one anew for every length
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


class LogprobStore:
    """Log-probs on disk, in one SQLite file.

    Args:
        path: The file; made, with its folder, when missing.
        wait_s: Seconds to wait for other processes that hold it.
        now: Whether it is opened at once, not at its first use.

    Raises:
        StoreError: The file cannot be made or opened, or is not a store of this version.
    """

    def __init__(self, path: str | Path, *, wait_s: float = 60.0, now: bool = True) -> None:
        self.path = Path(path)
        self._file = StoreFile(self.path, wait_s, now=now)

    def __reduce__(self) -> tuple[type[LogprobStore], tuple[Path]]:
        return LogprobStore, (self.path,)

    def read(self, keys: Sequence[bytes]) -> list[Logprobs | None]:
        """Look results up.

        Args:
            keys: From `span_keys`.

        Returns:
            Each span's log-probs, shape `(len(span.response),)`, or None where they are not known.

        Raises:
            StoreError: The file cannot be read, or an entry is not what was written.
        """
        found: dict[bytes, bytes] = {}
        stale: list[bytes] = []
        now = today()
        with self._file.session() as connection:
            for chunk in windows(keys, _KEYS_A_QUERY):
                query = f"SELECT key, used, value, crc FROM logprobs WHERE key IN ({_marks(chunk)})"
                for key, used, value, crc in connection.execute(query, chunk):
                    if not is_whole(key, value, crc):
                        raise StoreError(damaged(self.path, "an entry is not what was written"))
                    found[key] = value
                    if not isinstance(used, int) or used < now:
                        stale.append(key)
        if stale:
            self._touch(stale, now)
        return [np.frombuffer(found[key], dtype="<f4").astype(np.float32) if key in found else None for key in keys]

    def write(self, identity: str, name: str, keys: Sequence[bytes], logprobs: Sequence[Logprobs]) -> int:
        """Keep results, in one transaction; NaN and infinite ones are left out, known ones stay as they are.

        Args:
            identity: The model's identity.
            name: How people refer to the model.
            keys: From `span_keys`.
            logprobs: The results, in the order of the keys.

        Returns:
            How many results were fit to keep.

        Raises:
            StoreError: The file cannot be written.
        """
        now = today()
        fit = [
            (key, np.ascontiguousarray(values, dtype="<f4").tobytes())
            for key, values in zip(keys, logprobs, strict=True)
            if np.isfinite(values).all()
        ]
        rows = [(key, now, value, checksum(key, value)) for key, value in fit]
        if not rows:
            return 0
        with self._file.transaction() as connection:
            model = _model_id(connection, identity, name, now)
            connection.executemany(f"INSERT OR IGNORE INTO logprobs VALUES (?, {model}, ?, ?, ?)", rows)
        return len(rows)

    def info(self) -> list[ModelUsage]:
        """What the store holds, by model, the last used first. Reads the whole file.

        Raises:
            StoreError: The file cannot be read.
        """
        return usage(self._file)

    def prune(
        self,
        *,
        older_than_days: int | None = None,
        model: str | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> tuple[int, int]:
        """Delete the rows that fit every condition given, and give their space back to the file system.

        Args:
            older_than_days: Only rows not used for more than this many days; None: any age.
            model: Only rows of the model with this name or identity; None: every model.
            max_bytes: Only as many rows, the longest unused first, as it takes to shrink the file to this size.
            dry_run: Whether to count only.

        Returns:
            How many rows go, and about how many bytes of the file.

        Raises:
            StoreError: The model is not in the store, or the file cannot be written.
        """
        return prune(self._file, older_than_days, model, max_bytes, dry_run)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._file.close()

    def _touch(self, keys: Sequence[bytes], now: int) -> None:
        """Note that rows were used today: one write a row and day at most, and none while another process writes."""
        with suppress(StoreError), self._file.transaction(wait=False) as connection:
            for chunk in windows(keys, _KEYS_A_QUERY):
                connection.execute(f"UPDATE logprobs SET used = {now} WHERE key IN ({_marks(chunk)})", chunk)


def _model_id(connection: sqlite3.Connection, identity: str, name: str, now: int) -> int:
    upsert = "ON CONFLICT (identity) DO UPDATE SET name = excluded.name"
    connection.execute(f"INSERT INTO models (identity, name, created) VALUES (?, ?, ?) {upsert}", (identity, name, now))
    number: int = connection.execute("SELECT id FROM models WHERE identity = ?", (identity,)).fetchone()[0]
    return number


def windows(keys: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    """The keys in their order, `size` at a time."""
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _marks(keys: Sequence[bytes]) -> str:
    return ",".join("?" * len(keys))
