"""A run that is killed with SIGKILL goes on where it was: nothing lost, nothing repeated, the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gdr_plugin.annotation.annotate import annotate
from gdr_plugin.annotation.options import AnnotateOptions
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.sampling.sample import Sampling

PLUGIN = '''
"""Kills the process (as kill -9 does) at a chosen call, unless a file `go` stands beside it."""

import os
import signal
from pathlib import Path

from gdr_plugin import hookimpl
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.annotation.selectors import MaxMin

HERE = Path(__file__).parent


def die_at(call, calls):
    if calls == call and not (HERE / "go").exists():
        os.kill(os.getpid(), signal.SIGKILL)


class Killed(FakeModel):
    def score(self, spans):
        die_at(SCORE, self.calls)
        return super().score(spans)


class KilledSelector(MaxMin):
    calls = 0

    def select(self, candidates, rng):
        die_at(SELECT, self.calls)
        self.calls += 1
        return super().select(candidates, rng)


@hookimpl
def gdr_open_model(spec, limits):
    return Killed("strong", limits) if spec.model == "fake:strong" else None


@hookimpl
def gdr_register_selectors():
    return [KilledSelector("killed")]
'''
CONFIG = """
strong: fake:strong
weak: fake:weak
guidance: {domains: {chat: none, safety: safety}}
routing: {routers: [field]}
load: LOAD
"""
DATA = [f"{name}.{kind}" for name in ("preferences", "kto", "candidates") for kind in ("parquet", "jsonl")]


def killed_then_resumed(folder: Path, score: int, select: int, load: str, policy: Path | None = None) -> list[str]:
    """Run until the kill, then on to the end, and once without a kill; the outputs must be equal.

    Returns:
        What the kill left in the work folder.
    """
    plugin, config, source = folder / "plugin.py", folder / "gdr.yaml", folder / "prompts.jsonl"
    plugin.write_text(PLUGIN.replace("SCORE", str(score)).replace("SELECT", str(select)))
    config.write_text(CONFIG.replace("LOAD", load))
    command = [sys.executable, "-m", "gdr_plugin", "--plugin", plugin, "annotate", source, "-c", config]
    command += ["-o", folder / "cut", "--select", "killed"]
    if policy:
        command += ["--policy", policy, "--samples", "2", "--max-new-tokens", "8"]
    first = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert not (folder / "cut" / "summary.json").exists()
    left = sorted(path.name for path in (folder / "cut" / "work").iterdir())
    (folder / "go").touch()
    sampling = Sampling(samples=2, max_new_tokens=8) if policy else Sampling()
    options = AnnotateOptions(select="killed", policy=policy and str(policy), sampling=sampling)
    for out in ("cut", "whole"):
        annotate(source, config, folder / out, options, plugins=Plugins(plugin))
        assert not (folder / out / "work").exists()
    for name in [*DATA, "rejects.jsonl"]:
        assert (folder / "cut" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    return left


@pytest.mark.parametrize(
    ("score", "select", "load", "shards"),
    [
        (3, -1, "together", ["candidates-000000.jsonl", "candidates-000001.jsonl", "candidates-000002.jsonl"]),
        (-1, 60, "together", [*(f"candidates-{number:06d}.jsonl" for number in range(5)), "outputs"]),
        (2, -1, "sequential", ["store.sqlite", "store.sqlite-shm", "store.sqlite-wal"]),
    ],
    ids=["scoring", "writing", "sequential"],
)
def test_given_responses(
    tmp_path: Path, prompts: Callable[..., Path], score: int, select: int, load: str, shards: list[str]
) -> None:
    source = prompts(rows=150)
    assert killed_then_resumed(tmp_path, score, select, load) == shards
    ids = [json.loads(line)["gdr_id"] for line in (tmp_path / "cut" / "candidates.jsonl").read_text().splitlines()]
    assert ids == [json.loads(line)["id"] for line in source.read_text().splitlines() for _ in range(4)]


def test_drawn_responses(tmp_path: Path, prompts: Callable[..., Path], tiny_model: Callable[..., Path]) -> None:
    prompts(rows=40, responses=None)
    left = killed_then_resumed(tmp_path, 1, -1, "together", tiny_model())
    assert left == ["candidates-000000.jsonl", "responses-000000.jsonl", "responses-000001.jsonl"]
    assert len((tmp_path / "cut" / "candidates.jsonl").read_text().splitlines()) == 80
