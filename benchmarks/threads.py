"""Compares threads, processes and pinning on the CPU: the same work, split by prompt, in turn, in one run.

    python -m benchmarks.threads [--config gdr.yaml] [--rounds 3] [--cores 2] [--json OUT]

The model is the weak one of the configuration; the work is the annotation workload. Workers stay loaded and idle until
it is their turn, so that loading is not measured. A process that shares the work computes the guidance for itself, and
its seconds include that cost. Pinned means that a process is held on a core of its own. Nothing here knows log-probs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gdr_plugin.api.types import TokenSpan

ROOT = Path(__file__).resolve().parent.parent
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Way:
    """One way to spread the work over the machine."""

    processes: int
    threads: int
    """How many each process has."""
    pinned: bool

    @property
    def name(self) -> str:
        """The way's name in tables."""
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{processes} of {threads}{', pinned' if self.pinned else ''}"


def ways(cores: int) -> list[Way]:
    """All ways: one core, all cores by threads, all by processes; single threads also pinned where the system can."""
    shapes = [(1, 1)] if cores == 1 else [(1, 1), (1, cores), (cores, 1)]
    found = []
    for processes, threads in shapes:
        found.append(Way(processes, threads, pinned=False))
        if threads == 1 and hasattr(os, "sched_setaffinity"):
            found.append(Way(processes, threads, pinned=True))
    return found


def shares(spans: Sequence[TokenSpan], parts: int) -> list[list[TokenSpan]]:
    """Split by prompt, so that every prompt is computed once, into parts of about equal cost.

    Args:
        spans: The work.
        parts: How many processes share it; at most one a prompt.

    Returns:
        One list a process.
    """
    prompts: dict[tuple[int, ...], list[TokenSpan]] = {}
    for span in spans:
        prompts.setdefault(span.context, []).append(span)

    def cost(group: Sequence[TokenSpan]) -> int:
        return sum(len(span.response) for span in group)

    found: list[list[TokenSpan]] = [[] for _ in range(parts)]
    for group in sorted(prompts.values(), key=cost, reverse=True):
        min(found, key=cost).extend(group)
    return found


