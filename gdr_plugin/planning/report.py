"""A plan as tables and as JSON. Knows how figures are written; computes none."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gdr_plugin.planning.arrangements import Arrangement, Side
from gdr_plugin.planning.plan import Plan, duration
from gdr_plugin.report.tables import Table

__all__ = ["plan_json", "plan_tables"]


def plan_tables(plan: Plan, price: float | None = None) -> list[Table]:
    """The plan's tables: models, work, arrangements.

    Args:
        plan: The plan.
        price: Of one GPU for an hour, where costs are to be shown.
    """
    return [_models(plan), _work(plan), _arrangements(plan, price)]


def _models(plan: Plan) -> Table:
    named = [*((name, side.model) for name, side in plan.sides.items())]
    if plan.sampling is not None:
        named.append(("policy", plan.sampling.model))
    rows = [
        [
            role,
            model.name,
            _count(model.parameters),
            _count(model.active + model.adapter_parameters),
            model.dtype,
            f"{model.weight_bytes / 1e9:,.1f} GB",
            f"{model.kv_bytes / 1e3:,.0f} KB",
        ]
        for role, model in named
    ]
    headers = ("", "model", "parameters", "used a token", "dtype", "weights", "keys and values a token")
    note = ""
    if plan.sides["strong"].model.base == plan.sides["weak"].model.base:
        note = "Both sides share one set of weights."
    return Table("models", headers, rows, note)


def _work(plan: Plan) -> Table:
    rows = [_side(name, side) for name, side in plan.sides.items()]
    total = plan.flops
    rows.append(
        ["both", "", "", "", "", _flops(total.ideal), _flops(total.naive), f"{total.naive / total.ideal:,.1f} x"]
    )
    if plan.sampling is not None:
        drawn = plan.sampling
        rows.append(
            [
                "policy",
                "",
                f"{drawn.prompt:,.0f}",
                f"{drawn.response:,.0f}",
                _count(drawn.prompts * (drawn.prompt + drawn.samples * drawn.response)),
                _flops(drawn.flops),
                "",
                "",
            ]
        )
    headers = ("", "guidance", "prompt", "response", "tokens computed", "operations", "naive", "naive is")
    note = (
        "Lengths in tokens, guidance as its shortest and longest. Operations: with every shared prefix once; naive: "
        "every prompt with every response by itself, logits for every token."
    )
    first = plan.sides["strong"].work
    return Table(f"work: {first.prompts:,.0f} prompts x {first.samples:,.3g} responses", headers, rows, note)


def _side(name: str, side: Side) -> list[str]:
    work, counted = side.work, side.flops
    low, high = min(work.guidance), max(work.guidance)
    return [
        name,
        f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}",
        f"{work.lengths.prompt:,.0f}",
        f"{work.lengths.response:,.0f}",
        _count(work.tokens),
        _flops(counted.ideal),
        _flops(counted.naive),
        f"{counted.naive / counted.ideal:,.1f} x",
    ]


def _arrangements(plan: Plan, price: float | None) -> Table:
    headers = ["", "how", "memory a device", "time", "GPU-hours"]
    if plan.cluster.gpu.on_cpu:
        headers = ["", "how", "memory a process", "time", "core-hours"]
    if price is not None:
        headers.append("cost")
    rows = [_arrangement(one, price) for one in plan.arrangements]
    note = (
        f"The operations alone, all devices at work all the time, are {duration(plan.scoring_seconds)} of scoring; "
        f"naive {duration(plan.naive_seconds)}."
    )
    if plan.sampling_seconds is not None:
        note += f" Drawing the responses without a server is {duration(plan.sampling_seconds)} or more of the times."
    return Table(f"on {plan.cluster}", headers, rows, note)


def _arrangement(one: Arrangement, price: float | None) -> list[str]:
    row = [one.name, one.how, f"{one.memory_gb:,.1f} GB"]
    if one.seconds is None or one.gpu_hours is None:
        row = [one.name, f"{one.how}: does not fit: {one.why}", f"{one.memory_gb:,.1f} GB", "-", "-"]
        return row if price is None else [*row, "-"]
    row += [duration(one.seconds), f"{one.gpu_hours:,.1f}"]
    return row if price is None else [*row, f"{one.gpu_hours * price:,.2f}"]


def plan_json(plan: Plan, price: float | None = None) -> dict[str, Any]:
    """The plan for machines; seconds, bytes, operations.

    Args:
        plan: The plan.
        price: As for `plan_tables`.
    """
    sides = {
        name: {
            "model": _without_chat(side),
            "guidance_tokens": list(side.work.guidance),
            "prompt_tokens": side.work.lengths.prompt,
            "response_tokens": side.work.lengths.response,
            "tokens": side.work.tokens,
            "head_rows": side.work.rows,
            "flops": side.flops.ideal,
            "flops_naive": side.flops.naive,
        }
        for name, side in plan.sides.items()
    }
    work = plan.sides["strong"].work
    drawn = plan.sampling
    return {
        "gpus": {"count": plan.cluster.count, **asdict(plan.cluster.gpu)},
        "prompts": work.prompts,
        "samples": work.samples,
        **sides,
        "policy": None
        if drawn is None
        else {"model": drawn.model.name, "flops": drawn.flops, "seconds": plan.sampling_seconds},
        "flops": plan.flops.ideal,
        "flops_naive": plan.flops.naive,
        "scoring_seconds": plan.scoring_seconds,
        "naive_seconds": plan.naive_seconds,
        "mfu": plan.mfu,
        "token_budget": plan.budget,
        "arrangements": [
            {**asdict(one), "cost": None if price is None or one.gpu_hours is None else one.gpu_hours * price}
            for one in plan.arrangements
        ],
        "recommendation": plan.recommendation,
        "assumptions": list(plan.assumptions),
    }


def _without_chat(side: Side) -> dict[str, Any]:
    model = side.model
    names = ("name", "adapter", "served", "dtype", "parameters", "active", "adapter_parameters", "weight_bytes")
    more = ("layers", "attention_layers", "hidden", "heads", "kv_heads", "vocab", "kv_bytes", "length")
    return {name: getattr(model, name) for name in (*names, *more)}


def _count(number: float) -> str:
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _flops(number: float) -> str:
    for size, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if number >= size:
            return f"{number / size:,.3g} {unit}"
    return f"{number / 1e9:,.3g} GFLOP"
