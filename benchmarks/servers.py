"""The same scores from the local engine, SGLang, and vLLM in both ways: seconds, what their caches gave, errors.

    python -m benchmarks.servers [--prompts 4] [--responses 8] [--guidance 400] [--only WAY ...]

Half of the responses to each prompt are scored first (cold: nothing has been seen), then the other half (warm: guidance
and prompts have). All in float32 with one thread each; a server is started when it is its turn, and ends behind it.
`make bench-servers` makes their environments. vLLM's V2 runner takes an hour on a CPU:
`--only sglang vllm-v1` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_servers import KINDS, SGLANG, NotStartedError, RealServer
from benchmarks.work import Shape, make, read_candidates
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.cli.show import print_table
from gdr_plugin.config.load import load_config
from gdr_plugin.models.local import open_local
from gdr_plugin.models.local.gguf import converted
from gdr_plugin.models.servers import open_server

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".venv" / "peers"
LENGTH = 2048
LOCAL = "local engine"


@dataclass
class Result:
    """One way to score the work."""

    way: str
    asked: str
    cold_s: float
    warm_s: float
    tokens: int
    """Response tokens of both halves."""
    prompt_tokens: int
    """Tokens of all texts that were sent, contexts and responses; 0 where nothing was sent."""
    cached_cold: int
    """Of those, how many the server says came from its cache in the cold half."""
    cached_warm: int
    retries: int
    error: float
    """Largest difference of a token's log-prob from the local engine's, in nats."""


class Counted:
    """Counts what a model's servers say of their caches."""

    def __init__(self, model: Any) -> None:
        self.prompt = self.cached = 0
        post, lock = model.client.post, threading.Lock()

        def posting(path: str, body: Any, **more: Any) -> Any:
            answer = post(path, body, **more)
            told = answer.get("meta_info") or answer.get("usage") or {}
            details = told.get("prompt_tokens_details") or told
            with lock:
                self.prompt += told.get("prompt_tokens") or 0
                self.cached += details.get("cached_tokens") or 0
            return answer

        model.client.post = posting


def main() -> None:
    """Run the ways one after the other; write and show the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.servers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--responses", type=int, default=8, help="responses to each prompt; half of them cold")
    parser.add_argument("--guidance", type=int, default=400, help="tokens of guidance")
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS), help="servers (default: all)")
    parser.add_argument("--config", type=Path, default=HERE.parent / "examples" / "demo-pair" / "gdr.yaml")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "servers.json")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(1)
    folder = converted(Path(load_config(args.config).weak.model), "float32")
    limits = Limits(max_length=LENGTH)
    local = open_local(ModelSpec(model=str(folder)), limits)
    shape = Shape(args.prompts, args.responses, args.guidance)
    spans = make("servers", shape, read_candidates(), local.chat).spans
    half = args.responses // 2
    halves = [[span for at, span in enumerate(spans) if (at % args.responses < half) == cold] for cold in (True, False)]
    expected: list[list[Logprobs]] = []

    def timed(score: Callable[[Sequence[TokenSpan]], list[Logprobs]], half: int) -> tuple[float, float]:
        begun = time.perf_counter()
        found = score(halves[half])
        seconds = time.perf_counter() - begun
        if len(expected) == half:
            expected.append(found)
        return seconds, _gap(found, expected[half])

    tokens = sum(len(span.response) for span in spans)
    local.score([TokenSpan((1, 2, 3), (4, 5))])  # the weights load
    (cold, _), (warm, _) = timed(local.score, 0), timed(local.score, 1)
    results = [Result(LOCAL, str(local.describe()["strategy"]), cold, warm, tokens, 0, 0, 0, 0, 0.0)]
    local.unload()
    missing: dict[str, str] = {}
    for kind in args.only:
        python = PEERS / ("sglang" if kind == SGLANG else "vllm") / "bin" / "python"
        try:
            with RealServer(kind, python, folder, name="model", length=LENGTH) as server:
                scheme = "sglang" if kind == SGLANG else "vllm"
                model = open_server(ModelSpec(model=f"{scheme}:{server.url}/model"), limits)
                counted = Counted(model)
                cold, error = timed(model.score, 0)
                cached = counted.cached
                warm, other = timed(model.score, 1)
                results.append(
                    Result(
                        kind,
                        str(model.describe()["strategy"]),
                        cold,
                        warm,
                        tokens,
                        counted.prompt,
                        cached,
                        counted.cached - cached,
                        model.client.retries,
                        max(error, other),
                    )
                )
        except NotStartedError as error:
            missing[kind] = str(error)
        _write(args.out, results, missing, shape)
    _show(results, missing)


def _gap(found: Sequence[Logprobs], expected: Sequence[Logprobs]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True) if one.size)


def _write(out: Path, results: Sequence[Result], missing: dict[str, str], shape: Shape) -> None:
    machine = {"cores": os.cpu_count(), "load": [round(load, 1) for load in os.getloadavg()]}
    told = {
        "work": asdict(shape),
        "machine": machine | {"python": platform.python_version()},
        "ways": [asdict(result) for result in results],
        "not run": missing,
    }
    out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _show(results: Sequence[Result], missing: dict[str, str]) -> None:
    rows = [
        [
            result.way,
            f"{result.cold_s:.1f}",
            f"{result.warm_s:.1f}",
            f"{result.cached_cold:,}",
            f"{result.cached_warm:,}",
            f"{result.error:.1e}",
        ]
        for result in results
    ]
    print_table("", ("way", "cold s", "warm s", "cached, cold", "cached, warm", "error a token"), rows)
    for kind, why in missing.items():
        print(f"{kind} did not run: {why}")


if __name__ == "__main__":
    main()
