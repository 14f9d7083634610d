"""Rows scored in stages: the file that `gdr score` writes in one process, and going on after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.errors import ConfigError, DataError, OutputError
from gdr_plugin.cluster.engine import InProcess, Stage
from gdr_plugin.config.load import parse_config
from gdr_plugin.scoring.apart import ScoreOptions, score_rows_apart, work_folder
from gdr_plugin.scoring.rows import FILE_WINDOW, score_rows

CONFIG = parse_config(
    {
        "strong": "fake:strong",
        "weak": "fake:weak",
        "guidance": {"domains": {"chat": "none", "safety": "safety"}},
        "routing": {"routers": ["field"]},
        "limits": {"max_length": 2500},
    }
)
ROWS = 2 * FILE_WINDOW + 88


class Stopping(InProcess):
    """Gives windows back from the last to the first, and stops after some."""

    def __init__(self, stop: int | None = None) -> None:
        self.asked: list[int] = []
        self._stop = stop

    def run(
        self, stages: Sequence[Stage], source: Callable[[int], Any], numbers: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        self.asked = list(numbers)
        for done, result in enumerate(super().run(stages, source, list(reversed(numbers)))):
            if done == self._stop:
                raise KeyboardInterrupt
            yield result


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            row: dict[str, Any] = {"prompt": f"Q {number // 2}", "response": f"One {number}.\nTwo é.", "note": number}
            if number % 3 == 0:
                row["domain"] = "safety"
            if number == 5:
                row["response"] = "long " * 600
            if number == 300:
                row["response"] = 7
            file.write(json.dumps(row) + "\n")
    return path


def here(source: Path, out: Path, **options: Any) -> str:
    with out.open("w", encoding="utf-8") as file:
        summary = score_rows(
            source, CONFIG, lambda rows: file.writelines(json.dumps(row) + "\n" for row in rows), **options
        )
    return str(summary).split(" tokens in ")[0]


@pytest.mark.parametrize("options", [{}, {"tokens": True, "keep": True}, {"steps": "line"}])
def test_the_file_is_that_of_one_process(tmp_path: Path, source: Path, options: dict[str, Any]) -> None:
    told = ScoreOptions({}, skip_bad=True, **options)
    summary = score_rows_apart(source, CONFIG, tmp_path / "there.jsonl", told, engine=Stopping())
    assert str(summary).split(" tokens in ")[0] == here(source, tmp_path / "here.jsonl", skip_bad=True, **options)
    assert (summary.rows, summary.scored, summary.reasons["bad row"]) == (ROWS, ROWS - 2, 1)
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.jsonl", "rows.jsonl", "there.jsonl"]


def test_a_killed_run_goes_on_and_only_with_what_it_was(tmp_path: Path, source: Path) -> None:
    out, told = tmp_path / "out.jsonl", ScoreOptions({}, skip_bad=True)
    with pytest.raises(KeyboardInterrupt):
        score_rows_apart(source, CONFIG, out, told, engine=Stopping(stop=1))
    assert not out.exists()
    with pytest.raises(OutputError, match=r"options.tokens was false, is true"):
        score_rows_apart(source, CONFIG, out, ScoreOptions({}, tokens=True, skip_bad=True), engine=Stopping())
    again = Stopping()
    score_rows_apart(source, CONFIG, out, told, engine=again)
    assert again.asked == [0, 1]
    here(source, tmp_path / "here.jsonl", skip_bad=True)
    assert out.read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert not work_folder(out).exists()


def test_errors_are_those_of_one_process(tmp_path: Path, source: Path) -> None:
    with pytest.raises(DataError, match="--skip-bad writes bad rows"):
        score_rows_apart(source, CONFIG, tmp_path / "out.jsonl", ScoreOptions({}), engine=InProcess())
    told = ScoreOptions({}, skip_bad=True, strict=True)
    with pytest.raises(DataError, match=r"rows.jsonl line 6: not scored"):
        score_rows_apart(source, CONFIG, tmp_path / "out.jsonl", told, engine=InProcess())
    with pytest.raises(ConfigError, match="cannot share standard input"):
        score_rows_apart("-", CONFIG, tmp_path / "out.jsonl", ScoreOptions({}), engine=InProcess())
