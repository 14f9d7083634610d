"""From work, models and devices to memory, hours and a recommendation.

All that is assumed is a constant of this module and is printed with the plan. Knows how the package runs models;
reads no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gdr_plugin.api.settings import Limits
from gdr_plugin.planning.flops import Flops
from gdr_plugin.planning.gpus import Cluster, Gpu, gpus
from gdr_plugin.planning.models import PlannedModel
from gdr_plugin.planning.work import SideWork

__all__ = ["Arrangement", "Plan", "Sampling", "Side", "make_plan"]

MFU = {"gpu": 0.40, "cpu": 0.60}
"""Share of the device's matrix-multiply speed that is of use. On CPU measured (benchmarks); on GPUs assumed."""
USABLE = 0.92
"""Share of a GPU's memory that can be filled."""
CONTEXT_GB = 1.0
"""Memory that a process takes on a GPU before anything is loaded."""
TOKENS = {"gpu": 16_384, "cpu": 2_048}
"""Tokens of a pack where limits.token_budget is not set."""
HEAD_BLOCK = {"gpu": 256 << 20, "cpu": 8 << 20}
"""Bytes of logits that exist at once."""
LAUNCH_S = 350 * 5e-6
"""Seconds in which the host starts the operations of one layer for one pack: 350 of them, 5 microseconds each."""
SERVER_PACK = 8_192
"""Tokens that a server computes at once."""
SERVER_LAUNCH_S = 60 * 5e-6
"""Seconds in which a server starts the operations of one layer for one of its batches."""
LOADING_BYTES_S = 1e9
"""Bytes a second at which weights come from a disk."""
PARALLEL = 0.9
"""What tensor parallelism keeps of the speed each time the number of GPUs doubles."""
IN_FLIGHT = 16
"""Sequences that a scoring server has in its cache at once."""
DECODE_BATCH = {"local": 64, "cpu": 32, "server": 256}
"""Responses that are drawn together."""
DECODE_HOST_S = 0.8e-3
"""Seconds a layer and step in which transformers starts what one step of decoding needs; servers record it once."""
DECODE_BANDWIDTH = 0.6
"""Share of the memory's bandwidth that decoding reaches."""
CLOSE = 1.1
"""A simpler arrangement is recommended if it takes at most this much longer."""


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
class Plan:
    """What `gdr plan` says."""

    cluster: Cluster
    sides: Mapping[str, Side]
    """`strong` and `weak`."""
    sampling: Sampling | None
    mfu: float
    budget: int
    """Tokens of a pack."""
    scoring_seconds: float
    """With shared prefixes computed once, all devices at work all the time."""
    naive_seconds: float
    """The same with every sequence by itself."""
    sampling_seconds: float | None
    """Of drawing the responses with transformers on all devices; None without a policy."""
    arrangements: tuple[Arrangement, ...]
    recommendation: str
    assumptions: tuple[str, ...] = field(default=())

    @property
    def flops(self) -> Flops:
        """Operations of scoring, both models."""
        return sum((side.flops for side in self.sides.values()), Flops(0.0, 0.0))


