"""How often an input is read: once, in every mode of `gdr annotate` and `gdr score`; names are looked up once too."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.annotation import annotate as annotation
from gdr_plugin.annotation.annotate import annotate
from gdr_plugin.annotation.options import AnnotateOptions
from gdr_plugin.config.load import parse_config
from gdr_plugin.config.schema import Config
from gdr_plugin.data import read
from gdr_plugin.data.sources import Row, read_rows
from gdr_plugin.reward import reward
from gdr_plugin.reward.resolve import Resolved, resolve_names
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.sampling.sample import Sampling
from gdr_plugin.scoring import rows as scoring
from gdr_plugin.scoring.rows import score_rows

ROWS = 70
"""More than one window of either command."""


def config(**sections: Any) -> Config:
    models = {"strong": "fake:strong", "weak": "fake:weak"}
    return parse_config(
        {**models, "guidance": {"domains": {"chat": "none"}}, "routing": {"routers": ["field"]}, **sections}
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    row = {"prompt": "p", "response": "r", "responses": ["a", "another"]}
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({**row, "id": str(number)}) + "\n" for number in range(ROWS)))
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that each reading of an input gave."""
    counts: list[int] = []

    def counting(*arguments: Any, **options: Any) -> Iterator[Row]:
        counts.append(0)
        for row in read_rows(*arguments, **options):
            counts[-1] += 1
            yield row

    monkeypatch.setattr(read, "read_rows", counting)
    return counts


@pytest.mark.parametrize("load", ["together", "sequential"])
@pytest.mark.parametrize("drawn", [False, True], ids=["given", "drawn"])
def test_annotate_reads_once(
    tmp_path: Path, source: Path, reads: list[int], tiny_model: Callable[..., Path], load: str, drawn: bool
) -> None:
    options = AnnotateOptions()
    if drawn:
        options = AnnotateOptions(policy=str(tiny_model()), sampling=Sampling(samples=2, max_new_tokens=2))
    result = annotate(source, config(load=load), tmp_path / "out", options)
    assert result.summary["rows"] == ROWS
    assert reads == [ROWS]


@pytest.mark.parametrize("load", ["together", "sequential"])
@pytest.mark.parametrize("piped", [False, True], ids=["file", "standard input"])
def test_score_reads_once(
    source: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch, load: str, piped: bool
) -> None:
    if piped:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
    written: list[dict[str, Any]] = []
    summary = score_rows("-" if piped else source, config(load=load), written.extend)
    assert (summary.rows, summary.scored, len(written)) == (ROWS, ROWS, ROWS)
    assert reads == [ROWS]


def changed_by_the_first_score(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = GuidedDensityRatio.score

    def change(self: GuidedDensityRatio, *arguments: Any, **options: Any) -> Any:
        source.write_text('{"id": "0", "prompt": "other", "response": "x", "responses": ["x", "y"]}\n')
        return score(self, *arguments, **options)

    monkeypatch.setattr(GuidedDensityRatio, "score", change)


@pytest.mark.parametrize("load", ["together", "sequential"])
def test_an_input_that_changes_meanwhile_is_scored_as_it_was_checked(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, load: str
) -> None:
    before = source.read_text()
    whole: list[dict[str, Any]] = []
    score_rows(source, config(load=load), whole.extend)
    annotate(source, config(load=load), tmp_path / "whole")
    changed_by_the_first_score(source, monkeypatch)
    written: list[dict[str, Any]] = []
    score_rows(source, config(load=load), written.extend)
    assert written == whole
    source.write_text(before)
    annotate(source, config(load=load), tmp_path / "changed")
    assert source.read_text() != before
    names = ("candidates.jsonl", "preferences.jsonl", "rejects.jsonl")
    assert [(tmp_path / "changed" / name).read_text() for name in names] == [
        (tmp_path / "whole" / name).read_text() for name in names
    ]


@pytest.mark.parametrize("load", ["together", "sequential"])
def test_names_are_looked_up_once(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, load: str) -> None:
    calls: list[str] = []

    def counting(*arguments: Any, **options: Any) -> Resolved:
        calls.append(options.get("origin", ""))
        return resolve_names(*arguments, **options)

    for module in (annotation, reward, scoring):
        monkeypatch.setattr(module, "resolve_names", counting)
    annotate(source, config(load=load), tmp_path / "out")
    assert len(calls) == 1
    score_rows(source, config(load=load), lambda rows: None)
    assert len(calls) == 2
    GuidedDensityRatio.from_config(config())
    assert len(calls) == 3
