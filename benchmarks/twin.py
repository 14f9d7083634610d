"""Strong and weak on one set of weights: one pass for both against one for each, and what the adapter itself costs.

    python -m benchmarks.twin [--rounds N] [--dtypes float32,bfloat16] [--threads 1] [--json OUT]

On the demo pair: annotation (3 prompts x 8 responses behind 400 tokens of guidance that nobody keeps), a GRPO-like step
(4 prompts x 4 responses of 32 tokens, no guidance), and requests of few tokens behind guidance that is kept. Beside
ours runs the strong model through peft's own layers. All ways in turn, round by round; medians, ratios and raw seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakValueDictionary

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import machine
from benchmarks.work import Shape, make, read_candidates
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.config.load import load_config
from gdr_plugin.models.local import LocalModel, beside, open_local, weights
from gdr_plugin.models.local.engine import Engine

ROOT = Path(__file__).resolve().parent
PAIR = ROOT.parent / "examples" / "demo-pair" / "gdr.yaml"
REQUESTS = ((1, 8), (1, 20), (1, 60), (2, 60), (4, 60), (8, 60))
"""Responses to one prompt, and tokens of each."""
WAYS = ("strong", "weak", "one pass", "strong by peft")


@dataclass(frozen=True)
class Work:
    """What is asked of both models."""

    name: str
    spans: list[TokenSpan]
    cold: bool = False
    """Whether each run starts with nothing kept."""


def works(model: LocalModel) -> Iterator[Work]:
    """The kinds of work, rendered with the models' template."""
    rows = read_candidates()

    def cut(spans: Sequence[TokenSpan], length: int) -> list[TokenSpan]:
        return [replace(span, response=span.response[:length]) for span in spans]

    yield Work("annotation", make("", Shape(3, 8), rows, model.chat).spans, cold=True)
    yield Work("GRPO step", cut(make("", Shape(4, 4, 0), rows, model.chat).spans, 32))
    for responses, length in REQUESTS:
        yield Work(f"{responses} x {length} tokens", cut(make("", Shape(1, responses), rows, model.chat).spans, length))


def pair(dtype: str) -> tuple[LocalModel, LocalModel, LocalModel]:
    """Strong, weak on the same weights, and strong by peft on weights of its own; all loaded, guidance kept."""
    config = load_config(PAIR)

    def opened(spec: ModelSpec) -> LocalModel:
        model = open_local(spec.model_copy(update={"dtype": dtype}))
        shared = make("", Shape(4, 1), read_candidates(), model.chat).spans
        model.score([replace(span, response=span.response[:2]) for span in shared])
        return model

    with (
        patch.object(weights, "_shared", WeakValueDictionary()),
        patch.object(weights, "run_in_place", lambda *_: False),
    ):
        by_peft = opened(config.strong)
    return opened(config.strong), opened(config.weak), by_peft


def measure(work: Work, models: tuple[LocalModel, LocalModel, LocalModel], rounds: int) -> dict[str, Any]:
    """Run all ways in turn; the first round only warms up."""
    strong, weak, by_peft = models
    ways: tuple[Callable[[], Any], ...] = (
        lambda: strong.score(work.spans),
        lambda: weak.score(work.spans),
        lambda: strong.score_beside(weak, work.spans),
        lambda: by_peft.score(work.spans),
    )
    wall: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    found: dict[str, Any] = {}
    for number in range(rounds + 1):
        for name, way in zip(WAYS, ways, strict=True):
            if work.cold:
                for model in models:
                    engine_of(model).forget()
            start, busy = time.perf_counter(), time.process_time()
            found[name] = way()
            if number:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - busy)
    middle = {way: statistics.median(seconds) for way, seconds in cpu.items()}
    return {
        "work": work.name,
        "new_tokens": engine_of(strong).tokens_of(work.spans),
        "seconds": wall,
        "cpu_seconds": cpu,
        "two_over_one": (middle["strong"] + middle["weak"]) / middle["one pass"],
        "adapter": middle["strong"] / middle["weak"] - 1,
        "adapter_by_peft": middle["strong by peft"] / middle["weak"] - 1,
        "error": max(apart(a, b) for a, b in zip(found["one pass"], (found["strong"], found["weak"]), strict=True)),
    }


def engine_of(model: LocalModel) -> Engine:
    """A loaded model's engine."""
    assert model._engine is not None
    return model._engine


def apart(got: Sequence[Logprobs], expected: Sequence[Logprobs]) -> float:
    """The largest difference of a token, in nats."""
    return max(float(np.abs(a - b).max()) for a, b in zip(got, expected, strict=True))


def main() -> None:
    """Measure, print a table and write the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of annotation; small work runs four times as often")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "twin.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results: list[dict[str, Any]] = []
    table = Table("dtype", "work", "strong s", "weak s", "one pass s", "two/one", "adapter", "by peft", "error")
    for dtype in given.dtypes.split(","):
        models = pair(dtype)
        with patch.object(beside, "MOST_TOKENS", {"cpu": 1 << 30}):
            for work in works(models[0]):
                one = measure(work, models, given.rounds if work.cold else 4 * given.rounds)
                results.append({"dtype": dtype, "threads": given.threads, **one})
                seconds = (f"{statistics.median(one['cpu_seconds'][way]):.4f}" for way in WAYS[:3])
                shares = (f"{one[key]:+.1%}" for key in ("adapter", "adapter_by_peft"))
                table.add_row(dtype, work.name, *seconds, f"{one['two_over_one']:.3f}", *shares, f"{one['error']:.1e}")
        for model in models:
            model.unload()
    Console(width=120).print(table, "Processor seconds, medians; the JSON file has every run, by the wall clock too.")
    given.json.parent.mkdir(exist_ok=True)
    given.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
