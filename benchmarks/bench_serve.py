"""`gdr serve` under OpenRLHF's load: one-item requests, all at once, each on a connection of its own.

    python benchmarks/bench_serve.py                 # 200 and 2,000 requests, fake models and the real demo pair
    python benchmarks/bench_serve.py --pair fake --requests 200 --out serve.json

The client does what OpenRLHF 0.11.2 does: 180 s in total a try, five tries a second apart. The requests are those of
training with groups of eight: forty real prompts in turn, every response another one. For each pair:

    cold      every request is new
    repeated  the same requests again: what a retry costs
    restart   new requests; a third of the way the server is killed (SIGKILL) and started again on the same port

The server listens on the loopback address only. Exit code 1 if any request fails. Where the models need more than a
quarter of an hour for all requests, some must: the client has given up by then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).resolve().parents[1]
PAIR = ROOT / "examples" / "demo-pair"
PROMPTS = ROOT / "examples" / "data" / "prompts.jsonl"
TRIES, PAUSE_S, TRY_S = 5, 1.0, 180.0
GROUP = 8
START_S = 300.0
_TEXT = (
    "first then after that you can check what the others need before the week ends because it helps when people know "
    "how much time there is and which of the small things matter most to them so write it down and ask once more"
)
WORDS = _TEXT.split()


@dataclass
class Outcome:
    """What one pass brought."""

    latencies: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    tries: int = 0
    failures: int = 0
    seconds: float = 0.0


class Server:
    """`gdr serve` in a process of its own, on a port that stays the same when it starts again."""

    def __init__(self, config: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "gdr_plugin", "serve", str(config), "--port", str(self.port)]
        self._command += ["--policy-tokenizer", str(PAIR / "base.gguf")]
        self._log = log
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; requests wait until the models are loaded."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        return self.process

    async def ready(self) -> float:
        """Wait until both models have scored a probe; seconds that took."""
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
        """Resident memory, in MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20

    def kill(self) -> None:
        """No goodbye: as when memory runs out."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Let it finish, if it does."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()


def requests(count: int, seed: int) -> list[dict[str, Any]]:
    """One-item bodies: `GROUP` responses to each prompt in turn, every one of them new."""
    from gdr_plugin.config import ModelSpec
    from gdr_plugin.models.local.source import load_tokenizer, locate

    spec = ModelSpec(model=str(PAIR / "base.gguf"))
    tokenizer = load_tokenizer(spec, locate(spec))
    texts = []
    for line in PROMPTS.read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)["prompt"]
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        texts.append(str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)))
    draw = random.Random(seed)
    bodies = []
    for number in range(count):
        prompt = texts[number // GROUP % len(texts)]
        response = " ".join(draw.choices(WORDS, k=draw.randint(8, 40))).capitalize() + "."
        bodies.append({"query": [f"{prompt}{response}<|im_end|>"], "prompts": [prompt], "labels": [""]})
    return bodies


async def fetch(url: str, body: dict[str, Any], outcome: Outcome) -> None:
    """One reward as OpenRLHF fetches it."""
    start = time.perf_counter()
    for attempt in range(TRIES):
        outcome.tries += 1
        if attempt:
            await asyncio.sleep(PAUSE_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TRY_S)) as session,
                session.post(f"{url}/get_reward", json=body) as answer,
            ):
                answer.raise_for_status()
                (reward,) = (await answer.json())["rewards"]
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            continue
        outcome.latencies.append(time.perf_counter() - start)
        outcome.rewards.append(reward)
        return
    outcome.failures += 1


async def run(url: str, bodies: list[dict[str, Any]], at_third: Callable[[], None] | None = None) -> Outcome:
    """Send everything at once; call `at_third` when a third is answered."""
    outcome = Outcome()
    start = time.perf_counter()
    tasks = [asyncio.create_task(fetch(url, body, outcome)) for body in bodies]
    if at_third is not None:
        while len(outcome.latencies) < len(bodies) / 3 and not all(task.done() for task in tasks):
            await asyncio.sleep(0.005)
        at_third()
    await asyncio.gather(*tasks)
    outcome.seconds = time.perf_counter() - start
    return outcome


def summary(name: str, count: int, outcome: Outcome, before: float, after: float) -> dict[str, Any]:
    """The numbers of a pass; latencies in milliseconds, memory in MiB."""
    cuts = statistics.quantiles(outcome.latencies, n=100, method="inclusive") if len(outcome.latencies) > 1 else []
    return {
        "pass": name,
        "requests": count,
        "failures": outcome.failures,
        "retries": outcome.tries - count,
        "seconds": round(outcome.seconds, 2),
        "requests_per_second": round(len(outcome.latencies) / outcome.seconds, 1),
        **{f"p{cut}_ms": round(1000 * cuts[cut - 1], 1) for cut in (50, 95, 99) if cuts},
        "rss_before_mb": round(before, 1),
        "rss_after_mb": round(after, 1),
    }


async def bench(pair: str, config: Path, counts: list[int], log: Path) -> list[dict[str, Any]]:
    """All passes against one pair of models, at every number of requests."""
    rows: list[dict[str, Any]] = []
    for count in counts:
        server = Server(config, log)

        def report(name: str, outcome: Outcome, before: float, server: Server = server, count: int = count) -> None:
            rows.append({"pair": pair, **summary(name, count, outcome, before, server.memory_mb())})
            print(json.dumps(rows[-1]), flush=True)

        def restart(server: Server = server) -> None:
            server.kill()
            server.start()

        try:
            await server.ready()
            bodies, before = requests(count, seed=count), server.memory_mb()
            cold = await run(server.url, bodies)
            report("cold", cold, before)
            before = server.memory_mb()
            again = await run(server.url, bodies)
            report("repeated", again, before)
            if pair == "fake" and sorted(cold.rewards) != sorted(again.rewards):
                raise SystemExit("the same requests got other rewards")
            fresh, before = requests(count, seed=count + 1), server.memory_mb()
            report("restart", await run(server.url, fresh, at_third=restart), before)
        finally:
            server.stop()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=["fake", "demo", "both"], default="both")
    parser.add_argument("--requests", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--out", type=Path, help="where the results go as JSON")
    arguments = parser.parse_args()
    if max(arguments.requests) > 5000:
        parser.error("at most 5,000 requests")
    _raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        fake = Path(folder, "fake.yaml")
        fake.write_text("strong: fake:strong\nweak: fake:weak\n")
        for pair, config in {"fake": fake, "demo": PAIR / "gdr.yaml"}.items():
            if arguments.pair in (pair, "both"):
                rows += asyncio.run(bench(pair, config, arguments.requests, Path(folder, "server.log")))
    if arguments.out:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return int(any(row["failures"] for row in rows))


def _raise_file_limit() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
