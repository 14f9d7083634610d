"""The script for a machine with a GPU runs on a CPU: its first minute there is not spent on its own mistakes."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks` is not installed: it is found in the repository."""
    monkeypatch.syspath_prepend(REPOSITORY)


TORCH_ALONE = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *others):
        if name.split(".")[0] in ("pydantic", "pydantic_core", "gguf", "pyarrow"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1])
from benchmarks import gpu_check
gpu_check.lacking = lambda names: ["pydantic", "gguf"] if "gguf" in names else []
sys.exit(gpu_check.main(["--device", "cpu", "--tiny", "--out", sys.argv[2]]))
"""


def test_the_gpu_script_runs_on_a_cpu_without_what_a_bare_machine_lacks(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    run = subprocess.run(
        [sys.executable, "-c", TORCH_ALONE, str(REPOSITORY), str(out)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "missing for real text: pydantic, gguf (not needed without --model)"
    found = json.loads(out.read_text())
    assert {name: phase["status"] for name, phase in found["phases"].items()} == dict.fromkeys(
        ("device", "kernels", "7B, annotation", "small models", "7B, other work", "0.5B", "ways to attend"), "done"
    )
    rows = found["phases"]["7B, annotation"]["results"]["annotation"]["rows"]
    assert [row["method"] for row in rows] == ["naive", "padded", "ours"]
    assert all(min(row["seconds"]) > 0 and row["peak_mb"] is None for row in rows)
    assert rows[2]["strategy"].startswith("packed trees")
    errors = found["phases"]["0.5B"]["results"]["long guidance"]["off_float32"]
    assert all(0 < error["mean_nats"] < 0.15 for error in errors.values())
    small = found["phases"]["small models"]["results"]
    assert len(small) == 8
    assert all(row["passed"] for row in small)
    assert max(row["max_nats"] for row in small if row["dtype"] == "float32") < 1e-4
    assert found["verdict"].startswith("NOT MEASURED")
    assert found["complete"] is True


def measured(ours: float, waits: float = 1.0, mean: float = 0.02) -> dict[str, Any]:
    rows = [
        {"method": "padded", "median_s": 10.0},
        {"method": "ours", "median_s": ours, "useful_mfu": 1.2 / ours, "host_waits": waits},
    ]
    work = {"annotation": {"rows": rows, "off_float32": {"ours": {"mean_nats": mean}}}}
    right = {"status": "done", "results": [{"way": "flash", "passed": True}]}
    return {"7B, annotation": {"results": work}, "kernels": right, "small models": {"status": "done", "results": []}}


def test_the_gpu_scripts_verdict() -> None:
    from benchmarks.gpu_check import Check, judge

    def verdict(phases: dict[str, Any]) -> str:
        check = Check(argparse.Namespace(tiny=False, device="cuda"))
        check.results["phases"] = phases
        return str(judge(check)["verdict"])

    assert verdict(measured(2.4)) == "PASS"
    assert verdict(measured(1.6)) == "PASS, and the stretch goal"
    assert verdict(measured(2.6)) == "FAIL: times_padded"
    assert verdict(measured(2.8, waits=3.5, mean=0.2)) == "FAIL: times_padded, useful_mfu, host_waits, mean_nats"
    wrong = measured(2.4) | {"kernels": {"status": "done", "results": [{"way": "flash", "passed": False}]}}
    assert verdict(wrong) == "FAIL: flash is wrong"
    cut = measured(2.4) | {"kernels": {"status": "failed: RuntimeError", "results": []}}
    assert verdict(cut) == "FAIL: kernels not measured"
    assert verdict({}).count("not measured") == 6


def test_a_phase_that_is_cut_off_or_fails_keeps_what_it_had(tmp_path: Path) -> None:
    import time

    from benchmarks.gpu_check import Check

    def slow(check: Any, keep: Callable[[Any], None]) -> None:
        keep([1])
        for _ in range(1000):
            with contextlib.suppress(Exception):  # as who tries another way after a failure
                time.sleep(0.01)

    def failing(check: Any, keep: Callable[[Any], None]) -> None:
        keep([2])
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    check = Check(argparse.Namespace(out=tmp_path / "found.json", seconds=60.0))
    check.run("slow", 0.2, slow)
    check.run("failing", 5, failing)
    check.args.seconds = 0.0
    check.run("late", 5, slow)
    found = json.loads((tmp_path / "found.json").read_text())["phases"]
    assert found["slow"]["results"] == [1]
    assert found["slow"]["status"] == "cut off after 0 s"
    assert found["slow"]["seconds"] < 5
    assert found["failing"]["results"] == [2]
    assert found["failing"]["status"] == "failed: RuntimeError: CUDA error: an illegal memory access was encountered"
    assert found["late"]["status"] == "no time left"


def test_wheels_fill_in_for_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    from benchmarks.gpu_check import lacking, use_wheels

    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("not_there_yet", "numpy"):
        with zipfile.ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "found = 1\n")
            wheel.writestr(f"{name}-1.dist-info/METADATA", "")
    assert lacking(("not_there_yet", "numpy")) == ["not_there_yet"]
    assert use_wheels(tmp_path) == ["not_there_yet-1-py3-none-any.whl"]
    assert lacking(("not_there_yet", "numpy")) == []
