"""What goes through pools of actors, and the contract of what moves it there.

A *stage* is what the actors of one pool do with an item; an item passes all stages in order. Knows that stages and
items are pickled, and that our own errors travel as values; nothing of Ray, models or rewards.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar

from gdr_plugin.api.errors import GDRError
from gdr_plugin.cluster.pools import Pool

__all__ = ["Engine", "InProcess", "Stage", "Step", "Worker"]

T = TypeVar("T")
Step: TypeAlias = Callable[[Any], Any]
"""Makes of an item what the next stage gets."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What the actors of one pool do."""

    pool: Pool
    open: Callable[[], Step]
    """Called once in each actor, at its first item; can be pickled."""


class Engine(Protocol):
    """Moves items through stages; a context manager that holds the connection to a cluster."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    @property
    def gpus(self) -> float:
        """How many GPUs the cluster has."""
        ...

    def once(self, pool: Pool, function: Callable[[], T]) -> T:
        """Call a function in a process that has what an actor of the pool has.

        Raises:
            GDRError: What the function raised, or the process could not be had.
        """
        ...

    def run(
        self, stages: Sequence[Stage], source: Callable[[int], Any], numbers: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        """Take items through all stages.

        Args:
            stages: In order.
            source: Makes the item of a number. It runs beside the caller, not in the actors; can be pickled, and gives
                the same item when it is asked again.
            numbers: Which items.

        Yields:
            Each number with what the last stage made of its item, in the order in which they get ready.

        Raises:
            GDRError: What a stage raised, or a process that failed again and again.
        """
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """One of our errors on its way out of an actor."""

    kind: type[GDRError]
    message: str

    @classmethod
    def of(cls, error: GDRError) -> Failure:
        """An error as a value; of one that a plugin has defined, the kind of ours that it is."""
        kind = next(base for base in type(error).__mro__ if base.__module__ == GDRError.__module__)
        return cls(kind, str(error))

    def error(self) -> GDRError:
        """The error again."""
        return self.kind.__new__(self.kind, self.message)  # some kinds are made from other arguments than the message


class Worker:
    """A stage in an actor: opens it at the first item, and turns our errors into values.

    Args:
        stage: What the actor does.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._step: Step | None = None

    def __call__(self, item: Any) -> Any:
        """The item after this stage; a failure passes through."""
        if isinstance(item, Failure):
            return item
        try:
            if self._step is None:
                self._step = self._stage.open()
            return self._step(item)
        except GDRError as error:
            return Failure.of(error)


def checked(item: Any) -> Any:
    """An item that has come out of the last stage; raises where it is a failure."""
    if isinstance(item, Failure):
        raise item.error()
    return item


class InProcess:
    """Takes items through the stages in this process, one at a time, with all the pickling that a cluster needs.

    For tests and for trying out a configuration: what it yields is what a cluster would.
    """

    gpus = 0.0

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def once(self, pool: Pool, function: Callable[[], T]) -> T:
        """See `Engine.once`."""
        result: T = _sent(_sent(function)())
        return result

    def run(
        self, stages: Sequence[Stage], source: Callable[[int], Any], numbers: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        """See `Engine.run`."""
        workers = [Worker(_sent(stage)) for stage in stages]
        read = _sent(source)
        for number in numbers:
            item = read(number)
            for worker in workers:
                item = worker(_sent(item))
            yield number, checked(_sent(item))


def _sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))
