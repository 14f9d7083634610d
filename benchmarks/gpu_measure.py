"""What `gpu_check` measures on a device: ways side by side on one model, and what only a GPU can tell.

Needs torch, transformers and the engine, nothing else of this package's dependencies. Knows no phases or budgets.
"""

from __future__ import annotations

import copy
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import methods
from benchmarks.measure import Timing, alternate
from benchmarks.methods import Method
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.local import ways
from gdr_plugin.models.local.compiling import reason
from gdr_plugin.models.local.engine import Engine
from gdr_plugin.models.local.flex import Flex
from gdr_plugin.models.local.kernels import Kernel
from gdr_plugin.models.local.network import Network
from gdr_plugin.models.local.varlen import Varlen
from gdr_plugin.planning.flops import flops

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Scorer", "attention_rows", "build", "compare", "exact", "matmul", "spans_of", "tiny_models"]

CONFIGS: dict[str, dict[str, Any]] = {
    "7B": {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
    },
    "0.5B": {
        "model_type": "qwen2",
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}
"""Shapes of Llama-3-8B and Qwen2.5-0.5B."""
TINY: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
}
FLAVOURS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2"},
    "mistral, window of 64": {"model_type": "mistral", "sliding_window": 64},
    "gemma2, soft-capping": {"model_type": "gemma2", "sliding_window": 64, "query_pre_attn_scalar": 16},
}


class Scorer:
    """The engine on a model, keeping nothing between calls; the part of a `LogprobModel` that is measured.

    Args:
        model: On its device.
        attention: Ways to attend over packed rows; None: the device's own.
    """

    def __init__(self, model: PreTrainedModel, attention: ways.Ways | None = None) -> None:
        net = Network(model)
        if attention is not None:
            net.ways = attention
        self.engine = Engine(net)

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        """Log-probs of every span."""
        with torch.inference_mode():
            return self.engine.score(spans)


def build(shape: dict[str, Any], device: torch.device, dtype: torch.dtype, **spread: float) -> PreTrainedModel:
    """A model with random weights, made on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {"max_position_embeddings": 8192, **shape, **spread}
    config = AutoConfig.for_model(**options)
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.to(device).train(False)  # type: ignore[arg-type]


def spans_of(shape: tuple[int, int, int], vocabulary: int, *, lengths: tuple[int, int] = (60, 180)) -> list[TokenSpan]:
    """Random ids: so many prompts with so many responses each, behind so many tokens of guidance."""
    prompts, responses, guidance = shape
    draw = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, vocabulary) for _ in range(count))

    shared = ids(guidance)
    contexts = [shared + ids(draw.randint(30, 60)) for _ in range(prompts)]
    return [TokenSpan(context, ids(draw.randint(*lengths))) for context in contexts for _ in range(responses)]


def compare(
    model: PreTrainedModel, others: dict[str, Scorer], spans: Sequence[TokenSpan], rounds: int, speed: float
) -> tuple[list[dict[str, Any]], dict[str, dict[int, Logprobs]]]:
    """Run one sequence at a time, padded batches and ours in turn on one workload.

    Args:
        model: What all of them run.
        others: Our engines by name.
        spans: The work.
        rounds: Runs of each.
        speed: FLOP/s of a matrix product on this device.

    Returns:
        One row a way, with seconds, memory above the model in MiB, the useful share of `speed` and waits of the host
        for each pack; and each way's log-probs by place.
    """
    dtype, device = str(model.dtype).removeprefix("torch."), model.device
    every = [methods.naive(model, spans), methods.padded(model, spans)]
    every += [methods.ours(scorer, spans, dtype, name) for name, scorer in others.items()]  # type: ignore[arg-type]
    for method in every:
        assert method.heaviest is not None
        method.heaviest()  # loads and compiles kernels, and lets ours check itself
    memory = [_peak(method, device) for method in every]
    timings = alternate(every, rounds, say=lambda what: None)
    config = model.config.get_text_config(decoder=True)
    decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    body = sum(m.weight.numel() for m in decoder.modules() if isinstance(m, torch.nn.Linear))
    least = flops(spans, config, body).ideal
    rows = []
    for timing, peak_mb in zip(timings, memory, strict=True):
        row: dict[str, Any] = {"method": timing.method.name, "dtype": dtype}
        if timing.failed:
            rows.append(row | {"failed": timing.failed})
            continue
        row |= {"seconds": [round(found, 5) for found in timing.seconds], "median_s": timing.median}
        row |= {"peak_mb": peak_mb, "useful_mfu": round(least / timing.median / speed, 4)}
        scorer = others.get(timing.method.name)
        if scorer is not None:
            row |= _of_ours(scorer, spans, timing, device)
        rows.append(row)
    return rows, {timing.method.name: timing.logprobs for timing in timings if not timing.failed}


def _of_ours(scorer: Scorer, spans: Sequence[TokenSpan], timing: Timing, device: torch.device) -> dict[str, Any]:
    packs = len(scorer.engine.plan(spans))
    return {
        "packs": packs,
        "token_budget": scorer.engine.tokens,
        "strategy": scorer.engine.strategy.words,
        "attention": scorer.engine.attention,
        "host_waits": _waits(timing.method, device, packs),
    }


def _peak(way: Method, device: torch.device) -> float | None:
    """Most memory of the device that a way needs above what is loaded, in MiB; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    assert way.heaviest is not None
    way.heaviest()
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)


