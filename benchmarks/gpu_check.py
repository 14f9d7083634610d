"""Is it right and fast on this GPU? One script for a bare machine: torch, transformers, numpy and pluggy are enough.

    python benchmarks/gpu_check.py [--out FILE] [--seconds 345] [--wheels FOLDER] [--model org/name ...]

Checks the kernels and small models, then times randomly initialised models with the shapes of Llama-3-8B and
Qwen2.5-0.5B against one sequence at a time and padded batches, on the same work in turn. Its first line says what is
missing here. Every result goes into the file (default: gpu_check.json, in $OUT where that is set) as soon as it is
there, each phase has seconds of its own, and a run that is cut off keeps what it had. It ends with PASS or FAIL.

`--model` also scores real text with a model of yours (hub id, folder or .gguf), for which the whole package must be
installed, or pydantic and gguf lie as wheels in the folder of `--wheels`:

    pip download --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 -d wheels pydantic
    pip download --no-deps -d wheels gguf

`--device cpu --tiny` runs all phases in seconds on a CPU with tiny shapes; it tells nothing about speed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

NEEDED = ("torch", "transformers", "numpy", "pluggy")
FOR_REAL_TEXT = ("pydantic", "gguf", "rich", "yaml", "jinja2")
GATE = {"times_padded": 4.0, "useful_mfu": 0.45, "host_waits": 2.0, "mean_nats": 0.15}
STRETCH = {"times_padded": 6.0, "useful_mfu": 0.60}


class OutOfTimeError(BaseException):
    """A phase has used up its seconds. No `Exception`: what tries the next way after a failure must not catch it."""


class Check:
    """One run: its settings, its results, and the file that they are written to.

    Args:
        args: From the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.began = time.monotonic()
        self.results: dict[str, Any] = {"complete": False, "phases": {}}
        self.models: dict[str, Any] = {}
        self.speed = 0.0

    def save(self) -> None:
        """Write what there is; the file is whole at any moment."""
        path: Path = self.args.out
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.results, indent=2) + "\n", encoding="utf-8")
        part.replace(path)

    def run(self, name: str, seconds: float, work: Callable[[Check, Callable[[Any], None]], Any]) -> None:
        """Run one phase within its seconds and those that are left; whatever becomes of it is written down."""
        entry: dict[str, Any] = {"status": "running"}
        self.results["phases"][name] = entry
        left = self.args.seconds - (time.monotonic() - self.began)
        if left < 5:
            entry["status"] = "no time left"
            self.save()
            return

        def keep(found: Any) -> None:
            entry["results"] = found
            self.save()

        start = time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with alarm(min(seconds, left)):
                    keep(work(self, keep))
                entry["status"] = "done"
            except OutOfTimeError:
                entry["status"] = f"cut off after {min(seconds, left):.0f} s"
            except Exception as error:  # the next phase may still tell something
                entry["status"] = f"failed: {type(error).__name__}: {str(error)[:600]}"
        entry["seconds"] = round(time.monotonic() - start, 1)
        entry["warnings"] = sorted({str(found.message)[:400] for found in caught if _is_ours(found)})
        self.save()
        print(f"{name}: {entry['status']} ({entry['seconds']} s)", flush=True)
        for text in entry["warnings"]:
            print(f"  {text}", flush=True)


