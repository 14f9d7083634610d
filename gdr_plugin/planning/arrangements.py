"""Ways to run two models on some devices: the memory that each takes, and the time.

Knows how the package runs models; reads no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gdr_plugin.api.settings import Limits
from gdr_plugin.planning.assumed import (
    CONTEXT_GB,
    DECODE_BANDWIDTH,
    DECODE_BATCH,
    DECODE_HOST_S,
    HEAD_BLOCK,
    IN_FLIGHT,
    LAUNCH_S,
    LOADING_BYTES_S,
    PARALLEL,
    SERVER_LAUNCH_S,
    SERVER_PACK,
    TOKENS,
    USABLE,
)
from gdr_plugin.planning.flops import Flops
from gdr_plugin.planning.gpus import Cluster, Gpu
from gdr_plugin.planning.models import PlannedModel
from gdr_plugin.planning.work import SideWork

__all__ = ["Arrangement", "Planner", "Sampling", "Side"]


@dataclass(frozen=True, slots=True)
class Side:
    """A model with its work."""

    model: PlannedModel
    work: SideWork

    @property
    def flops(self) -> Flops:
        """Operations of scoring."""
        return self.work.flops(self.model.costs)


@dataclass(frozen=True, slots=True)
class Sampling:
    """A policy that draws the responses."""

    model: PlannedModel
    prompt: float
    """Tokens of its prompt, without guidance."""
    response: float
    prompts: float
    samples: float

    @property
    def flops(self) -> float:
        """Operations of reading the prompts and drawing every token."""
        each = self.prompt + self.samples * self.response
        return self.prompts * (each * self.model.costs.token + self.samples * self.response * self.model.costs.row)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """One way to run it all."""

    name: str
    how: str
    """What is set or started."""
    fits: bool | None
    """None: nobody can know (CPU memory)."""
    memory_gb: float
    """Of the fullest device."""
    seconds: float | None
    """None where it does not fit."""
    gpu_hours: float | None
    why: str = ""
    """Why it does not fit, or what it costs besides."""


@dataclass(frozen=True, slots=True)
class Planner:
    """What a run takes on some devices, arranged in each way that is possible."""

    strong: Side
    weak: Side
    sampling: Sampling | None
    cluster: Cluster
    limits: Limits
    mfu: float

    @property
    def gpu(self) -> Gpu:
        """The kind of device."""
        return self.cluster.gpu

    @property
    def kind(self) -> str:
        """`gpu` or `cpu`: what most assumptions go by."""
        return "cpu" if self.gpu.on_cpu else "gpu"

    @property
    def budget(self) -> int:
        """Tokens of a pack."""
        return self.limits.token_budget or TOKENS[self.kind]

    @property
    def shared(self) -> bool:
        """Whether the two sides share one set of weights."""
        return self.strong.model.base == self.weak.model.base

    @property
    def room(self) -> float:
        """Bytes of one device that can be filled."""
        return math.inf if self.gpu.memory_gb is None else USABLE * self.gpu.memory_gb * 1e9

    def speed(self, model: PlannedModel) -> float:
        """Operations a second of a device that are of use for a model."""
        return self.gpu.flops(model.dtype) * self.mfu

    # Memory, in bytes.

    def working(self, side: Side) -> float:
        """What scoring needs beside the weights."""
        model = side.model
        element = 4 if model.dtype == "float32" else 2
        states = self.budget * element * (10 * model.hidden + 5 * model.intermediate)
        kept = min(side.work.shared * model.kv_bytes, self.limits.kv_cache_mb << 20)
        return states + HEAD_BLOCK[self.kind] + kept

    def decoding(self) -> float:
        """What drawing needs beside the weights."""
        if self.sampling is None:
            return 0.0
        return self.batch("local") * (self.sampling.prompt + self.sampling.response) * self.sampling.model.kv_bytes

    def batch(self, where: str) -> int:
        """Responses that are drawn together."""
        return DECODE_BATCH["cpu" if self.kind == "cpu" else where]

    def context(self) -> float:
        """Bytes that a process takes on a device before anything is loaded."""
        return 0.0 if self.kind == "cpu" else CONTEXT_GB * 1e9

    def spread(self, weights: float, rest: float) -> tuple[int | None, float]:
        """Over how many devices layers must be spread, and the bytes of each; None where there are not enough."""
        for count in range(1, self.cluster.count + 1):
            if weights / count + rest + self.context() <= self.room:
                return count, weights / count + rest + self.context()
        return None, weights / self.cluster.count + rest + self.context()

    def parallel(self, side: Side, count: int, weights: float | None = None) -> tuple[int | None, float]:
        """Tensor-parallel size of a server, and the bytes of each device."""
        cache = IN_FLIGHT * side.work.longest * side.model.kv_bytes
        states = self.budget * 2 * (10 * side.model.hidden + 5 * side.model.intermediate)
        held = math.inf
        for size in (1, 2, 4, 8, 16):
            if size > count or side.model.heads % size:
                break
            held = ((weights or side.model.weight_bytes) + cache) / size + states + self.context()
            if held <= self.room:
                return size, held
        return None, held

    # Seconds on one device.

    def scoring(self, side: Side) -> float:
        """Seconds of our engine: the slowest of products, reading weights and starting operations."""
        model, packs = side.model, side.work.tokens / self.budget
        products = side.flops.ideal / self.speed(model)
        if self.kind == "cpu":
            return products
        return max(
            products, packs * model.weight_bytes / (self.gpu.bandwidth_gb_s * 1e9), packs * model.layers * LAUNCH_S
        )

    def drawing(self, where: str) -> float:
        """Seconds of drawing all responses: steps of a batch, each bound by memory, products or the host."""
        if self.sampling is None:
            return 0.0
        policy, model = self.sampling, self.sampling.model
        batch = min(self.batch(where), max(1.0, policy.prompts * policy.samples / self.cluster.count))
        bandwidth = DECODE_BANDWIDTH * self.gpu.bandwidth_gb_s * 1e9
        kept = batch * (policy.prompt + policy.response / 2) * model.kv_bytes
        step = max(
            (model.weight_bytes + kept) / bandwidth, batch * (model.costs.token + model.costs.row) / self.speed(model)
        )
        if where == "local":
            step = max(step, model.layers * DECODE_HOST_S)
        steps = policy.prompts * policy.samples / batch * policy.response
        return steps * step + policy.prompts * policy.prompt * model.costs.token / self.speed(model)

    def loading(self, *models: PlannedModel) -> float:
        """Seconds until the models' weights are read."""
        return sum(model.weight_bytes for model in models) / LOADING_BYTES_S

    # Arrangements.

    def arrangements(self) -> list[Arrangement]:
        """Every way to run it, the simplest first."""
        found = [self.together(), self.sequential()]
        if self.kind == "gpu":
            found += [self.servers(), self.servers(cached=False)]
        return [*found, self.ray()]

    def together(self) -> Arrangement:
        """Both models on each device."""
        models = {side.model.base: side.model for side in (self.strong, self.weak)}
        if self.sampling is not None:
            models[self.sampling.model.base] = self.sampling.model
        weights = sum(model.weight_bytes for model in models.values())
        weights += 2 * sum(side.model.adapter_parameters for side in (self.strong, self.weak))
        rest = self.working(self.strong) + self.working(self.weak) + self.decoding()
        count, held = self.spread(weights, rest)
        work = self.scoring(self.strong) + self.scoring(self.weak) + self.drawing("local")
        seconds = self.loading(*models.values()) + work / self.replicas(count)
        one = "share one set of weights" if self.shared else "both in each process"
        return self.made("together", f"models {one}", count, held, seconds)

    def sequential(self) -> Arrangement:
        """One model after the other, each on all devices."""
        sides = (self.strong, self.weak)
        needs = [self.spread(side.model.weight_bytes, self.working(side)) for side in sides]
        if self.sampling is not None:
            needs.append(self.spread(self.sampling.model.weight_bytes, self.decoding()))
        if any(count is None for count, _ in needs):
            return self.made("sequential", "load: sequential", None, max(held for _, held in needs), 0.0)
        counts = [count or 1 for count, _ in needs]
        seconds = sum(
            self.loading(side.model) + self.scoring(side) / self.replicas(count)
            for side, count in zip(sides, counts, strict=False)
        )
        if self.sampling is not None:
            seconds += self.loading(self.sampling.model) + self.drawing("local") / self.replicas(counts[-1])
        return self.made("sequential", "load: sequential", max(counts), max(held for _, held in needs), seconds)

    def servers(self, *, cached: bool = True) -> Arrangement:
        """A server for each model; `cached`: one that keeps what prompts share."""
        name = "servers, cached" if cached else "servers, uncached"
        api = "SGLang, or vLLM's token-in API" if cached else "vLLM's /v1/completions"
        flops = {id(side): side.flops.ideal if cached else side.flops.naive for side in (self.strong, self.weak)}

        def seconds(side: Side, devices: int, size: int) -> float:
            counted = flops[id(side)]
            speed = self.speed(side.model) * float(PARALLEL ** math.log2(size))
            packs = side.work.tokens * counted / side.flops.ideal / SERVER_PACK
            weights = packs * side.model.weight_bytes / (self.gpu.bandwidth_gb_s * 1e9)
            host = packs * side.model.layers * SERVER_LAUNCH_S * size  # one host process drives all of them at once
            return max(counted / speed, weights, host) / devices

        total = self.cluster.count
        drawing = self.served_drawing()
        if self.shared:
            size, held = self.parallel(self.strong, total)
            if size is None:
                return self.made(name, api, None, held, 0.0)
            used = total // size * size
            spent = seconds(self.strong, used, size) + seconds(self.weak, used, size)
            how = f"{api}: {used // size} x TP {size}, the adapter by its name"
            return self.served(name, how, held, self.loading(self.strong.model) + spent + drawing)
        sizes = [self.parallel(side, total) for side in (self.strong, self.weak)]
        held = max(bytes_ for _, bytes_ in sizes)
        (strong, _), (weak, _) = sizes
        if strong is None or weak is None or strong + weak > total:
            return self.made(name, api, None, held, 0.0, why=self.lacking(sizes))
        splits = [
            (max(seconds(self.strong, mine, strong), seconds(self.weak, (total - mine) // weak * weak, weak)), mine)
            for mine in range(strong, total - weak + 1, strong)
        ]
        spent, mine = min(splits)
        others = (total - mine) // weak
        how = f"{api}: strong {mine // strong} x TP {strong}, weak {others} x TP {weak}"
        loading = max(self.loading(self.strong.model), self.loading(self.weak.model))
        return self.served(name, how, held, loading + spent + drawing)

    def lacking(self, sizes: Sequence[tuple[int | None, float]]) -> str:
        """Why the devices are too few for a server of each model; empty where nothing would help."""
        if any(size is None for size, _ in sizes):
            return ""
        return f"needs {sum(size or 0 for size, _ in sizes)} {self.gpu.name}: a server for each model"

    def served_drawing(self) -> float:
        """Seconds of drawing all responses on servers, before any is scored."""
        if self.sampling is None:
            return 0.0
        return self.drawing("server") / self.cluster.count + self.loading(self.sampling.model)

    def ray(self) -> Arrangement:
        """Pools of actors on a Ray cluster."""
        total = self.cluster.count
        if self.shared:
            alone = self.together()
            return Arrangement(
                "ray",
                "one pool of actors, both sides in each",
                alone.fits,
                alone.memory_gb,
                alone.seconds,
                alone.gpu_hours,
                alone.why,
            )
        needs = [self.spread(side.model.weight_bytes, self.working(side)) for side in (self.strong, self.weak)]
        held = max(bytes_ for _, bytes_ in needs)
        (strong, _), (weak, _) = needs
        if strong is None or weak is None:
            return self.made("ray", "a pool of actors a model", None, held, 0.0)
        if strong + weak > total:
            return self.made(
                "ray",
                "a pool of actors a model",
                None,
                held,
                0.0,
                why=f"needs {strong + weak} {self.gpu.name}: a pool for each model",
            )
        splits = [
            (
                max(self.scoring(self.strong) / (mine // strong), self.scoring(self.weak) / ((total - mine) // weak)),
                mine,
            )
            for mine in range(strong, total - weak + 1, strong)
        ]
        spent, mine = min(splits)
        seconds = spent + max(self.loading(self.strong.model), self.loading(self.weak.model))
        if self.sampling is not None:
            count, _ = self.spread(self.sampling.model.weight_bytes, self.decoding())
            seconds += self.loading(self.sampling.model) + self.drawing("local") / self.replicas(count)
        how = f"--engine ray: strong {mine // strong}, weak {(total - mine) // weak} actors"
        if max(strong, weak) > 1:
            how += f" of {strong} and {weak} GPUs (device_map: auto)"
        return self.served("ray", how, held, seconds)

    def replicas(self, count: int | None) -> int:
        """How many copies of something that takes `count` devices there are."""
        return max(1, self.cluster.count // (count or self.cluster.count))

    def served(self, name: str, how: str, held: float, seconds: float) -> Arrangement:
        """An arrangement in which the devices are busy all the time."""
        fits = None if self.kind == "cpu" else True
        return Arrangement(name, how, fits, held / 1e9, seconds, seconds / 3600 * self.cluster.count)

    def made(
        self, name: str, how: str, count: int | None, held: float, seconds: float, *, why: str = ""
    ) -> Arrangement:
        """An arrangement in which each process has `count` devices."""
        if count is None:
            room = f"{held / 1e9:,.0f} GB a device, {self.room / 1e9:,.0f} can be filled"
            return Arrangement(name, how, False, held / 1e9, None, None, why or room)
        processes = self.replicas(count)
        how += f": {processes} {'process' if processes == 1 else 'processes'}"
        if count > 1:
            how += f" of {count} {self.gpu.name} (device_map: auto, one works at a time)"
        return self.served(name, how, held, seconds)
