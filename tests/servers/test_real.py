"""Real vLLM and SGLang on the demo model: their log-probs are the local engine's, token by token, and they answer.

Each server needs an environment of its own (gigabytes) and a minute or more to start: `make test-servers` runs these,
all other runs skip them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.real_servers import SGLANG, VLLM, VLLM_WITHOUT_PROMPT_IDS, RealServer
from gdr_plugin.api.errors import ModelError, PartlyScoredError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Message, TokenSpan
from gdr_plugin.models.local import open_local
from gdr_plugin.models.local.gguf import converted
from gdr_plugin.models.servers import open_server
from gdr_plugin.sampling.sample import PolicySampler
from gdr_plugin.sampling.sampler import Sampling
from gdr_plugin.sampling.server import ServerSampler
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.store import LogprobStore, span_keys

pytestmark = [pytest.mark.real_servers, pytest.mark.timeout(3600), pytest.mark.xdist_group("real servers")]

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = REPOSITORY / ".venv" / "peers"
TOLERANCE = 1e-4
"""Nats by which a token's log-prob may differ, in float32."""
LIMITS = Limits(max_length=1024)
SERVER = {"timeout_s": 600.0, "tries": 3}
"""Where adapters are, vLLM's CPU build dies of two requests for log-probs at once: one at a time is asked there."""
SETUPS = [
    (SGLANG, True),
    (VLLM, False),
    (VLLM_WITHOUT_PROMPT_IDS, False),
    (VLLM, True),
    (VLLM_WITHOUT_PROMPT_IDS, True),
]
"""Kinds of servers, without and with the adapter."""
SCHEME = {SGLANG: "sglang", VLLM: "vllm", VLLM_WITHOUT_PROMPT_IDS: "vllm"}
WAY = {SGLANG: "/generate", VLLM: "/inference/v1/generate", VLLM_WITHOUT_PROMPT_IDS: "/v1/completions"}

GUIDANCE = "You are careful, and you never guess. " * 12
QUESTIONS = ("What is a leap year?", "How do I sort a list in Python?", "Name a river.")
ANSWERS = (
    "A leap year has 366 days.",
    "A leap year has one day more than others, so that the calendar keeps up with the sun.",
    "I do not know.",
    "Naïve café: 東京 🙂 `sorted(a)`",
)
PROMPTS = [(Message("user", question),) for question in QUESTIONS]


def interpreter(kind: str) -> Path:
    return PEERS / ("sglang" if kind == SGLANG else "vllm") / "bin" / "python"


@dataclass
class Started:
    """A server and the folders that it serves."""

    server: RealServer
    folder: Path
    adapted: bool
    """Whether it has the adapter `strong`."""

    def spec(self, adapter: str | None = None, scheme: str | None = None) -> ModelSpec:
        if adapter is not None and not self.adapted:
            pytest.skip("started without adapters")
        kind = self.server.kind
        settings = SERVER | {"concurrency": 1 if self.adapted and kind != SGLANG else 16}
        return ModelSpec(model=f"{scheme or SCHEME[kind]}:{self.server.url}/smol", adapter=adapter, server=settings)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, smol_gguf: Path) -> Path:
    if "real_servers" not in request.config.option.markexpr:
        pytest.skip("real servers are tested by `make test-servers`")
    return converted(smol_gguf, "float32")


def start(kind: str, folder: Path, adapter: Path | None) -> RealServer:
    adapters = {} if adapter is None else {"strong": adapter}
    return RealServer(kind, interpreter(kind), folder, name="smol", adapters=adapters, plugin=kind == VLLM)


@pytest.fixture(scope="module", params=SETUPS, ids=lambda setup: f"{setup[0]}-{'adapters' if setup[1] else 'base'}")
def started(request: pytest.FixtureRequest, folder: Path, demo_adapter: Path) -> Iterator[Started]:
    kind, adapted = request.param
    with start(kind, folder, demo_adapter if adapted else None) as server:
        yield Started(server, folder, adapted)


def local_spec(folder: Path, adapter: Path | None = None) -> ModelSpec:
    return ModelSpec(model=str(folder), adapter=None if adapter is None else str(adapter))


def spans_of(model: Any) -> list[TokenSpan]:
    return [
        model.chat.span((*system, Message("user", question)), answer, end=True)
        for system in ((Message("system", GUIDANCE),), ())
        for question in QUESTIONS
        for answer in ANSWERS
    ]