def _is_ours(found: warnings.WarningMessage) -> bool:
    return found.category.__module__.startswith("gdr_plugin")


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` inside the block after so many seconds."""

    def ring(number: int, frame: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(check: Check) -> dict[str, Any]:
    """The gate's figures against what was measured, and the verdict."""
    phases = check.results["phases"]
    rows = [row for name in ("kernels", "small models") for row in phases.get(name, {}).get("results", [])]
    wrong = [row for row in rows if row["passed"] is False]
    annotation = phases.get("7B, annotation", {}).get("results", {}).get("annotation", {})
    by_name = {row["method"]: row for row in annotation.get("rows", []) if "median_s" in row}
    ours, padded = by_name.get("ours"), by_name.get("padded")
    figures: dict[str, float | None] = dict.fromkeys(GATE)
    if ours is not None:
        figures["useful_mfu"], figures["host_waits"] = ours["useful_mfu"], ours["host_waits"]
        figures["mean_nats"] = annotation.get("off_float32", {}).get("ours", {}).get("mean_nats")
        if padded is not None:
            figures["times_padded"] = round(padded["median_s"] / ours["median_s"], 3)
    passed = {
        name: None if value is None else (value >= GATE[name] if name in STRETCH else value <= GATE[name])
        for name, value in figures.items()
    }
    failed = [name for name, right in passed.items() if right is False]
    unchecked = [name for name in ("kernels", "small models") if phases.get(name, {}).get("status") != "done"]
    missing = [*(name for name, right in passed.items() if right is None), *unchecked]
    if check.args.tiny or check.args.device == "cpu":
        right = "NOT MEASURED: right on this CPU, which tells nothing about speed"
        verdict = "FAIL: wrong or no results" if wrong or unchecked else right
    elif wrong or failed or missing:
        parts = [*(f"{row.get('way', row.get('model'))} is wrong" for row in wrong), *failed]
        verdict = "FAIL: " + ", ".join(parts + [f"{name} not measured" for name in missing])
    else:
        stretch = all((figures[name] or 0) >= STRETCH[name] for name in STRETCH)
        verdict = "PASS" + (", and the stretch goal" if stretch else "")
    return {"gate": GATE, "stretch": STRETCH, "figures": figures, "passed": passed, "verdict": verdict}


def use_wheels(folder: Path) -> list[str]:
    """Unpack those wheels of a folder whose packages are not installed, behind everything that is.

    Returns:
        The names of the wheels that are used.
    """
    target = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    used = []
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            tops = {name.split("/")[0].split(".")[0] for name in archive.namelist() if ".dist-info/" not in name}
            if any(importlib.util.find_spec(top) is None for top in tops if top.isidentifier()):
                archive.extractall(target)
                used.append(wheel.name)
    sys.path.append(str(target))
    importlib.invalidate_caches()
    return used


def lacking(names: tuple[str, ...]) -> list[str]:
    """Which of these modules cannot be found here."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def main(argv: list[str] | None = None) -> int:
    """Run all phases.

    Returns:
        0: passed, or not measured for want of a GPU; 1: failed; 2: something is missing.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__, formatter_class=form)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "gpu_check.json")
    parser.add_argument("--seconds", type=float, default=345.0, help="for everything together")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script itself")
    parser.add_argument("--model", help="also a model of yours on real text: hub id, folder or .gguf")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what is not installed")
    args = parser.parse_args(argv)
    used = use_wheels(args.wheels) if args.wheels else []
    missing, wanted = lacking(NEEDED), lacking(FOR_REAL_TEXT)
    gpu = args.device != "cpu" and "torch" not in missing and not _has_gpu()
    lines = [f"missing: {', '.join(missing)}"] * bool(missing) + ["missing: a CUDA device (or --device cpu)"] * gpu
    if wanted:
        how = "see --help" if args.model else "not needed without --model"
        lines.append(f"missing for real text: {', '.join(wanted)} ({how})")
    print("; ".join(lines) or "nothing is missing", flush=True)
    if missing or gpu or (wanted and args.model):
        return 2
    from benchmarks import gpu_phases as phases

    check = Check(args)
    check.results |= {"missing": wanted, "wheels": used, "tiny": args.tiny}
    check.run("device", 40, phases.facts)
    check.run("kernels", 60, phases.kernels)
    check.run("7B, annotation", 110, phases.timed("7B", ("annotation",)))
    check.run("small models", 60, phases.small_models)
    check.run("7B, other work", 60, phases.timed("7B", ("best of 64", "long guidance", "no guidance")))
    check.run("0.5B", 60, phases.timed("0.5B", tuple(phases.SHAPES)))
    check.run("ways to attend", 40, phases.attention_ways)
    if args.model:
        check.run("real text", 60, phases.real_text)
    check.results |= judge(check) | {"complete": True}
    check.save()
    print(f"{check.results['verdict']}\n{json.dumps(check.results['figures'])}\nwritten to {args.out}", flush=True)
    return 1 if check.results["verdict"].startswith("FAIL") else 0


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
