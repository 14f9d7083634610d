from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdr_plugin.api.errors import StoreError
from gdr_plugin.api.models import LogprobModel
from gdr_plugin.api.types import Logprobs, Message, Sample, TokenSpan
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import RouterChain
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.repair import repair
from gdr_plugin.store.store import LogprobStore, span_keys


def spans(count: int, *, length: int = 5, context: int = 7) -> list[TokenSpan]:
    return [TokenSpan((context, n // 4), tuple(range(n, n + length))) for n in range(count)]


def look_up(store: LogprobStore, identity: str, spans: Sequence[TokenSpan]) -> list[Logprobs | None]:
    return store.read(span_keys(identity, spans))


def keep(
    store: LogprobStore, identity: str, name: str, spans: Sequence[TokenSpan], logprobs: Sequence[Logprobs]
) -> int:
    return store.write(identity, name, span_keys(identity, spans), logprobs)


@pytest.fixture
def store(tmp_path: Path) -> LogprobStore:
    return LogprobStore(tmp_path / "made" / "on" / "the" / "way" / "store.sqlite")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the store believes it is; change the only entry to travel."""
    now = [20_000 * 86_400.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def test_what_is_put_is_what_is_got(store: LogprobStore) -> None:
    model = FakeModel("a")
    some = [*spans(1200), TokenSpan((1,), ()), TokenSpan((1,), (2**31,))]
    scored = model.score(some)
    assert look_up(store, model.identity, some) == [None] * len(some)
    assert keep(store, model.identity, model.name, some, scored) == len(some)
    for again in (store, LogprobStore(store.path), pickle.loads(pickle.dumps(store))):
        got = look_up(again, model.identity, some[::-1])[::-1]
        for values, other in zip(got, scored, strict=True):
            assert values is not None
            assert values.dtype == np.float32
            assert values.flags.writeable
            np.testing.assert_array_equal(values, other)


def test_another_identity_context_or_response_misses(store: LogprobStore) -> None:
    span = TokenSpan((1, 2), (3, 4))
    keep(store, "a", "a", [span], [np.zeros(2, np.float32)])
    assert look_up(store, "b", [span]) == [None]
    others = [
        TokenSpan((1, 2, 3), (4,)),
        TokenSpan((1,), (2, 3, 4)),
        TokenSpan((1, 2), (3,)),
        TokenSpan((2, 1), (3, 4)),
    ]
    assert look_up(store, "a", others) == [None] * 4
    assert look_up(store, "a", [TokenSpan((1, 2), (3, 4), dropped=9)])[0] is not None


def test_results_that_are_not_finite_are_not_kept(store: LogprobStore) -> None:
    three = spans(3, length=1)
    values = [np.array([value], np.float32) for value in (np.nan, -np.inf, -1.0)]
    assert keep(store, "a", "a", three, values) == 1
    assert [values is None for values in look_up(store, "a", three)] == [True, True, False]
    assert keep(store, "a", "a", three[:1], values[:1]) == 0


ids = st.lists(st.integers(0, 300), max_size=6).map(tuple)
questions = st.tuples(st.text(max_size=4), ids, ids)


@given(st.lists(questions, min_size=1, max_size=20, unique=True))
def test_different_questions_have_different_keys(asked: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> None:
    keys = [span_keys(identity, [TokenSpan(context, response)])[0] for identity, context, response in asked]
    assert len(set(keys)) == len(asked)
    assert {len(key) for key in keys} == {16}


@given(st.lists(st.tuples(ids, ids), max_size=20))
def test_keys_do_not_depend_on_their_neighbours(asked: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    many = [TokenSpan(context, response) for context, response in asked]
    assert span_keys("a", many) == [span_keys("a", [span])[0] for span in many]


class TestStoredModel:
    def test_only_misses_reach_the_model_and_duplicates_do_once(self, store: LogprobStore) -> None:
        plain, inner = FakeModel("a"), FakeModel("a")
        model = StoredModel(inner, store, window=8)
        assert isinstance(model, LogprobModel)
        assert (model.name, model.identity, model.chat) == (inner.name, inner.identity, inner.chat)
        asked = [*spans(20), *spans(10), *spans(3)]
        expected = plain.score(asked)
        for values, other in zip(model.score(asked), expected, strict=True):
            np.testing.assert_array_equal(values, other)
        assert (inner.scored_spans, inner.calls) == (20, 3)
        assert (model.hits, model.misses) == (13, 20)
        for values, other in zip(model.score([*spans(25)]), plain.score(spans(25)), strict=True):
            np.testing.assert_array_equal(values, other)
        assert (inner.scored_spans, model.hits, model.misses) == (25, 33, 25)
        assert model.score([]) == []
        assert "33 hits" in model.describe()["store"]
        model.unload()

    def test_another_name_of_the_model_misses(self, store: LogprobStore) -> None:
        StoredModel(FakeModel("a"), store).score(spans(5))
        other = FakeModel("b")
        StoredModel(other, store).score(spans(5))
        assert other.scored_spans == 5

    def test_a_model_that_is_both_sides_is_asked_once(self, store: LogprobStore) -> None:
        inner = FakeModel("a")
        models = [StoredModel(inner, store), StoredModel(inner, store)]
        for strong, other in (models, models[:1] * 2):
            ratio = GuidedDensityRatio(strong, other, domains={"all": None}, chain=RouterChain([], "all"))
            prompt = (Message("user", f"Question {strong is other}?"),)
            scores = ratio.score([Sample(prompt, f"answer {number}") for number in range(20)])
            assert [score.reward for score in scores] == [0.0] * 20
        assert inner.scored_spans == 40
        assert sum(model.misses for model in models) == sum(model.hits for model in models) == 40

    def test_what_was_scored_before_a_failure_is_kept(self, store: LogprobStore) -> None:
        class Failing(FakeModel):
            def score(self, asked: object) -> list[Logprobs]:
                if self.calls == 2:
                    raise RuntimeError("the machine went away")
                return super().score(asked)  # type: ignore[arg-type]

        with pytest.raises(RuntimeError, match="went away"):
            StoredModel(Failing("a"), store, window=10).score(spans(100))
        model = FakeModel("a")
        StoredModel(model, store).score(spans(100))
        assert model.scored_spans == 80

    def test_a_result_that_overflowed_is_handed_on_but_not_kept(self, store: LogprobStore) -> None:
        class Overflowing(FakeModel):
            def score(self, asked: object) -> list[Logprobs]:
                return [np.full(5, np.nan, np.float32) for _ in super().score(asked)]  # type: ignore[arg-type]

        inner = Overflowing("a")
        model = StoredModel(inner, store)
        for _ in range(2):
            assert all(np.isnan(values).all() for values in model.score(spans(3)))
        assert inner.scored_spans == 6


class TestUpkeep:
    def fill(self, store: LogprobStore, clock: list[float]) -> None:
        """Three days of 400 rows each: a, b, then a again."""
        for day, name in enumerate("aba"):
            model = FakeModel(name)
            some = spans(400, length=50, context=day)
            clock[0] = (20_000 + day) * 86_400
            keep(store, model.identity, model.name, some, model.score(some))

    def test_info(self, store: LogprobStore, clock: list[float]) -> None:
        assert store.info() == []
        self.fill(store, clock)
        a, b = store.info()
        assert (a.name, a.identity, a.rows, a.tokens) == ("fake:a", FakeModel("a").identity, 800, 40_000)
        assert (b.rows, b.tokens) == (400, 20_000)
        day = datetime.date(2024, 10, 4)
        assert (a.first_used, a.last_used) == (day, day + datetime.timedelta(2))
        assert b.first_used == b.last_used == day + datetime.timedelta(1)
        store.close()
        assert a.bytes + b.bytes == pytest.approx(store.path.stat().st_size, rel=0.01)

    def test_prune_by_age_and_model(self, store: LogprobStore, clock: list[float]) -> None:
        self.fill(store, clock)
        assert store.prune(older_than_days=2) == (0, 0)
        rows, size = store.prune(older_than_days=1, dry_run=True)
        assert rows == 400
        assert sum(usage.rows for usage in store.info()) == 1200
        store.close()
        before = store.path.stat().st_size
        assert store.prune(older_than_days=1) == (rows, size)
        store.close()
        assert store.path.stat().st_size == pytest.approx(before - size, rel=0.05)
        assert store.prune(older_than_days=0, model="fake:a") == (0, 0)
        assert store.prune(model="fake:b")[0] == 400
        assert [usage.name for usage in store.info()] == ["fake:a"]
        with pytest.raises(StoreError, match="unknown model 'fake:b': known are fake:a"):
            store.prune(model="fake:b")

    def test_prune_to_a_size_takes_the_longest_unused(self, store: LogprobStore, clock: list[float]) -> None:
        self.fill(store, clock)
        model = FakeModel("a")
        used_again = look_up(store, model.identity, spans(100, length=50, context=0))
        assert all(values is not None for values in used_again)
        store.close()
        limit = store.path.stat().st_size // 2
        rows, _ = store.prune(max_bytes=limit)
        store.close()
        assert 0.85 * limit < store.path.stat().st_size <= limit
        assert rows == pytest.approx(600, rel=0.1)
        kept = [values is not None for values in look_up(store, model.identity, spans(400, length=50, context=0))]
        assert kept == [True] * 100 + [False] * 300
        assert store.prune(max_bytes=10**12) == (0, 0)
        b = sum(usage.rows for usage in store.info() if usage.name == "fake:b")
        assert store.prune(max_bytes=0, model="fake:b")[0] == b
        assert store.prune(max_bytes=0)[0] == 1200 - rows - b

    def test_reading_writes_at_most_once_a_day(self, store: LogprobStore, clock: list[float]) -> None:
        self.fill(store, clock)
        clock[0] += 86_400
        model, some = FakeModel("b"), spans(400, length=50, context=1)
        watcher = sqlite3.connect(store.path)
        versions = []
        for _ in range(3):
            look_up(store, model.identity, some)
            versions.append(watcher.execute("PRAGMA data_version").fetchone()[0])
        watcher.close()
        assert versions[0] == versions[1] == versions[2]
        assert max(usage.last_used for usage in store.info() if usage.name == "fake:b") == datetime.date(2024, 10, 7)

    def test_reading_does_not_wait_for_a_writer(self, store: LogprobStore, clock: list[float]) -> None:
        self.fill(store, clock)
        clock[0] += 86_400
        writer = sqlite3.connect(store.path, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        assert look_up(store, FakeModel("b").identity, spans(4, length=50, context=1))[0] is not None
        writer.execute("ROLLBACK")
        writer.close()


class TestUnusableFiles:
    def test_not_sqlite(self, tmp_path: Path) -> None:
        path = tmp_path / "store.sqlite"
        path.write_text("log-probs\n" * 1000)
        with pytest.raises(StoreError, match=r"store\.sqlite is not a readable log-prob store"):
            LogprobStore(path)
        assert path.read_text() == "log-probs\n" * 1000

    def test_another_programs_database(self, tmp_path: Path) -> None:
        path = tmp_path / "store.sqlite"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
        connection.close()
        with pytest.raises(StoreError, match="another program's"):
            LogprobStore(path)

    def test_another_version(self, store: LogprobStore) -> None:
        store.close()
        connection = sqlite3.connect(store.path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
        with pytest.raises(StoreError, match="version 99, this release reads version 2: delete it"):
            LogprobStore(store.path)

    def test_damaged(self, store: LogprobStore) -> None:
        keep(store, "a", "a", spans(2000), FakeModel("a").score(spans(2000)))
        store.close()
        size = store.path.stat().st_size
        with store.path.open("r+b") as file:
            file.seek(8192)
            file.write(os.urandom(size - 8192))
        with pytest.raises(StoreError, match=r"is damaged .*`gdr store repair .*` keeps what is whole, or delete it"):
            look_up(LogprobStore(store.path), "a", spans(2000))
        done = repair(store.path)  # nothing but the heads of the tables is left
        assert (done.kept, done.dropped, done.unreadable) == (0, 0, True)
        assert LogprobStore(store.path).info() == []

    def test_repair_keeps_models_and_days(self, store: LogprobStore, clock: list[float]) -> None:
        model, some = FakeModel("a"), spans(1200)
        keep(store, model.identity, "one", some, model.score(some))
        clock[0] += 86_400 * 40
        other = FakeModel("b")
        keep(store, other.identity, "two", some[:5], other.score(some[:5]))
        before = store.info()
        store.close()
        done = repair(store.path)
        assert (done.kept, done.dropped, done.unreadable) == (1205, 0, False)
        assert sorted(path.name for path in store.path.parent.iterdir()) == [store.path.name]
        after = LogprobStore(store.path).info()
        assert [replace(usage, bytes=0) for usage in after] == [replace(usage, bytes=0) for usage in before]
        np.testing.assert_array_equal(
            look_up(LogprobStore(store.path), model.identity, some)[7], model.score(some[7:8])[0]
        )

    def test_repair_that_finds_no_room_keeps_the_store(self, disk: Any) -> None:
        store = LogprobStore(disk.path / "store.sqlite")
        keep(store, "a", "a", spans(3000), FakeModel("a").score(spans(3000)))
        store.close()
        before = store.path.read_bytes()
        disk.fill(leave=len(before) * 3 // 2 // 4096 * 4096)  # a copy fits, but not its log beside it
        with pytest.raises(StoreError, match=r"cannot be written .*: free space, and go on"):
            repair(store.path)
        assert store.path.read_bytes() == before
        assert sorted(path.name for path in disk.path.iterdir()) == ["ballast", "store.sqlite"]
        disk.make_room()
        assert repair(store.path).kept == 3000

    def test_a_folder_or_below_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="cannot be written"):
            LogprobStore(tmp_path)
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match="cannot be written"):
            LogprobStore(tmp_path / "file" / "store.sqlite")

    @pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
    def test_read_only_folder(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(StoreError, match="cannot be written"):
            LogprobStore(tmp_path / "store.sqlite")


def write_many(path: Path, first: int, count: int) -> None:
    """What each process of the tests below runs: one transaction for every ten rows."""
    store, model = LogprobStore(path), FakeModel("a")
    for start in range(first, first + count, 10):
        some = spans(start + 10)[start:]
        keep(store, model.identity, model.name, some, model.score(some))
    store.close()


def check_all(path: Path, count: int) -> None:
    model, some = FakeModel("a"), spans(count)
    for values, other in zip(look_up(LogprobStore(path), model.identity, some), model.score(some), strict=True):
        assert values is not None
        np.testing.assert_array_equal(values, other)


def test_processes_write_one_new_file_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "store.sqlite"
    processes = [context.Process(target=write_many, args=(path, first, 600)) for first in (0, 400)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    check_all(path, 1000)
    assert [usage.rows for usage in LogprobStore(path).info()] == [1000]


def test_threads_share_a_store(store: LogprobStore) -> None:
    model = StoredModel(FakeModel("a"), store, window=16)
    failures: list[Exception] = []

    def work(first: int) -> None:
        try:
            for start in range(first, first + 400, 40):
                some = spans(start + 40)[start:]
                for values, other in zip(model.score(some), FakeModel("a").score(some), strict=True):
                    np.testing.assert_array_equal(values, other)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    check_all(store.path, 700)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_its_own_connection(store: LogprobStore) -> None:
    write_many(store.path, 0, 100)
    look_up(store, "a", spans(1))
    child = os.fork()
    if child == 0:
        try:
            check_all(store.path, 100)
            some, model = spans(200)[100:], FakeModel("a")
            keep(store, model.identity, model.name, some, model.score(some))
            store.close()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    check_all(store.path, 200)
    keep(store, "a", "a", spans(1), [np.zeros(5, np.float32)])


KILLED = """
import sys
from pathlib import Path
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.api.types import TokenSpan
from gdr_plugin.store.store import LogprobStore, span_keys

store, model = LogprobStore(Path(sys.argv[1])), FakeModel("a")
n = 0
while True:
    some = [TokenSpan((7, m // 4), tuple(range(m, m + 5))) for m in range(n, n + 10)]
    store.write(model.identity, model.name, span_keys(model.identity, some), model.score(some))
    n += 10
    print(n, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_kill_in_the_middle_of_writing_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    for wanted in (50, 470, 1010):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            done = next(n for n in map(int, process.stdout) if n >= wanted)
            process.send_signal(signal.SIGKILL)
        check_all(path, done)
        store = LogprobStore(path)
        assert sum(usage.rows for usage in store.info()) % 10 == 0  # whole transactions only
        keep(store, "b", "b", spans(10), FakeModel("b").score(spans(10)))  # and it can still be written
        store.prune(model="b")
        store.close()
