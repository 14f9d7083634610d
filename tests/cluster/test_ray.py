"""`--engine ray` on a real two-node cluster: the files of one process, with an actor killed and a driver killed.

Runs where Ray is installed: `make test-ray` sets up an environment that has it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from gdr_plugin.annotation.annotate import annotate
from gdr_plugin.config.load import load_config
from gdr_plugin.plugins.registry import Plugins

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: make test-ray"),
    pytest.mark.timeout(600),
]
PLUGIN = '''
"""The strong model takes a moment, notes each window in a file of the process, and dies where it is told to."""

import os
import signal
import time
from pathlib import Path

from gdr_plugin import hookimpl
from gdr_plugin.models.fake import FakeModel

HERE = Path(__file__).parent


class Noting(FakeModel):
    def score(self, spans):
        if (HERE / "die-always").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == 2:
            try:
                (HERE / "die-once").unlink()
            except FileNotFoundError:
                pass
            else:
                (HERE / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
        result = super().score(spans)
        with (HERE / f"scored-{os.getpid()}").open("a") as file:
            file.write(f"{sum(map(sum, (span.context + span.response for span in spans)))}\\n")
        return result


@hookimpl
def gdr_open_model(spec, limits):
    return Noting("strong", limits) if spec.model == "fake:strong" else None
'''
CONFIG = """
strong: fake:strong
weak: fake:weak
guidance: {domains: {chat: none, safety: safety}}
routing: {routers: [field]}
ray: {actors: {strong: 2, weak: 1}}
"""
DATA = [f"{name}.{kind}" for name in ("preferences", "kto", "candidates") for kind in ("parquet", "jsonl")]
ROWS = 480
WINDOWS = 15


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "integrations")])
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "200"}  # 30 s are little on a busy machine
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **ray}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of two nodes with two CPUs each."""
    script = [sys.executable, str(Path(__file__).with_name("nodes.py"))]
    pipe = subprocess.PIPE
    with subprocess.Popen(script, stdin=pipe, stdout=pipe, text=True, env=environment()) as nodes:
        assert nodes.stdout is not None
        assert nodes.stdin is not None
        found = nodes.stdout.readline().strip()
        if found:
            yield found
        nodes.stdin.close()
    assert found, "the cluster did not start"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "gdr.yaml").write_text(CONFIG)
    rows = [
        {"prompt": f"Q {n}", "responses": [f"A {n} {k}" for k in range(3)], **({"domain": "safety"} if n % 3 else {})}
        for n in range(ROWS)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(folder: Path, address: str, *arguments: object) -> list[str]:
    gdr = [sys.executable, "-m", "gdr_plugin", "--plugin", folder / "plugin.py", *arguments]
    return [str(part) for part in (*gdr, "-c", folder / "gdr.yaml", "--engine", "ray", "--address", address)]


def run(folder: Path, address: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, address, *arguments),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=400,
        cwd=folder,
    )


def scored(folder: Path) -> Counter[str]:
    """How often each window was scored, by the ids in it."""
    return Counter(line for path in folder.glob("scored-*") for line in path.read_text().splitlines())


def check_same(folder: Path) -> None:
    """The data set is what one process makes of the input."""
    noted = {path: path.read_text() for path in folder.glob("scored-*")}
    annotate(folder / "rows.jsonl", load_config(folder / "gdr.yaml"), folder / "one", plugins=Plugins())
    assert {path: path.read_text() for path in folder.glob("scored-*")} == noted
    for name in [*DATA, "rejects.jsonl"]:
        assert (folder / "out" / name).read_bytes() == (folder / "one" / name).read_bytes(), name


def test_an_actor_that_is_killed_loses_and_repeats_nothing_that_was_finished(folder: Path, address: str) -> None:
    (folder / "die-once").touch()
    done = run(folder, address, "annotate", folder / "rows.jsonl", "-o", folder / "out")
    assert done.returncode == 0, done.stderr
    assert (folder / "died").exists()
    assert len(list(folder.glob("scored-*"))) >= 3  # two actors, and the one that took the place of the dead one
    windows = scored(folder)
    assert (len(windows), windows.total()) == (WINDOWS, WINDOWS)
    check_same(folder)


def test_a_driver_that_is_killed_goes_on_where_it_was(folder: Path, address: str) -> None:
    arguments = ("annotate", folder / "rows.jsonl", "-o", folder / "out")
    driver = subprocess.Popen(command(folder, address, *arguments), env=environment(), stderr=subprocess.DEVNULL)
    work = folder / "out" / "work"
    deadline = time.monotonic() + 300
    while len(list(work.glob("candidates-*.jsonl"))) < 4:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = len(list(work.glob("candidates-*.jsonl")))
    assert 4 <= kept < WINDOWS
    while any(Path("/proc", path.name.partition("-")[2]).exists() for path in folder.glob("scored-*")):
        assert time.monotonic() < deadline, "its actors do not end with it"
        time.sleep(0.05)
    before = scored(folder)
    done = run(folder, address, *arguments)
    assert done.returncode == 0, done.stderr
    again = scored(folder) - before
    assert again.total() == WINDOWS - kept  # no window that was kept, and each of the others once
    check_same(folder)


def test_rows_are_scored_in_order_on_a_shared_pool(
    folder: Path, address: str, gdr: Callable[..., tuple[int, str, str]]
) -> None:
    config = folder / "gdr.yaml"
    config.write_text(CONFIG.replace("ray: {actors: {strong: 2, weak: 1}}", "ray: {pools: shared}"))
    rows = [{"prompt": f"Q {n // 2}", "response": f"A {n}", "note": n} for n in range(1200)]
    (folder / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(folder, address, "score", folder / "s.jsonl", "--keep", "--tokens", "-o", folder / "there.jsonl")
    assert done.returncode == 0, done.stderr
    assert "1,200 rows, 1,200 scored" in done.stderr
    assert gdr("score", folder / "s.jsonl", "--keep", "--tokens", "-o", folder / "here.jsonl", "-c", config)[0] == 0
    assert (folder / "there.jsonl").read_bytes() == (folder / "here.jsonl").read_bytes()
    assert not (folder / "there.jsonl.work").exists()


def test_a_window_that_kills_every_actor_ends_the_run_with_one_line(folder: Path, address: str) -> None:
    (folder / "die-always").touch()
    done = run(folder, address, "annotate", folder / "rows.jsonl", "-o", folder / "out", "--limit", 32)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("gdr: Ray: "), done.stderr
    assert "run the same command again" in last


def test_a_wrong_model_and_a_wrong_address_are_one_line(folder: Path, address: str) -> None:
    (folder / "gdr.yaml").write_text(CONFIG.replace("fake:weak", "nonsense:weak"))
    done = run(folder, address, "annotate", folder / "rows.jsonl", "-o", folder / "out")
    assert (done.returncode, done.stderr.strip().splitlines()[-1][:27]) == (2, "gdr: model 'nonsense:weak':")
    done = run(folder, "ray://127.0.0.1:1", "annotate", folder / "rows.jsonl", "-o", folder / "out")
    assert (done.returncode, "submit the command there" in done.stderr) == (2, True)
