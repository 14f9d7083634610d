"""A reward of fake models that can be held up, poisoned and killed; clients of the application and of a real server."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from gdr_plugin.api.settings import Limits
from gdr_plugin.api.types import Logprobs, Message, Sample, TokenSpan
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.serve import BatchingService, ServeSettings
from gdr_plugin.serve.app import create_app

DEADLINE_S = 30


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Gated(FakeModel):
    """A fake model that waits at a gate, fails or dies when a response says so, and remembers its batches."""

    def __init__(self, name: str = "gated") -> None:
        super().__init__(name, Limits())
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[int] = []
        self.responses: list[str] = []
        self.fail_next = 0

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        texts = [bytes(byte for byte in span.response if byte < 256).decode() for span in spans]
        self.batches.append(len(spans))
        self.entered.set()
        if not self.gate.wait(DEADLINE_S):
            raise TimeoutError("the gate stayed closed")
        if self.fail_next:
            self.fail_next -= 1
            raise RuntimeError("transient")
        if any("poison" in text for text in texts):
            raise ValueError("it tasted bad")
        if any("kill" in text for text in texts):
            raise SystemExit(3)
        self.responses += texts
        scores = super().score(spans)
        return [
            values * np.float32("nan") if "nan" in text else values for values, text in zip(scores, texts, strict=True)
        ]


@pytest.fixture
def model() -> Gated:
    return Gated()


@pytest.fixture
def ratio(model: Gated) -> GuidedDensityRatio:
    return GuidedDensityRatio.from_models(model, "fake:weak")


@pytest.fixture
def make() -> Callable[..., Sample]:
    def sample(response: str = "Four.", prompt: str = "What is two plus two?", **kwargs: Any) -> Sample:
        return Sample((Message("user", prompt),), response, **kwargs)

    return sample


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    async def wait(condition: Callable[[], bool]) -> None:
        """Let the event loop run until the condition holds."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, "the condition never held"
            await asyncio.sleep(0.001)

    return wait


Connect = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


@pytest.fixture
def connect(ratio: GuidedDensityRatio) -> Connect:
    """Open a client of the application, without sockets; the service runs meanwhile."""

    @asynccontextmanager
    async def connected(*plugins: object, start: bool = True, **settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
        service = BatchingService(ratio, ServeSettings(**{"max_wait_ms": 1, **settings}))
        app = create_app(service, Plugins(*plugins, entry_points=False))
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gdr", timeout=DEADLINE_S) as client:
            client.service = service  # type: ignore[attr-defined]
            if start:
                await service.start()
                await service.load()
            try:
                yield client
            finally:
                if start:
                    await service.stop()

    return connected


class Server:
    """`gdr serve` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str, plugin: str = "", **environment: str) -> None:
        config = folder / "gdr.yaml"
        if not config.exists():
            config.write_text("strong: fake:strong\nweak: fake:weak\n")
        start = [sys.executable, "-m", "gdr_plugin"]
        if plugin:
            (folder / "plugin.py").write_text(plugin)
            start += ["--plugin", str(folder / "plugin.py")]
        self.process = subprocess.Popen(
            [*start, "serve", str(config), *(arguments or ("--port", "0"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines.put)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors.append)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, keep: Callable[[str], None]) -> None:
        for line in stream:
            keep(line)
        stream.close()

    def url(self) -> str:
        """Wait until the server says that it is ready, and where."""
        line = self.lines.get(timeout=DEADLINE_S)
        return next(word for word in line.split() if word.startswith("http"))

    def end(self) -> int:
        """Wait for the process's end; its exit code."""
        code = self.process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return code


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers = []

    def start(*arguments: str, plugin: str = "", **environment: str) -> Server:
        servers.append(Server(tmp_path, *arguments, plugin=plugin, **environment))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.end()


@pytest.fixture
def strict_json() -> Callable[[str | bytes], Any]:
    """Read JSON as strict readers do: NaN and Infinity are errors."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    return lambda text: json.loads(text, parse_constant=refuse)
