"""`accelerate launch -m gdr_plugin ...` and torchrun: real processes share the windows and make the files of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gdr_plugin.annotation.annotate import annotate
from gdr_plugin.annotation.windows import WINDOW
from gdr_plugin.api.errors import ConfigError
from gdr_plugin.config.load import load_config, parse_config
from gdr_plugin.scoring.ranks import Ranks, of_rank

CONFIG = """
strong: fake:strong
weak: fake:weak
guidance: {domains: {chat: none, safety: safety}}
routing: {routers: [field]}
"""
PLUGIN = '''
"""Counts each rank's windows, and kills rank 1 at its third (as kill -9 does), unless there is a file `go`."""

import os
import signal
from pathlib import Path

from gdr_plugin import hookimpl
from gdr_plugin.models.fake import FakeModel

HERE = Path(__file__).parent


class Noting(FakeModel):
    def score(self, spans):
        rank = os.environ.get("RANK", "alone")
        if rank == "1" and self.calls == 2 and not (HERE / "go").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        with (HERE / f"calls-{rank}").open("a") as file:
            file.write("x")
        return super().score(spans)


@hookimpl
def gdr_open_model(spec, limits):
    return Noting("strong", limits) if spec.model == "fake:strong" else None
'''
ACCELERATE = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"),
    *("--dynamo_backend=no", "--main_process_port=0", "-m", "gdr_plugin"),
)
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "gdr_plugin")
THREE = ("torch.distributed.run", "--standalone", "--nproc-per-node=3", "-m", "gdr_plugin")
DATA = [f"{name}.{kind}" for name in ("preferences", "kto", "candidates") for kind in ("parquet", "jsonl")]


def launch(launcher: tuple[str, ...], folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *launcher, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=250
    )


def calls(folder: Path) -> list[int]:
    """How many windows each rank has scored in full."""
    return [len(path.read_text()) for path in sorted(folder.glob("calls-*"))]


@pytest.mark.slow
def test_a_rank_that_dies_leaves_a_run_that_three_ranks_end(tmp_path: Path, prompts: Callable[..., Path]) -> None:
    source, plugin, config = prompts(rows=10 * WINDOW - 5), tmp_path / "plugin.py", tmp_path / "gdr.yaml"
    plugin.write_text(PLUGIN)
    config.write_text(CONFIG)
    arguments = ("--plugin", plugin, "annotate", source, "-o", "several")
    died = launch(ACCELERATE, tmp_path, *arguments)
    assert died.returncode != 0
    # A rank that is ended while it writes leaves a .part, which is no finished window.
    kept = list((tmp_path / "several" / "work").glob("candidates-*.jsonl"))
    assert {"candidates-000001.jsonl", "candidates-000003.jsonl"} <= {path.name for path in kept}, died.stderr
    assert not (tmp_path / "several" / "summary.json").exists()

    (tmp_path / "go").touch()
    before = calls(tmp_path)
    done = launch(THREE, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("load with:") == 1  # the first one alone prints
    again = [now - then for now, then in zip(calls(tmp_path), [*before, 0], strict=True)]
    assert sum(again) == 10 - len(kept)  # finished windows are not scored again
    assert max(again) - min(again) <= 1  # and the others are shared out evenly
    assert not (tmp_path / "several" / "work").exists()
    annotate(source, load_config(config), tmp_path / "one")
    for name in [*DATA, "rejects.jsonl"]:
        assert (tmp_path / "several" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_score_into_one_file(
    tmp_path: Path, gdr: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gdr.yaml").write_text(CONFIG + "load: sequential\n")
    rows = [{"prompt": f"Q {n // 2}", "response": f"Answer {n}."} for n in range(600)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = launch(TORCHRUN, tmp_path, "score", "rows.jsonl", "-o", "two.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("600 rows, 600 scored") == 1
    assert gdr("score", "rows.jsonl", "-o", "one.jsonl")[0] == 0
    assert Path("two.jsonl").read_bytes() == Path("one.jsonl").read_bytes()
    assert not Path("two.jsonl.work").exists()


@pytest.mark.parametrize("command", ["check", "evaluate", "serve", "tune", "init"])
def test_other_commands_do_not_run_n_times(
    command: str, gdr: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    code, out, error = gdr(command, "x")
    assert (code, out) == (2, "")
    assert error.startswith(f"gdr: rank 2: gdr {command} runs once, not in 4 processes (WORLD_SIZE): start it without")


def test_what_ranks_cannot_share_is_said(
    tmp_path: Path, gdr: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    rows, config = tmp_path / "rows.jsonl", tmp_path / "gdr.yaml"
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    config.write_text(CONFIG)
    code, _, error = gdr("score", rows, "-c", config)
    assert (code, "name a file with -o" in error) == (2, True)
    code, _, error = gdr("score", rows, "-c", config, "-o", tmp_path / "o.jsonl", "--engine", "ray")
    assert (code, "--engine ray has its own processes" in error) == (2, True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    code, _, error = gdr("score", rows, "-c", config, "--address", "here:1")
    assert (code, "give --engine ray, too" in error) == (2, True)


def test_ranks_come_from_the_launchers_variables() -> None:
    assert Ranks.from_environment({}) is None
    assert Ranks.from_environment({"WORLD_SIZE": "1", "RANK": "0"}) is None
    ranks = Ranks.from_environment({"WORLD_SIZE": "3", "RANK": "2", "GROUP_RANK": "1"})
    assert ranks == Ranks(2, 3, 1)
    assert [list(Ranks(rank, 3).share(range(7))) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    for wrong in ({"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "2"}, {"WORLD_SIZE": "two", "RANK": "0"}):
        with pytest.raises(ConfigError, match="unset WORLD_SIZE to run it once"):
            Ranks.from_environment(wrong)


@pytest.mark.parametrize(("key", "value"), [("device_map", "auto"), ("device", "cuda:1")])
def test_a_model_that_would_take_all_ranks_gpus_is_refused(key: str, value: str) -> None:
    config = parse_config({"strong": {"model": "org/strong", key: value}, "weak": "org/weak"})
    with pytest.raises(ConfigError, match=f"strong.{key}: with several processes"):
        of_rank(config, Ranks(0, 2))
    assert of_rank(config, None) is config
