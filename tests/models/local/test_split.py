"""A model that several processes hold together: the same numbers, and nothing left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.distributed.configuration_utils import DistributedConfig

from gdr_plugin.api.errors import ModelError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.local import open_local
from gdr_plugin.models.local.network import Network
from gdr_plugin.models.local.split import SplitModel

TinyModel = Callable[..., Path]
Spans = Callable[..., list[TokenSpan]]
Truth = Callable[[Network, Sequence[TokenSpan]], list[Logprobs]]


if "tp_size" not in signature(DistributedConfig).parameters:
    pytest.skip("this transformers cannot split a model", allow_module_level=True)


def opened(folder: Path, size: int = 2, limits: Limits | None = None, **options: Any) -> SplitModel:
    model = open_local(ModelSpec(model=str(folder), tensor_parallel_size=size, **options), limits)
    assert isinstance(model, SplitModel)
    return model


def apart(got: Sequence[Logprobs], expected: Sequence[Logprobs]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(got, expected, strict=True) if len(b))


@pytest.fixture(scope="module")
def split(tiny_model: TinyModel) -> Iterator[SplitModel]:
    model = opened(tiny_model())
    yield model
    model.unload()


def test_it_gives_the_whole_models_numbers(
    split: SplitModel, network: Callable[..., Network], hard_spans: Spans, one_by_one: Truth
) -> None:
    whole = network(split.source.path)
    for seed in (0, 1):  # the second call uses prefixes that are kept of the first
        spans = hard_spans(seed=seed)
        assert apart(split.score(spans), one_by_one(whole, spans)) <= 5e-5
    facts = split.describe()
    assert facts["device"] == "2 x cpu, tensor parallel"
    assert facts["strategy"].startswith("packed trees: ")
    assert not torch.distributed.is_initialized()


def test_an_error_of_all_processes_leaves_them_running(split: SplitModel, hard_spans: Spans) -> None:
    before = split.score(hard_spans())
    running = split._shards
    with pytest.raises(ModelError, match="token ids beyond the model's vocabulary of 320"):
        split.score([TokenSpan((1, 2), (5000,))])
    assert apart(split.score(hard_spans()), before) == 0
    assert split._shards is running


@pytest.mark.thorough  # starts two more processes
def test_a_process_that_ends_is_named_and_the_next_call_starts_anew(split: SplitModel, hard_spans: Spans) -> None:
    before = split.score(hard_spans())
    assert split._shards is not None
    processes = list(split._shards._processes)
    os.kill(processes[1].pid, signal.SIGKILL)
    with pytest.raises(ModelError, match="process 1 of 2 has ended by signal 9"):
        split.score(hard_spans())
    assert [process.poll() is not None for process in processes] == [True, True]
    assert apart(split.score(hard_spans()), before) == 0


def test_unloading_ends_the_processes(split: SplitModel, hard_spans: Spans) -> None:
    split.score(hard_spans())
    assert split._shards is not None
    processes, folder = list(split._shards._processes), Path(split._shards._folder.name)
    split.unload()
    assert [process.returncode for process in processes] == [0, 0]
    assert not folder.exists()
    split.unload()


def test_it_does_not_sample(split: SplitModel) -> None:
    with pytest.raises(ModelError, match="only scores; let a server with tensor parallelism sample"):
        split.running()


@pytest.mark.thorough  # starts two more processes
def test_weights_that_cannot_be_loaded_are_one_error(tiny_model: TinyModel, tmp_path: Path, hard_spans: Spans) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in tiny_model().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights of a LlamaForCausalLM \(model\.norm\.weight\)"):
        opened(folder).score(hard_spans())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 3}, "4 attention heads with 2 of keys and values cannot be shared out evenly"),
        ({"device_map": "auto"}, "tensor_parallel_size and device_map are two ways to spread a model"),
        ({"adapter": "somewhere"}, "merge it into its base"),
    ],
)
def test_what_cannot_be_split_is_refused_before_a_process_starts(
    tiny_model: TinyModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ModelError, ValueError), match=message):
        opened(tiny_model(), **options)


def test_an_architecture_without_a_plan_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelError, match="transformers does not know how to split a gpt2"):
        opened(tiny_model("gpt2"))


def test_it_is_not_started_in_each_of_several_processes(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ModelError, match="this is one of 4 processes"):
        opened(tiny_model())
