"""The client of `gdr serve`: against the real server for what works, against a real socket for what fails."""

from __future__ import annotations

import json
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gdr_plugin.api.errors import ConfigError, DataError, ModelError
from gdr_plugin.api.types import Message, Sample, Score, ToolCall
from gdr_plugin.config.load import parse_config
from gdr_plugin.config.schema import Config
from gdr_plugin.data.tools import definitions_of
from gdr_plugin.reward.remote import ROWS, RemoteRatio
from gdr_plugin.reward.reward import GuidedDensityRatio

CONFIG: dict[str, Any] = {
    "strong": "fake:a",
    "weak": "fake:b",
    "guidance": {"domains": {"chat": "none", "safety": "safety"}},
    "reward": {"reduction": "mean"},
}


TIMER = {"type": "function", "function": {"name": "timer", "parameters": {"type": "object", "default": None}}}


def sample(text: str, **fields: Any) -> Sample:
    return Sample((Message("user", "Question?"),), text, fields=fields)


@pytest.fixture(scope="module")
def config() -> Config:
    return parse_config(CONFIG)


@pytest.fixture(scope="module")
def server(config: Config, serving: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    """A real `gdr serve` with a token."""
    from gdr_plugin.serve import ServeSettings

    with serving(GuidedDensityRatio.from_config(config), ServeSettings(token="secret", max_wait_ms=1)) as url:
        yield url


Reply = Callable[[str], "tuple[int, Any, dict[str, str]] | None"]


@pytest.fixture
def stand() -> Iterator[Callable[[Reply], tuple[str, list[str]]]]:
    """`stand(reply)` -> an address that answers as `reply(path)` says (None: hangs up), and the paths asked for."""
    servers: list[ThreadingHTTPServer] = []

    def start(reply: Reply) -> tuple[str, list[str]]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked.append(self.path)
                found = reply(self.path)
                if found is None:
                    self.connection.close()
                    return
                status, content, headers = found
                text = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, *arguments: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return f"http://127.0.0.1:{server.server_address[1]}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr("gdr_plugin.reward.remote.time.sleep", slept.append)
    return slept


def problem(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "X", "code": 0}}


def test_scores_are_those_of_the_same_reward_in_this_process(server: str, config: Config) -> None:
    samples = [sample("One"), sample("Two, and 日本", domain="safety"), sample(""), sample("x", domain="nowhere")]
    samples.append(Sample((Message("user", "Q"), Message("assistant", "A"), Message("user", "?")), "cut", False))
    remote, local = RemoteRatio(server, token="secret"), GuidedDensityRatio.from_config(config)
    assert remote.score(samples) == local.score(samples)
    with_tokens = [list(map(asdict, ratio.score(samples[:2], tokens=True))) for ratio in (remote, local)]
    assert with_tokens[0] == with_tokens[1]  # what does not count in comparing scores, too
    assert remote.score([]) == []


def test_tool_calls_reasoning_and_prefills_go_along(server: str, config: Config) -> None:
    call = (ToolCall("weather", '{"city": "Lyon", "days": [1, 2]}', "c1"),)
    asked = (Message("user", "Weather?"),)
    answered = (Message("assistant", "", "Look.", call), Message("tool", "Rain.", tool_call_id="c1", name="weather"))
    samples = [
        Sample(asked, "On it.", tool_calls=call),
        Sample(asked, "On it.", reasoning="Look."),
        Sample((*asked, *answered), "Rain."),
        Sample((*asked, Message("assistant", "It will")), " rain."),
        Sample(asked, "On it.", fields={"system": "Be brief.", "messages": [], "prefill": True}),
        Sample(asked, "On it."),
        Sample((definitions_of([TIMER]), *asked), "On it."),
        Sample((definitions_of([TIMER]), Message("system", "Be brief."), *asked), "On it.", fields={"tools": [1]}),
    ]
    local = GuidedDensityRatio.from_config(config).score(samples)
    assert RemoteRatio(server, token="secret").score(samples) == local
    assert len({score.strong_logprob for score in local}) == 7


