"""Puts OpenRLHF's load on `gdr serve`: one-item requests, all at once, each on a connection of its own.

    python -m benchmarks.bench_serve                 # 200 and 2,000 requests, fake models and the demo pair: 12 minutes
    python -m benchmarks.bench_serve --pair fake --requests 50

The client does what OpenRLHF 0.11.2 does: 180 s in total a try, five tries a second apart. The requests are those of
training with groups of eight: forty real prompts in turn, every response another one, of 4 to 16 words so that the
demo pair (in bfloat16, see --dtype) gets through them on two cores. The passes for each model pair:

    cold      every request is new
    repeated  the same requests again: what a retry costs
    restart   new requests; when a third is answered, the server is killed (SIGKILL) and started again on its port

The server listens on the loopback address only. Results are written after every pass (`benchmarks/results/serve.json`).
A cold pass that --minutes has no time for is left out and named; kill and restart always run. The exit code is 1 if any
request fails. Where the models need more than a quarter of an hour for all requests, some fail: the client has given up
by then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

from benchmarks.measure import machine

ROOT = Path(__file__).resolve().parents[1]
DEMO_PAIR = ROOT / "examples" / "demo-pair"
PROMPTS = ROOT / "examples" / "data" / "prompts.jsonl"
RESULTS = ROOT / "benchmarks" / "results" / "serve.json"
TRIES, PAUSE_S, TRY_S = 5, 1.0, 180.0
GROUP = 8
LENGTHS = (4, 16)
"""The fewest and the most words of a response."""
START_S = 300.0
REPORT_S = 10.0
_TEXT = (
    "first then after that you can check what the others need before the week ends because it helps when people know "
    "how much time there is and which of the small things matter most to them so write it down and ask once more"
)
WORDS = _TEXT.split()


@dataclass
class PassResults:
    """What was measured in one pass."""

    latencies: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    tries: int = 0
    failures: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    """The errors of failed tries."""
    peak_mb: float = 0.0


class Server:
    """`gdr serve` in a process of its own, on a port that stays the same when it starts again."""

    def __init__(self, config: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "gdr_plugin", "serve", str(config), "--port", str(self.port)]
        self._command += ["--policy-tokenizer", str(DEMO_PAIR / "base.gguf")]
        self._log = log
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server; requests wait until the models are loaded."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        return self.process

    async def ready(self) -> float:
        """Wait until both models have scored a probe; return the seconds that took."""
        start = time.perf_counter()
        async with aiohttp.ClientSession() as session:
            while time.perf_counter() - start < START_S:
                if self.process.poll() is not None:
                    raise SystemExit(f"the server ended:\n{self._log.read_text()[-2000:]}")
                try:
                    async with session.get(f"{self.url}/ready") as answer:
                        if answer.status == 200:
                            return time.perf_counter() - start
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)
        raise SystemExit(f"the server was not ready after {START_S:.0f} s")

    def memory_mb(self) -> float:
        """The server's resident memory in MiB; 0 between a kill and a start."""
        try:
            return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20
        except psutil.Error:
            return 0.0

    def kill(self) -> None:
        """Kill the server without a warning, as the system does when memory runs out."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Let the server finish its requests; kill it after a minute."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()


def requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Make one-item requests: `GROUP` responses to each prompt in turn, no response twice."""
    from gdr_plugin.api.settings import ModelSpec
    from gdr_plugin.models.local.source import load_tokenizer, locate

    spec = ModelSpec(model=str(DEMO_PAIR / "base.gguf"))
    tokenizer = load_tokenizer(spec, locate(spec))
    texts = []
    for line in PROMPTS.read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)["prompt"]
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        texts.append(str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)))
    draw = random.Random(seed)
    bodies: list[dict[str, Any]] = []
    seen = set()
    while len(bodies) < count:
        prompt = texts[len(bodies) // GROUP % len(texts)]
        response = " ".join(draw.choices(WORDS, k=draw.randint(*LENGTHS))).capitalize() + "."
        if (prompt, response) not in seen:
            seen.add((prompt, response))
            bodies.append({"query": [f"{prompt}{response}<|im_end|>"], "prompts": [prompt], "labels": [""]})
    return bodies


async def fetch(url: str, body: dict[str, Any], results: PassResults) -> None:
    """Fetch one reward as OpenRLHF does."""
    start = time.perf_counter()
    for attempt in range(TRIES):
        results.tries += 1
        if attempt:
            await asyncio.sleep(PAUSE_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TRY_S)) as session,
                session.post(f"{url}/get_reward", json=body) as answer,
            ):
                answer.raise_for_status()
                (reward,) = (await answer.json())["rewards"]
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            results.faults[type(error).__name__] += 1
            continue
        results.latencies.append(time.perf_counter() - start)
        results.rewards.append(reward)
        return
    results.failures += 1


async def run_pass(
    server: Server, bodies: list[dict[str, Any]], name: str, at_third: Callable[[], None] | None = None
) -> PassResults:
    """Send everything at once; call `at_third` when a third is answered. Progress goes to standard error."""
    results = PassResults()
    start = said = time.perf_counter()
    tasks = [asyncio.create_task(fetch(server.url, body, results)) for body in bodies]
    waiting = set(tasks)
    while waiting:
        _, waiting = await asyncio.wait(waiting, timeout=0.05 if at_third is None else 0.005)
        done, now = len(results.latencies), time.perf_counter()
        if at_third is not None and done >= len(bodies) / 3:
            at_third()
            at_third = None
        if now - said >= REPORT_S:
            said = now
            left = (len(bodies) - done) * (now - start) / max(done, 1)
            line = f"{name}: {done:,} of {len(bodies):,}, {done / (now - start):.1f}/s, about {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
        results.peak_mb = max(results.peak_mb, server.memory_mb())
    for task in tasks:
        task.result()
    results.seconds = time.perf_counter() - start
    return results


