"""The phases of `gpu_check`: what is run, on which models and which work.

Knows nothing of budgets, files or verdicts. A phase is given the run and a function that keeps what it has so far.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import transformers

from benchmarks.gpu_measure import (
    CONFIGS,
    TINY,
    Scorer,
    attention_rows,
    build,
    compare,
    exact,
    matmul,
    spans_of,
    tiny_models,
)
from gdr_plugin.models.local.flex import Flex
from gdr_plugin.models.local.varlen import Varlen
from gdr_plugin.models.local.ways import Ways

if TYPE_CHECKING:
    from benchmarks.gpu_check import Check

Keep = Callable[[Any], None]
SHAPES = {
    "annotation": (16, 8, 400),
    "best of 64": (1, 64, 400),
    "long guidance": (8, 8, 2000),
    "no guidance": (16, 8, 0),
}
"""Prompts, responses to each, tokens of guidance."""


def device(check: Check) -> torch.device:
    """Where everything runs."""
    return torch.device(check.args.device)


def facts(check: Check, keep: Keep) -> dict[str, Any]:
    """What the figures depend on, and the speed of a matrix product here."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "device": "cpu",
    }
    if device(check).type == "cuda":
        found["device"] = torch.cuda.get_device_name(device(check))
        found["memory_gb"] = round(torch.cuda.mem_get_info(device(check))[1] / 1e9, 1)
    check.speed = matmul(device(check), torch.bfloat16)
    return found | {"bf16_flops": check.speed}


def kernels(check: Check, keep: Keep) -> Any:
    """Every way to attend, on the device's kernels."""
    return attention_rows(device(check), keep)


def small_models(check: Check, keep: Keep) -> Any:
    """Small models of several architectures."""
    return tiny_models(device(check), keep)


def timed(size: str, names: tuple[str, ...]) -> Callable[[Check, Keep], Any]:
    """A phase that times one model on some shapes of work."""

    def work(check: Check, keep: Keep) -> Any:
        if size not in check.models:
            check.models.clear()  # one at a time: both may not fit
            shape = {**CONFIGS[size], **TINY} if check.args.tiny else CONFIGS[size]
            check.models[size] = build(shape, device(check), torch.bfloat16)
        model = check.models[size]
        found: dict[str, Any] = {}
        for name in names:
            shape = (2, 3, SHAPES[name][2] // 10) if check.args.tiny else SHAPES[name]
            spans = spans_of(shape, model.config.vocab_size, lengths=(5, 20) if check.args.tiny else (60, 180))
            rows, logprobs = compare(model, {"ours": Scorer(model)}, spans, check.args.rounds, check.speed)
            found[name] = {"rows": rows}
            keep(found)
            found[name]["off_float32"] = exact(model, spans, logprobs, 4 if check.args.tiny else 12)
            keep(found)
        return found

    return work


def attention_ways(check: Check, keep: Keep) -> Any:
    """The small model once more with each way to attend: which is the faster one."""
    model = check.models["0.5B"]
    shape = (2, 3, 40) if check.args.tiny else SHAPES["annotation"]
    spans = spans_of(shape, model.config.vocab_size, lengths=(5, 20) if check.args.tiny else (60, 180))
    scorers = {"segment by segment": Scorer(model, Ways([]))}
    if device(check).type == "cuda":
        scorers |= {"flash": Scorer(model, Ways([Varlen()])), "FlexAttention": Scorer(model, Ways([Flex()]))}
    return compare(model, scorers, spans, check.args.rounds, check.speed)[0]


def real_text(check: Check, keep: Keep) -> Any:
    """A model of the user's on real prompts and responses, as `make bench` has them."""
    from benchmarks.work import Shape, make, read_candidates
    from gdr_plugin.api.settings import Limits, ModelSpec
    from gdr_plugin.models.local import open_local
    from gdr_plugin.models.local.building import load_complete

    check.models.clear()
    given = {"dtype": "float32" if device(check).type == "cpu" else "bfloat16", "device": str(device(check))}
    ours = open_local(ModelSpec.model_validate({"model": check.args.model, **given}), Limits(kv_cache_mb=0))
    source = ours.source
    model: Any = load_complete(source.path, revision=source.revision, dtype=source.dtype)
    model = model.to(device(check)).train(False)
    found: dict[str, Any] = {"model": ours.name}
    for name, (prompts, responses, guidance) in SHAPES.items():
        shape = Shape(1, 2, guidance // 10) if check.args.tiny else Shape(prompts, responses, guidance)
        work = make(name, shape, read_candidates(), ours.chat)
        rows, logprobs = compare(model, {"ours": Scorer(model)}, work.spans, check.args.rounds, check.speed)
        found[name] = {"rows": rows, "off_float32": exact(model, work.spans, logprobs, 8)}
        keep(found)
        if check.args.tiny:
            break
    return found
