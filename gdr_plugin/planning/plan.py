"""From work, models and devices to a plan: every arrangement, a recommendation, and what was assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gdr_plugin.api.settings import Limits
from gdr_plugin.planning.arrangements import Arrangement, Planner, Sampling, Side
from gdr_plugin.planning.assumed import (
    CLOSE,
    CONTEXT_GB,
    DECODE_BANDWIDTH,
    DECODE_BATCH,
    DECODE_HOST_S,
    IN_FLIGHT,
    LAUNCH_S,
    LOADING_BYTES_S,
    MFU,
    PARALLEL,
    SERVER_LAUNCH_S,
    SERVER_PACK,
    USABLE,
)
from gdr_plugin.planning.flops import Flops
from gdr_plugin.planning.gpus import Cluster, gpus

__all__ = ["Plan", "duration", "make_plan"]


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
    planner = Planner(strong, weak, sampling, cluster, limits, share)
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


def _assumptions(planner: Planner) -> list[str]:
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


def _recommendation(arrangements: Sequence[Arrangement], planner: Planner) -> str:
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


def _larger(planner: Planner) -> str:
    """Which number of which GPU the larger model would fit on."""
    largest = max((planner.strong, planner.weak), key=lambda side: side.model.weight_bytes)
    options = []
    for gpu in gpus():
        for count in (1, 2, 4, 8):
            one = Planner(
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
