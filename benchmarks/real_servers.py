"""Real vLLM and SGLang servers on this machine's CPU, each from an environment of its own, on loopback.

Knows how they are started and ended; nothing of what they are asked. `make test-servers` and `make bench-servers` set
the environments up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
READY_S = 900
VLLM_WITHOUT_PROMPT_IDS, VLLM, SGLANG = "vllm-v1", "vllm-v2", "sglang"
"""vLLM as it starts on a CPU; with its newer runner, which answers given ids; SGLang."""
KINDS = (SGLANG, VLLM, VLLM_WITHOUT_PROMPT_IDS)


class NotStartedError(RuntimeError):
    """A server that did not start; its text says why."""


class RealServer:
    """A server of one model, ready to be asked; `close` or the end of a `with` ends it and its workers.

    Args:
        kind: One of `KINDS`.
        python: The interpreter of its environment.
        folder: The model, as safetensors.
        name: What the server calls the model.
        adapters: LoRA adapters by name: their folders.
        length: Longest sequence, in tokens.
        more: More of its own options.
        plugin: Whether vLLM finds our `gdr_vllm`, as it does where this package is installed beside it.

    Raises:
        NotStartedError: There is no such environment, or it does not start.
    """

    def __init__(
        self,
        kind: str,
        python: Path,
        folder: Path,
        *,
        name: str = "model",
        adapters: Mapping[str, Path] | None = None,
        dtype: str = "float32",
        length: int = 2048,
        more: Sequence[str] = (),
        plugin: bool = False,
    ) -> None:
        if not python.exists():
            raise NotStartedError(f"no environment with {kind} at {python}: `make test-servers` makes it")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.kind, self.name, self.url = kind, name, f"http://127.0.0.1:{port}"
        arguments = _sglang if kind == SGLANG else _vllm
        command = [str(python.absolute()), *arguments(folder, name, adapters or {}, dtype, length)]
        command += ["--host", "127.0.0.1", "--port", str(port), *more]
        if kind == VLLM:
            command += ["--enable-scale-out", "--max-num-batched-tokens", "256", "--block-size", "32"]
        environment = os.environ | _ENVIRONMENT | (_V2 if kind == VLLM else {})
        self._folder = tempfile.TemporaryDirectory(prefix="gdr-server-")  # `-m` imports from the folder it runs in
        environment["PYTHONPATH"] = os.pathsep.join(map(str, self._beside(plugin)))
        self.log = Path(self._folder.name) / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=self.log.parent
            )
        try:
            self._await()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RealServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _beside(self, plugin: bool) -> list[Path]:
        """Folders of what stands in for GPU packages, and of what the server finds as an installed package."""
        if self.kind == SGLANG:
            return [HERE / "sglang_cpu"]
        groups = {"triton.backends": "cpu = gdr_triton_cpu"} if self.kind == VLLM else {}
        if plugin:
            project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            (target,) = project["entry-points"]["vllm.general_plugins"].values()
            groups["vllm.general_plugins"] = f"gdr = {target}"
        folder = Path(self._folder.name)
        known = folder / "gdr_beside-0.dist-info"
        known.mkdir()
        (known / "METADATA").write_text("Metadata-Version: 2.1\nName: gdr-beside\nVersion: 0\n")
        points = "".join(f"[{group}]\n{point}\n" for group, point in groups.items())
        (known / "entry_points.txt").write_text(points)
        return [folder, HERE / "vllm_cpu", HERE.parent / "integrations"]

    def _await(self) -> None:
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise NotStartedError(f"{self.kind} ended while starting: {last_line(self.log)}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=60):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise NotStartedError(f"{self.kind} was not ready after {READY_S} s: {last_line(self.log)}")

    def kill(self) -> None:
        """End the server and its workers at once, as a machine that fails does."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """End the server and its workers."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        with contextlib.suppress(ProcessLookupError):  # SGLang's own end leaves workers behind
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()


_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "SGLANG_USE_CPU_ENGINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
_V2 = {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"}


def _vllm(folder: Path, name: str, adapters: Mapping[str, Path], dtype: str, length: int) -> list[str]:
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", name]
    command += ["--dtype", dtype, "--max-model-len", str(length), "--enforce-eager", "--enable-prompt-tokens-details"]
    if adapters:
        command += ["--enable-lora", "--max-lora-rank", "8", "--lora-modules"]
        command += [f"{adapter}={place}" for adapter, place in adapters.items()]
    return command


def _sglang(folder: Path, name: str, adapters: Mapping[str, Path], dtype: str, length: int) -> list[str]:
    command = ["-m", "sglang.launch_server", "--model-path", str(folder), "--served-model-name", name]
    command += ["--device", "cpu", "--dtype", dtype, "--context-length", str(length), "--max-total-tokens", "8192"]
    command += ["--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--grammar-backend", "none"]
    command += ["--disable-overlap-schedule", "--disable-cuda-graph", "--skip-server-warmup"]
    command += ["--mem-fraction-static", "0.2"]
    if adapters:
        command += ["--lora-backend", "torch_native", "--lora-paths"]
        command += [f"{adapter}={place}" for adapter, place in adapters.items()]
    return command


def last_line(log: Path) -> str:
    """The line of a log that says best why a program ended."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["no message"])[-1].strip()[:300]
