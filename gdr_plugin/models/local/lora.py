"""LoRA layers whose adapter is added to the base's output in place.

peft loads adapters and knows their kinds. Its own forward makes two more tensors of the output's size, in float32
whatever the model's type, and it walks through all modules to switch adapters; here the layers read one name.
Knows layers and their states; nothing of tokens, or of when an adapter is on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_ROWS = 2048
"""How many states are held in float32 at once."""


@dataclass
class Active:
    """Which adapter of a base is on."""

    adapter: str | None = None
    """Its name at peft; None is the base as it is."""


class InPlace:
    """The forward of one of peft's linear layers.

    Args:
        layer: The layer, with its base and adapters.
        active: Which adapter is on; read at every call.
    """

    def __init__(self, layer: Any, active: Active) -> None:
        self.names: set[str] = set()
        """The layer's adapters that are two matrices and nothing else; peft runs the others."""
        self._layer = layer
        self._active = active

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output plus what the active adapter adds, in the base's type."""
        layer, name = self._layer, self._active.adapter
        if name not in layer.lora_A:
            name = None
        if name is not None and name not in self.names:
            by_peft: Tensor = type(layer).forward(layer, x, *args, **kwargs)
            return by_peft
        out: Tensor = layer.base_layer(x, *args, **kwargs)
        if name is not None:
            self._add(name, out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1]))
        return out

    def _add(self, name: str, out: Tensor, x: Tensor) -> None:
        """Add what the adapter contributes; nothing of it is rounded before the sum is.

        In bfloat16, rounding between the two matrices made a reward's error a third larger (0.060 against 0.043 nats
        per root token, 64 responses of SmolLM2-135M); avoiding it costs about 5 % of a pass.
        """
        down, up = self._layer.lora_A[name], self._layer.lora_B[name]
        blocks = (x[start : start + _ROWS] for start in range(0, len(x), _ROWS))
        between = torch.cat([down(rows.float()) for rows in blocks])
        if out.dtype == torch.float32:
            out.addmm_(between, up.weight.t(), alpha=self._layer.scaling[name])
        else:
            high, low = _split(between, out.dtype)
            out.addmm_(torch.cat([high, high, low], dim=1), up.parts.t(), alpha=self._layer.scaling[name])


def run_in_place(model: nn.Module, name: str, active: Active) -> bool:
    """Run the layers of an adapter that peft has just loaded in place.

    Args:
        model: A base with peft's layers in it, in evaluation mode; it can no longer be trained.
        name: The adapter's name at peft.
        active: Which adapter is on.

    Returns:
        Whether all that the adapter changes is done here, so that `active` alone switches it on and off.
    """
    from peft.tuners.lora import Linear, LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    every = True
    for module in model.modules():
        if type(module) is Linear and _plain(module, name):
            forward = vars(module).get("forward")
            if not isinstance(forward, InPlace):
                forward = InPlace(module, active)
                module.forward = forward  # type: ignore[method-assign]
            forward.names.add(name)
        elif isinstance(module, LoraLayer):
            every = every and name not in module.lora_A and name not in module.lora_embedding_A
        elif isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            every = False  # whole modules or single tokens that were trained
    return every


def _plain(layer: Any, name: str) -> bool:
    """Whether a layer's adapter is just two matrices in memory; if so, they are made ready for use."""
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias[name]:
        return False
    weight, matrices = layer.get_base_layer().weight, (layer.lora_A[name], layer.lora_B[name])
    hooked = any(hasattr(module, "_hf_hook") for module in (layer, *matrices))  # offloaded weights
    if hooked or weight.dtype not in _TYPES or any(module.weight.is_meta for module in matrices):
        return False
    for module in matrices:
        module.float()
    if weight.dtype != torch.float32:
        high, low = _split(matrices[1].weight.detach(), weight.dtype)
        matrices[1].register_buffer("parts", torch.cat([high, low, high], dim=1), persistent=False)
    return True


def _split(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Split float32 values into two half-precision tensors that add up to them, up to the second one's rounding."""
    high = values.to(dtype)
    return high, (values - high.float()).to(dtype)
