"""The device and the dtype that a spec means on this machine, and on this rank of several."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gdr_plugin.api.errors import ModelError
from gdr_plugin.models.local.packages import check_packages

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from gdr_plugin.api.settings import ModelSpec
    from gdr_plugin.config.schema import Config


def resolve_device(spec: ModelSpec) -> torch.device:
    """The device that a spec means.

    Args:
        spec: The model as the user asked for it.

    Returns:
        CUDA for `auto` where there is one, else the CPU; what is named otherwise.

    Raises:
        ModelError: The named device does not exist here.
    """
    import torch

    if spec.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(spec.device)
    except RuntimeError as error:
        raise ModelError(f"device {spec.device!r} is not one: use auto, cpu, cuda or cuda:N") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ModelError(
            f"device {spec.device!r} is not here ({count} CUDA devices): set `device: auto` or `device: cpu`"
        )
    return device


def dtype_name(spec: ModelSpec, device: torch.device, config: PreTrainedConfig | None) -> str:
    """The name of the dtype that weights are loaded in; without a configuration (GGUF), CUDA means bfloat16."""
    if spec.dtype != "auto":
        return spec.dtype
    if device.type == "cpu":
        return "float32"
    if config is None:
        return "bfloat16"
    return str(config.get_text_config(decoder=True).dtype or config.dtype or "float32").removeprefix("torch.")


def on_rank(config: Config) -> Config:
    """Replace `device: auto` of both models by this rank's GPU, where a launcher runs a process for each GPU.

    The GPU is named with its index, because each thread has its own current device: weights are loaded, and rewards
    computed, on other threads than the one that a program sets its device for.

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

    Raises:
        MissingDependencyError: A package of the extra `local` is missing.
    """
    check_packages("for models in this process")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return None
    rank = os.environ.get("LOCAL_RANK", "")
    index = int(rank) if rank.isdigit() else torch.cuda.current_device()
    return f"cuda:{index % count}"