def gap(found: Sequence[Any], expected: Sequence[Any]) -> float:
    assert [row.shape for row in found] == [row.shape for row in expected]
    return max(float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("adapter", [None, "strong"])
def test_its_numbers_are_the_local_engines(
    adapter: str | None, started: Started, demo_adapter: Path, record_property: Any
) -> None:
    model = open_server(started.spec(adapter), LIMITS)
    local = open_local(local_spec(started.folder, demo_adapter if adapter else None), LIMITS)
    spans = spans_of(local)
    assert spans_of(model) == spans
    assert WAY[started.server.kind] in model.describe()["strategy"]
    expected = local.score(spans)
    # The second time, and backwards, everything may come from its cache; 16 requests are under way at once.
    worst = max(gap(model.score(spans), expected), gap(model.score(spans[::-1]), expected[::-1]))
    if started.server.kind == VLLM:
        assert model._wire.again == 0  # with our plugin no answer comes without log-probs
    print(f"{started.server.kind}, adapter {adapter}: largest difference of a token {worst:.2e}")
    record_property("largest difference of a token", worst)
    assert worst < TOLERANCE


def test_an_adapter_gives_other_numbers_than_its_base(started: Started) -> None:
    base, strong = (open_server(started.spec(name), LIMITS) for name in (None, "strong"))
    spans = spans_of(base)[:4]
    assert base.identity != strong.identity
    assert gap(base.score(spans), strong.score(spans)) > 0.1


@pytest.mark.parametrize("scheme", ["own", "openai"])
def test_it_answers_as_the_local_policy_does(scheme: str, started: Started) -> None:
    """At a temperature near 0 there is nothing to draw, so that texts can be compared."""
    sampling = Sampling(samples=1, temperature=1e-3, max_new_tokens=24)
    ids = [f"row {number}" for number in range(len(PROMPTS))]
    expected = PolicySampler(local_spec(started.folder), LIMITS).sample(PROMPTS, ids, sampling)
    sampler = ServerSampler(started.spec(scheme=None if scheme == "own" else scheme), LIMITS)
    assert sampler.sample(PROMPTS, ids, sampling) == expected


def test_its_samples_differ_and_are_cut_at_the_limit(started: Started) -> None:
    sampler = ServerSampler(started.spec("strong" if started.adapted else None), LIMITS)
    (found,) = sampler.sample(PROMPTS[:1], ["a"], Sampling(samples=6, max_new_tokens=8))
    assert len({response.text for response in found.responses}) > 1
    assert not any(response.finished for response in found.responses)
    if started.server.kind != SGLANG:  # which keeps a request's seed only with --enable-deterministic-inference
        again = sampler.sample(PROMPTS[:1], ["a"], Sampling(samples=6, max_new_tokens=8))
        assert again == [found]


def test_a_policys_short_answers_end_by_themselves(started: Started) -> None:
    prompts = [(Message("system", "Answer with one word."), Message("user", "Say yes."))]
    sampling = Sampling(samples=8, temperature=0.7, max_new_tokens=64, seed=3)
    (found,) = ServerSampler(started.spec(), LIMITS).sample(prompts, ["a"], sampling)
    ended = [response for response in found.responses if response.finished]
    assert ended
    assert not any("<|im_end|>" in response.text for response in found.responses)


def test_a_text_beyond_its_length_is_refused_before_it_is_sent(started: Started) -> None:
    model = open_server(started.spec(), Limits(max_length=64))
    with pytest.raises(ModelError, match="the limit is 64"):
        model.score([TokenSpan((1, 5, 6), tuple(range(300, 400)))])


def short_spans(model: Any, count: int) -> list[TokenSpan]:
    return [
        model.chat.span((Message("user", f"What is {number} and {number}?"),), f"It is {2 * number}.", end=True)
        for number in range(count)
    ]


def kill_after(model: Any, answers: int, server: RealServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a server once a model has had so many answers."""
    post, count = model.client.post, itertools.count(1)

    def posting(path: str, body: Any, **more: Any) -> Any:
        answer = post(path, body, **more)
        if next(count) == answers:
            server.kill()
        return answer

    monkeypatch.setattr(model.client, "post", posting)


def test_where_a_replica_is_killed_the_other_one_answers(
    started: Started, demo_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if started.server.kind != SGLANG:
        pytest.skip("one kind is enough: the client is the same")
    local = open_local(local_spec(started.folder), LIMITS)
    spans = short_spans(local, 48)
    with start(SGLANG, started.folder, demo_adapter) as other:
        spec = ModelSpec(model=f"sglang:{other.url},{started.server.url}/smol", server=SERVER)
        model = open_server(spec, LIMITS)
        kill_after(model, 8, other, monkeypatch)
        assert gap(model.score(spans), local.score(spans)) < TOLERANCE
        assert model.client.retries > 0


def test_a_server_that_is_killed_loses_nothing(
    started: Started, demo_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of a server: it is killed while it scores, another one goes on with what the store has."""
    kind, local = started.server.kind, open_local(local_spec(started.folder), LIMITS)
    spans = short_spans(local, 48)
    with closing(LogprobStore(tmp_path / "store.sqlite")) as store:
        model = open_server(started.spec(), LIMITS)
        kill_after(model, 8, started.server, monkeypatch)
        with pytest.raises(PartlyScoredError, match="is the server running"):
            StoredModel(model, store).score(spans)
        kept = sum(row is not None for row in store.read(span_keys(model.identity, spans)))
        assert 8 <= kept < 48
        with start(kind, started.folder, demo_adapter if started.adapted else None) as again:
            moved = Started(again, started.folder, started.adapted)
            resumed = StoredModel(open_server(moved.spec(), LIMITS), store)
            assert resumed.identity == model.identity  # the address is no part of it
            assert gap(resumed.score(spans), local.score(spans)) < TOLERANCE
            assert (resumed.hits, resumed.misses) == (kept, 48 - kept)
