"""A server under load that is killed, starved, dripped on, flooded and lied to, and the rewards that come out of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.bodies import hostile, judge
from tests.chaos.figures import Figures
from tests.chaos.stores import SmallDisk, damage, entries, environment, hold

CONFIG = """
strong: fake:strong
weak: fake:weak
guidance: {domains: {chat: none, code: code, math: math}}
store: {path: STORE}
"""
PLUGIN = '''
"""A minute is to see the store come back: it is tried again sooner than by default."""

import gdr_plugin.store.optional
from gdr_plugin import hookimpl

gdr_plugin.store.optional.RETRY_S = 3.0


@hookimpl
def gdr_register_routers():
    return []
'''
TRIES, PAUSE_S, TRY_S = 5, 1.0, 180.0
"""What OpenRLHF 0.11.2 does: so many tries of a request, a second apart, each on a connection of its own."""
_TEXT = "first then after that you can check what the others need before the week ends"
WORDS = _TEXT.split()
TRAINERS = 16
RATE = 40
"""Rewards that trainers ask for in a second, on average."""
FUZZERS = 4
DRIPS = 20
HALF_OPEN = 400
READY_S = 60.0
HEALTH_S = 5.0
"""Seconds within which /health answers whatever happens; on a quiet machine it takes milliseconds."""


class Server:
    """`gdr serve` in a process of its own, on a port that stays the same when it starts again."""

    def __init__(self, folder: Path, store: Path, policy: Path | None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        folder.mkdir(exist_ok=True)
        self.log = folder / "serve.log"
        (folder / "gdr.yaml").write_text(CONFIG.replace("STORE", str(store)))
        (folder / "plugin.py").write_text(PLUGIN)
        options = ["--port", str(self.port), "--max-wait-ms", "2"]
        options += ["--policy-tokenizer", str(policy)] if policy else []
        plugin = ["--plugin", str(folder / "plugin.py")]
        self._command = [sys.executable, "-m", "gdr_plugin", *plugin, "serve", str(folder / "gdr.yaml"), *options]
        self.process: subprocess.Popen[bytes] | None = None
        self.up = asyncio.Event()

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        with self.log.open("ab") as log:
            process = self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment())
        begun = time.monotonic()
        while time.monotonic() - begun < READY_S:
            if process.poll() is not None:
                last = self.log.read_text(errors="replace").splitlines()[-1:]
                raise RuntimeError(f"the server ended by itself: {last}")
            with contextlib.suppress(OSError, EOFError):
                if (await ask(self.port, b"GET /ready HTTP/1.1\r\nHost: gdr\r\n\r\n"))[0] == 200:
                    self.up.set()
                    return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"the server was not ready after {READY_S:.0f} s: {self.log.read_text()[-2000:]}")

    async def kill(self) -> None:
        """Kill it as the system does when memory runs out."""
        assert self.process is not None
        self.up.clear()
        self.process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(self.process.wait)

    async def stop(self) -> int:
        """Ask it to end; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, 60)

    @property
    def rss_mb(self) -> float:
        """Resident memory."""
        assert self.process is not None
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


async def ask(port: int, request: bytes) -> tuple[int, str, bytes]:
    """Send one request on a connection of its own: status, content type, body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    try:
        writer.write(request)
        return await answer(reader)
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, str, bytes]:
    """Read one answer: status, content type, body.

    Raises:
        EOFError: The connection ended before.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.splitlines()
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(status.split()[1]), headers.get("content-type", ""), body


