"""Which engine `--engine` and `--address` name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gdr_plugin.cluster.engine import Engine


def chosen_engine(name: str, address: str | None) -> Engine | None:
    """The engine on a cluster, or None for this process.

    Args:
        name: What `--engine` says.
        address: What `--address` says.

    Raises:
        ConfigError: An address is given for an engine that has none.
    """
    from gdr_plugin.api.errors import ConfigError

    if name != "ray":
        if address is not None:
            raise ConfigError(f"--address {address} names a Ray cluster: give --engine ray, too")
        return None
    from gdr_plugin.cluster.on_ray import RayEngine

    return RayEngine(address)
