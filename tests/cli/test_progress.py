"""Progress where standard error is no terminal, and the switches for more and less of it."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gdr_plugin.cli.progress import Lines, progress_bars

Gdr = Callable[..., tuple[int, str, str]]


def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def test_a_line_says_stage_share_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = clock(monkeypatch)
    lines = Lines("rows")
    forward(65)
    assert lines.line() == "gdr: getting ready, 1:05 so far"
    lines.show("scoring", 0, 1200)
    assert lines.line() == "gdr: scoring: 0/1,200 rows (0%)"
    forward(10)
    lines.show("scoring", 20, 1200)
    assert lines.line() == "gdr: scoring: 20/1,200 rows (2%), 2.0 rows/s, 9:50 left"
    forward(90)
    lines.show("scoring", 50, 100_000)
    assert lines.line() == "gdr: scoring: 50/100,000 rows (0%), 0.5 rows/s, 55:31:40 left"
    lines.show("reading", 5, None)  # a stream; and what was there before a restart is no rate
    assert lines.line() == "gdr: reading: 5 rows"
    forward(2)
    lines.show("reading", 15, None)
    assert lines.line() == "gdr: reading: 15 rows, 5.0 rows/s"


def test_lines_come_while_the_job_is_silent_and_stop_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    with Lines("rows", every=0.01) as lines:
        lines.show("scoring", 3, 4)
        deadline, seen = time.monotonic() + 30, ""
        while seen.count("\n") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.005)
            seen += capfd.readouterr().err
    assert not lines._thread.is_alive()
    capfd.readouterr()
    assert re.fullmatch(r"gdr: (getting ready.*|scoring: 3/4 rows \(75%\).*)", seen.splitlines()[-1])
    assert capfd.readouterr().err == ""


def test_a_short_job_and_a_quiet_one_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bars("rows") as show:
        assert show is not None
        show("scoring", 1, 2)
    assert capfd.readouterr().err == ""
    with progress_bars("rows", quiet=True) as show:
        assert show is None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("gdr.yaml").write_text('strong: "fake:a"\nweak: "fake:b"\n')
    Path("in.jsonl").write_text(json.dumps({"prompt": "Hi", "response": "Yo"}) + "\n")
    return tmp_path


def test_switches_stand_anywhere(gdr: Gdr, folder: Path) -> None:
    usual = gdr("score", "in.jsonl")
    assert usual[2].startswith("gdr: 1 rows, 1 scored")
    for arguments in (("-q", "score", "in.jsonl"), ("score", "in.jsonl", "--quiet"), ("score", "-q", "in.jsonl")):
        assert gdr(*arguments) == (0, usual[1], "")
    assert gdr("score", "-q", "none.jsonl")[2].startswith("gdr: none.jsonl")  # errors stay
    assert gdr("score", "in.jsonl", "--", "-q")[0] == 2  # behind -- it is a file's name


def test_verbose_says_when_models_load(gdr: Gdr, folder: Path, tiny_model: Callable[..., Path]) -> None:
    Path("gdr.yaml").write_text(f"strong: {tiny_model()}\nweak: {tiny_model(seed=1)}\n")
    before = logging.getLogger("gdr_plugin").handlers, logging.getLogger("gdr_plugin").level
    assert "loading" not in gdr("score", "in.jsonl")[2]
    err = gdr("score", "in.jsonl", "-v")[2]
    assert err.count("loading the weights") == 2
    assert "tree" in err
    assert (logging.getLogger("gdr_plugin").handlers, logging.getLogger("gdr_plugin").level) == before
