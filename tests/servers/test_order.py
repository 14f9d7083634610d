"""What is asked first, what runs at once, and how an address is read: nothing here needs a server or torch."""

from __future__ import annotations

import threading
import time

import pytest

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.types import TokenSpan
from gdr_plugin.models.servers.address import Address, read_address
from gdr_plugin.models.servers.flow import flow
from gdr_plugin.models.servers.order import ordered

GUIDANCE = tuple(range(100, 180))


def test_one_of_a_guidance_then_one_of_each_context_then_the_siblings() -> None:
    contexts = [(*GUIDANCE, 1), (*GUIDANCE, 2), (*GUIDANCE, 3), (5, 6)]
    spans = [TokenSpan(context, (answer,)) for context in contexts for answer in (7, 8)]
    order = ordered(spans, range(8), servers=1, reuses=True)
    assert order.first == [0, 6]
    assert order.then(0) == [2, 4, 1]
    assert order.then(2) == [3]
    assert order.then(6) == [7]


def test_every_span_is_asked_once_on_many_servers() -> None:
    spans = [TokenSpan((*GUIDANCE, n % 7), (n,)) for n in range(50)]
    order = ordered(spans, range(50), servers=3, reuses=True)
    assert 1 < len(order.first) <= 3  # one of the guidance for each server that has work
    done, failed = flow(lambda place: place, order.first, order.then, at_once=4)
    assert sorted(done) == list(range(50))
    assert not failed


def test_without_a_cache_nothing_waits() -> None:
    spans = [TokenSpan(GUIDANCE, (n,)) for n in range(5)]
    assert ordered(spans, range(5), servers=2, reuses=False).first == [0, 1, 2, 3, 4]


def test_after_a_failure_nothing_new_begins_and_what_is_under_way_ends() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(item: int) -> int:
        with lock:
            begun.append(item)
        if item == 2:
            raise ValueError("broken")
        time.sleep(0.1)
        return item * 10

    done, failed = flow(work, range(100), at_once=4)
    assert list(failed) == [2]
    assert done == {item: item * 10 for item in begun if item != 2}
    assert len(begun) < 10


@pytest.mark.parametrize(
    ("target", "urls", "name"),
    [
        ("http://host:8000/org/name", ["http://host:8000"], "org/name"),
        ("http://host:8000", ["http://host:8000"], None),
        ("http://a:1, http://b:2/name", ["http://a:1", "http://b:2"], "name"),
        ("http://a:1/v1,http://b:2/v1/name", ["http://a:1", "http://b:2"], "name"),
        ("https://host/inference/v1/org/name", ["https://host/inference"], "org/name"),
        ("http://[::1]:8000/name/", ["http://[::1]:8000"], "name"),
    ],
)
def test_addresses(target: str, urls: list[str], name: str | None) -> None:
    assert read_address("m", target) == Address(tuple(urls), name)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("host:8000/name", "is not a server's address: write http://host:port/name"),
        ("http://host:port/name", "is not a server's address"),
        ("ftp://host/name", "is not a server's address"),
        ("http://a:1/x,http://b:2/x", "behind the last address only"),
        ("http://a:1,http://a:1/x", "one address twice"),
        ("http://user:secret@a:1/x", "an API key"),
        ("", "is not a server's address"),
    ],
)
def test_what_is_no_address_is_refused(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_address("vllm:...", target)
    assert "secret" not in str(caught.value)
