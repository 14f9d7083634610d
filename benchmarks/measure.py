"""Seconds, bytes and the machine's limits: how the benchmarks measure. Knows nothing of models or log-probs.

Ways are run in turn, part by part, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.methods import Method, PeerError
from gdr_plugin.api.types import Logprobs
from gdr_plugin.models.local.cpu import onednn_linear


@dataclass
class Timing:
    """What running one way on one workload took, and what came out."""

    method: Method
    seconds: list[float] = field(default_factory=list)
    """One entry for each whole run."""
    cpu: list[float] = field(default_factory=list)
    """Processor seconds of each whole run, which other work on the machine changes less; without other processes'."""
    logprobs: dict[int, Logprobs] = field(default_factory=dict)
    """The log-probs of the last run, by the spans' places."""
    failed: str | None = None
    """Why the way did not run, or not again."""

    @property
    def median(self) -> float:
        """The median run, in seconds."""
        return statistics.median(self.seconds)


def alternate(
    methods: Sequence[Method], rounds: int, *, between: Callable[[], Any] = lambda: None, say: Callable[[str], Any]
) -> list[Timing]:
    """Run ways in turn: each slow way's parts one by one, each quick way whole after every part.

    Args:
        methods: The ways; each does the same work.
        rounds: Whole runs of the slow ways.
        between: Called before every turn; its time does not count.
        say: Called with a line about what is running.

    Returns:
        One timing for each way, in order.
    """
    timings = [Timing(method) for method in methods]
    running = [(0.0, 0.0)] * len(methods)
    turns = max(len(method.parts) for method in methods)
    for turn in range(rounds * turns):
        between()
        for place, timing in enumerate(timings):
            method, part = timing.method, 0 if timing.method.often else turn % turns
            if timing.failed or part >= len(method.parts):
                continue
            say(f"{method.name} {method.dtype}: part {part + 1} of {len(method.parts)}")
            method.reset()
            start, cpu = time.perf_counter(), time.process_time()
            try:
                found = method.parts[part]()
            except Exception as error:  # one way's end must not end the others
                timing.failed = str(error) if isinstance(error, PeerError) else f"{type(error).__name__}: {error}"
                say(f"{method.name} {method.dtype} failed: {timing.failed}")
                continue
            wall, busy = running[place]
            running[place] = (wall + time.perf_counter() - start, busy + time.process_time() - cpu)
            timing.logprobs.update(found)
            if part == len(method.parts) - 1:
                wall, busy = running[place]
                timing.seconds.append(wall)
                timing.cpu.append(busy)
                running[place] = (0.0, 0.0)
    return timings


def peak_above(before: Callable[[], Any], work: Callable[[], Any]) -> float | None:
    """The most memory that `work` needs above what stays loaded, in MiB, measured in a process of its own.

    The process is a fork, so that no memory freed by an earlier run hides what this one takes.

    Args:
        before: A small piece of the same work, after which libraries and weights are in memory.
        work: What is measured.

    Returns:
        The peak resident set minus the resident set before; None where the system does not tell.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    reader, writer = os.pipe()
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: those that libraries left idle
        child = os.fork()
    if child == 0:
        code = 1
        try:
            before()
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is there now
            low = _status("VmRSS")
            work()
            os.write(writer, json.dumps(_status("VmHWM") - low).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return float(json.loads(text)) / 1024 if text else None


def _status(key: str) -> int:
    """A figure of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


class Peaks:
    """The machine's matrix-multiply speed, measured again and again during a run.

    Args:
        repeats: Multiplications of each kind in one measurement; the fastest counts.
    """

    def __init__(self, repeats: int = 3) -> None:
        self._repeats = repeats
        self.found: dict[str, list[float]] = {}
        """FLOP/s by `library dtype threads`, one entry for each measurement."""
        self.found_cpu: dict[str, list[float]] = {}
        """The same by processor time."""
        generator = torch.Generator().manual_seed(0)
        x, weight = (torch.randn(rows, 2048, generator=generator) for rows in (1024, 2048))
        self._inputs = {"float32": (x, weight), "bfloat16": (x.bfloat16(), weight.bfloat16())}

    def measure(self) -> None:
        """Measure once, on as many threads as torch is set to."""
        default = torch.nn.functional.linear
        kinds: list[tuple[str, str, Callable[..., Any]]] = [
            ("default", "float32", default),
            ("onednn", "float32", onednn_linear),
            ("default", "bfloat16", default),
        ]
        for library, dtype, product in kinds:
            x, weight = self._inputs[dtype]
            try:
                times = [_seconds(product, x, weight) for _ in range(self._repeats)]
            except (RuntimeError, AttributeError):  # a build of torch without oneDNN
                continue
            key, operations = f"{library} {dtype} {torch.get_num_threads()}", 2.0 * x.shape[0] * weight.numel()
            self.found.setdefault(key, []).append(operations / min(wall for wall, _ in times))
            self.found_cpu.setdefault(key, []).append(operations / min(cpu for _, cpu in times))

    def of(self, dtype: str, threads: int, *, cpu: bool = False) -> float | None:
        """The median speed of the faster library over the run, in FLOP/s; None where it was not measured."""
        medians = [
            statistics.median(values)
            for key, values in (self.found_cpu if cpu else self.found).items()
            if key.split(" ")[1:] == [dtype, str(threads)]
        ]
        return max(medians, default=None)


def _seconds(product: Callable[..., Any], x: torch.Tensor, weight: torch.Tensor) -> tuple[float, float]:
    with torch.inference_mode():
        start, cpu = time.perf_counter(), time.process_time()
        product(x, weight, None)
        return time.perf_counter() - start, time.process_time() - cpu


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, system and versions."""
    import transformers

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
