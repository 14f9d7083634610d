"""The folder of a run: one holder, one run, nothing half-written."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.errors import OutputError
from gdr_plugin.files import atomic
from gdr_plugin.scoring.run_folder import LOCK_FILE, RunFolder


def test_shards_come_back_as_they_were(tmp_path: Path) -> None:
    records = [{"text": "ü\u2028 \n x", "value": 0.1 + 0.2}, {"text": "", "value": None}]
    with RunFolder(tmp_path / "out") as folder:
        assert folder.claim({}, compare={"a": 1}) is None
        assert not folder.has("candidates", 3)
        folder.write("candidates", 3, {"seconds": 1.5}, records)
        assert folder.has("candidates", 3)
        with folder.reading("candidates", 3) as found:
            assert found == ({"seconds": 1.5, "records": 2}, records)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "out") as folder:
        folder.claim({}, compare={})
        folder.write("candidates", 0, {}, [{"a": 1}, {"a": 2}])
        shard = folder.work / "candidates-000000.jsonl"
        lines = shard.read_text().splitlines(keepends=True)
        shard.write_text("".join(lines[:-1]))
        message = r"candidates-000000\.jsonl.*its end is missing.*delete that file"
        with pytest.raises(OutputError, match=message), folder.reading("candidates", 0):
            pass


def test_another_run_is_refused_and_told_what_differs(tmp_path: Path) -> None:
    compare = {"options": {"seed": 0, "select": "max-min"}, "input": {"rows": 3}}
    with RunFolder(tmp_path / "out") as folder:
        folder.claim({}, compare=compare)
    with RunFolder(tmp_path / "out") as folder:
        assert folder.claim({}, compare=compare) == {"compare": compare}
        folder.write("candidates", 0, {}, [])
        changed = {**compare, "options": {"seed": 1, "select": "max-min"}}
        with pytest.raises(OutputError, match=r"another run.*options\.seed was 0, is 1.*choose another -o"):
            folder.claim({}, compare=changed)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path / "out"),
        pytest.raises(OutputError, match="another gdr is working"),
        RunFolder(tmp_path / "out"),
    ):
        pass
    with RunFolder(tmp_path / "out"):
        pass
    assert not list((tmp_path / "out").iterdir())


def test_a_lock_file_that_was_replaced_while_it_was_opened_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the lock file and locking it, its holder goes away with it, and another process comes."""
    root, opened, others = tmp_path / "out", os.open, ExitStack()

    def open_then_replace(path: str, *arguments: Any, **options: Any) -> int:
        handle = opened(path, *arguments, **options)
        if str(path).endswith(LOCK_FILE) and not replaced:
            replaced.append(handle)
            (root / LOCK_FILE).unlink()
            others.enter_context(RunFolder(root))
        return handle

    replaced: list[int] = []
    monkeypatch.setattr(os, "open", open_then_replace)
    with others, pytest.raises(OutputError, match="another gdr is working"), RunFolder(root):
        pass
    assert len(replaced) == 1
    with RunFolder(root):
        pass


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match=r"not empty \(thesis\.tex"):
        RunFolder.check_usable(tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        RunFolder.check_usable(tmp_path / "thesis.tex")
    RunFolder.check_usable(tmp_path / "new")


def test_a_folder_that_was_killed_in_its_first_instant_is_ours(tmp_path: Path) -> None:
    (tmp_path / "run.json.part").write_text('{"format"')
    with RunFolder(tmp_path) as folder:
        assert folder.claim({"format": 1}, compare={"seed": 0}) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "work"]


def test_nothing_appears_when_writing_fails(tmp_path: Path) -> None:
    (tmp_path / "card").write_text("old")
    with pytest.raises(UnicodeEncodeError), atomic(tmp_path / "card") as file:
        file.write("\ud800")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("card", "old")]


def test_a_run_that_stopped_before_its_first_window_may_be_replaced(tmp_path: Path) -> None:
    for seed in (0, 1):
        with RunFolder(tmp_path / "out") as folder:
            assert folder.claim({}, compare={"seed": seed}) is None
    with RunFolder(tmp_path / "out") as folder:
        assert folder.claim({}, compare={"seed": 1}) == {"compare": {"seed": 1}}
