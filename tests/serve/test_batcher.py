"""Batching across requests: nothing lost, nothing computed twice, nobody starved, failures kept apart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gdr_plugin.api.errors import ConfigError, ModelError, RequestError
from gdr_plugin.api.types import Sample
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.serve import BatchingService, ServeSettings, batcher, entry, squash
from gdr_plugin.serve.entry import TOKEN_FIELDS

pytestmark = pytest.mark.anyio
Make = Callable[..., Sample]
Until = Callable[[Callable[[], bool]], Awaitable[None]]


def service_of(ratio: GuidedDensityRatio, **settings: Any) -> BatchingService:
    return BatchingService(ratio, ServeSettings(**{"max_wait_ms": 1, **settings}))


def count(service: BatchingService, name: str, **labels: str) -> float:
    value = service.metrics._registry.get_sample_value(name, labels)
    return 0.0 if value is None else value


async def test_scores_are_the_librarys_in_order(ratio: GuidedDensityRatio, make: Make) -> None:
    requests = [[make(f"answer {r} {i}", f"prompt {r % 3}") for i in range(r % 5)] for r in range(40)]
    expected = [ratio.score(request) for request in requests]
    async with service_of(ratio) as service:
        assert await asyncio.gather(*map(service.score, requests)) == expected


async def test_requests_share_batches_of_bounded_size(ratio: GuidedDensityRatio, model: Any, make: Make) -> None:
    async with service_of(ratio, max_wait_ms=50, max_batch=16) as service:
        model.batches.clear()
        await asyncio.gather(*(service.score([make(f"answer {i}")]) for i in range(64)))
    assert sum(model.batches) == 64
    assert max(model.batches) == 16
    assert len(model.batches) <= 6


async def test_a_full_batch_does_not_wait(ratio: GuidedDensityRatio, model: Any, make: Make) -> None:
    service = service_of(ratio, max_wait_ms=60_000, max_batch=4)
    await service.start()
    scores = await asyncio.wait_for(service.score([make(f"answer {i}") for i in range(4)]), 10)
    assert len(scores) == 4
    assert model.batches == [4]
    last = asyncio.ensure_future(service.score([make("one more")]))
    await asyncio.sleep(0)
    await service.stop()  # nor does a stopping service
    assert (await last)[0].reward is not None


async def test_long_samples_make_small_batches(
    ratio: GuidedDensityRatio, model: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service_of(ratio, max_wait_ms=50) as service:
        monkeypatch.setattr(batcher, "BATCH_CHARS", 2500)
        model.batches.clear()
        await service.score([make(f"{i}" * 1000) for i in range(7)])
    assert model.batches == [3, 3, 1]


async def test_small_requests_do_not_wait_for_a_large_one_nor_it_for_them(
    ratio: GuidedDensityRatio, model: Any, make: Make, until: Until
) -> None:
    async with service_of(ratio, max_batch=64) as service:
        model.gate.clear()
        blocker = asyncio.ensure_future(service.score([make("blocker")]))
        await until(lambda: service.batcher.busy_since is not None)
        large = asyncio.ensure_future(service.score([make(f"large {i}") for i in range(1_000)]))
        await until(lambda: service.batcher.queued == 1_000)
        small = [asyncio.ensure_future(service.score([make(f"small {i}")])) for i in range(3)]
        await until(lambda: service.batcher.queued == 1_003)
        model.responses.clear()
        model.gate.set()
        await asyncio.gather(blocker, *small)
        assert not large.done()
        scores = await large
    asked = model.responses
    assert max(asked.index(f"small {i}") for i in range(3)) <= 64  # behind the blocker, in the first batch
    assert [text for text in asked if text.startswith("large")] == [f"large {i}" for i in range(1_000)]
    assert [score.reward for score in scores] == [
        score.reward for score in ratio.score([make(f"large {i}") for i in range(1_000)])
    ]


async def test_a_large_request_is_not_starved_by_small_ones(ratio: GuidedDensityRatio, model: Any, make: Make) -> None:
    async with service_of(ratio, max_batch=8) as service:
        large = asyncio.ensure_future(service.score([make(f"large {i}") for i in range(64)]))

        async def client(number: int) -> int:
            asked = 0
            while not large.done():
                await service.score([make(f"small {number} {asked}")])
                asked += 1
            return asked

        asked = await asyncio.wait_for(asyncio.gather(*map(client, range(32))), 20)
    assert min(asked) > 0


async def test_a_sample_in_flight_is_scored_once(
    ratio: GuidedDensityRatio, model: Any, make: Make, until: Until
) -> None:
    async with service_of(ratio) as service:
        model.gate.clear()
        first = asyncio.ensure_future(service.score([make("blocker")]))
        await until(lambda: service.batcher.busy_since is not None)
        many = [asyncio.ensure_future(service.score([make("same"), make("same")])) for _ in range(10)]
        many.append(asyncio.ensure_future(service.score([make("blocker")])))  # running, not queued
        await until(lambda: count(service, "gdr_cache_hits_total", kind="in_flight") == 20)
        model.gate.set()
        results = await asyncio.gather(first, *many)
    assert model.responses.count("same") == 1
    assert model.responses.count("blocker") == 1
    assert len({score for scores in results[1:-1] for score in scores}) == 1


async def test_finished_scores_are_kept_and_the_longest_unused_go_first(
    ratio: GuidedDensityRatio, model: Any, make: Make
) -> None:
    async with service_of(ratio, cache=3) as service:
        a, b, c = make("a"), make("b"), make("c")
        (score,) = await service.score([a])
        await service.score([b])
        await service.score([c])  # the probe, which came first, has gone
        assert await service.score([a]) == [score]
        await service.score([make("d")])
        await service.score([a, b])
        assert count(service, "gdr_cache_hits_total", kind="finished") == 2
    assert model.responses.count("a") == 1
    assert model.responses.count("b") == 2


async def test_what_a_score_depends_on_is_in_the_key(make: Make) -> None:
    samples = [
        make(),
        make(finished=False),
        make("Five."),
        make(prompt="And?"),
        make(fields={"domain": "math"}),
        make(fields={"domain": "chat"}),
    ]
    assert len({entry.content_key(sample) for sample in samples}) == len(samples)
    assert entry.content_key(make()) == entry.content_key(make())
    assert entry.content_key(make(fields={"x": object()})) is None


async def test_token_logprobs_are_given_to_those_who_ask(
    ratio: GuidedDensityRatio, model: Any, make: Make, until: Until
) -> None:
    async with service_of(ratio) as service:
        model.gate.clear()
        blocked = asyncio.ensure_future(service.score([make("blocker")]))
        await until(lambda: service.batcher.busy_since is not None)
        detailed = asyncio.ensure_future(service.score([make()], tokens=True))
        plain = asyncio.ensure_future(service.score([make()]))
        await until(lambda: service.batcher.queued == 2)
        model.gate.set()
        await blocked
        (with_tokens,), (without,) = await detailed, await plain
    assert model.batches[-1] == 2
    assert with_tokens.strong_token_logprobs is not None
    assert sum(with_tokens.strong_token_logprobs) == pytest.approx(with_tokens.strong_logprob)
    assert all(getattr(with_tokens, name) is not None for name in TOKEN_FIELDS)
    assert all(getattr(without, name) is None for name in TOKEN_FIELDS)
    assert without.reward == with_tokens.reward


async def test_a_full_queue_holds_requests_back_and_refuses_none(
    ratio: GuidedDensityRatio, model: Any, make: Make, until: Until
) -> None:
    async with service_of(ratio, queue=4, max_batch=2) as service:
        model.gate.clear()
        model.entered.clear()
        requests = [asyncio.ensure_future(service.score([make(f"answer {i}")])) for i in range(24)]
        await until(lambda: model.entered.is_set() and service.batcher.waiting > 0 and service.batcher.queued >= 4)
        assert service.batcher.queued <= 4
        model.gate.set()
        scores = [score for (score,) in await asyncio.gather(*requests)]
    assert scores == ratio.score([make(f"answer {i}") for i in range(24)])
    assert service.batcher.waiting == 0


async def test_a_request_larger_than_the_queue_does_not_starve_others(
    ratio: GuidedDensityRatio, model: Any, make: Make, until: Until
) -> None:
    async with service_of(ratio, queue=2, max_batch=1) as service:
        model.gate.clear()
        large = asyncio.ensure_future(service.score([make(f"large {i}") for i in range(60)]))
        await until(lambda: service.batcher.queued == 2)
        small = asyncio.ensure_future(service.score([make("small")]))
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(large, small)
    assert model.responses.index("small") < 10


async def test_beyond_the_hard_limit_requests_are_refused(
    ratio: GuidedDensityRatio, model: Any, make: Make, until: Until
) -> None:
    async with service_of(ratio, queue=1, max_batch=1, max_items=8) as service:
        model.gate.clear()
        requests = []
        for i in range(2 + batcher.WAITING_PER_SLOT):
            requests.append(asyncio.ensure_future(service.score([make(f"answer {i}")])))
            if i == 0:
                await until(lambda: service.batcher.busy_since is not None)
        await until(lambda: service.batcher.waiting == batcher.WAITING_PER_SLOT)
        with pytest.raises(RequestError, match="overloaded: 8 samples wait") as refused:
            await service.score([make("too late")])
        assert refused.value.status == 503
        model.gate.set()
        assert len(await asyncio.gather(*requests)) == 10
        assert (await service.score([make("too late")]))[0].reward is not None


async def test_a_cancelled_request_is_not_scored_and_gives_its_place_back(
    ratio: GuidedDensityRatio, model: Any, make: Make, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "GRACE_S", 0)
    async with service_of(ratio, queue=3, max_batch=1) as service:
        model.gate.clear()
        running = asyncio.ensure_future(service.score([make("running")]))
        await until(lambda: service.batcher.busy_since is not None)
        gone = asyncio.ensure_future(service.score([make("gone"), make("shared"), make("gone 2"), make("gone 3")]))
        await until(lambda: service.batcher.queued == 3)
        staying = asyncio.ensure_future(service.score([make("shared")]))
        await asyncio.sleep(0)
        gone.cancel()
        await until(lambda: service.batcher.queued == 1)
        assert service.batcher.waiting == 0
        model.gate.set()
        await asyncio.gather(running, staying)
        await service.score([make(f"after {i}") for i in range(9)])
        assert service.batcher._slots._value == 3
        assert not service.batcher._unfinished
        assert not service.batcher._in_flight
    assert "shared" in model.responses
    assert not [text for text in model.responses if text.startswith("gone")]


async def test_a_retry_finds_its_old_place(ratio: GuidedDensityRatio, model: Any, make: Make, until: Until) -> None:
    async with service_of(ratio, max_batch=1) as service:
        model.gate.clear()
        running = asyncio.ensure_future(service.score([make("running")]))
        await until(lambda: service.batcher.busy_since is not None)
        first = asyncio.ensure_future(service.score([make("again")]))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(service.score([make("second")]))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        retry = asyncio.ensure_future(service.score([make("again")]))
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(running, second, retry)
    assert model.responses[-3:] == ["running", "again", "second"]


async def test_one_bad_sample_fails_alone(ratio: GuidedDensityRatio, model: Any, make: Make) -> None:
    async with service_of(ratio, max_wait_ms=100, max_batch=9) as service:
        good = [service.score([make(f"answer {i}")]) for i in range(8)]
        results = await asyncio.gather(*good, service.score([make("poison")]), return_exceptions=True)
        assert [score for (score,) in results[:8]] == ratio.score([make(f"answer {i}") for i in range(8)])
        assert isinstance(results[8], ModelError)
        assert "it tasted bad" in str(results[8])
        assert count(service, "gdr_failed_batches_total") == 1
        assert count(service, "gdr_failed_samples_total") == 1
        with pytest.raises(ModelError):  # a failure is not kept as a result
            await service.score([make("poison")])
        assert service.ready


async def test_a_passing_failure_is_retried(ratio: GuidedDensityRatio, model: Any, make: Make) -> None:
    async with service_of(ratio) as service:
        model.fail_next = 1
        scores = await service.score([make("a"), make("b")])
        assert scores == ratio.score([make("a"), make("b")])
        assert count(service, "gdr_failed_samples_total") == 0


async def test_a_dead_worker_fails_everything_at_once(
    ratio: GuidedDensityRatio, model: Any, make: Make, until: Until
) -> None:
    died: list[str] = []
    service = service_of(ratio, queue=1, max_batch=1)
    service.on_failure = lambda: died.append(service.failure or "")
    async with service:
        model.gate.clear()
        requests = [asyncio.ensure_future(service.score([make(f"kill {i}")])) for i in range(5)]
        await until(lambda: service.batcher.waiting == 3)
        model.gate.set()
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert [getattr(result, "status", None) for result in results] == [503] * 5
        assert all("the worker died (SystemExit: 3)" in str(result) for result in results)
        assert died == [service.unready_reason] == [service.failure]
        with pytest.raises(RequestError, match="restart the server"):
            await service.score([make("later")])


async def test_stopping_finishes_what_is_queued(
    ratio: GuidedDensityRatio, model: Any, make: Make, until: Until
) -> None:
    async with service_of(ratio, max_batch=2) as service:
        model.gate.clear()
        requests = [asyncio.ensure_future(service.score([make(f"answer {i}")])) for i in range(9)]
        await until(lambda: service.batcher.busy_since is not None)
        stopping = asyncio.ensure_future(service.stop())
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="stopping"):
            await service.score([make("late")])
        model.gate.set()
        assert await stopping == 0
        assert all(score.reward is not None for (score,) in await asyncio.gather(*requests))


async def test_stopping_is_bounded(ratio: GuidedDensityRatio, model: Any, make: Make, until: Until) -> None:
    async with service_of(ratio, max_batch=2) as service:
        model.gate.clear()
        requests = [asyncio.ensure_future(service.score([make(f"answer {i}")])) for i in range(5)]
        await until(lambda: service.batcher.busy_since is not None)
        assert await service.stop(0.01) == 5
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(result, RequestError) and result.status == 503 for result in results)
        model.gate.set()


async def test_too_large_requests_are_refused_with_the_limit(ratio: GuidedDensityRatio, make: Make) -> None:
    async with service_of(ratio, max_items=2, max_chars=100) as service:
        with pytest.raises(RequestError, match="3 items in one request: send at most 2") as refused:
            await service.score([make()] * 3)
        assert refused.value.status == 413
        with pytest.raises(RequestError, match=r"item 1 has 222 characters: send at most 100"):
            await service.score([make(), make("y" * 200, "x" * 22)])
        assert await service.score([]) == []


async def test_a_model_that_cannot_score_the_probe_is_a_failure(ratio: GuidedDensityRatio, model: Any) -> None:
    service = service_of(ratio)
    await service.start()
    model.fail_next = 2
    await service.load()
    assert not service.ready
    assert service.failure == "the model failed on a sample: RuntimeError: transient"
    await service.stop()


def test_squash() -> None:
    assert squash(0.0) == 0.5
    assert squash(2.0, 2.0) == pytest.approx(0.7310585786)
    assert squash(-1e9) == 0.0
    assert squash(1e9) == 1.0
    assert squash(3.0) + squash(-3.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch": 0},
        {"queue": 0},
        {"max_wait_ms": -1},
        {"max_wait_ms": float("inf")},
        {"scale": float("nan")},
        {"clip": 0},
        {"temperature": 0},
        {"token": "ä"},
        {"token": ""},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ServeSettings(**settings)
