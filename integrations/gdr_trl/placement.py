"""On which GPU the model pair is loaded when a trainer runs on several.

Knows ranks and transformers' global DeepSpeed configuration; does not load anything itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.config.schema import Config

_DEEPSPEED = "transformers.integrations.deepspeed"
_REFERENCE = "_hf_deepspeed_config_weak_ref"


@contextmanager
def outside_zero3() -> Iterator[None]:
    """Load models whole, although the trainer shards its own.

    Under ZeRO-3 transformers keeps a weak reference to the trainer's DeepSpeed configuration and splits every model
    that is loaded afterwards over the ranks. The reference is taken away for the block and put back after it. Without
    ZeRO-3 nothing happens.
    """
    module: Any = sys.modules.get(_DEEPSPEED)
    if module is None or not module.is_deepspeed_zero3_enabled():
        yield
        return
    reference = getattr(module, _REFERENCE)
    module.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        setattr(module, _REFERENCE, reference)


def on_rank(config: Config) -> Config:
    """Replace `device: auto` of both models by this rank's GPU.

    The GPU is named with its index, because each thread has its own current device, and async rewards run on another
    thread than the trainer.

    Args:
        config: The configuration as it was read.

    Returns:
        The new configuration; unchanged where there is no GPU, and for models with a device or device map of their own.
    """
    return config.model_copy(update={side: spec_on_rank(getattr(config, side)) for side in ("strong", "weak")})


def spec_on_rank(spec: ModelSpec) -> ModelSpec:
    """`on_rank` for one model."""
    if spec.device != "auto" or spec.device_map is not None or spec.scheme != "hf":
        return spec
    device = rank_device()
    return spec if device is None else spec.model_copy(update={"device": device})


def rank_device() -> str | None:
    """This rank's GPU, such as `cuda:3`; None where there is none.

    LOCAL_RANK, which every launcher sets, says which one it is; a process that sees a single GPU uses that one.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return None
    rank = os.environ.get("LOCAL_RANK", "")
    index = int(rank) if rank.isdigit() else torch.cuda.current_device()
    return f"cuda:{index % count}"