@dataclass(frozen=True, slots=True)
class _Planner:
    strong: Side
    weak: Side
    sampling: Sampling | None
    cluster: Cluster
    limits: Limits
    mfu: float

    @property
    def gpu(self) -> Gpu:
        return self.cluster.gpu

    @property
    def kind(self) -> str:
        return "cpu" if self.gpu.on_cpu else "gpu"

    @property
    def budget(self) -> int:
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
        return DECODE_BATCH["cpu" if self.kind == "cpu" else where]

    def context(self) -> float:
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
        return sum(model.weight_bytes for model in models) / LOADING_BYTES_S

    # Arrangements.

    def arrangements(self) -> list[Arrangement]:
        found = [self.together(), self.sequential()]
        if self.kind == "gpu":
            found += [self.servers(), self.servers(cached=False)]
        return [*found, self.ray()]

    def together(self) -> Arrangement:
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
        if any(size is None for size, _ in sizes):
            return ""
        return f"needs {sum(size or 0 for size, _ in sizes)} {self.gpu.name}: a server for each model"

    def served_drawing(self) -> float:
        if self.sampling is None:
            return 0.0
        return self.drawing("server") / self.cluster.count + self.loading(self.sampling.model)

    def ray(self) -> Arrangement:
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
        return max(1, self.cluster.count // (count or self.cluster.count))

    def served(self, name: str, how: str, held: float, seconds: float) -> Arrangement:
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


def make_plan(
    strong: Side,
    weak: Side,
    cluster: Cluster,
    limits: Limits,
    *,
    sampling: Sampling | None = None,
    mfu: float | None = None,
    assumptions: Sequence[str] = (),
) -> Plan:
    """Plan a run.

    Args:
        strong: The strong model with its work.
        weak: The weak model with its work.
        cluster: The devices.
        limits: Token budget and memory for guidance, as gdr.yaml has them.
        sampling: The policy, where responses are drawn.
        mfu: Share of the matrix-multiply speed that is of use; None: what `MFU` says.
        assumptions: What was assumed before.

    Raises:
        ConfigError: The devices do not compute in a model's dtype.
    """
    kind = "cpu" if cluster.gpu.on_cpu else "gpu"
    share = MFU[kind] if mfu is None else mfu
    planner = _Planner(strong, weak, sampling, cluster, limits, share)
    arrangements = tuple(planner.arrangements())
    naive = sum(side.flops.naive / planner.speed(side.model) for side in (strong, weak)) / cluster.count
    ideal = sum(side.flops.ideal / planner.speed(side.model) for side in (strong, weak)) / cluster.count
    drawing = None if sampling is None else planner.drawing("local") / cluster.count
    notes = [*assumptions, *_assumptions(planner)]
    return Plan(
        cluster,
        {"strong": strong, "weak": weak},
        sampling,
        share,
        planner.budget,
        ideal,
        naive,
        drawing,
        arrangements,
        _recommendation(arrangements, planner),
        tuple(dict.fromkeys(notes)),
    )


def _assumptions(planner: _Planner) -> list[str]:
    gpu, shared = planner.gpu, planner.strong.work.shared + planner.weak.work.shared
    notes = [*planner.strong.model.notes, *planner.weak.model.notes]
    if planner.sampling is not None:
        notes += planner.sampling.model.notes
    peaks = {side.model.dtype: gpu.flops(side.model.dtype) / 1e12 for side in (planner.strong, planner.weak)}
    speeds = ", ".join(f"{peak:g} TFLOP/s in {dtype}" for dtype, peak in peaks.items())
    measured = "as measured here" if planner.kind == "cpu" else "assumed: nothing of ours has been measured on one"
    notes.append(f"{gpu.name}: {speeds} ({gpu.source}), of which {planner.mfu:.0%} are of use ({measured}; --mfu)")
    domains = len(planner.strong.work.guidance)
    if domains > 1 and shared:
        notes.append(f"each of the {domains} domains has an equal share of the prompts")
    notes.append("no two responses to a prompt are equal or begin alike, and none is in the store")
    for name, side in (("strong", planner.strong), ("weak", planner.weak)):
        needed = side.work.shared * side.model.kv_bytes / (1 << 20)
        if needed > planner.limits.kv_cache_mb:
            notes.append(
                f"{name}: the guidance of all domains takes {needed:,.0f} MiB of keys and values, more than "
                f"limits.kv_cache_mb ({planner.limits.kv_cache_mb:,}): raise it, or some is computed again"
            )
    if planner.kind == "cpu":
        return [*notes, "one process of one thread a core; the memory of the machine is not known"]
    notes += [
        f"{USABLE:.0%} of the memory can be filled, {CONTEXT_GB:g} GB of it by CUDA; weights load at "
        f"{LOADING_BYTES_S / 1e9:g} GB/s",
        f"packs of {planner.budget:,} tokens, of {SERVER_PACK:,} on servers; the host starts the operations of a layer "
        f"in {LAUNCH_S * 1e3:.2f} ms, on servers in {SERVER_LAUNCH_S * 1e3:.2f} ms",
        f"servers keep {PARALLEL:.0%} of the speed each time tensor parallelism (TP) doubles, and {IN_FLIGHT} "
        "sequences in their caches",
    ]
    if planner.sampling is not None:
        notes.append(
            f"drawing: {DECODE_BATCH['local']} responses at once here, {DECODE_BATCH['server']} on a server; "
            f"{DECODE_BANDWIDTH:.0%} of the memory's bandwidth; transformers takes {DECODE_HOST_S * 1e3:g} ms a layer "
            "and step"
        )
    return notes


def _recommendation(arrangements: Sequence[Arrangement], planner: _Planner) -> str:
    possible = [one for one in arrangements if one.seconds is not None]
    if not possible:
        return f"Nothing fits on {planner.cluster}: {_larger(planner)}."
    least = min(one.seconds or 0.0 for one in possible)
    best = next(one for one in possible if (one.seconds or 0.0) <= CLOSE * least)
    spent = f"{duration(best.seconds or 0.0)} on {planner.cluster}, {best.gpu_hours or 0.0:,.1f} GPU-hours"
    if planner.kind == "cpu":
        spent = f"{duration(best.seconds or 0.0)} on {planner.cluster}s"
    also = "" if best.seconds == least else f", within {CLOSE - 1:.0%} of the fastest way and the simplest"
    return f"Run it {_WORDS[best.name]} ({best.how}): about {spent}{also}."


_WORDS = {
    "together": "with both models together",
    "sequential": "with one model after the other",
    "servers, cached": "through servers that keep what prompts share",
    "servers, uncached": "through vLLM servers",
    "ray": "with Ray",
}


def _larger(planner: _Planner) -> str:
    """Which number of which GPU the larger model would fit on."""
    largest = max((planner.strong, planner.weak), key=lambda side: side.model.weight_bytes)
    options = []
    for gpu in gpus():
        for count in (1, 2, 4, 8):
            one = _Planner(
                planner.strong, planner.weak, planner.sampling, Cluster(count, gpu), planner.limits, planner.mfu
            )
            if gpu.memory_gb is None or getattr(gpu, largest.model.dtype) is None:
                continue
            if one.sequential().fits:
                options.append((count * gpu.memory_gb, count, gpu.name))
                break
    if not options:
        return "no single machine of the table is large enough: quantise the models, or take smaller ones"
    _, count, name = min(options)
    return f"--gpus {count}x{name} would do, with one model after the other (load: sequential)"


def duration(seconds: float) -> str:
    """A time that people can read: `40 s`, `12 min`, `3.4 h`, `5.2 days`."""
    if seconds < 90:
        return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:,.1f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} days"
