"""Model files that are cut or flipped, and a cache without room: one line before the work, and no other numbers."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdr_plugin.api.errors import ModelError
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.api.types import Message
from gdr_plugin.models.local import gguf, identity, open_local
from tests.models.local.test_gguf import write_gguf

TURNS = (Message("user", "How can I help?"),)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GDR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_known", {})
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Any) -> Path:
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


@pytest.fixture
def file(tmp_path: Path, tiny_model: Any) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_model("llama", tie_word_embeddings=False), path, "smollm")
    return path


def numbers(model: Path) -> np.ndarray:
    opened = open_local(ModelSpec(model=str(model), dtype="float32"))
    found: np.ndarray = opened.score([opened.chat.span(TURNS, "The reward of a response.", end=True)])[0]
    return found


def refused(model: Path) -> str:
    """The one line with which a model is refused, before weights are loaded."""
    with pytest.raises(ModelError) as error:
        open_local(ModelSpec(model=str(model), dtype="float32"))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_safetensors_that_are_cut(part: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    line = refused(folder)
    assert line.startswith(f"{path} is damaged (")
    assert line.endswith("): fetch or save it again")


def test_safetensors_with_a_flipped_bit(folder: Path) -> None:
    """In the head it is found; in the weights nobody can know, but the model is another one for stores and runs."""
    path = folder / "model.safetensors"
    whole, rng = path.read_bytes(), random.Random(0)
    head = 8 + int.from_bytes(whole[:8], "little")
    before, same = open_local(ModelSpec(model=str(folder))).identity, 0
    for _ in range(30):
        at = rng.randrange(head)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        identity._known.clear()
        with suppress(ModelError):
            model = open_local(ModelSpec(model=str(folder)))
            same += model.identity == before
            model.score([model.chat.span(TURNS, "The", end=True)])
    assert same == 0
    at = len(whole) - 100
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    identity._known.clear()
    assert open_local(ModelSpec(model=str(folder))).identity != before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_configuration_or_tokenizer_that_is_cut(name: str, folder: Path) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-40])
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.2, 0.8, 0.999])
def test_a_gguf_that_is_cut(part: float, file: Path, cache: Path) -> None:
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    line = refused(file)
    assert line.startswith(f"{file} cannot be read as a GGUF language model: ")
    assert line.endswith("; is it complete? Fetch it again")
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_gguf_with_flipped_bits_in_its_head(file: Path) -> None:
    whole, rng, accepted = file.read_bytes(), random.Random(3), 0
    for _ in range(12):
        at = rng.randrange(64)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        identity._known.clear()
        with suppress(ModelError):
            open_local(ModelSpec(model=str(file), dtype="float32"))
            accepted += 1
    assert accepted < 6


def test_a_converted_model_that_is_cut_names_the_folder_to_delete(file: Path, cache: Path) -> None:
    expected = numbers(file)
    (made,) = (path for path in (cache / "gguf").iterdir() if path.is_dir())
    weights = made / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert refused(file).endswith(f"): delete {made}, which is made again")
    shutil.rmtree(made)
    np.testing.assert_array_equal(numbers(file), expected)


def test_a_cache_without_room(file: Path, disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = numbers(file)
    monkeypatch.setenv("GDR_CACHE", str(disk.path / "cache"))
    for leave in (0, 16_384, 65_536):
        disk.fill(leave)
        line = refused(file)
        assert line.startswith(f"{file} cannot be converted: {disk.path / 'cache'}")
        assert "cannot be written (" in line  # older safetensors wrap what the system says
        assert "No space left on device" in line
        assert "; free space there, or set GDR_CACHE" in line
        assert not list(disk.path.glob("cache/gguf/.making*"))
        assert not [path for path in disk.path.glob("cache/gguf/*") if path.is_dir()]
    disk.make_room()
    np.testing.assert_array_equal(numbers(file), expected)


def test_a_cache_that_cannot_be_written(file: Path, disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDR_CACHE", str(disk.path / "cache"))
    disk.remount("ro")
    line = refused(file)
    assert "cannot be written (Read-only file system)" in line
    assert "set GDR_CACHE to another folder" in line


def test_what_a_killed_conversion_left_is_taken_away(file: Path, cache: Path) -> None:
    left = cache / "gguf" / f".making-{gguf._place(file, 'float32').name}-abc"
    other = cache / "gguf" / ".making-another-float32-2-abc"
    for path in (left, other):
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"half")
    gguf.converted(file, "float32")
    assert not left.exists()
    assert other.exists()  # somebody may be at it


def test_an_adapter_that_is_cut(tmp_path: Path, tiny_model: Any) -> None:
    pytest.importorskip("peft")
    from safetensors.numpy import save_file

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "bias": "none"}))
    path = adapter / "adapter_model.safetensors"
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((2, 32), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors cannot be read"):
        open_local(ModelSpec(model=str(tiny_model("llama")), adapter=str(adapter)))
