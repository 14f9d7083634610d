"""How many actors hold which model, and what each of them takes: from gdr.yaml and what the cluster has.

Knows the section `ray` of gdr.yaml; nothing of Ray or of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.config.schema import Config, PoolName, RaySection

__all__ = ["Pool", "pools_of"]


@dataclass(frozen=True, slots=True)
class Pool:
    """A number of actors that hold the same."""

    name: PoolName
    actors: int | None
    """None: from one to as many as the cluster has room for."""
    gpus: float
    """Of one actor."""
    cpus: float
    """Of one actor."""


def pools_of(config: Config, *, gpus: float, policy: str | None = None) -> dict[PoolName, Pool]:
    """The pools through which a window goes, in that order.

    Args:
        config: The configuration.
        gpus: How many GPUs the cluster has.
        policy: The scheme of the model that draws responses; None where the rows bring them.

    Returns:
        `policy` first where there is one; then `both`, or `strong` and `weak`.

    Raises:
        ConfigError: gdr.yaml sizes a pool that there is not, or wants one model in memory at a time and both in a pool.
    """
    section = config.ray or RaySection()
    one_base = section.pools == "auto" and config.strong.model == config.weak.model
    schemes: dict[PoolName, str] = {} if policy is None else {"policy": policy}
    if section.pools == "shared" or one_base:
        if config.load == "sequential":
            raise ConfigError(
                "load: sequential wants one model in memory at a time, and the actors of a shared pool hold both: set "
                "ray.pools to separate, or leave out `load`"
            )
        schemes["both"] = "hf" if "hf" in (config.strong.scheme, config.weak.scheme) else config.strong.scheme
    else:
        schemes |= {"strong": config.strong.scheme, "weak": config.weak.scheme}
    _refuse_unused(section, schemes)
    return {
        name: Pool(
            name,
            section.actors.get(name),
            section.gpus.get(name, 1.0 if gpus and scheme == "hf" else 0.0),
            section.cpus.get(name, 1.0),
        )
        for name, scheme in schemes.items()
    }


def _refuse_unused(section: RaySection, used: Mapping[PoolName, str]) -> None:
    for key in ("actors", "gpus", "cpus"):
        for name in getattr(section, key):
            if name not in used and name != "policy":  # a policy may be given another time
                raise ConfigError(f"ray.{key}: there is no pool {name!r} here: this run has {', '.join(used)}")
