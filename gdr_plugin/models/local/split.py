"""A model whose layers several processes hold and compute together: `tensor_parallel_size` of gdr.yaml.

The processes (`shard`) are started at the first use, one for each GPU, and hear of spans through pipes; this process
holds no part of the model and no process group, so that it can be a trainer's, a server's or a notebook's.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from inspect import signature
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.distributed.configuration_utils import DistributedConfig

from gdr_plugin.api.errors import EngineWarning, ModelError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.local.model import LocalModel
from gdr_plugin.models.local.shard import Answer, Task
from gdr_plugin.models.local.source import Source

__all__ = ["SplitModel"]

log = logging.getLogger(__name__)
_PROGRAM: Final = "import sys; from gdr_plugin.models.local.shard import main; main(int(sys.argv[1]))"
_GRACE_S: Final = 10.0
"""How long the other processes may still answer once one has failed: then they wait for it, and are ended."""


class SplitModel(LocalModel):
    """A `LocalModel` that `spec.tensor_parallel_size` processes compute; it scores only.

    Raises:
        ModelError: The model cannot be split in so many parts, there are not so many GPUs, or this is itself one of
            several processes.
    """

    def __init__(self, spec: ModelSpec, limits: Limits, source: Source, *more: Any) -> None:
        _check(spec, source)
        super().__init__(spec, limits, source, *more)
        self._shards: _Shards | None = None

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        """As `LocalModel.score`; the first call starts the processes, which load the weights.

        Raises:
            ModelError: As there, or a process has ended. The next call starts all of them anew.
        """
        if not spans:
            return []
        with self._lock:
            if self._shards is None:
                log.info("%s: loading the weights in %d processes", self.name, self._spec.tensor_parallel_size)
                self._shards = _Shards(self.name, self._spec, self._limits, self.source)
            try:
                answer = self._shards.score(list(spans))
            finally:
                if not self._shards.running:
                    self._shards = None
            for message in answer.warnings:
                warnings.warn(message, EngineWarning, stacklevel=2)
            if answer.strategy is not None:
                self._known_strategy = answer.strategy
            assert answer.logprobs is not None
            return answer.logprobs

    def running(self) -> NoReturn:
        """Refused: no process has the whole model.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            f"{self.name}: a model with tensor_parallel_size only scores; let a server with tensor parallelism sample "
            "(vllm:http://... or sglang:http://...)"
        )

    def describe(self) -> dict[str, str]:
        """As `LocalModel.describe`, with the number of devices."""
        facts = super().describe()
        return facts | {"device": f"{self._spec.tensor_parallel_size} x {self.source.device.type}, tensor parallel"}

    def unload(self) -> None:
        """End the processes. Scoring again starts them again."""
        with self._lock:
            shards, self._shards = self._shards, None
            if shards is not None:
                shards.end()


