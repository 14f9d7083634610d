"""Caps the prefix-cache hits of requests that score given tokens. Knows the one method of vLLM that finds such hits.

Row i of `prompt_logprob_token_ids` is computed at position `prompt_logprob_start + i`, so the cache may give the
positions before `prompt_logprob_start` and no more. Other requests are left alone.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Sequence
from importlib import import_module
from typing import Any

__all__ = ["register"]

# vLLM shows what its own loggers say, and nothing of others.
log = logging.getLogger("vllm.gdr_vllm")

_MANAGER = ("vllm.v1.core.kv_cache_manager", "KVCacheManager", "get_computed_blocks", ("self", "request"))
_COORDINATOR = (
    "vllm.v1.core.kv_cache_coordinator",
    "KVCacheCoordinator",
    "find_longest_cache_hit",
    ("self", "block_hashes", "max_cache_hit_length"),
)
_FIELDS = ("prompt_logprob_token_ids", "prompt_logprob_start")


def register() -> None:
    """Put the cap in place, once in a process; on a vLLM with other internals nothing changes, and a line says so."""
    try:
        problem = _problem()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        problem = str(error)
    if problem:
        log.warning("gdr_vllm does nothing on this vLLM: %s", problem)
        return
    manager = getattr(import_module(_MANAGER[0]), _MANAGER[1])
    found = manager.get_computed_blocks
    if getattr(found, "gdr_vllm", False):
        return
    manager.get_computed_blocks = _capped(found)
    log.info("gdr_vllm: requests that score given tokens read the prefix cache up to their first scored row")


def _problem() -> str | None:
    """What differs from the vLLM that the cap was made for; None where nothing does."""
    for module, name, method, expected in (_MANAGER, _COORDINATOR):
        given = tuple(inspect.signature(getattr(getattr(import_module(module), name), method)).parameters)
        if given != expected:
            return f"{name}.{method} takes ({', '.join(given)}) instead of ({', '.join(expected)})"
    fields = import_module("vllm.sampling_params").SamplingParams.__struct_fields__
    missing = [field for field in _FIELDS if field not in fields]
    return f"SamplingParams has no {', '.join(missing)}" if missing else None


def _capped(found: Any) -> Any:
    """`KVCacheManager.get_computed_blocks` with the cap."""

    @functools.wraps(found)
    def get_computed_blocks(self: Any, request: Any) -> Any:
        parameters = getattr(request, "sampling_params", None)
        coordinator = getattr(self, "coordinator", None)
        if coordinator is None or getattr(parameters, "prompt_logprob_token_ids", None) is None:
            return found(self, request)
        first = getattr(parameters, "prompt_logprob_start", None) or 0
        search = coordinator.find_longest_cache_hit

        def up_to_first(block_hashes: Sequence[Any], max_cache_hit_length: int) -> Any:
            return search(block_hashes, min(max_cache_hit_length, first))

        # The manager passes no request on to its coordinator, so that the limit is put there for this call. A manager
        # belongs to one scheduler, which has one thread.
        coordinator.find_longest_cache_hit = up_to_first
        try:
            return found(self, request)
        finally:
            del coordinator.find_longest_cache_hit

    get_computed_blocks.gdr_vllm = True  # type: ignore[attr-defined]
    return get_computed_blocks
