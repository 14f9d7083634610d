"""Scoring on a GPU beside what people run instead, on the same work, in turn; for anybody with one.

    python -m benchmarks.cuda [--model org/name] [--dtype bfloat16] [--rounds 3] [--json OUT]

Without --model: the weak model of --config. Tells seconds, memory above the loaded model, the useful share of the
matrix-multiply speed that is measured beside it, how far tokens are from one sequence at a time, and how often a run
makes the host wait for the device (one wait a pack is meant: its results are fetched). `--device cpu` runs the same on
the CPU, with none of the figures that only a GPU has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import methods
from benchmarks.measure import Timing, alternate
from benchmarks.methods import Method
from benchmarks.work import Shape, Workload, flops, make, read_candidates
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.config.load import load_config
from gdr_plugin.models.local import LocalModel, open_local
from gdr_plugin.models.local.strategies import Strategy

PAIR = Path(__file__).resolve().parent.parent / "examples" / "demo-pair" / "gdr.yaml"
SHAPES = {
    "annotation": Shape(16, 8),
    "best-of-64": Shape(1, 64),
    "long guidance": Shape(8, 8, 2000),
    "no guidance": Shape(16, 8, 0),
}
MATRIX = 4096


def open_models(spec: ModelSpec) -> tuple[LocalModel, Any]:
    """Ours, and the same weights by transformers alone.

    Args:
        spec: Model, dtype and device; its adapter is left out.

    Returns:
        The two; nothing is kept by ours between calls, so that every run does all of its work.
    """
    from transformers import AutoModelForCausalLM

    ours = open_local(spec.model_copy(update={"adapter": None}), Limits(kv_cache_mb=0))
    with ours.running():  # loads the weights
        source = ours.source
    plain: Any = AutoModelForCausalLM.from_pretrained(source.path, revision=source.revision, dtype=source.dtype)
    return ours, plain.to(source.device).train(False)


def run(ours: LocalModel, plain: Any, work: Workload, rounds: int, say: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Every way on one workload.

    Returns:
        One row a way: seconds of each run, memory in MiB, the largest and mean difference of a token from the naive way
        in nats, waits of the host, and the useful share of the matrix-multiply speed.
    """
    dtype = str(plain.dtype).removeprefix("torch.")
    ways = [methods.naive(plain, work.spans), methods.padded(plain, work.spans)]
    ways += [methods.held(ours, work.spans, dtype, strategy) for strategy in (Strategy.CACHED, Strategy.PADDED)]
    ways.append(methods.ours(ours, work.spans, dtype))
    for way in ways:
        assert way.heaviest is not None
        way.heaviest()  # loads kernels, and lets ours check itself
        way.reset()
    memory = [peak(way, plain.device) for way in ways]
    speeds: list[float] = []
    timings = alternate(ways, rounds, between=lambda: speeds.append(matmul(plain.device, plain.dtype)), say=say)
    config = plain.config.get_text_config(decoder=True)
    body = sum(m.weight.numel() for m in plain.get_decoder().modules() if isinstance(m, torch.nn.Linear))
    least = flops(work.spans, config, body).ideal / statistics.median(speeds)
    truth = timings[0].logprobs
    return [
        {
            "work": work.name,
            "method": timing.method.name,
            "dtype": dtype,
            "seconds": [round(seconds, 5) for seconds in timing.seconds],
            "median_s": timing.median,
            "peak_mb": peak_mb,
            **_errors(timing, truth),
            "host_waits": waits(timing.method, plain.device),
            "useful_mfu": round(least / timing.median, 4),
        }
        for timing, peak_mb in zip(timings, memory, strict=True)
    ]


def _errors(timing: Timing, truth: dict[int, Any]) -> dict[str, float]:
    apart = np.concatenate([np.abs(timing.logprobs[place] - truth[place]) for place in truth])
    return {"max_token_error": float(apart.max()), "mean_token_error": float(apart.mean())}


def peak(way: Method, device: torch.device) -> float | None:
    """Most memory of the device that a way needs above what is loaded, in MiB; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    assert way.heaviest is not None
    way.heaviest()
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)


def waits(way: Method, device: torch.device) -> int | None:
    """How often the first part of a way makes the host wait for the device; None on the CPU."""
    if device.type != "cuda":
        return None
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            way.parts[0]()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in found)


def matmul(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large product, the fastest of some."""
    size = MATRIX if device.type == "cuda" else 512
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """One line a workload and way."""
    table = Table("work", "way", "median s", "x naive", "peak MiB", "error, max nats", "host waits", "useful MFU")
    naive = {row["work"]: row["median_s"] for row in rows if row["method"] == "naive"}
    for row in rows:
        speed = f"{naive[row['work']] / row['median_s']:.2f}"
        known = ["-" if row[key] is None else str(row[key]) for key in ("peak_mb", "host_waits")]
        error, mfu = f"{row['max_token_error']:.2g}", f"{row['useful_mfu']:.1%}"
        table.add_row(row["work"], row["method"], f"{row['median_s']:.3f}", speed, known[0], error, known[1], mfu)
    console.print(table)


def main() -> None:
    """Open, run, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id, folder or .gguf")
    parser.add_argument("--config", type=Path, default=PAIR)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, help="at most so many of each workload")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no CUDA device here: run this on a machine with one, or with --device cpu")
    given = {"dtype": args.dtype, "device": args.device}
    weak = load_config(args.config).weak if args.model is None else None
    spec = ModelSpec.model_validate({"model": args.model, **given} if weak is None else {**weak.model_dump(), **given})
    progress = Console(stderr=True)
    ours, plain = open_models(spec)
    rows: list[dict[str, Any]] = []
    for name, shape in SHAPES.items():
        shape = Shape(min(shape.prompts, args.prompts or shape.prompts), shape.responses, shape.guidance)
        rows += run(ours, plain, make(name, shape, read_candidates(), ours.chat), args.rounds, progress.print)
        if args.json:  # after each workload: nothing that was measured is lost
            args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    device = torch.cuda.get_device_name(plain.device) if plain.device.type == "cuda" else "the CPU"
    Console(width=None if sys.stdout.isatty() else 120).print(f"{ours.name}, {args.dtype}, on {device}")
    show(rows, Console(width=None if sys.stdout.isatty() else 120))


if __name__ == "__main__":
    main()