class _Shards:
    """The running processes of one model."""

    def __init__(self, name: str, spec: ModelSpec, limits: Limits, source: Source) -> None:
        self._name = name
        size = spec.tensor_parallel_size
        plain = replace(source, config=PreTrainedConfig())
        threads = max(1, torch.get_num_threads() // size)
        self._folder = tempfile.TemporaryDirectory(prefix="gdr-split-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        try:
            for rank in range(size):
                ours, theirs = Pipe()
                self._connections.append(ours)
                with theirs:
                    self._processes.append(_start(rank, size, source.device.type, theirs.fileno()))
                ours.send(Task(rank, spec, limits, plain, str(Path(self._folder.name) / "meeting"), threads))
            self._answers()  # the weights are there
        except BaseException:
            self.end(wait_s=0)
            raise

    @property
    def running(self) -> bool:
        """Whether the processes can be asked."""
        return bool(self._processes)

    def score(self, spans: list[TokenSpan]) -> Answer:
        """The first process's answer; after an error that not all of them had, the processes are ended."""
        try:
            with suppress(BrokenPipeError):  # `_answers` says which one has ended
                for connection in self._connections:
                    connection.send(spans)
            return self._answers()[0]
        except ModelError:  # all have answered alike, or they are ended
            raise
        except BaseException:  # Ctrl-C, too: answers still to come would be taken for the next call's
            self.end(wait_s=0)
            raise

    def _answers(self) -> list[Answer]:
        """An answer from each process, by rank.

        Raises:
            ModelError: One of them has failed or ended.
        """
        answers: dict[int, Answer] = {}
        failed: str | None = None
        while len(answers) < len(self._connections):
            waiting: list[Any] = [one for rank, one in enumerate(self._connections) if rank not in answers]
            ready = wait(waiting, None if failed is None else _GRACE_S)
            if not ready:  # they wait for the one that failed
                self.end(wait_s=0)
                break
            for connection in ready:
                rank = self._connections.index(connection)  # type: ignore[arg-type]
                try:
                    answers[rank] = self._connections[rank].recv()
                except (EOFError, ConnectionResetError):
                    message = failed or self._ended(rank)
                    self.end(wait_s=0)
                    raise ModelError(message) from None
                if answers[rank].error is not None and failed is None:
                    failed = answers[rank].error
        if failed is not None:
            if len({answer.error for answer in answers.values()}) > 1:  # what they have checked and kept differs now
                self.end(wait_s=0)
            raise ModelError(failed)
        return [answers[rank] for rank in sorted(answers)]

    def _ended(self, rank: int) -> str:
        with suppress(subprocess.TimeoutExpired):  # it may hang on its way out
            self._processes[rank].wait(_GRACE_S)
        status = self._processes[rank].returncode or 0
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return (
            f"{self._name}: process {rank} of {len(self._connections)} has ended {how} (memory ran out, or it was "
            "ended from outside); finished rows are kept, run the same command again"
        )

    def end(self, wait_s: float = 30.0) -> None:
        """End the processes; those that do not end by themselves are killed."""
        for connection in self._connections:
            # Not only closed: a child that this process has forked meanwhile holds a copy.
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as ours:
                ours.shutdown(socket.SHUT_RDWR)
            connection.close()
        for process in self._processes:
            try:
                process.wait(wait_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes, self._connections = [], []
        self._folder.cleanup()


def _start(rank: int, size: int, device: str, descriptor: int) -> subprocess.Popen[bytes]:
    """Start a process that hears of its work through a descriptor; Ctrl-C does not reach it."""
    environment = dict(os.environ)
    environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # transformers would split over GPUs where it sees some
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(descriptor)],
        pass_fds=[descriptor],
        env=environment,
        start_new_session=True,
    )


def _check(spec: ModelSpec, source: Source) -> None:
    """Refuse what cannot be split, before a process is started."""
    size = spec.tensor_parallel_size
    key = f"tensor_parallel_size: {size}"
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise ModelError(
            f"{key}: this is one of {os.environ['WORLD_SIZE']} processes, and each would start its own {size}: let one "
            "`gdr serve` hold the model, or a vLLM or SGLang server"
        )
    if spec.device.partition(":")[2]:
        raise ModelError(f"{key}: the model takes the first {size} GPUs that this process sees: use `device: auto`")
    if source.device.type == "cuda" and (count := torch.cuda.device_count()) < size:
        raise ModelError(f"{key}: there are {count} GPUs here")
    if "tp_size" not in signature(DistributedConfig).parameters:
        raise ModelError(f"{key}: transformers {transformers.__version__} cannot split a model so: install a newer one")
    config = source.config.get_text_config(decoder=True)
    if not getattr(config, "base_model_tp_plan", None):
        raise ModelError(
            f"{key}: transformers does not know how to split a {config.model_type}: use `device_map: auto`, or a server"
        )
    heads = int(config.num_attention_heads)
    shared = int(getattr(config, "num_key_value_heads", None) or heads)
    if heads % size or shared % size:
        raise ModelError(
            f"{key}: {heads} attention heads with {shared} of keys and values cannot be shared out evenly: use a "
            "number that divides both"
        )
