"""Requests to equal servers: what is sent again, where to, and what is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gdr_plugin.api.errors import MissingDependencyError, ModelError
from gdr_plugin.api.settings import ServerSection
from gdr_plugin.models.servers.client import Client, RefusedError
from tests.servers.fake import FakeServer, GoneError, ReplyError, slowly

BODY = {"model": "m", "prompt": [1, 2], "max_tokens": 0, "echo": True, "logprobs": 1}


class Words:
    """As much of a tokenizer as the fake server needs."""

    def __call__(self, text: str, **_: Any) -> Any:
        raise AssertionError("ids were sent")

    def decode(self, ids: list[int]) -> str:
        return str(ids)


def plain() -> FakeServer:
    return FakeServer("openai", {"m": lambda ids: np.full(len(ids), -1.0)}, tokenizer=Words())


@pytest.fixture
def fakes() -> Iterator[tuple[FakeServer, FakeServer]]:
    with plain().running() as first, plain().running() as second:
        yield first, second


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gdr_plugin.models.servers.client._FIRST_PAUSE_S", 0.02)


def client(*urls: str, **settings: Any) -> Client:
    return Client(urls, ServerSection(**settings), purpose="to test")


def fails_first(times: int, fault: Exception) -> Any:
    """A fault of the first few requests."""
    left = [times]

    def before(_path: str, _body: dict[str, Any]) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise fault

    return before


@pytest.mark.parametrize(
    "fault", [ReplyError(500, {}), ReplyError(503, {}), ReplyError(502, b"<html>bad gateway</html>"), GoneError()]
)
def test_what_may_go_away_is_sent_again(fakes: tuple[FakeServer, FakeServer], fault: Exception) -> None:
    fake, _ = fakes
    fake.before = fails_first(2, fault)
    asking = client(fake.url)
    answer = asking.post("/v1/completions", BODY)
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.0]
    assert len(fake.asked) == 3
    assert asking.retries == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 501])
def test_a_refusal_is_never_sent_again(fakes: tuple[FakeServer, FakeServer], status: int) -> None:
    fake, other = fakes
    fake.before = other.before = fails_first(9, ReplyError(status, {"error": {"message": "no: because"}}))
    with pytest.raises(RefusedError, match=f"/v1/completions answered {status}: no: because") as caught:
        client(fake.url, other.url).post("/v1/completions", BODY, home=0)
    assert caught.value.status == status
    assert len(fake.asked) + len(other.asked) == 1


def test_retry_after_is_waited_for(fakes: tuple[FakeServer, FakeServer]) -> None:
    fake, _ = fakes
    fake.before = fails_first(1, ReplyError(429, {"detail": "slow down"}, {"Retry-After": "0.4"}))
    begun = time.monotonic()
    client(fake.url).post("/v1/completions", BODY)
    assert 0.4 <= time.monotonic() - begun < 2.0
    assert len(fake.asked) == 2


def test_pauses_double_and_end(fakes: tuple[FakeServer, FakeServer]) -> None:
    fake, _ = fakes
    fake.before = fails_first(99, ReplyError(500, {"error": {"message": "EngineCore encountered an issue"}}))
    begun = time.monotonic()
    with pytest.raises(ModelError, match=r"^http://127.*EngineCore encountered an issue.*was tried 5 times in \d s"):
        client(fake.url).post("/v1/completions", BODY)
    assert len(fake.asked) == 5
    assert 0.75 * 0.02 * (1 + 2 + 4 + 8) <= time.monotonic() - begun < 3.0


def test_a_time_out_is_not_sent_again(fakes: tuple[FakeServer, FakeServer]) -> None:
    fake, _ = fakes
    fake.before = slowly(1.0)
    with pytest.raises(ModelError, match=r"no answer within 0\.1 s: raise server\.timeout_s"):
        client(fake.url, timeout_s=0.1).post("/v1/completions", BODY)
    assert len(fake.asked) == 1


def test_another_server_takes_over_at_once_and_keeps_the_work(fakes: tuple[FakeServer, FakeServer]) -> None:
    fake, other = fakes
    asking = client(fake.url, other.url, tries=1)
    fake.kill()
    begun = time.monotonic()
    for _ in range(10):
        asking.post("/v1/completions", BODY, home=0)
    assert len(other.asked) == 10
    assert time.monotonic() - begun < 2.0


def test_a_server_that_comes_back_is_used_again(fakes: tuple[FakeServer, FakeServer]) -> None:
    fake, other = fakes
    asking = client(fake.url, other.url)
    fake.kill()
    asking.post("/v1/completions", BODY, home=0)
    fake.start()
    time.sleep(0.1)  # longer than a first failure's rest
    asking.post("/v1/completions", BODY, home=0)
    assert (len(fake.asked), len(other.asked)) == (1, 1)


def test_the_error_names_every_server_that_was_tried(fakes: tuple[FakeServer, FakeServer]) -> None:
    fake, other = fakes
    asking = client(fake.url, other.url)
    fake.kill()
    other.before = fails_first(99, ReplyError(503, {"detail": "starting"}))
    with pytest.raises(ModelError) as caught:
        asking.post("/v1/completions", BODY)
    message = str(caught.value)
    assert f"{fake.url}: the connection failed" in message
    assert f"{other.url}: it answered 503: starting" in message
    assert "\n" not in message


def test_a_home_keeps_its_server_and_what_has_none_is_balanced(fakes: tuple[FakeServer, FakeServer]) -> None:
    fake, other = fakes
    asking = client(fake.url, other.url)
    for home in (0, 1, 0, 0, 1, 4, 7):
        asking.post("/v1/completions", BODY, home=home)
    assert (len(fake.asked), len(other.asked)) == (4, 3)


def test_the_key_comes_from_the_environment(
    fakes: tuple[FakeServer, FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, _ = fakes
    monkeypatch.setenv("MY_KEY", "secret-1")
    client(fake.url, api_key_env="MY_KEY").post("/v1/completions", BODY)
    assert fake.headers[-1]["Authorization"] == "Bearer secret-1"
    client(fake.url).post("/v1/completions", BODY)
    assert "Authorization" not in fake.headers[-1]
    fake.before = fails_first(9, ReplyError(401, {"error": {"message": "no key"}}))
    with pytest.raises(RefusedError, match=r"GDR_API_KEY, which server\.api_key_env names, is not set") as caught:
        client(fake.url).post("/v1/completions", BODY)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"not json", [1, 2], b"\xff\xfe"])
def test_an_answer_that_is_no_object_is_refused(fakes: tuple[FakeServer, FakeServer], content: Any) -> None:
    fake, _ = fakes
    fake.after = lambda _path, _body, _answer: content
    with pytest.raises(ModelError, match="not a JSON object"):
        client(fake.url).post("/v1/completions", BODY)


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingDependencyError, match=r"to test: pip install 'gdr-plugin\[servers\]'"):
        client("http://127.0.0.1:1")