class Day:
    """One server's day.

    Args:
        rng: Decides what happens when.
        folder: For configuration, log and store.
        figures: Counts it.
        seconds: How long it is, at least.
        bodies: How many hostile requests there are.
        policy: The policy's tokenizer: trainers speak OpenRLHF's dialect. None: ours, whose server starts quicker.
    """

    def __init__(
        self, rng: random.Random, folder: Path, figures: Figures, seconds: float, bodies: int, policy: Path | None
    ) -> None:
        self._rng = rng
        self._figures = figures
        self._folder = folder
        self._seconds = seconds
        self._bodies = bodies
        self._disk = SmallDisk(folder / "disk")
        figures.tell("the disk is full by", self._disk.how)
        self._store = self._disk.folder / "store.sqlite"
        self._policy = policy
        self._server = Server(folder / "chaos", self._store, policy)
        self._asked = [_question(number, rng, policy) for number in range(int(RATE * seconds))]
        self._expected: list[bytes] = []
        self._kept: dict[tuple[str, bytes], bytes] = {}
        self._slowest = 0.0
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Live through it, then look at what is left."""
        try:
            undisturbed = await self._undisturbed()
            await self._server.start()
            begun = self._server.rss_mb
            routes = await self._routes()
            parts: list[Coroutine[Any, Any, None]] = [
                *(
                    self._forever(part)
                    for part in (self._health, self._killer, self._holder, self._filler, self._flood)
                ),
                *(self._forever(self._drip) for _ in range(DRIPS)),
            ]
            background = [asyncio.create_task(part) for part in parts]
            ends = time.monotonic() + self._seconds
            waiting = iter(list(enumerate(self._asked)))
            left = iter(range(self._bodies))
            await asyncio.gather(
                *(self._trainer(waiting, ends) for _ in range(TRAINERS)),
                *(self._fuzzer(random.Random(self._rng.random()), left, routes) for _ in range(FUZZERS)),
            )
            self._over.set()
            await asyncio.wait(background)
            for task in background:
                task.result()
            await self._server.up.wait()
            self._figures.tell(
                "serve: RSS of the first and the last process, MiB", f"{begun:.0f}, {self._server.rss_mb:.0f}"
            )
            self._figures.check(
                self._server.rss_mb < 2 * begun, f"RSS grew from {begun:.0f} to {self._server.rss_mb:.0f} MiB"
            )
            self._figures.tell("serve: slowest /health, s", self._slowest)
            self._figures.check(self._slowest < HEALTH_S, f"/health took {self._slowest:.1f} s")
            code = await self._server.stop()
            self._figures.check(code == 0, f"the server ended with {code}")
            self._look_at_the_rest(undisturbed)
        finally:
            if self._server.process is not None and self._server.process.poll() is None:
                self._server.process.kill()
                self._server.process.wait()
            self._disk.close()

    async def _undisturbed(self) -> dict[tuple[str, bytes], bytes]:
        """Ask for every reward where nothing happens, and keep the answers and the store's entries."""
        store = self._folder / "undisturbed.sqlite"
        server = Server(self._folder / "undisturbed", store, self._policy)
        await server.start()
        self._expected = [b""] * len(self._asked)
        waiting = iter(list(enumerate(self._asked)))

        async def client() -> None:
            for number, body in waiting:
                status, _, found = await ask(server.port, body)
                assert status == 200, found
                self._expected[number] = found

        try:
            await asyncio.gather(*(client() for _ in range(TRAINERS)))
        finally:
            await server.stop()
        return entries(store)

    async def _routes(self) -> list[tuple[str, str]]:
        _, _, body = await ask(self._server.port, b"GET /openapi.json HTTP/1.1\r\nHost: gdr\r\n\r\n")
        paths = json.loads(body)["paths"]
        found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
        self._figures.tell("serve: routes", len(found))
        return found + [route for route in found if route[0] == "POST"] * 4

    async def _forever(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something again and again until the day is over."""
        while not self._over.is_set():
            await part()

    async def _pause(self, least: float, most: float) -> bool:
        """Wait for some seconds; whether the day is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), self._rng.uniform(least, most))
        return self._over.is_set()

    async def _trainer(self, waiting: Any, ends: float) -> None:
        """Fetch rewards as OpenRLHF does, in rounds: what five tries could not get is asked for again."""
        for number, body in waiting:
            left = len(self._asked) - number
            await asyncio.sleep(max(0.0, (ends - time.monotonic()) / left * TRAINERS * 0.8))
            while (found := await self._reward(body)) is None:
                self._figures.counts["trainers: gave up after five tries, then asked again"] += 1
            self._figures.counts["trainers: rewards"] += 1
            self._figures.check(
                found == self._expected[number],
                f"another reward than undisturbed: {found!r}, {self._expected[number]!r}",
            )

    async def _reward(self, body: bytes) -> bytes | None:
        for attempt in range(TRIES):
            if attempt:
                self._figures.counts["trainers: tries again"] += 1
                await asyncio.sleep(PAUSE_S)
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                status, _, found = await asyncio.wait_for(ask(self._server.port, body), TRY_S)
                self._figures.counts[f"trainers: answered {status}"] += 1
                self._figures.check(status in (200, 503), f"a trainer was answered {status}: {found[:300]!r}")
                if status == 200:
                    return found
        return None

    async def _fuzzer(self, rng: random.Random, left: Any, routes: list[tuple[str, str]]) -> None:
        """Send hostile requests, many on a connection."""
        request = None
        for _ in left:
            request = hostile(rng, routes)
            for _ in range(100):  # a server that is killed has not answered
                await self._server.up.wait()
                with contextlib.suppress(OSError, EOFError):
                    status, kind, body = await asyncio.wait_for(ask(self._server.port, request.text), TRY_S)
                    judge(request, status, kind, body, self._figures)
                    break
            else:
                self._figures.check(False, f"never answered: {request.text[:400]!r}")

    async def _health(self) -> None:
        if await self._pause(0.1, 0.3):
            return
        process, ready = self._server.process, self._server.up.is_set()
        begun = time.monotonic()
        with contextlib.suppress(OSError, EOFError):
            status, _, _ = await ask(self._server.port, b"GET /health HTTP/1.1\r\nHost: gdr\r\n\r\n")
            # One that is starting listens before it has loaded anything: clients wait, and need not try again.
            if ready and process is self._server.process:
                self._figures.counts[f"health: answered {status}"] += 1
                self._slowest = max(self._slowest, time.monotonic() - begun)

    async def _killer(self) -> None:
        least, most = (4.0, 9.0) if self._seconds < 60 else (10.0, 40.0)
        if await self._pause(least, most):
            return
        with contextlib.suppress(sqlite3.Error):
            self._kept.update(entries(self._store))
        await self._server.kill()
        self._figures.counts["serve: killed"] += 1
        if self._rng.random() < 0.3:
            await self._pause(0.0, 2.0)
        await self._server.start()

    async def _holder(self) -> None:
        """Another process holds the store: shortly, or for longer than the server waits."""
        if await self._pause(2.0, 8.0):
            return
        process = hold(self._store, self._rng.choice((0.3, 1.0, 4.0)))
        self._figures.counts["store: held by another process"] += 1
        await asyncio.to_thread(process.wait)

    async def _filler(self) -> None:
        if await self._pause(3.0, 12.0):
            return
        assert self._server.process is not None
        with self._disk.full(self._server.process.pid):
            self._figures.counts["disk: filled"] += 1
            await self._pause(0.5, 3.0)

    async def _flood(self) -> None:
        """Open many connections that say half a request, and leave them for a while."""
        if await self._pause(1.0, 5.0):
            return
        opened = []
        for _ in range(HALF_OPEN):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
                writer.write(b"POST /get_reward HTTP/1.1\r\nHost: g")
                opened.append(writer)
        self._figures.counts["connections: flooded with"] += len(opened)
        await self._pause(0.5, 3.0)
        for writer in opened:
            writer.transport.abort()

    async def _drip(self) -> None:
        """Send a body byte by byte; the server may end it."""
        if await self._pause(0.1, 2.0):
            return
        with contextlib.suppress(OSError, EOFError):
            _, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
            self._figures.counts["connections: dripping"] += 1
            writer.write(b"POST /get_reward HTTP/1.1\r\nHost: gdr\r\nContent-Length: 100000\r\n\r\n")
            for _ in range(60):
                if await self._pause(0.3, 0.7) or writer.is_closing():
                    break
                writer.write(b"{")
                await writer.drain()
            writer.transport.abort()

    def _look_at_the_rest(self, undisturbed: dict[tuple[str, bytes], bytes]) -> None:
        """The log and the store after all of it."""
        figures, log = self._figures, self._server.log.read_text(errors="replace")
        figures.check("Traceback" not in log, f"a traceback in the log: ...{log[log.find('Traceback') :][:1500]}")
        figures.tell("serve: lines of the log", len(log.splitlines()))
        left = entries(self._store)
        figures.check(damage(self._store) == "ok", f"the store is damaged: {damage(self._store)}")
        figures.tell("serve: entries of the store, undisturbed and now", f"{len(undisturbed):,}, {len(left):,}")
        changed = [key for key, value in left.items() if undisturbed.get(key, value) != value]
        figures.check(not changed, f"{len(changed)} entries of the store are other ones than undisturbed")
        lost = [key for key, value in self._kept.items() if left.get(key) != value]
        figures.check(
            not lost, f"{len(lost)} of {len(self._kept)} entries that were in the store before a kill are lost"
        )


def _question(number: int, rng: random.Random, policy: Path | None) -> bytes:
    """A trainer's request for one reward: eight responses to each prompt, no response twice."""
    turn = {"role": "user", "content": f"Question {number // 8}: how many?"}
    text, domain = f"({number}) {' '.join(rng.choices(WORDS, k=12))}", rng.choice(["chat", "code", "math"])
    if policy is None:
        return _post("/v1/gdr/score", {"rows": [{"prompt": [turn], "response": text, "domain": domain}]})
    prompt = f"<|im_start|>user\n{turn['content']}<|im_end|>\n<|im_start|>assistant\n"
    label = {"messages": [turn], "domain": domain}
    return _post("/get_reward", {"query": [f"{prompt}{text}<|im_end|>"], "prompts": [prompt], "labels": [label]})


def _post(path: str, body: dict[str, Any]) -> bytes:
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: gdr\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text
