"""Scoring leaves the host program as it was: torch's settings, random state, environment, warnings, affinity."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from gdr_plugin import GuidedDensityRatio
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.config.load import parse_config

SAMPLES = [
    Sample((Message("user", prompt),), response)
    for prompt in ("How do I sort a list?", "Is it safe?")
    for response in ("Like this.", "No.", "It depends on many things.")
]


def state() -> dict[str, Any]:
    """Everything that a trainer may have set and would not want changed."""
    backends = torch.backends
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "default dtype and device": (torch.get_default_dtype(), torch.get_default_device()),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")],
        "matmul precision": torch.get_float32_matmul_precision(),
        "tf32": (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32),
        "fp32 precision": (backends.mkldnn.matmul.fp32_precision, backends.cuda.matmul.fp32_precision),
        "mkldnn": (backends.mkldnn.enabled, backends.mkldnn.deterministic),
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "sdpa": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
        ),
        "flush denormal": float(torch.tensor(1e-40) * 1.0) != 0.0,
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "affinity": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
    }


@pytest.fixture
def unusual() -> Iterator[None]:
    """Settings that are not the defaults, so that a reset to these is seen too."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(7)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.usefixtures("unusual")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scoring_changes_nothing_outside(tiny_model: Any, dtype: str) -> None:
    models = {
        side: {"model": str(tiny_model("llama", seed=seed)), "dtype": dtype}
        for seed, side in enumerate(("strong", "weak"))
    }
    guidance = {"domains": {"chat": "none", "safety": "safety"}}
    routing = {"routers": ["likelihood"], "default_domain": "chat"}
    config = parse_config({**models, "guidance": guidance, "routing": routing})
    GuidedDensityRatio.from_config(config).score(SAMPLES[:1])  # imports of libraries are not what is tested
    before = state()

    ratio = GuidedDensityRatio.from_config(config)
    scores = ratio.score(SAMPLES)
    ratio.unload()

    assert all(score.reward is not None for score in scores)
    after = state()
    assert {name for name in before if before[name] != after[name]} == set()


@pytest.mark.usefixtures("unusual")
def test_scoring_inside_a_training_step_leaves_its_mode(tiny_model: Any) -> None:
    side = str(tiny_model("llama", seed=0))
    ratio = GuidedDensityRatio.from_models(side, str(tiny_model("llama", seed=1)))
    plain = [score.reward for score in ratio.score(SAMPLES)]
    weight = torch.ones(2, 2, requires_grad=True)

    with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        loss = (weight @ weight).sum()
        inside = [score.reward for score in ratio.score(SAMPLES)]
        assert torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
        (loss + (weight @ weight).sum()).backward()

    assert inside == plain  # the trainer's autocast does not reach the reward
    assert weight.grad is not None