def summary(name: str, count: int, results: PassResults, before: float, after: float) -> dict[str, Any]:
    """The numbers of a pass; latencies in milliseconds, memory in MiB."""
    cuts = statistics.quantiles(results.latencies, n=100, method="inclusive") if len(results.latencies) > 1 else []
    return {
        "pass": name,
        "requests": count,
        "failures": results.failures,
        "retries": results.tries - count,
        "faults": dict(results.faults),
        "seconds": round(results.seconds, 2),
        "requests_per_second": round(len(results.latencies) / results.seconds, 1),
        **{f"p{cut}_ms": round(1000 * cuts[cut - 1], 1) for cut in (50, 95, 99) if cuts},
        "max_ms": round(1000 * max(results.latencies, default=0.0), 1),
        "rss_before_mb": round(before, 1),
        "rss_after_mb": round(after, 1),
        "rss_peak_mb": round(results.peak_mb, 1),
    }


class Bench:
    """Runs all passes; keeps the results and watches the time.

    Args:
        out: Where the results go, rewritten after every pass.
        facts: What the file says about the run.
        end: When `--minutes` are over, by `time.monotonic`.
    """

    def __init__(self, out: Path, facts: dict[str, Any], end: float) -> None:
        self.rows: list[dict[str, Any]] = []
        self._out = out
        self._facts = facts
        self._end = end

    def keep(self, row: dict[str, Any]) -> None:
        """Print a row and write the file again."""
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        self._out.parent.mkdir(parents=True, exist_ok=True)
        part = self._out.with_suffix(".part")
        part.write_text(json.dumps({**self._facts, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")
        part.replace(self._out)

    async def run_pair(self, pair: str, config: Path, counts: list[int], log: Path) -> None:
        """Run every pass with one model pair, at every number of requests."""
        rate = 0.0
        for count in counts:
            server = Server(config, log)
            try:
                started = await server.ready()
                left = self._end - time.monotonic()
                if rate and 2 * count / rate > left:
                    reason = f"two passes of {count / rate:.0f} s in {max(left, 0):.0f} s"
                    self.keep({"pair": pair, "pass": "cold", "requests": count, "left_out": reason})
                else:
                    bodies = requests(count, seed=count)
                    cold = await self._pass(server, pair, "cold", bodies, start_s=round(started, 1))
                    rate = count / cold.seconds
                    again = await self._pass(server, pair, "repeated", bodies)
                    if not cold.failures and sorted(cold.rewards) != sorted(again.rewards):
                        raise SystemExit("the same requests got other rewards")
                await self._pass(server, pair, "restart", requests(count, seed=count + 1), restart=True)
            finally:
                server.stop()

    async def _pass(
        self, server: Server, pair: str, name: str, bodies: list[dict[str, Any]], *, restart: bool = False, **more: Any
    ) -> PassResults:
        def again() -> None:
            server.kill()
            server.start()

        before = server.memory_mb()
        results = await run_pass(server, bodies, f"{pair} {name}", again if restart else None)
        row = summary(name, len(bodies), results, before, server.memory_mb())
        self.keep({"pair": pair, **row, **more})
        return results


def write_config(pair: str, dtype: str, folder: Path) -> Path:
    """Write a model pair's gdr.yaml: the demo pair's with another dtype and whole paths, and without a store."""
    if pair == "fake":
        content: dict[str, Any] = {"strong": "fake:strong", "weak": "fake:weak"}
    else:
        content = yaml.safe_load((DEMO_PAIR / "gdr.yaml").read_text(encoding="utf-8"))
        content.pop("store", None)
        for model in (content["strong"], content["weak"]):
            model["dtype"] = dtype
            for key in ("model", "adapter"):
                if key in model:
                    model[key] = str((DEMO_PAIR / model[key]).resolve())
    file = folder / f"{pair}.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pair", choices=["fake", "demo", "both"], default="both", help="the models behind the server (both)"
    )
    parser.add_argument("--requests", type=int, nargs="+", default=[200, 2000], help="requests of a pass (200 2000)")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the demo pair (bfloat16)"
    )
    parser.add_argument("--minutes", type=float, default=12.0, help="cold passes that would take longer are left out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go as JSON")
    arguments = parser.parse_args()
    if max(arguments.requests) > 5000:
        parser.error("at most 5,000 requests")
    _raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    facts = {
        "machine": {
            **machine(),
            "threads": os.environ.get("OMP_NUM_THREADS", "torch's default"),
            "load_before": os.getloadavg()[0],
        },
        "client": {"tries": TRIES, "pause_s": PAUSE_S, "try_s": TRY_S},
        "work": {
            "group": GROUP,
            "words_of_a_response": LENGTHS,
            "prompts": 40,
            "dtype_of_the_demo_pair": arguments.dtype,
        },
    }
    bench = Bench(arguments.out, facts, time.monotonic() + 60 * arguments.minutes)
    with tempfile.TemporaryDirectory() as folder:
        for pair in ("fake", "demo"):
            if arguments.pair in (pair, "both"):
                config = write_config(pair, arguments.dtype, Path(folder))
                asyncio.run(bench.run_pair(pair, config, arguments.requests, Path(folder, "server.log")))
    print(f"bench_serve: wrote {arguments.out}", file=sys.stderr)
    return int(any(row.get("failures") for row in bench.rows))


def _raise_file_limit() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
