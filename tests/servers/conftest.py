"""Fixtures: true numbers of tiny models, and servers that give them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.servers.fake import FakeServer, Numbers

KINDS = {
    "vllm": {"kind": "vllm"},
    "vllm completions": {"kind": "vllm", "fast": "none"},
    "sglang": {"kind": "sglang"},
    "openai ids": {"kind": "openai"},
    "openai text": {"kind": "openai", "takes_ids": False, "takes_zero": False},
}
"""Every way of asking."""

MakeServer = Callable[..., FakeServer]


def numbers_of(folder: Path) -> Numbers:
    """The log-probs of a model, by its plain forward."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    known: dict[tuple[int, ...], np.ndarray] = {}
    lock = threading.Lock()

    def numbers(ids: tuple[int, ...]) -> np.ndarray:
        with lock, torch.no_grad():
            if ids not in known:
                logits = model(torch.tensor([ids])).logits[0, :-1].double()
                own = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
                known[ids] = np.concatenate([[np.nan], own.numpy()])
            return known[ids]

    return numbers


@pytest.fixture(scope="session")
def numbers(tiny_model: Any) -> Callable[[int], Numbers]:
    """`numbers(seed)`: those of the tiny model with this seed."""
    made: dict[int, Numbers] = {}

    def of(seed: int) -> Numbers:
        if seed not in made:
            made[seed] = numbers_of(tiny_model("llama", seed=seed))
        return made[seed]

    return of


@pytest.fixture
def server(tiny_model: Any, numbers: Callable[[int], Numbers]) -> Iterator[MakeServer]:
    """`server(kind="vllm", seed=0, **faults)`: a running server of the tiny model with this seed, called `tiny`."""
    from transformers import AutoTokenizer

    with ExitStack() as stack:

        def make(kind: str = "vllm", seed: int = 0, *, adapters: tuple[str, ...] = (), **more: Any) -> FakeServer:
            folder = tiny_model("llama", seed=seed)
            models = {"tiny": numbers(seed)} | {name: numbers(seed + 1 + at) for at, name in enumerate(adapters)}
            options = {"root": str(folder), "tokenizer": AutoTokenizer.from_pretrained(folder), **more}
            return stack.enter_context(FakeServer(kind, models, **options).running())

        yield make