def _waits(way: Method, device: torch.device, packs: int) -> float | None:
    """How often a run makes the host wait for the device, for each pack, its own fetch included; None on the CPU."""
    if device.type != "cuda":
        return None
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            way.parts[0]()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    # Waiting for an event, as each pack's fetch does once, is no warning.
    return 1 + sum("synchroniz" in str(warning.message) for warning in found) / packs


def exact(
    model: PreTrainedModel, spans: Sequence[TokenSpan], found: dict[str, dict[int, Logprobs]], count: int
) -> dict[str, dict[str, float]]:
    """How far tokens are from the same weights in float32, one sequence at a time, on the same device.

    Args:
        model: In its own dtype; a copy is converted.
        spans: The work.
        found: Each way's log-probs by place.
        count: How many spans are compared, spread over the work.
    """
    places = list(range(0, len(spans), max(1, len(spans) // count)))[:count]
    reference: Any = copy.deepcopy(model).float()
    truth = methods.naive(reference, [spans[place] for place in places])
    expected = {place: part for run in truth.parts for place, part in run().items()}
    errors = {}
    for name, logprobs in found.items():
        apart = np.concatenate([np.abs(logprobs[place] - expected[i]) for i, place in enumerate(places)])
        errors[name] = {"mean_nats": float(apart.mean()), "max_nats": float(apart.max())}
    return errors


def matmul(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large product of random numbers (zeros would be faster), the median of some."""
    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(13):
        _settle(device)
        start = time.perf_counter()
        a @ b
        _settle(device)
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / statistics.median(times[3:])


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def attention_rows(device: torch.device, save: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """Each way to attend over a packed row against attention written out, on the device's own kernels."""
    rows: list[dict[str, Any]] = []
    cases: list[tuple[ways.Way, torch.dtype, int, int | None, float | None]] = [
        (Varlen(), torch.bfloat16, 128, None, None),
        (Varlen(), torch.float16, 64, None, None),
        (ways.Segments(), torch.bfloat16, 128, None, None),
        (Flex(), torch.bfloat16, 128, None, None),
        (Flex(), torch.bfloat16, 128, 9, 30.0),
        (Flex(), torch.float32, 64, 9, None),
    ]
    for way, dtype, width, window, softcap in cases:
        row: dict[str, Any] = {"way": way.name, "dtype": str(dtype).removeprefix("torch."), "width": width}
        row |= {"window": window, "softcap": softcap}
        query = torch.empty(8, 1, width, device=device, dtype=dtype)
        start = time.perf_counter()
        try:
            if device.type != "cuda" and not isinstance(way, ways.Segments):
                raise NotImplementedError("this way needs a GPU")
            row["off"] = ways.check(way, query, query[:2], Kernel(width**-0.5, window, softcap))
            row["passed"] = row["off"] <= (5e-3 if dtype == torch.float32 else 3e-2)
        except Exception as error:  # the others are still worth knowing
            row |= {"failed": reason(error), "passed": False if device.type == "cuda" else None}
        row["seconds"] = round(time.perf_counter() - start, 3)
        rows.append(row)
        save(rows)
    return rows


def tiny_models(device: torch.device, save: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """Small models of several architectures by the engine against one sequence at a time, on the same device."""
    rows: list[dict[str, Any]] = []
    for dtype in (torch.bfloat16, torch.float32):
        for name, flavour in FLAVOURS.items():
            # More spread than usual, so that a wrong mask shows.
            model = build({**TINY, **flavour}, device, dtype, initializer_range=0.15)
            spans = spans_of((3, 3, 40), TINY["vocab_size"], lengths=(1, 40))
            scorer = Scorer(model)
            got = scorer.score(spans)
            plain = methods.naive(model, spans)
            expected = {place: part for run in plain.parts for place, part in run().items()}
            apart = np.concatenate([np.abs(got[place] - expected[place]) for place in expected])
            limit = 1e-3 if dtype == torch.float32 else 0.15
            rows.append(
                {
                    "model": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "mean_nats": float(apart.mean()),
                    "max_nats": float(apart.max()),
                    "strategy": scorer.engine.strategy.words,
                    "attention": scorer.engine.attention,
                    "passed": bool(apart.mean() <= limit),
                }
            )
            save(rows)
    return rows
