"""What is said of a model or adapter that cannot be used: one line, before any weights load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gdr_plugin.api.errors import GDRError, MissingDependencyError, ModelError
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.api.types import TokenSpan
from gdr_plugin.models.local import open_local, weights
from gdr_plugin.models.local.device import dtype_name, resolve_device
from gdr_plugin.models.local.source import locate

TinyModel = Callable[..., Path]


def complaint(expected: type[GDRError] = ModelError, **spec: object) -> str:
    with pytest.raises(expected) as caught:
        open_local(ModelSpec.model_validate(spec))
    message = str(caught.value)
    assert "\n" not in message
    assert not weights._shared, "weights were loaded before the check"
    return message


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/such/folder", "no/such/model.gguf", "no-such-model", "no/such-model"]
)
def test_a_model_that_does_not_exist(name: str) -> None:
    assert f"model '{name}' does not exist" in complaint(model=name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "no config.json" in complaint(model=str(tmp_path))


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    assert "does not exist: give a folder" in complaint(model=str(tmp_path / "model.safetensors"))
    assert "broken.gguf cannot be read as a GGUF" in complaint(model=str(tmp_path / "broken.gguf"))


def test_pickled_weights_are_refused(tmp_path: Path, tiny_model: TinyModel) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model() / "config.json").read_bytes())
    assert "holds no weights" in complaint(model=str(tmp_path))
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert "pickled weights (pytorch_model.bin)" in complaint(model=str(tmp_path))


def test_a_configuration_of_nothing_known(tmp_path: Path, tiny_model: TinyModel) -> None:
    (tmp_path / "model.safetensors").write_bytes((tiny_model() / "model.safetensors").read_bytes())
    for broken in ("{", '{"model_type": "no-such-architecture"}'):
        (tmp_path / "config.json").write_text(broken)
        assert "the configuration of model" in complaint(model=str(tmp_path))


def test_code_that_comes_with_a_model_does_not_run_unasked(tmp_path: Path, tiny_model: TinyModel) -> None:
    (tmp_path / "model.safetensors").write_bytes((tiny_model() / "model.safetensors").read_bytes())
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('the code ran')")
    assert "set `trust_remote_code: true`" in complaint(model=str(tmp_path))


def test_an_encoder_decoder(tmp_path: Path, tiny_model: TinyModel) -> None:
    (tmp_path / "model.safetensors").write_bytes((tiny_model() / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert "encoder-decoder" in complaint(model=str(tmp_path))


def test_no_tokenizer(tmp_path: Path, tiny_model: TinyModel) -> None:
    folder = tiny_model()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert "set `tokenizer:`" in complaint(model=str(tmp_path))
    open_local(ModelSpec(model=str(tmp_path), tokenizer=str(folder)))


def test_devices(tiny_model: TinyModel) -> None:
    folder = str(tiny_model())
    assert resolve_device(ModelSpec(model=folder, device="cpu")) == torch.device("cpu")
    assert "is not one" in complaint(model=folder, device="gpu please")
    if not torch.cuda.is_available():
        assert "set `device: auto`" in complaint(model=folder, device="cuda:1")


def test_dtypes(tiny_model: TinyModel) -> None:
    folder = tiny_model("qwen2", dtype="bfloat16")
    source = locate(ModelSpec(model=str(folder)))
    assert source.dtype is torch.float32
    cuda = torch.device("cuda")
    assert dtype_name(ModelSpec(model="x"), cuda, source.config) == str(source.config.dtype).removeprefix("torch.")
    assert dtype_name(ModelSpec(model="x"), cuda, None) == "bfloat16"
    assert dtype_name(ModelSpec(model="x", dtype="float16"), cuda, source.config) == "float16"


def test_an_adapter_in_place_of_a_model(tiny_model: TinyModel, tiny_adapter: Callable[..., Path]) -> None:
    adapter = tiny_adapter(tiny_model())
    assert "set `model:` to its base and `adapter:" in complaint(model=str(adapter))


def test_an_adapter_of_another_base(tiny_model: TinyModel, tiny_adapter: Callable[..., Path]) -> None:
    base = str(tiny_model())
    wider = tiny_adapter(tiny_model(hidden_size=64))
    message = complaint(model=base, adapter=str(wider))
    assert "another base" in message
    assert "model.layers.0.mlp.up_proj.lora_A.weight has the shape [4, 64], the base needs [4, 32]" in message
    deeper = tiny_adapter(tiny_model(num_hidden_layers=3))
    message = complaint(model=base, adapter=str(deeper))
    assert "model.layers.2.mlp.up_proj.lora_A.weight does not exist in the base" in message
    saved = tiny_adapter(tiny_model(hidden_size=64), target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert "lm_head" in complaint(model=base, adapter=str(saved))


def test_adapters_that_cannot_be_used(
    tmp_path: Path, tiny_model: TinyModel, tiny_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(tiny_model())
    good = tiny_adapter(tiny_model())
    assert "is it a whole model?" in complaint(model=base, adapter=base)

    def variant(name: str, config: str | None = None, weights: bytes | None = None) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(config or (good / "adapter_config.json").read_text())
        if weights != b"":
            data = weights or (good / "adapter_model.safetensors").read_bytes()
            (folder / "adapter_model.safetensors").write_bytes(data)
        return str(folder)

    assert "of type IA3" in complaint(model=base, adapter=variant("ia3", '{"peft_type": "IA3"}'))
    assert "cannot be read" in complaint(model=base, adapter=variant("json", "{"))
    assert "cannot be read" in complaint(model=base, adapter=variant("torn", weights=b"1234567890"))
    assert "holds no adapter_model.safetensors" in complaint(model=base, adapter=variant("bin", weights=b""))
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "gdr-plugin[adapters]" in complaint(MissingDependencyError, model=base, adapter=str(good))


def test_an_adapter_that_lacks_weights_is_not_filled_up(
    tmp_path: Path, tiny_model: TinyModel, tiny_adapter: Callable[..., Path]
) -> None:
    base = tiny_model()
    good = tiny_adapter(base)
    tensors = load_file(good / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((good / "adapter_config.json").read_bytes())
    lacking, weak = (open_local(ModelSpec(model=str(base), adapter=adapter)) for adapter in (str(tmp_path), None))
    strong = open_local(ModelSpec(model=str(base), adapter=str(good)))
    spans = [TokenSpan((1, 2), (3, 4))]
    expected = weak.score(spans)[0], strong.score(spans)[0]
    strong.unload()
    for first in (True, False):  # nothing of it stays on the base, with or without another adapter there
        with pytest.raises(ModelError, match="not complete"), lacking.running():
            pass
        assert np.abs(weak.score(spans)[0] - expected[0]).max() <= 1e-6
        if first:
            assert np.abs(strong.score(spans)[0] - expected[1]).max() <= 1e-6
    with weak.running() as network:
        assert not any("lora" in name and parameter.is_meta for name, parameter in network.named_parameters())
    for model in (lacking, weak, strong):
        model.unload()
    assert not weights._shared


@pytest.mark.usefixtures("offline")
def test_an_adapter_that_does_not_exist(tiny_model: TinyModel) -> None:
    assert "adapter 'no/such-adapter' does not exist" in complaint(model=str(tiny_model()), adapter="no/such-adapter")


HUB = """
import sys
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.models.local import open_local
from gdr_plugin.api.types import TokenSpan
model = open_local(ModelSpec(model="hf:org/tiny", revision=sys.argv[1] or None, adapter="org/adapter"))
print(model.identity, model.source.revision, float(model.score([TokenSpan((1, 2), (3, 4))])[0].sum()))
"""


@pytest.mark.slow
def test_a_hub_model_is_known_by_its_commit(
    tmp_path: Path, tiny_model: TinyModel, tiny_adapter: Callable[..., Path]
) -> None:
    """A cache as the hub's client leaves it, read offline: two commits of one model, and an adapter."""

    def publish(repository: str, folder: Path, commit: str, name: str) -> None:
        cached = tmp_path / f"models--{repository.replace('/', '--')}"
        snapshot = cached / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / name).write_text(commit)
        for file in folder.iterdir():
            (snapshot / file.name).write_bytes(file.read_bytes())

    publish("org/tiny", tiny_model(seed=1), "1" * 40, "main")
    publish("org/tiny", tiny_model(seed=2), "2" * 40, "next")
    publish("org/adapter", tiny_adapter(tiny_model(seed=1)), "3" * 40, "main")

    def run(revision: str) -> list[str]:
        environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", HUB, revision]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    main, following = run(""), run("next")
    assert main[1:2] == ["1" * 40]
    assert following[1:2] == ["2" * 40]
    assert main[0] != following[0]
    assert main[2] != following[2]
