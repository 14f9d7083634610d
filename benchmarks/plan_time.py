"""Does `gdr plan` foretell the time? Scores real work on one CPU core and compares it with the plan's own formula.

    python -m benchmarks.plan_time          # a minute

The speed of matrix products is measured in the same run, and processor time counts, so that other work on the machine
changes little. The result is written to benchmarks/results/plan.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Peaks, machine
from benchmarks.work import Shape, make, read_candidates
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.models.local import open_local
from gdr_plugin.planning.assumed import MFU
from gdr_plugin.planning.flops import flops
from gdr_plugin.planning.models import open_planned

ROOT = Path(__file__).resolve().parents[1]


def measure(model: str, rounds: int) -> dict[str, Any]:
    """Score the annotation workload and compare.

    Args:
        model: A model as gdr.yaml names it.
        rounds: Whole runs; the median counts.
    """
    torch.set_num_threads(1)
    limits, spec = Limits(kv_cache_mb=0), ModelSpec(model=model)
    ours, planned = open_local(spec, limits), open_planned(spec, limits, on_cpu=True)
    work = make("annotation", Shape(2, 8), read_candidates(), ours.chat)
    ours.score(work.spans)  # loads the weights, and checks itself
    peaks, seconds = Peaks(), []
    for _ in range(rounds):
        peaks.measure()
        begun = time.process_time()
        ours.score(work.spans)
        seconds.append(time.process_time() - begun)
    peak = peaks.of("float32", 1, cpu=True)
    assert peak is not None
    operations = flops(work.spans, ours.source.config, planned.active).ideal
    expected, measured = operations / (peak * MFU["cpu"]), statistics.median(seconds)
    return {
        "work": work.shape,
        "operations": operations,
        "peak_flops": round(peak),
        "assumed_mfu": MFU["cpu"],
        "measured_mfu": round(operations / (peak * measured), 3),
        "expected_s": round(expected, 2),
        "measured_s": round(measured, 2),
        "measured_over_expected": round(measured / expected, 3),
        "machine": machine(),
    }


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "examples" / "demo-pair" / "base.gguf"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "plan.json")
    given = parser.parse_args()
    found = measure(given.model, given.rounds)
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
