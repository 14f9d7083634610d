"""One of the processes that hold a model together (`tensor_parallel_size`): `split` starts it and sends it spans.

All of them are sent the same spans and run the same packs: a forward waits for every process's part. So nothing here
may depend on what one process sees alone, such as the memory of its GPU.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
import torch.distributed as distributed

from gdr_plugin.api.errors import EngineWarning, GDRError, ModelError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Logprobs
from gdr_plugin.models.local.compiling import is_out_of_memory
from gdr_plugin.models.local.engine import Engine
from gdr_plugin.models.local.fetch import Fetched
from gdr_plugin.models.local.memory import CPU_TOKENS, MOST_TOKENS
from gdr_plugin.models.local.model import words
from gdr_plugin.models.local.network import Network
from gdr_plugin.models.local.planner import Pack
from gdr_plugin.models.local.source import Source
from gdr_plugin.models.local.strategies import Strategy
from gdr_plugin.models.local.weights import Weights, open_part
from gdr_plugin.text import first_line

__all__ = ["Answer", "Task", "main"]

_TIMEOUT = timedelta(days=365)
"""How long a process waits for the others: `split` ends all of them as soon as one has ended."""


@dataclass(frozen=True)
class Task:
    """What a process is told when it starts."""

    rank: int
    spec: ModelSpec
    limits: Limits
    source: Source
    """Without the model's configuration, whose class may be code of its own."""
    meeting: str
    """A file by which the processes find each other."""
    threads: int
    """Threads of a process on a CPU."""


@dataclass(frozen=True)
class Answer:
    """What a process answers: once when it has loaded its part, then for each list of spans."""

    logprobs: list[Logprobs] | None = None
    """The first process's; the others have the same."""
    strategy: dict[str, str] | None = None
    """How it is run, and why, for a person; None before the first spans."""
    warnings: tuple[str, ...] = ()
    error: str | None = None


class _LockstepEngine(Engine):
    """An engine that never halves its budget by itself: the other processes would go on with theirs."""

    def _run(self, strategy: Strategy, pack: Pack) -> Fetched | None:
        try:
            return self._forward(strategy, pack)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ModelError(
                f"out of memory on one of the model's devices with {self.tokens} tokens a forward: lower "
                "limits.token_budget"
            ) from error


def main(descriptor: int) -> None:
    """Load this process's part of the model, then score what is sent, until the other end closes the connection."""
    threading.Thread(target=_end_with, args=(os.getppid(),), name="gdr-parent", daemon=True).start()
    connection = Connection(descriptor)
    task: Task = connection.recv()
    try:
        weights = _load(task)
    except Exception as error:  # whatever it is, the other end reports it
        connection.send(_failure(error))
        return
    connection.send(Answer())
    engine: Engine | None = None
    while True:
        try:
            spans = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            with warnings.catch_warnings(record=True) as caught, weights.running(None) as model:
                warnings.simplefilter("always", EngineWarning)
                engine = engine or _engine(task, Network(model))
                found = engine.score(spans)
        except Exception as error:
            connection.send(_failure(error))
            continue
        connection.send(_answer(task, engine, found, caught))


def _end_with(parent: int) -> None:
    """End when the process that sends spans is gone: in a forward this one waits for others that may never begin."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _load(task: Task) -> Weights:
    size = task.spec.tensor_parallel_size
    device = task.source.device.type
    if device == "cuda":
        torch.cuda.set_device(task.rank)
    else:
        torch.set_num_threads(task.threads)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{task.meeting}",
        rank=task.rank,
        world_size=size,
        timeout=_TIMEOUT,
    )
    return open_part(task.spec, task.source)


def _engine(task: Task, network: Network) -> Engine:
    # The same on every rank, whatever memory each finds free.
    tokens = task.limits.token_budget or (CPU_TOKENS if network.device.type == "cpu" else MOST_TOKENS)
    return _LockstepEngine(network, tokens=tokens, kept_bytes=task.limits.kv_cache_mb << 20)


def _answer(task: Task, engine: Engine, found: list[Logprobs], caught: Sequence[warnings.WarningMessage]) -> Answer:
    if task.rank:
        return Answer()
    ours = tuple(str(one.message) for one in caught if issubclass(one.category, EngineWarning))
    return Answer(found, words(engine), ours)


def _failure(error: Exception) -> Answer:
    return Answer(error=str(error) if isinstance(error, GDRError) else first_line(error))
