"""`gdr serve` as users run it: a process, a port, signals and exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.config.load import parse_config
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.serve import BatchingService, ServeSettings, run
from gdr_plugin.serve.app import create_app
from gdr_plugin.serve.run import is_loopback, listen

DEADLINE_S = 30
Serve = Callable[..., Any]

# A model that waits until somebody writes into a named pipe: at `slow` texts, or at the very first call.
HELD = """
from gdr_plugin import hookimpl
from gdr_plugin.models.fake import FakeModel

class Held(FakeModel):
    def score(self, spans):
        texts = [bytes(byte for byte in (*span.context, *span.response) if byte < 256) for span in spans]
        if any(WORD in text for text in texts):
            open("pipe").read()
        if any(b"kill" in text for text in texts):
            raise SystemExit
        return super().score(spans)

@hookimpl
def gdr_open_model(spec, limits):
    return Held(spec.target, limits) if spec.target == "strong" else None
"""


def poll(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.005)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def score(url: str, response: str, **kwargs: Any) -> httpx2.Response:
    body = {"rows": [{"prompt": "What is two plus two?", "response": response}]}
    return httpx2.post(f"{url}/v1/gdr/score", json=body, timeout=DEADLINE_S, **kwargs)


def test_300_clients_at_once_get_the_librarys_rewards(serve: Serve) -> None:
    ratio = GuidedDensityRatio.from_config(parse_config({"strong": "fake:strong", "weak": "fake:weak"}))
    question = (Message("user", "What is two plus two?"),)
    expected = [score.reward for score in ratio.score([Sample(question, f"answer {i % 200}") for i in range(300)])]
    url = serve().url()

    def ask(i: int) -> float:
        row = {"prompt": question[0].content, "response": f"answer {i % 200}"}
        connection = HTTPConnection(url.removeprefix("http://"), timeout=DEADLINE_S)
        connection.connect()
        together.wait(DEADLINE_S)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/gdr/score", json.dumps({"rows": [row]}), headers)
        with connection.getresponse() as answer:
            assert answer.status == 200
            reward: float = json.load(answer)["scores"][0]["reward"]
        connection.close()
        return reward

    together = threading.Barrier(300)
    with ThreadPoolExecutor(300) as pool:
        assert list(pool.map(ask, range(300))) == expected
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    page = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(page['gdr_requests_total{route="/v1/gdr/score",status="200"}']) == 300
    assert float(page["gdr_batch_samples_sum"]) == 201  # each answer once, and the probe
    assert float(page["gdr_batch_samples_count"]) < 150


def test_sigterm_finishes_what_was_asked_and_exits_with_0(serve: Serve, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    server = serve(plugin=HELD.replace("WORD", "b'slow'"))
    url = server.url()
    with ThreadPoolExecutor(6) as pool:
        running = pool.submit(score, url, "slow")
        poll(lambda: httpx2.get(f"{url}/health").json()["batch_running_s"] is not None)
        queued = [pool.submit(score, url, f"answer {i}") for i in range(5)]
        poll(lambda: "gdr_queue_samples 5.0" in httpx2.get(f"{url}/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        port = int(url.rsplit(":", 1)[1])
        poll(lambda: not listening(port))
        assert not running.done()
        (tmp_path / "pipe").write_text("go on")
        assert [request.result().status_code for request in (running, *queued)] == [200] * 6
    assert server.end() == 0
    assert server.errors == []


def test_a_batch_that_never_ends_is_given_up(serve: Serve, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    server = serve("--port", "0", "--drain-s", "0.5", plugin=HELD.replace("WORD", "b'slow'"))
    url = server.url()
    with ThreadPoolExecutor(2) as pool, socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as stuck:
        running = pool.submit(score, url, "slow")
        poll(lambda: httpx2.get(f"{url}/health").json()["batch_running_s"] is not None)
        queued = pool.submit(score, url, "answer")
        poll(lambda: "gdr_queue_samples 1.0" in httpx2.get(f"{url}/metrics").text)
        stuck.sendall(b"POST /score HTTP/1.1\r\nHost: gdr\r\nContent-Length: 9\r\n\r\n{")  # and never the rest
        server.process.send_signal(signal.SIGTERM)
        for answer in (running.result(), queued.result()):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["message"] == "the server is stopping"
        assert stuck.recv(1) == b""
    assert server.end() == 1
    assert server.errors == [
        "gdr: 2 samples were not scored within the 0.5 seconds of --drain-s: their requests got 503\n"
    ]


def test_a_server_that_still_loads_stops_at_once(serve: Serve, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve("--port", str(port), "--drain-s", "600", plugin=HELD.replace("WORD", "b'leap'"))
    poll(lambda: listening(port))
    health = f"http://127.0.0.1:{port}/health"
    poll(lambda: httpx2.get(health, timeout=DEADLINE_S).json()["batch_running_s"] is not None)
    server.process.send_signal(signal.SIGINT)
    assert server.end() == 0
    assert server.errors == []


def test_it_answers_before_the_models_are_loaded_but_is_not_ready(serve: Serve, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve("--port", str(port), plugin=HELD.replace("WORD", "b'leap'"))
    url = f"http://127.0.0.1:{port}"
    poll(lambda: listening(port))
    poll(lambda: httpx2.get(f"{url}/health", timeout=DEADLINE_S).json()["batch_running_s"] is not None)
    unready = httpx2.get(f"{url}/ready")
    assert (unready.status_code, unready.json()["reason"]) == (503, "the models are not loaded yet")
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(score, url, "early")
        poll(lambda: "gdr_queue_samples 1.0" in httpx2.get(f"{url}/metrics").text)
        assert server.lines.empty()
        (tmp_path / "pipe").write_text("go on")
        assert early.result().status_code == 200
    assert server.url() == url
    assert httpx2.get(f"{url}/ready").status_code == 200


def test_a_dead_worker_ends_the_process(serve: Serve) -> None:
    server = serve(plugin=HELD.replace("WORD", "b'slow'"))
    answer = score(server.url(), "kill")
    assert answer.status_code == 503
    assert server.end() == 1
    assert server.errors[-1].startswith("gdr: the worker died (SystemExit")


def test_models_that_cannot_be_loaded_are_one_line(serve: Serve) -> None:
    plugin = HELD.replace("WORD in text", "True").replace('open("pipe").read()', 'raise OSError("no weights here")')
    server = serve(plugin=plugin)
    assert server.end() == 2
    assert server.errors[-1] == "gdr: the model failed on a sample: OSError: no weights here\n"
    assert server.lines.empty()


def test_the_token_is_asked_for_and_never_logged(serve: Serve) -> None:
    server = serve("--port", "0", "--access-log", GDR_TOKEN="open-sesame")
    url = server.url()
    assert score(url, "a").status_code == 401
    assert score(url, "a", headers={"Authorization": "Bearer open-sesame"}).status_code == 200
    assert score(url, "b", params={"token": "open-sesame", "x": "y"}).status_code == 200
    assert score(url, "b", params={"token": "open-sesam"}).status_code == 401
    server.process.send_signal(signal.SIGINT)
    assert server.end() == 0
    log = "".join(server.errors)
    assert log.count('"POST /v1/gdr/score') == 4, "the access log"
    assert log.count("refused POST /v1/gdr/score: 401") == 2
    assert "/v1/gdr/score?x=y" in log
    assert "sesam" not in log


def test_refusing_a_body_leaves_the_server_usable(serve: Serve) -> None:
    url = serve("--port", "0", "--token", "open-sesame").url()
    with httpx2.Client(base_url=url, timeout=DEADLINE_S) as client:
        for _ in range(3):
            refused = client.post("/v1/gdr/score", content=b"x" * 2**20)  # not read
            assert refused.status_code == 401
            assert client.get("/ready").status_code == 200
    with httpx2.Client(base_url=url, timeout=DEADLINE_S, params={"token": "open-sesame"}) as client:
        connection = HTTPConnection(url.removeprefix("http://"), timeout=DEADLINE_S)
        connection.request("POST", "/v1/gdr/score?token=open-sesame", b"", {"Content-Length": str(10**12)})
        with connection.getresponse() as refused_at_once:
            assert refused_at_once.status == 413
        connection.close()
        for response in ("a", "b", "a"):  # one connection for all
            rows = [{"prompt": "Hi", "response": response}]
            assert client.post("/v1/gdr/score", json={"rows": rows}).status_code == 200


def test_rude_clients_leave_nothing_behind(serve: Serve, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    server = serve(plugin=HELD.replace("WORD", "b'slow'"))
    url = server.url()
    address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))

    def page() -> dict[str, float]:
        lines = httpx2.get(f"{url}/metrics").text.splitlines()
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        }

    def request(text: str, *headers: str) -> bytes:
        body = json.dumps({"text_1": "Hi", "text_2": text})
        head = ("POST /score HTTP/1.1", "Host: gdr", f"Content-Length: {len(body)}", *headers, "", body)
        return "\r\n".join(head).encode()

    def answers(*pieces: bytes) -> bytes:
        with socket.create_connection(address, timeout=DEADLINE_S) as client:
            client.sendall(b"".join(pieces))
            return b"".join(iter(lambda: client.recv(65536), b""))

    json_text, last = "Content-Type: application/json", "Connection: close"
    before = page()["process_open_fds"]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(score, url, "slow")
        poll(lambda: httpx2.get(f"{url}/health").json()["batch_running_s"] is not None)
        gone = [socket.create_connection(address) for _ in range(40)]
        for number, client in enumerate(gone):
            client.sendall(request(f"never read {number}", json_text))
        poll(lambda: page()["gdr_queue_samples"] == 40)
        for client in gone:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a goodbye
            client.close()
        half = [socket.create_connection(address) for _ in range(100)]
        for number, client in enumerate(half):
            client.sendall(request("never whole", json_text)[: 20 if number % 2 else -5])
        poll(lambda: page().get('gdr_requests_total{route="/score",status="disconnected"}') == 40)
        (tmp_path / "pipe").write_text("go on")
        assert running.result().status_code == 200
    pipelined = answers(request("a", json_text), request("b", json_text), request("c", json_text, last))
    assert pipelined.count(b"HTTP/1.1 200 OK") == 3
    assert answers(request("a", json_text, last, *(f"X-{i}: y" for i in range(2000)))).startswith(b"HTTP/1.1 200")
    assert answers(b"\x16\x03\x01\r\n\r\n").startswith(b"HTTP/1.1 400")
    for client in half:
        client.close()
    poll(lambda: page()["process_open_fds"] <= before)
    after = page()
    assert after["gdr_batch_samples_sum"] == 5  # the probe, `slow` and three others: nobody's texts are not scored
    assert after["gdr_failed_samples_total"] == after["gdr_waiting_samples"] == 0
    assert score(url, "d").status_code == 200


def test_a_port_in_use_is_one_line(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = serve("--port", str(port))
        assert server.end() == 2
    problem = f"gdr: cannot listen on 127.0.0.1:{port}: address already in use; choose another --port or --host\n"
    assert server.errors == [problem]


def test_a_server_that_others_reach_warns_without_a_token(serve: Serve) -> None:
    server = serve("--port", "0", "--host", "0.0.0.0")
    server.url()
    assert server.errors == ["gdr: warning: 0.0.0.0 is reachable from elsewhere and there is no --token\n"]
    quiet = serve("--port", "0", "--host", "0.0.0.0", "--token", "t")
    quiet.url()
    assert quiet.errors == []


def test_one_model_at_a_time_cannot_be_served(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "gdr.yaml").write_text("strong: fake:strong\nweak: fake:weak\nload: sequential\n")
    server = serve()
    assert server.end() == 2
    assert "a server keeps both models in memory: set load to together" in server.errors[0]


def test_hosts() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.8.8.8")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")
    assert not is_loopback("gpu-7")
    with listen("127.0.0.1", 0) as bound:
        assert bound.proto == socket.IPPROTO_TCP  # asyncio sets TCP_NODELAY on sockets that say so
    with pytest.raises(ConfigError, match="cannot listen on no such host:1: "):
        listen("no such host", 1)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "gdr.yaml").write_text("strong: fake:strong\nweak: fake:weak\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('fastapi', 'uvicorn', 'prometheus_client'):\n    sys.modules[name] = None\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "gdr_plugin", "serve", str(tmp_path / "gdr.yaml")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'gdr-plugin[serve]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_connections_that_send_no_request_are_cut(
    ratio: GuidedDensityRatio, monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    monkeypatch.setattr(run, "_HEAD_S", 0.5)
    service = BatchingService(ratio, ServeSettings())
    app = create_app(service, Plugins(entry_points=False))
    bound = listen("127.0.0.1", 0)
    server = run._Server(uvicorn.Config(app, lifespan="on", log_config=None), service)
    running = asyncio.create_task(server.serve(sockets=[bound]))
    port = bound.getsockname()[1]

    async def said(*pieces: bytes) -> bytes:
        """What a client reads until the connection is cut, that sends these and nothing more."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
        try:
            return await asyncio.wait_for(reader.read(), DEADLINE_S)
        except ConnectionResetError:
            return b""
        finally:
            await closed(writer)

    async def closed(writer: asyncio.StreamWriter) -> None:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    get = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    assert await asyncio.gather(said(), said(get)) == [b"", b""]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):  # a client that asks keeps its connection, however long ago the last request was
        writer.write(get + b"\r\n")
        assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        assert await asyncio.gather(said()) == [b""]
    await closed(writer)
    server.should_exit = True
    await running


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_client_that_does_not_read_its_answer_is_cut(
    ratio: GuidedDensityRatio, monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    monkeypatch.setattr(run, "_HEAD_S", 0.5)
    monkeypatch.setattr(run, "_KEEP_ALIVE_S", 0.5)
    service = BatchingService(ratio, ServeSettings())
    app = create_app(service, Plugins(entry_points=False))
    bound = listen("127.0.0.1", 0)
    server = run._Server(uvicorn.Config(app, lifespan="on", log_config=None), service)
    running = asyncio.create_task(server.serve(sockets=[bound]))
    row = {"prompt": "Hi?", "response": "ab " * 60_000}
    body = json.dumps({"rows": [row], "tokens": True}).encode()
    client = socket.create_connection(bound.getsockname())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = (
        "POST /v1/gdr/score HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "",
        "",
    )
    request = "\r\n".join(head).encode() + body
    await asyncio.get_running_loop().run_in_executor(None, client.sendall, request)

    async def until(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                await asyncio.sleep(0.05)

    await until(lambda: any(run._unread(connection) for connection in server.server_state.connections))
    await until(lambda: not server.server_state.connections)
    client.close()
    server.should_exit = True
    await running
