"""What real servers answered (vLLM 0.32, SGLang 0.5.23; `recorded/`), against our readers and against the fake server.

So a fake that is used everywhere cannot drift from what the real ones say: it has no key that they do not have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdr_plugin.models.servers import vllm
from gdr_plugin.models.servers.answers import Served
from gdr_plugin.models.servers.client import _said
from tests.servers.fake import ReplyError
from tests.servers.sampling_fake import SamplingFake

FOLDER = Path(__file__).parent / "recorded"
RECORDED = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
GOOD = sorted(name for name, record in RECORDED.items() if record["status"] == 200)
REFUSED = sorted(name for name, record in RECORDED.items() if record["status"] != 200)
SERVED = Served("", "smol", 2047, ())
CONTEXT = 65
"""Ids of the context of every recorded text that was scored."""


def recorded(name: str, path: str, body: Any = None) -> Any:
    record = RECORDED[name]
    assert record["path"] == path
    return record["answer"]


@pytest.fixture
def fakes(tiny_model: Any) -> dict[str, SamplingFake]:
    from transformers import AutoTokenizer

    folder = tiny_model("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    models: Any = {"smol": lambda ids: np.full(len(ids), -1.5), "strong": lambda ids: np.full(len(ids), -2.0)}
    return {
        kind: SamplingFake(kind, models, root=str(folder), tokenizer=tokenizer, says=lambda _: "A story about a river.")
        for kind in ("vllm", "sglang")
    }


def answered(fake: SamplingFake, record: dict[str, Any]) -> tuple[int, Any]:
    fake.longest = 2048
    body = record["body"]
    try:
        return 200, fake._get(record["path"]) if record["method"] == "GET" else fake._post(record["path"], body)
    except ReplyError as error:
        return error.status, error.body


def kind_of(value: Any) -> type | tuple[type, ...]:
    return (int, float) if isinstance(value, int | float) else type(value)


def invented(fake: Any, real: Any, where: str = "") -> Iterator[str]:
    """The keys and types of a fake's answer that the real one does not have."""
    if isinstance(fake, dict) and isinstance(real, dict):
        numbers = all(key.isdecimal() for key in real)  # keyed by token id
        for key, value in fake.items():
            if key in real:
                yield from invented(value, real[key], f"{where}.{key}")
            elif numbers and key.isdecimal():
                yield from invented(value, next(iter(real.values())), f"{where}.ID")
            else:
                yield f"{where}.{key}"
    elif isinstance(fake, list) and isinstance(real, list):
        for one in fake[:3]:
            if real and one is not None:
                other = next((entry for entry in real if isinstance(entry, kind_of(one))), None)
                yield from invented(one, other, f"{where}[]") if other is not None else [f"{where}[] of {type(one)}"]
    elif fake is not None and real is not None and not isinstance(fake, str | int | float):
        yield f"{where}: {type(fake).__name__} where it has {type(real).__name__}"


@pytest.mark.parametrize("name", [name for name in GOOD if not name.endswith("health")])
def test_the_fake_answers_with_keys_that_the_real_one_has(name: str, fakes: dict[str, SamplingFake]) -> None:
    record = RECORDED[name]
    if record["path"] == "/v1/completions" and record["body"].get("echo"):
        pytest.skip("the fake of vLLM is not asked to echo")
    if name.startswith("sglang-tokenize"):
        pytest.skip("the fake of SGLang is one that does not tokenize, as older ones")
    status, found = answered(fakes[name.partition("-")[0]], record)
    assert status == 200
    assert list(invented(found, record["answer"])) == []


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_shown_in_the_servers_own_words(name: str) -> None:
    said = _said(RECORDED[name]["answer"])
    assert len(said) > 8
    assert said[0] not in "{["


def test_vllm_is_described_by_what_it_answers() -> None:
    answers = {record["path"]: record["answer"] for name, record in RECORDED.items() if name.startswith("vllm-v1")}
    found = vllm.look(lambda path: answers[path], "http://x", "smol", None)
    assert (found.kind, found.name, found.longest, found.adapter) == ("vLLM 0.32.0", "smol", 2047, None)
    found = vllm.look(lambda path: answers[path], "http://x", "smol", "strong")
    assert (found.name, found.adapter) == ("strong", "strong")


def test_vllm_s_prompt_logprobs_are_read() -> None:
    ids = RECORDED["vllm-v1-completions-smol"]["body"]["prompt"]
    wire = vllm.CompletionsWire(SERVED, "")
    found = wire.score(partial(recorded, "vllm-v1-completions-smol"), ids[:CONTEXT], ids[CONTEXT:])
    assert found.shape == (len(ids) - CONTEXT,)
    assert -15 < found.min() < found.max() <= 0
