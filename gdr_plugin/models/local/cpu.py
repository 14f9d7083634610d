"""Matrix products on the CPU by the faster library: torch's default (MKL) or oneDNN.

MKL takes its fast paths on Intel's own processors: on an AMD one it reaches less than half of oneDNN's float32 speed
(103 against 228 GFLOP/s a core where it was measured). Which one is used follows from the processor's maker alone, so
that a machine gives a text the same log-probs in every run: a stopwatch could choose otherwise in a noisy moment. Only
our own models' layers are reached; no global setting of torch is read or changed. Results differ by rounding only.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

LOG2_E = math.log2(math.e)
"""Exponentials are taken to base two where they cost time: on CPUs torch's `exp2` is up to four times faster than its
`exp`, which goes through MKL."""
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`(rows, in) x (out, in) + (out,) -> (rows, out)`, as in `torch.nn.functional.linear`."""


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` through oneDNN, in the true precision of its input; not differentiable.

    Args:
        x: `(..., in)`, float32 on the CPU.
        weight: `(out, in)`.
        bias: `(out,)` or None.

    Returns:
        `(..., out)`.
    """
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


@lru_cache(maxsize=1)
def fast_linear() -> Linear:
    """The faster float32 product on this CPU, the same in every process.

    Returns:
        `onednn_linear` where the default is MKL and the processor AMD's; else `torch.nn.functional.linear`.
    """
    default: Linear = nn.functional.linear
    libraries = (torch.backends.mkl, torch.backends.mkldnn)
    if maker() != "AMD" or not all(library.is_available() for library in libraries):
        return default
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 128, generator=generator, device="cpu", dtype=torch.float32)
    weight = torch.randn(256, 128, generator=generator, device="cpu", dtype=torch.float32)
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            # oneDNN could be set to compute float32 in bfloat16: then it is not the same product.
            exact = (onednn_linear(x, weight) - default(x, weight, None)).abs().max() < 1e-3
    except (RuntimeError, AttributeError, NotImplementedError):  # a torch build without the operator
        return default
    return onednn_linear if exact else default


def maker() -> str:
    """The maker of this machine's processor: `AMD`, or `other`, since the choice of library depends on nothing more."""
    cpuinfo = Path("/proc/cpuinfo")
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:  # not Linux: Windows names the maker in this string, macOS has no AMD processors
        text = platform.processor()
    return "AMD" if "AuthenticAMD" in text else "other"


def use_fast_linears(model: nn.Module) -> bool:
    """Make every plain float32 linear layer on the CPU compute through the faster library.

    Only for models that this package loaded itself: the layers can no longer be trained.

    Args:
        model: Its `nn.Linear` layers (not subclasses) get their own `forward`.

    Returns:
        Whether anything changed.
    """
    linear = fast_linear()
    layers = [m for m in model.modules() if type(m) is nn.Linear and _suits(m.weight)]
    if linear is nn.functional.linear or not layers:
        return False
    for layer in layers:
        layer.forward = partial(_forward, layer, linear)  # type: ignore[method-assign]
    return True


def prefers_products(x: Tensor) -> bool:
    """Whether plain products beat torch's fused attention for `x`: on a CPU where oneDNN is the faster library."""
    mine = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    return mine and fast_linear() is onednn_linear


def product(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` by the fastest exact way for these tensors.

    Args:
        x: `(rows, in)`.
        weight: `(out, in)`.

    Returns:
        `(rows, out)`.
    """
    linear = fast_linear() if _suits(weight) and x.dtype == torch.float32 else nn.functional.linear
    return linear(x, weight, None)


def _suits(weight: Tensor) -> bool:
    # A parameter of another type is more than its numbers: split over processes, or quantised.
    return type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32


def _forward(layer: nn.Linear, linear: Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)
