"""Released OpenRLHF clients without a GPU, and a real `gdr serve` that answers them.

The clients lie in folders of the environment (`make test` puts them there), one a version; only the modules that talk
to the reward are imported. What they import besides (Ray, vLLM) is stood in for by the few names they use.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

CLIENTS = Path(sys.prefix) / "clients"
PACKAGES = ("openrlhf", "openrlhf.utils", "openrlhf.trainer", "openrlhf.trainer.ppo_utils", "openrlhf.trainer.ray")

Client = Callable[..., ModuleType]


class _Remote:
    """What `ray.remote` makes of a function or class here: it is called in this process."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner = inner

    def remote(self, *arguments: Any, **named: Any) -> Any:
        return self.inner(*arguments, **named)


def _stand_ins() -> dict[str, ModuleType]:
    ray, vllm, engine = ModuleType("ray"), ModuleType("vllm"), ModuleType("openrlhf.trainer.ray.vllm_engine")
    ray.remote = _Remote  # type: ignore[attr-defined]
    ray.get = lambda refs: refs  # type: ignore[attr-defined]
    vllm.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    engine.batch_vllm_engine_call = None  # type: ignore[attr-defined]
    for module in (ray, vllm, engine):
        module.__spec__ = ModuleSpec(module.__name__, None)  # whoever looks for the package finds something in order
    return {"ray": ray, "vllm": vllm, "openrlhf.trainer.ray.vllm_engine": engine}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """`client(version, module)`: a module of a released OpenRLHF; one version a test."""
    before = dict(sys.modules)

    def load(version: str, name: str) -> ModuleType:
        folder = CLIENTS / f"openrlhf-{version}"
        if not folder.is_dir():
            pytest.skip(f"OpenRLHF {version} is not installed: make .venv/.clients")
        for package in PACKAGES:
            if package not in sys.modules:
                module = ModuleType(package)
                module.__path__ = [str(folder.joinpath(*package.split(".")))]
                sys.modules[package] = module
        for stand_in, module in _stand_ins().items():
            sys.modules.setdefault(stand_in, module)
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] in ("openrlhf", "ray", "vllm"):
            del sys.modules[name]


class Server:
    """`gdr serve` in a process of its own."""

    def __init__(self, config: Path, *arguments: str, port: int = 0, wait: bool = True) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gdr_plugin", "serve", str(config), "--port", str(port), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.errors: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until both models have scored a probe."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "serving" in line, "".join(self.errors)
        self.url = next(word for word in line.split() if word.startswith("http"))
        self.rewards = f"{self.url}/get_reward"

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)
        self.process.stderr.close()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._reader.join(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="session")
def policy(tiny_model: Callable[..., Path]) -> Path:
    """The folder of a policy with a ChatML tokenizer."""
    return tiny_model("llama", seed=7)


@pytest.fixture(scope="session")
def config(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward of two tiny models with other tokenizers' templates than any default, guided."""
    strong, weak = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    file = tmp_path_factory.mktemp("reward") / "gdr.yaml"
    file.write_text(
        f"strong: {strong}\nweak: {weak}\n"
        "guidance:\n  domains: {chat: none, math: math}\n"
        "routing: {routers: [field], default_domain: chat}\n"
    )
    return file


@pytest.fixture(scope="session")
def server(config: Path, policy: Path) -> Iterator[Server]:
    running = Server(config, "--policy-tokenizer", str(policy))
    yield running
    running.end()


@pytest.fixture
def serve(policy: Path) -> Iterator[Callable[..., Server]]:
    """Start further servers; they end with the test."""
    running: list[Server] = []

    def start(config: Path, *arguments: str, port: int = 0, wait: bool = True) -> Server:
        running.append(Server(config, "--policy-tokenizer", str(policy), *arguments, port=port, wait=wait))
        return running[-1]

    yield start
    for server in running:
        server.end()
