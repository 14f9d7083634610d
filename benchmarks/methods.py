"""Ways to the log-probs of given responses: ours, and what people run instead.

Each way is a list of parts that together do a workload once, so that slow ways can be run in turn with fast ones. The
others get a model object of their own: layers of models that we load compute through the faster library on this CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from gdr_plugin.api.models import LogprobModel
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.local.engine import Engine
from gdr_plugin.models.local.network import Network
from gdr_plugin.models.local.strategies import Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from gdr_plugin.models.local import LocalModel

Part = Callable[[], dict[int, Logprobs]]
"""Does a part of the work; gives the log-probs by the spans' places, nothing where a peer only tells sums."""

BATCH, PARTS = 8, 4


class PeerError(Exception):
    """Another program cannot run here; the text says why."""


@dataclass
class Method:
    """One way, ready to run on one workload."""

    name: str
    dtype: str
    parts: list[Part]
    """Called one after the other they do all of the work."""
    often: bool = False
    """Whether to run it after every part of the slow ways, and not only once a round."""
    heaviest: Part | None = None
    """What to run when memory is measured: a part that needs as much as any; None: not measured here."""
    inside: bool = True
    """Whether it runs in this process, so that its processor time is known."""
    warm_up: Callable[[], Any] = field(default=lambda: None)
    """Called before the first run, untimed: loads kernels, and lets ours check itself."""
    reset: Callable[[], Any] = field(default=lambda: None)
    """Called before each run, untimed."""
    peak_mb: Callable[[], float | None] = field(default=lambda: None)
    """Peak memory above the loaded model in MiB, as far as the way itself can tell after its runs."""


def naive(model: PreTrainedModel, spans: Sequence[TokenSpan]) -> Method:
    """One sequence at a time, logits of every token, log-softmax: the code in most papers' repositories."""
    return _batched("naive", model, spans, 1)


def padded(model: PreTrainedModel, spans: Sequence[TokenSpan]) -> Method:
    """Right-padded batches of eight in order of length, logits of every token, as lm-evaluation-harness does."""
    return _batched("padded", model, spans, BATCH)


def _batched(name: str, model: PreTrainedModel, spans: Sequence[TokenSpan], size: int) -> Method:
    order = sorted(range(len(spans)), key=lambda i: -len(spans[i].context + spans[i].response))
    batches = [order[start : start + size] for start in range(0, len(order), size)]

    def run(places: Iterable[Sequence[int]]) -> dict[int, Logprobs]:
        found = {}
        for batch in places:
            ids = _padded([spans[i].context + spans[i].response for i in batch]).to(model.device)
            with torch.inference_mode():
                logprobs = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
                picked = logprobs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].cpu()
            for row, i in zip(picked, batch, strict=True):
                first = len(spans[i].context) - 1
                found[i] = row[first : first + len(spans[i].response)].numpy()
        return found

    groups = parts_of(batches, [sum(len(spans[i].context) for i in batch) for batch in batches])
    return Method(
        name,
        _dtype(model),
        [lambda group=group: run(group) for group in groups],
        heaviest=lambda: run(batches[:1]),
    )


def _padded(rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids


def parts_of(batches: Sequence[Any], costs: Sequence[float]) -> list[list[Any]]:
    """Cut batches into at most four runs of about the same cost."""
    parts: list[list[Any]] = [[]]
    done = 0.0
    for batch, cost in zip(batches, costs, strict=True):
        if parts[-1] and done >= sum(costs) * len(parts) / PARTS:
            parts.append([])
        parts[-1].append(batch)
        done += cost
    return parts


def trl(model: PreTrainedModel, spans: Sequence[TokenSpan]) -> Method:
    """GRPOTrainer's own function for log-probs of completions, on batches of eight of the same prompt.

    Prompts are padded on the left and completions on the right, as the trainer does.
    """
    from trl.trainer import GRPOTrainer, add_fused_lm_head

    if not getattr(model, "_benchmark_fused", False):
        add_fused_lm_head(model)  # the trainer does this to its model; other forwards stay what they were
        model._benchmark_fused = True
    trainer = SimpleNamespace(accelerator=_accelerator())
    score = GRPOTrainer._get_per_token_logps_and_entropies

    def run(batches: Iterable[Sequence[int]]) -> dict[int, Logprobs]:
        found = {}
        for batch in batches:
            ids, mask, keep = _sides([spans[i] for i in batch])
            with torch.no_grad():
                logprobs, *_ = score(trainer, model, ids, mask, keep)
            for row, i in zip(logprobs, batch, strict=True):
                found[i] = row[: len(spans[i].response)].numpy()
        return found

    batches = [range(start, min(start + BATCH, len(spans))) for start in range(0, len(spans), BATCH)]
    costs = [float(sum(len(spans[i].context + spans[i].response) for i in batch)) for batch in batches]
    longest = max(range(len(batches)), key=costs.__getitem__)
    return Method(
        "trl",
        _dtype(model),
        [lambda group=group: run(group) for group in parts_of(batches, costs)],
        heaviest=lambda: run([batches[longest]]),
    )


def _accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def _sides(spans: Sequence[TokenSpan]) -> tuple[torch.Tensor, torch.Tensor, int]:
    left = max(len(span.context) for span in spans)
    keep = max(len(span.response) for span in spans)
    ids = torch.zeros(len(spans), left + keep, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, span in enumerate(spans):
        cut = slice(left - len(span.context), left + len(span.response))
        ids[place, cut] = torch.tensor(span.context + span.response)
        mask[place, cut] = 1
    return ids, mask, keep


def ours(model: LogprobModel, spans: Sequence[TokenSpan], dtype: str, name: str = "ours") -> Method:
    """The product as it is used: one call. Nothing is kept between calls (open it with `kv_cache_mb=0`)."""

    def run() -> dict[int, Logprobs]:
        return dict(enumerate(model.score(spans)))

    return Method(name, dtype, [run], often=True, heaviest=run, warm_up=lambda: model.score(_little(spans)))


def _little(spans: Sequence[TokenSpan]) -> list[TokenSpan]:
    """Two responses to each of two prompts at most, and then one alone: each kind of pack once."""
    contexts = list(dict.fromkeys(span.context for span in spans))[:2]
    found: list[TokenSpan] = []
    for context in contexts:
        found += [span for span in spans if span.context == context][:2]
    return found


def held(model: LocalModel, spans: Sequence[TokenSpan], dtype: str, strategy: Strategy) -> Method:
    """Our engine held on one strategy, even where the architecture allows a faster one."""
    with model.running() as loaded:
        engine = Engine(Network(loaded))
    engine.strategy = strategy

    def run() -> dict[int, Logprobs]:
        with model.running():
            return dict(enumerate(engine.score(spans)))

    return Method(f"ours, {strategy.name.lower()}", dtype, [run], heaviest=run, reset=engine.kept.clear)


def _dtype(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")