def test_it_says_what_is_served(server: str) -> None:
    remote = RemoteRatio(server + "/", token="secret")
    assert list(remote.domains) == ["chat", "safety"]
    assert remote.reduction == "mean"


def test_fields_that_json_cannot_say_stay_here(server: str, config: Config) -> None:
    odd = sample("One", domain="safety", image=object(), number=float("nan"), prompt="other", finished=3)
    (score,) = RemoteRatio(server, token="secret").score([odd])
    assert score.domain == "safety"
    assert score == GuidedDensityRatio.from_config(config).score([odd])[0]


def test_it_pickles(server: str) -> None:
    remote = RemoteRatio(server, token="secret")
    again = pickle.loads(pickle.dumps(remote))
    assert again.score([sample("One")]) == remote.score([sample("One")])


def test_the_token_comes_from_the_environment_and_a_wrong_one_is_a_clear_error(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GDR_TOKEN", "secret")
    assert len(RemoteRatio(server).score([sample("One")])) == 1
    with pytest.raises(ConfigError, match=r"refuses the token.*GDR_TOKEN"):
        RemoteRatio(server, token="wrong").score([sample("One")])


def test_a_large_batch_goes_in_several_requests(server: str) -> None:
    samples = [sample(str(number)) for number in range(ROWS + 3)]
    scores = RemoteRatio(server, token="secret").score(samples)
    assert len(scores) == ROWS + 3
    assert scores[-1] == RemoteRatio(server, token="secret").score(samples[-1:])[0]


def test_a_batch_larger_than_a_body_may_be_goes_in_several_requests(server: str) -> None:
    samples = [sample(str(number), note="x" * 200_000) for number in range(50)]  # 10 MB; a body has 8 MiB at most
    scores = RemoteRatio(server, token="secret").score(samples)
    assert scores == RemoteRatio(server, token="secret").score([sample(str(number)) for number in range(50)])


def test_faults_of_the_server_are_tried_again(stand: Any, pauses: list[float]) -> None:
    replies = [(500, problem("boom"), {}), None, (503, problem("full"), {"Retry-After": "7"}), (200, {"a": 1}, {})]
    url, asked = stand(lambda path: replies.pop(0))
    assert RemoteRatio(url, tries=4).info == {"a": 1}
    assert asked == ["/info"] * 4
    assert pauses == [0.5, 1.0, 7.0]


def test_pauses_double_up_to_half_a_minute_whatever_the_server_wants(stand: Any, pauses: list[float]) -> None:
    url, _ = stand(lambda path: (503, problem("full"), {}))
    with pytest.raises(ModelError, match="tried 9 times"):
        RemoteRatio(url, tries=9).score([sample("One")])
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    pauses.clear()
    url, asked = stand(lambda path: (503, problem("full"), {"Retry-After": "99"}))
    with pytest.raises(ModelError, match="tried 6 times"):
        RemoteRatio(url).score([sample("One")])
    assert len(asked) == 6
    assert pauses == [30.0] * 5


@pytest.mark.parametrize(("scheme", "kind"), [("http", "HTTPConnection"), ("https", "HTTPSConnection")])
def test_connecting_may_take_ten_seconds_and_an_answer_ten_minutes(
    scheme: str, kind: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int | None, float]] = []

    class Nobody:
        def __init__(self, host: str, port: int | None, timeout: float) -> None:
            made.append((host, port, timeout))

        def connect(self) -> None:
            raise ConnectionRefusedError

        def close(self) -> None: ...

    monkeypatch.setattr(f"gdr_plugin.reward.remote.http.client.{kind}", Nobody)
    with pytest.raises(ModelError, match=r"the connection failed \(ConnectionRefusedError\) \(tried once\)"):
        RemoteRatio(f"{scheme}://host:8443/under", tries=1).score([sample("One")])
    with pytest.raises(ModelError, match="tried once"):
        RemoteRatio(f"{scheme}://host", tries=1, timeout_s=3).score([sample("One")])
    assert made == [("host", 8443, 10.0), ("host", None, 3)]


