"""The plugin of vLLM's, against the part of vLLM 0.32 that it touches; `make test-servers` runs it in the real one."""

from __future__ import annotations

import importlib
import logging
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import gdr_vllm

CACHED = 1000
"""Tokens that the cache has of every text."""


def modules(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> tuple[Any, Any]:
    """vLLM's two classes as they are in 0.32, as far as the plugin sees them."""

    class KVCacheCoordinator:
        def find_longest_cache_hit(
            self, block_hashes: list[int], max_cache_hit_length: int
        ) -> tuple[list[int], int, int]:
            return block_hashes, min(CACHED, max_cache_hit_length) // 16 * 16, 0

    class KVCacheManager:
        def __init__(self) -> None:
            self.coordinator = KVCacheCoordinator()

        def get_computed_blocks(self, request: Any) -> tuple[list[int], int, int]:
            if request.fails:
                raise RuntimeError("no blocks")
            return self.coordinator.find_longest_cache_hit([7], request.num_tokens - 1)

    class SamplingParams:
        __struct_fields__ = ("prompt_logprobs", "prompt_logprob_token_ids", "prompt_logprob_start")

    names: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.v1": {},
        "vllm.v1.core": {},
        "vllm.v1.core.kv_cache_manager": {"KVCacheManager": KVCacheManager},
        "vllm.v1.core.kv_cache_coordinator": {"KVCacheCoordinator": KVCacheCoordinator},
        "vllm.sampling_params": {"SamplingParams": SamplingParams},
    }
    for name, contents in names.items():
        module = ModuleType(name)
        vars(module).update(contents | {key: value for key, value in changed.items() if key in contents})
        monkeypatch.setitem(sys.modules, name, module)
    return names["vllm.v1.core.kv_cache_manager"]["KVCacheManager"], KVCacheCoordinator


def request(tokens: int, start: int | None = None, *, scores: bool = True, fails: bool = False) -> Any:
    parameters = SimpleNamespace(prompt_logprob_token_ids=[[1]] if scores else None, prompt_logprob_start=start)
    return SimpleNamespace(num_tokens=tokens, sampling_params=parameters, fails=fails)


def test_a_scoring_request_reads_the_cache_up_to_its_first_row_and_others_all_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, _ = modules(monkeypatch)
    manager = made()
    assert manager.get_computed_blocks(request(300, 260)) == ([7], 288, 0)  # beyond the first row: vLLM answers null
    with caplog.at_level(logging.INFO):
        gdr_vllm.register()
        gdr_vllm.register()  # vLLM loads its plugins in every process, and may do so twice
    assert caplog.messages == [
        "gdr_vllm: requests that score given tokens read the prefix cache up to their first scored row"
    ]
    assert manager.get_computed_blocks(request(300, 260)) == ([7], 256, 0)
    assert manager.get_computed_blocks(request(300, 255)) == ([7], 240, 0)
    assert manager.get_computed_blocks(request(300)) == ([7], 0, 0)  # all rows are scored
    assert manager.get_computed_blocks(request(300, 290, scores=False)) == ([7], 288, 0)
    pooled = SimpleNamespace(num_tokens=300, sampling_params=None, fails=False)
    assert manager.get_computed_blocks(pooled) == ([7], 288, 0)


def test_the_limit_is_gone_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = modules(monkeypatch)
    gdr_vllm.register()
    manager = made()
    with pytest.raises(RuntimeError, match="no blocks"):
        manager.get_computed_blocks(request(300, 0, fails=True))
    assert manager.get_computed_blocks(request(300, scores=False)) == ([7], 288, 0)
    assert not vars(manager.coordinator)


class OtherManager:
    def get_computed_blocks(self, request: Any, group: int) -> None: ...


class OtherCoordinator:
    def find_hit(self, block_hashes: list[int]) -> None: ...


class OtherParams:
    __struct_fields__ = ("prompt_logprobs",)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"KVCacheManager": OtherManager}, r"KVCacheManager.get_computed_blocks takes \(self, request, group\)"),
        ({"KVCacheCoordinator": OtherCoordinator}, "find_longest_cache_hit"),
        ({"SamplingParams": OtherParams}, "SamplingParams has no prompt_logprob_token_ids, prompt_logprob_start"),
    ],
)
def test_on_another_vllm_it_does_nothing_and_says_so(
    changed: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    modules(monkeypatch, **changed)
    manager = importlib.import_module("vllm.v1.core.kv_cache_manager").KVCacheManager
    before = manager.get_computed_blocks
    gdr_vllm.register()
    assert manager.get_computed_blocks is before
    (message,) = caplog.messages
    assert message.startswith("gdr_vllm does nothing on this vLLM: ")
    assert re.search(said, message)


def test_without_those_modules_it_does_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    gdr_vllm.register()
    assert caplog.messages == ["gdr_vllm does nothing on this vLLM: No module named 'vllm'"]


def test_vllm_finds_it_by_its_entry_point_and_it_brings_nothing_along() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (target,) = project["entry-points"]["vllm.general_plugins"].values()
    module, _, name = target.partition(":")
    assert getattr(importlib.import_module(module), name) is gdr_vllm.register
    code = "import sys, gdr_vllm; print(sorted({'torch', 'numpy', 'gdr_plugin', 'vllm'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
