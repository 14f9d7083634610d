from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch

from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.local import weights
from gdr_plugin.models.local.network import Network

Adapter = Callable[..., Path]
Spans = Callable[..., list[TokenSpan]]


@pytest.fixture(autouse=True)
def no_weights_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty registry of shared weights: what other tests still hold must not be counted here."""
    monkeypatch.setattr(weights, "_shared", WeakValueDictionary())


@pytest.fixture(scope="session")
def network() -> Callable[..., Network]:
    """`network(folder, **options) -> Network`: a model folder, loaded as transformers loads it."""

    def load(folder: Path, **options: Any) -> Network:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, **options)
        model.train(False)
        return Network(model)

    return load


@pytest.fixture(scope="session")
def hard_spans() -> Spans:
    """Spans with everything that goes wrong: mixed lengths, empty and one-token responses, duplicates, contexts that
    begin one another, a long guidance that some share and others do not."""

    def make(vocabulary: int = 320, guidance: int = 60, seed: int = 0, prompts: int = 4) -> list[TokenSpan]:
        draw = random.Random(seed)

        def ids(count: int) -> tuple[int, ...]:
            return tuple(draw.randrange(3, vocabulary) for _ in range(count))

        shared, other = ids(guidance), ids(guidance // 2)
        contexts = [shared + ids(draw.randint(1, 14)) for _ in range(prompts)]
        contexts += [other + ids(3), other + ids(9), ids(1), ids(7)]
        contexts += [shared, contexts[0] + ids(5), contexts[0][:-1]]
        spans = [TokenSpan(context, ids(length)) for context in contexts for length in (0, 1, 2, 9, 23)]
        spans += [*spans[::7], TokenSpan(contexts[0], spans[3].response[:-1])]
        draw.shuffle(spans)
        return spans

    return make


@pytest.fixture(scope="session")
def one_by_one() -> Callable[[Network, Sequence[TokenSpan]], list[Logprobs]]:
    """The definition: full logits of one sequence, log-softmax in double precision, nothing of ours involved."""

    @torch.inference_mode()
    def score(net: Network, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        results = []
        for span in spans:
            if not span.response:
                results.append(np.empty(0, dtype=np.float32))
                continue
            ids = torch.tensor([span.context + span.response])
            logprobs = net.model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
            found = logprobs.gather(-1, ids[0, 1:, None])[-len(span.response) :, 0]
            results.append(found.float().numpy())
        return results

    return score


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """`tiny_adapter(base, seed=0, **lora) -> Path`: a LoRA adapter with random weights for a model folder."""
    pytest.importorskip("peft")

    def make(base: Path, seed: int = 0, **lora: Any) -> Path:
        import warnings

        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        options = {"r": 4, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, **lora}
        folder = tmp_path_factory.mktemp("adapter")
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            model = get_peft_model(
                AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **options)
            )
            model.save_pretrained(folder)
        return folder

    return make