def test_columns_with_names_of_ours_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []

    def exchange(self: RemoteRatio, method: str, path: str, body: bytes) -> dict[str, Any]:
        sent.extend(json.loads(body)["rows"])
        return {"scores": [{**asdict(Score(1.0, None, -1.0, -2.0, 1, 1, "a", "default", "none")), "added": "later"}]}

    monkeypatch.setattr(RemoteRatio, "_exchange", exchange)
    (score,) = RemoteRatio("http://host").score([sample("One", id="7", finished="no", topic="tea")])
    assert score == Score(1.0, None, -1.0, -2.0, 1, 1, "a", "default", "none")  # what a newer server adds is left out
    assert sent == [
        {
            "topic": "tea",
            "prompt": [{"role": "user", "content": "Question?"}],
            "response": "One",
            "finished": True,
        }
    ]


def test_it_gives_up_with_the_servers_own_words(stand: Any, pauses: list[float]) -> None:
    url, asked = stand(lambda path: (503, problem("the models are not loaded"), {}))
    with pytest.raises(ModelError, match=r"the models are not loaded \(tried 3 times\)"):
        RemoteRatio(url, tries=3).score([sample("One")])
    assert len(asked) == 3


def test_nobody_there(pauses: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ModelError, match=r"the connection failed .*tried 2 times\): is `gdr serve` running there"):
        RemoteRatio(url, tries=2).score([sample("One")])


@pytest.mark.parametrize(
    ("status", "kind", "match"),
    [
        (422, DataError, "rows.0. has no"),
        (413, ModelError, "too large"),
        (404, ConfigError, "address of a `gdr serve`"),
        (307, ConfigError, "address of a `gdr serve`"),
        (200, ModelError, "one score a row"),
    ],
)
def test_refusals_are_not_repeated(stand: Any, pauses: list[float], status: int, kind: Any, match: str) -> None:
    words = {422: "rows[0] has no `prompt`", 413: "too large"}.get(status, "no")
    url, asked = stand(lambda path: (status, problem(words), {}))
    with pytest.raises(kind, match=match):
        RemoteRatio(url).score([sample("One")])
    assert len(asked) == 1
    assert pauses == []


def test_what_is_not_json_is_not_taken_for_a_score(stand: Any) -> None:
    for text in (b"<html>", b'{"scores": [NaN]}'):
        url, _ = stand(lambda path, text=text: (200, text, {}))
        with pytest.raises(ModelError, match="not JSON"):
            RemoteRatio(url).score([sample("One")])


def test_a_slow_answer_is_not_asked_for_twice(stand: Any) -> None:
    release = threading.Event()

    def slowly(path: str) -> tuple[int, Any, dict[str, str]]:
        release.wait(10)
        return 200, {}, {}

    url, asked = stand(slowly)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"no answer within 0\.2 s: raise timeout_s"):
        RemoteRatio(url, timeout_s=0.2).score([sample("One")])
    assert time.monotonic() - started < 5
    assert asked == ["/v1/gdr/score"]
    release.set()


@pytest.mark.parametrize("url", ["localhost:5000", "ftp://host", "http://", "http://host:port", "http://host/?a=1", ""])
def test_what_is_not_an_address(url: str) -> None:
    with pytest.raises(ConfigError, match="http://host:port"):
        RemoteRatio(url)


def test_numbers_out_of_range() -> None:
    with pytest.raises(ConfigError, match="timeout_s"):
        RemoteRatio("http://host", timeout_s=0)
    with pytest.raises(ConfigError, match="tries"):
        RemoteRatio("http://host", tries=0)
