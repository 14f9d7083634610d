"""The engine on a Ray cluster: Ray Data moves the items, keeps the pools and repeats what a lost process had begun.

The only module that imports Ray, and only when an engine is entered. Knows Ray's options; nothing of what an item is.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gdr_plugin.api.errors import ConfigError, GDRError, MissingDependencyError, ModelError
from gdr_plugin.cluster.engine import Failure, Stage, Worker, checked
from gdr_plugin.cluster.pools import Pool
from gdr_plugin.logs import logger
from gdr_plugin.text import typed_line

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["RayEngine"]

T = TypeVar("T")
log = logger(__name__)

_RETRIES: Final = 4
"""How often an item is given to a new actor after one has died with it; a lost machine is not its fault."""
_IN_FLIGHT: Final = 2
"""Items that an actor has been handed: the next one is there when it is done with one."""


class RayEngine:
    """Moves items through pools of actors with Ray Data; a context manager.

    Args:
        address: Of the cluster, as `ray.init` takes it; default: RAY_ADDRESS, else the cluster of this machine, else
            one that is started here for the time of the run.

    Raises:
        MissingDependencyError: On entering: Ray is not installed.
        ConfigError: On entering: there is no cluster at the address.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._connected = False

    def __enter__(self) -> RayEngine:
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise MissingDependencyError("ray", "ray", "for --engine ray") from error
        if self._address is not None and self._address.startswith("ray://"):
            raise ConfigError(
                f"--address {self._address}: Ray Data runs on a machine of the cluster: submit the command there "
                "(`ray job submit -- gdr ...`), or name the cluster's own address (host:port)"
            )
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        if not ray.is_initialized():
            try:
                ray.init(address=self._address, logging_level=logging.ERROR, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"--address {self._address or '(none)'}: no Ray cluster can be reached ({typed_line(error)}): "
                    "start one with `ray start --head`, or leave out --address"
                ) from error
            self._connected = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False

    @property
    def gpus(self) -> float:
        """How many GPUs the cluster has now."""
        import ray

        return float(ray.cluster_resources().get("GPU", 0))

    def once(self, pool: Pool, function: Callable[[], T]) -> T:
        """See `Engine.once`."""
        import ray

        def call() -> Any:
            try:
                return function()
            except GDRError as error:
                return Failure.of(error)

        remote = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=_RETRIES)(call)
        try:
            result: T = checked(ray.get(remote.remote()))
        except ray.exceptions.RayError as error:
            raise _lost(error) from error
        return result

    def run(
        self, stages: Sequence[Stage], source: Callable[[int], Any], numbers: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        """See `Engine.run`."""
        import ray

        if not numbers:
            return
        self._tell_of_room(stages)
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False  # what is ready is kept at once, not when its turn comes
        context.target_max_block_size = 1  # a block for each item: it goes on as soon as it is ready
        reader = _reader(source)
        with ray.data.DataContext.current(context):
            items = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
            for place, stage in enumerate(stages):
                items = items.map_batches(
                    _Actor,
                    fn_constructor_args=(pickle.dumps(stage), reader if place == 0 else None),
                    compute=_strategy(stage.pool),
                    batch_size=1,
                    batch_format="pyarrow",
                    num_cpus=stage.pool.cpus,
                    num_gpus=stage.pool.gpus,
                    ray_remote_args_fn=_retried,
                )
            try:
                for batch in items.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    for number, content in zip(batch["number"].to_pylist(), batch["content"].to_pylist(), strict=True):
                        yield number, checked(pickle.loads(content))
            except ray.exceptions.RayError as error:
                raise _lost(error) from error

    def _tell_of_room(self, stages: Sequence[Stage]) -> None:
        """Say where a run will wait for machines that are not there yet."""
        import ray

        here = ray.cluster_resources()
        for resource, need in (
            ("CPU", sum((stage.pool.actors or 1) * stage.pool.cpus for stage in stages)),
            ("GPU", sum((stage.pool.actors or 1) * stage.pool.gpus for stage in stages)),
        ):
            has = float(here.get(resource, 0))
            if need > has:
                log.warning(
                    "the pools want %g %ss and the cluster has %g: it has to grow, or set ray.actors and ray.%ss lower",
                    need,
                    resource,
                    has,
                    resource.lower(),
                )


class _Actor:
    """A stage as Ray Data calls it: a table of one row in, a table of one row out."""

    def __init__(self, stage: bytes, reader: Any) -> None:
        self._worker = Worker(pickle.loads(stage))
        self._reader = reader

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa
        import ray

        numbers = batch["number"].to_pylist()
        if self._reader is None:
            items = [pickle.loads(content) for content in batch["content"].to_pylist()]
        else:
            items = ray.get([self._reader.read.remote(number) for number in numbers])
        done = [pickle.dumps(self._worker(item), protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        return pa.table({"number": pa.array(numbers, pa.int64()), "content": pa.array(done, pa.large_binary())})


def _retried() -> dict[str, int]:
    """What an actor is started with: machines may be lost any number of times, an item may take down a few actors."""
    return {"max_restarts": -1, "max_task_retries": _RETRIES}


def _strategy(pool: Pool) -> Any:
    import ray

    if pool.actors is not None:
        return ray.data.ActorPoolStrategy(size=pool.actors, max_tasks_in_flight_per_actor=_IN_FLIGHT)
    return ray.data.ActorPoolStrategy(min_size=1, max_tasks_in_flight_per_actor=_IN_FLIGHT)


def _reader(source: Callable[[int], Any]) -> Any:
    """An actor on this machine that reads items for the first stage, so that no other machine needs the input."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Reader:
        def __init__(self, content: bytes) -> None:
            self._source = pickle.loads(content)

        def read(self, number: int) -> Any:
            try:
                return self._source(number)
            except GDRError as error:
                return Failure.of(error)

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Reader)
    return actor.remote(pickle.dumps(source))


def _lost(error: Exception) -> ModelError:
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    why = lines[-1] if lines else type(cause).__name__
    return ModelError(
        f"Ray: {type(cause).__name__}: {why}; windows that were finished are kept: run the same command again (Ray's "
        "logs of the actors say more)"
    )