class Worker:
    """A process with the model in memory.

    Args:
        config: The gdr.yaml whose weak model it loads.
    """

    def __init__(self, config: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.threads", "--worker", "--config", str(config)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def tell(self, message: object) -> None:
        """Send one line of JSON."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait for one line of JSON."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with status {self._process.wait()}: its message stands above")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with self._process:  # closes the pipes and waits
            pass


def measure(
    config: Path, spans: Sequence[TokenSpan], *, rounds: int, cores: int, say: Callable[[str], Any]
) -> list[tuple[Way, str, list[float]]]:
    """Run every way in turn.

    Args:
        config: The gdr.yaml whose weak model is run.
        spans: The work, of at least as many prompts as there are cores.
        rounds: Runs of each way.
        cores: How many cores are used at most.
        say: Called with a line about what is running.

    Returns:
        Each way and dtype with the seconds of each run, from the start to the end of the last process.
    """
    kinds = [(way, dtype) for dtype in DTYPES for way in ways(cores)]
    seconds: list[list[float]] = [[] for _ in kinds]
    with ExitStack() as stack:
        workers = [Worker(config) for _ in range(cores)]
        for worker in workers:
            stack.callback(worker.close)
        for turn in range(rounds):
            for place, (way, dtype) in enumerate(kinds):
                say(f"{way.name}, {dtype}: run {turn + 1} of {rounds}")
                seconds[place].append(_run(workers[: way.processes], way, dtype, spans))
    return [(way, dtype, found) for (way, dtype), found in zip(kinds, seconds, strict=True)]


def _run(workers: Sequence[Worker], way: Way, dtype: str, spans: Sequence[TokenSpan]) -> float:
    here = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for place, (worker, share) in enumerate(zip(workers, shares(spans, way.processes), strict=True)):
        own = here[place * way.threads : (place + 1) * way.threads] if way.pinned else here
        ids = [[span.context, span.response] for span in share]
        worker.tell({"dtype": dtype, "threads": way.threads, "cores": own, "spans": ids})
    for worker in workers:
        worker.answer()  # it is ready
    start = time.perf_counter()
    for worker in workers:
        worker.tell("go")
    for worker in workers:
        worker.answer()
    return time.perf_counter() - start


def work(config: Path) -> None:
    """Be a worker: load the model in each dtype, then prepare and run what standard input says, line by line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # standard output belongs to the answers alone
    import torch

    from gdr_plugin.api.settings import Limits, ModelSpec
    from gdr_plugin.config.load import load_config
    from gdr_plugin.models.local import open_local

    spec = load_config(config).weak
    models = {
        dtype: open_local(ModelSpec.model_validate({**spec.model_dump(), "dtype": dtype}), Limits(kv_cache_mb=0))
        for dtype in DTYPES
    }
    for line in sys.stdin:
        job = json.loads(line)
        spans = [TokenSpan(tuple(context), tuple(response)) for context, response in job["spans"]]
        torch.set_num_threads(job["threads"])
        models[job["dtype"]].score(_little(spans))  # weights, kernels and threads are there
        _hold(job["cores"])
        print(json.dumps("ready"), file=answers, flush=True)
        sys.stdin.readline()
        models[job["dtype"]].score(spans)
        print(json.dumps("done"), file=answers, flush=True)


def _little(spans: Sequence[TokenSpan]) -> list[TokenSpan]:
    """The start of two responses to each of two prompts: the engine checks each kind of pack once."""
    contexts = list(dict.fromkeys(span.context for span in spans))[:2]
    few = [span for context in contexts for span in [other for other in spans if other.context == context][:2]]
    return [TokenSpan(span.context, span.response[:8]) for span in few]


def _hold(cores: Sequence[int]) -> None:
    """Let every thread of this process run on these cores only; threads that exist do not follow the main one."""
    if not cores:
        return
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def rows(found: Sequence[tuple[Way, str, list[float]]]) -> Iterator[dict[str, Any]]:
    """One row for each way and dtype: every run, the median, and the speed over one unpinned thread."""
    base = {dtype: statistics.median(seconds) for way, dtype, seconds in found if way == Way(1, 1, False)}
    for way, dtype, seconds in found:
        median = statistics.median(seconds)
        yield {
            "way": way.name,
            "dtype": dtype,
            "cores": way.processes * way.threads,
            "seconds": [round(run, 3) for run in seconds],
            "median_s": round(median, 3),
            "over_one_thread": round(base[dtype] / median, 2),
        }


def main() -> None:
    """Run every way, then show and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "examples" / "demo-pair" / "gdr.yaml")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way (3)")
    parser.add_argument("--cores", type=int, default=2, help="the most cores that are used (2)")
    parser.add_argument("--prompts", type=int, default=4, help="prompts, with eight responses each (4)")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.config)
        return
    from benchmarks.work import Shape, make, read_candidates
    from gdr_plugin.config.load import load_config
    from gdr_plugin.models.local import open_local

    progress, console = Console(stderr=True), Console(width=None if sys.stdout.isatty() else 100)
    chat = open_local(load_config(args.config).weak).chat
    spans = make("annotation", Shape(args.prompts, 8), read_candidates(), chat).spans
    found = measure(args.config, spans, rounds=args.rounds, cores=args.cores, say=progress.print)
    results = list(rows(found))
    table = Table("way", "dtype", "median s", "runs", "x one thread")
    for row in results:
        runs = " ".join(f"{run:.2f}" for run in row["seconds"])
        table.add_row(row["way"], row["dtype"], f"{row['median_s']:.2f}", runs, f"{row['over_one_thread']:.2f}")
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
