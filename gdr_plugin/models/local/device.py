"""The device and the dtype that a spec means on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdr_plugin.api.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from gdr_plugin.api.settings import ModelSpec


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
