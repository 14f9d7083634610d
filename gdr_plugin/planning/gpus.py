"""The table of GPUs (`gpus.yaml`), and what `8xH100` means. Knows no models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from gdr_plugin.api.errors import ConfigError, unknown

__all__ = ["Cluster", "Gpu", "gpus", "parse_gpus"]

_COUNTED = re.compile(r"(?:(\d+)\s*[x*]\s*)?(.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device as its maker specifies it."""

    name: str
    aliases: tuple[str, ...]
    memory_gb: float | None
    """Memory in GB (10^9 bytes); None where it is not the device's own (a CPU core)."""
    bfloat16: float | None
    """Dense matrix products in TFLOP/s; None where it does not compute in that type."""
    float16: float | None
    float32: float | None
    bandwidth_gb_s: float
    """Memory bandwidth in GB/s."""
    source: str
    """Where the figures come from."""

    @property
    def on_cpu(self) -> bool:
        """Whether it is a CPU core."""
        return self.memory_gb is None

    def flops(self, dtype: str) -> float:
        """Floating-point operations a second in matrix products.

        Raises:
            ConfigError: It does not compute in that type.
        """
        found: float | None = getattr(self, dtype)
        if found is None:
            raise ConfigError(f"--gpus: {self.name} computes no {dtype}: set `dtype: float16` for both models")
        return found * 1e12


@dataclass(frozen=True, slots=True)
class Cluster:
    """A number of equal devices."""

    count: int
    gpu: Gpu

    def __str__(self) -> str:
        return f"{self.count} x {self.gpu.name}"


@cache
def gpus() -> tuple[Gpu, ...]:
    """All devices of the table."""
    rows = yaml.safe_load(files("gdr_plugin.planning").joinpath("gpus.yaml").read_text(encoding="utf-8"))
    return tuple(Gpu(**{**row, "aliases": tuple(row["aliases"])}) for row in rows)


def parse_gpus(text: str) -> Cluster:
    """What the user means by `8xH100`, `2 x L40S` or `A100`.

    Raises:
        ConfigError: There is no such device in the table (with the nearest name), or none of them.
    """
    match = _COUNTED.fullmatch(text.strip())
    if match is None:
        raise ConfigError("--gpus: write how many of which, as 8xH100")
    count, name = int(match[1] or 1), match[2].strip()
    known = {_plain(called): gpu for gpu in gpus() for called in (gpu.name, *gpu.aliases)}
    if _plain(name) not in known:
        raise ConfigError(f"--gpus: {unknown('GPU', name, [gpu.name for gpu in gpus()])}")
    if count < 1:
        raise ConfigError(f"--gpus {text}: at least one is needed")
    return Cluster(count, known[_plain(name)])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("nvidia").removeprefix("amd"))
