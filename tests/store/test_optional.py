"""A store that a server can do without: locked, full or broken, scores are computed again, and it comes back."""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest

from gdr_plugin.api.errors import StoreError
from gdr_plugin.api.types import TokenSpan
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.store import optional
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.optional import OptionalStore
from gdr_plugin.store.store import LogprobStore

SPANS = [TokenSpan((1, 2, 3), tuple(range(4, 4 + length))) for length in range(1, 40)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OptionalStore:
    monkeypatch.setattr(optional, "WAIT_S", 0.01)
    return OptionalStore(tmp_path / "store.sqlite")


def scored(store: LogprobStore, spans: list[TokenSpan]) -> tuple[int, int]:
    """Hits and misses of one call, whose numbers are the model's."""
    model = FakeModel("strong")
    stored = StoredModel(model, store)
    for found, expected in zip(stored.score(spans), model.score(spans), strict=True):
        np.testing.assert_array_equal(found, expected)
    return stored.hits, stored.misses


def test_a_server_starts_while_another_process_keeps_the_file_closed(
    store: OptionalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert scored(store, SPANS) == (0, len(SPANS))
    store.close()
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")  # not even to be read meanwhile
    other.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.WARNING):
        again = OptionalStore(store.path)
    assert "database is locked" in caplog.messages[0]
    assert (again.failures, scored(again, SPANS)) == (1, (0, len(SPANS)))
    other.execute("ROLLBACK")
    other.close()
    later = time.monotonic() + optional.RETRY_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert scored(again, SPANS) == (len(SPANS), 0)


def test_while_another_process_writes_nothing_waits(
    store: OptionalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.WARNING):
        assert scored(store, SPANS) == (0, len(SPANS))
        assert scored(store, SPANS) == (0, len(SPANS))  # it is not tried again at once, and not warned of again
    (said,) = caplog.messages
    assert "database is locked" in said
    assert said.endswith("scores are computed without it, and it is tried again in 60 seconds")
    assert store.failures == 1
    with pytest.raises(StoreError, match="database is locked"):  # what every other use of a store says
        scored(LogprobStore(store.path, wait_s=0.01), SPANS)
    other.execute("ROLLBACK")
    other.close()
    later = time.monotonic() + optional.RETRY_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert [scored(store, SPANS) for _ in range(2)] == [(0, len(SPANS)), (len(SPANS), 0)]
    assert store.failures == 1


def test_a_full_disk_costs_the_cache_alone(store: OptionalStore) -> None:
    scored(store, SPANS[:3])
    with store._file.session() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's error is then that of a full disk
    many = [TokenSpan((1, 2, 3), (n, *range(100))) for n in range(200)]
    assert scored(store, many) == (0, 200)
    assert store.failures == 1


def test_a_damaged_file_costs_the_cache_alone(store: OptionalStore) -> None:
    scored(store, [TokenSpan((1, 2, 3), (n, *range(100))) for n in range(200)])
    store.close()
    data = bytearray(store.path.read_bytes())
    data[4096:] = bytes(byte ^ 0xFF for byte in data[4096:])
    store.path.write_bytes(data)
    assert scored(store, SPANS) == (0, len(SPANS))
    assert store.failures == 1


def test_an_entry_that_a_disk_changed_is_no_log_prob(store: OptionalStore, caplog: pytest.LogCaptureFixture) -> None:
    assert scored(store, SPANS) == (0, len(SPANS))
    assert scored(store, SPANS) == (len(SPANS), 0)
    store.close()
    connection = sqlite3.connect(store.path)
    ((key, value),) = connection.execute("SELECT key, value FROM logprobs LIMIT 1").fetchall()
    connection.execute("UPDATE logprobs SET value = ? WHERE key = ?", (bytes([value[0] ^ 1]) + value[1:], key))
    connection.commit()
    connection.close()
    assert scored(store, SPANS) == (0, len(SPANS))  # and `scored` compares the numbers
    assert store.failures == 1
    assert "an entry is not what was written" in caplog.text


def test_a_wrong_path_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_text("a diary, not a store" * 100)
    with pytest.raises(StoreError, match="not a readable log-prob store"):
        OptionalStore(tmp_path / "store.sqlite")
