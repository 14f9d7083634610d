"""Several processes of one command, as `accelerate launch` and `torchrun` start them: who does which windows.

Knows the launchers' environment variables and torch's process groups; nothing of what a window is. Which GPU a rank
takes is decided in `models/local/device.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, TypeVar

from gdr_plugin.api.errors import ConfigError, GDRError, ModelError
from gdr_plugin.config.schema import Config
from gdr_plugin.models.local.packages import check_packages
from gdr_plugin.scoring.run_folder import differences

__all__ = ["Ranks", "check_agreement", "of_rank"]

T = TypeVar("T")
_TIMEOUT: Final = timedelta(days=365)
"""Ranks wait for each other's windows, however long they take; a rank that dies ends the wait at once."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of one command; a context manager, inside which they can speak to each other."""

    rank: int
    """This process's number, from 0."""
    world: int
    """How many there are."""
    machine: int = 0
    """The number of this process's machine, from 0."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks | None:
        """The processes that a launcher has started; None where this is the only one.

        Raises:
            ConfigError: The launcher's variables contradict each other.
        """
        world = environment.get("WORLD_SIZE", "1")
        if world in ("", "1"):
            return None
        rank, machine = environment.get("RANK", ""), environment.get("GROUP_RANK") or "0"
        if not (world.isdigit() and rank.isdigit() and machine.isdigit() and int(rank) < int(world)):
            raise ConfigError(
                f"WORLD_SIZE is {world!r} and RANK {rank!r}: start gdr with accelerate launch or torchrun, or unset "
                "WORLD_SIZE to run it once"
            )
        return cls(int(rank), int(world), int(machine))

    @property
    def first(self) -> bool:
        """Whether this process holds the folder, prints and writes the outputs."""
        return self.rank == 0

    def __enter__(self) -> Ranks:
        check_packages("to run a command in several processes")
        import torch.distributed as distributed

        try:
            distributed.init_process_group("gloo", timeout=_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"rank {self.rank} of {self.world} cannot reach the others ({error}): start gdr with accelerate "
                "launch or torchrun"
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        import torch.distributed as distributed

        if kind is None:  # after an error the others cannot be waited for
            with suppress(RuntimeError):
                distributed.destroy_process_group()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of something that all know."""
        return items[self.rank :: self.world]

    def first_says(self, make: Callable[[], T]) -> T:
        """What the first process makes; the others wait for it.

        Raises:
            GDRError: What it raised there, in every process.
        """
        found: list[Any] = [None]
        if self.first:
            try:
                found = [("value", make())]
            except GDRError as error:
                self._spread([("error", str(error))])
                raise
        self._spread(found)
        kind, value = found[0]
        if kind == "error":
            raise GDRError(value)
        result: T = value
        return result

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank; all of them wait until the last one is here."""
        import torch.distributed as distributed

        values: list[Any] = [None] * self.world
        self._together(lambda: distributed.all_gather_object(values, value))
        return values

    def _spread(self, values: list[Any]) -> None:
        import torch.distributed as distributed

        self._together(lambda: distributed.broadcast_object_list(values, src=0))

    def _together(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:  # gloo's, when a connection is gone
            raise GDRError(
                "another rank has ended: it says why; finished windows are kept, run the same command again"
            ) from error


def _check_devices(config: Config) -> None:
    """Refuse models that would take the same GPUs in every process.

    Raises:
        ConfigError: A model is spread over GPUs, or put on one by number.
    """
    for side in ("strong", "weak"):
        spec = getattr(config, side)
        key = "device_map" if spec.device_map is not None else "device"
        if spec.device_map is not None or spec.device.startswith("cuda"):
            raise ConfigError(
                f"{side}.{key}: with several processes each takes a GPU of its own: leave {key} out, or run one process"
            )


def of_rank(config: Config, ranks: Ranks | None) -> Config:
    """The configuration whose models this process opens."""
    if ranks is None:
        return config
    _check_devices(config)
    from gdr_plugin.models.local.device import on_rank

    return on_rank(config)


def check_agreement(ranks: Ranks, identity: Mapping[str, Any]) -> None:
    """Refuse processes that would not compute the same.

    Args:
        ranks: The processes.
        identity: Everything that decides the result here, as JSON has it.

    Raises:
        ModelError: It is not the first process's.
    """
    first = ranks.first_says(lambda: identity)
    if changes := list(differences(first, identity)):
        raise ModelError(
            f"rank {ranks.rank} would not compute what rank 0 does ({'; '.join(changes[:3])}): make the machines alike"
        )
