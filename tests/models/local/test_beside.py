"""Strong and weak in one pass equal one pass for each, and what cannot be run so is left alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gdr_plugin import GuidedDensityRatio
from gdr_plugin.api.models import ScoresBeside
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Logprobs, Message, Sample, TokenSpan
from gdr_plugin.models.local import LocalModel, beside, open_local
from gdr_plugin.models.local.head import Head
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.store import LogprobStore

TinyModel = Callable[..., Path]
TinyAdapter = Callable[..., Path]
Spans = Callable[..., list[TokenSpan]]
Pair = tuple[LocalModel, LocalModel]


@pytest.fixture(autouse=True)
def whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "MOST_TOKENS", {"cpu": sys.maxsize})


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many policies each pass that scored something had."""
    from gdr_plugin.models.local.engine import Engine

    ran: list[int] = []
    inner = Engine.score

    def score(self: Engine, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        ran.append(len(self.caches))
        return inner(self, spans)

    monkeypatch.setattr(Engine, "score", score)
    return ran


@pytest.fixture
def opened() -> Iterator[Callable[..., LocalModel]]:
    models: list[LocalModel] = []

    def local(folder: Path, adapter: Path | None = None, limits: Limits | None = None, **options: Any) -> LocalModel:
        models.append(open_local(ModelSpec(model=str(folder), adapter=adapter and str(adapter), **options), limits))
        return models[-1]

    yield local
    for model in models:
        model.unload()


def apart(got: Sequence[Logprobs], expected: Sequence[Logprobs]) -> float:
    assert [(a.shape, a.dtype) for a in got] == [(b.shape, b.dtype) for b in expected]
    return max(float(np.abs(a - b).max()) for a, b in zip(got, expected, strict=True) if len(b))


@pytest.mark.parametrize(
    ("arch", "config", "tokens", "kept"),
    [
        ("llama", {}, None, 0),
        ("llama", {}, 40, 64),
        ("qwen3", {}, 40, 0),
        ("mistral", {"sliding_window": 16}, None, 64),
        ("gemma2", {}, 40, 64),
        ("gpt_neox", {}, None, 64),
    ],
)
def test_one_pass_gives_what_two_give(
    arch: str,
    config: dict[str, Any],
    tokens: int | None,
    kept: int,
    tiny_model: TinyModel,
    tiny_adapter: TinyAdapter,
    hard_spans: Spans,
    opened: Callable[..., LocalModel],
) -> None:
    folder = tiny_model(arch, **config)
    adapter, spans = tiny_adapter(folder, 1, target_modules="all-linear"), hard_spans()
    limits = Limits(token_budget=tokens, kv_cache_mb=kept)
    strong, weak = opened(folder, adapter, limits), opened(folder, None, limits)
    expected = strong.score(spans), weak.score(spans)
    assert apart(*expected) > 0.1
    for _ in range(2):  # with prefixes of earlier calls and without
        got = strong.score_beside(weak, spans)
        assert got is not None
        assert max(map(apart, got, expected)) <= 1e-5
        turned = weak.score_beside(strong, spans[::-1])
        assert turned is not None
        assert max(map(apart, turned, (expected[1][::-1], expected[0][::-1]))) <= 1e-5
        assert apart(strong.score(spans), expected[0]) <= 1e-5  # the other way on what was kept beside
        assert apart(weak.score(spans), expected[1]) <= 1e-5


def test_two_adapters_of_one_base(
    tiny_model: TinyModel, tiny_adapter: TinyAdapter, hard_spans: Spans, opened: Callable[..., LocalModel]
) -> None:
    folder, spans = tiny_model(), hard_spans()
    strong = opened(folder, tiny_adapter(folder, 1, target_modules=["q_proj", "up_proj"], r=2, use_rslora=True))
    weak = opened(folder, tiny_adapter(folder, 2, target_modules=["k_proj", "up_proj"], lora_alpha=32))
    expected = strong.score(spans), weak.score(spans)
    got = strong.score_beside(weak, spans)
    assert got is not None
    assert max(map(apart, got, expected)) <= 1e-5


def test_a_prefix_is_kept_for_both_and_used_by_each(
    tiny_model: TinyModel,
    tiny_adapter: TinyAdapter,
    opened: Callable[..., LocalModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tiny_model()
    strong, weak = opened(folder, tiny_adapter(folder, 1)), opened(folder)
    guidance = tuple(range(50, 250))
    spans = [TokenSpan((*guidance, i), (1, 2, 3)) for i in range(8)]
    strong.score_beside(weak, spans[:4])
    tokens: list[int] = []
    with strong.running() as model:
        inner = model.model.forward

    def counting(*args: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        tokens.append(input_ids.numel())
        return inner(*args, input_ids=input_ids, **options)

    monkeypatch.setattr(model.model, "forward", counting)
    assert strong._engine is not None
    assert weak._engine is not None
    assert strong._engine.kept.known == weak._engine.kept.known == [guidance]
    strong.score_beside(weak, spans[4:])
    assert sum(tokens) <= 2 * 4 * (1 + 3)
    weak._engine.kept.clear()
    got = strong.score_beside(weak, spans)  # kept for one side only: computed again for both
    assert got is not None
    assert max(map(apart, got, (strong.score(spans), weak.score(spans)))) <= 1e-5


def test_a_store_with_holes_on_one_side(
    tiny_model: TinyModel,
    tiny_adapter: TinyAdapter,
    hard_spans: Spans,
    opened: Callable[..., LocalModel],
    tmp_path: Path,
    passes: list[int],
) -> None:
    folder, spans = tiny_model(), hard_spans()
    strong, weak = opened(folder, tiny_adapter(folder, 1)), opened(folder)
    expected = strong.score(spans), weak.score(spans)
    store = LogprobStore(tmp_path / "store.sqlite")
    one, two = StoredModel(strong, store, window=7), StoredModel(weak, store, window=7)
    one.score(spans[:9])
    two.score(spans[5:20])
    before = one.misses, two.misses
    passes.clear()
    got = one.score_beside(two, spans)
    assert got is not None
    assert max(map(apart, got, expected)) <= 1e-5
    assert set(passes) == {1, 2}
    unique = len(set(spans))
    assert (one.misses, two.misses) == (unique, unique)
    assert before[0] < unique
    passes.clear()
    assert max(map(apart, (one.score(spans), two.score(spans)), expected)) <= 1e-5
    again = one.score_beside(two, spans)
    assert again is not None
    assert max(map(apart, again, expected)) <= 1e-5
    assert passes == []
    assert isinstance(one, ScoresBeside)
    store.close()


def test_what_cannot_go_beside_is_left_alone(
    tiny_model: TinyModel, tiny_adapter: TinyAdapter, hard_spans: Spans, opened: Callable[..., LocalModel]
) -> None:
    folder, spans = tiny_model(tie_word_embeddings=False), hard_spans()
    weak, adapter = opened(folder), tiny_adapter(folder, 1)
    for options in ({"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens"]}):
        other = opened(folder, tiny_adapter(folder, 3, **options))
        assert other.score_beside(weak, spans) is None, options
        assert weak.score_beside(other, spans) is None, options
        other.unload()
    strong = opened(folder, adapter)
    assert strong.score_beside(opened(tiny_model(seed=1)), spans) is None  # another base
    assert strong.score_beside(opened(folder, adapter), spans) is None  # the same policy
    assert strong.score_beside(weak, []) is None
    adapted_head = opened(folder, tiny_adapter(folder, 4, target_modules=["lm_head", "q_proj"]))
    expected = adapted_head.score(spans)
    for _ in range(2):  # the head is given states without lanes: found out by running it
        assert adapted_head.score_beside(weak, spans) is None
    assert apart(adapted_head.score(spans), expected) <= 1e-6
    gpt2 = tiny_model("bloom", n_head=4, n_layer=2)  # attention of its own: not packed
    bloom = opened(gpt2, tiny_adapter(gpt2, 1, target_modules=["query_key_value"]))
    assert bloom.score_beside(opened(gpt2), spans) is None


def test_overflow_on_one_side_is_nan_there_alone(
    tiny_model: TinyModel,
    tiny_adapter: TinyAdapter,
    opened: Callable[..., LocalModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tiny_model()
    strong, weak = opened(folder, tiny_adapter(folder, 1)), opened(folder)
    context = tuple(range(10, 40))
    spans = [TokenSpan(context, (5, 6, 7)), TokenSpan((*context, 8), (9, 10))]
    expected = strong.score(spans), weak.score(spans)
    inner = Head.logprobs

    def overflowing(*args: Any) -> torch.Tensor:
        logprobs = inner(*args)
        logprobs[1] = torch.inf  # strong's second token
        return logprobs

    assert strong.score_beside(weak, spans) is not None  # checked itself
    monkeypatch.setattr(Head, "logprobs", overflowing)
    got = strong.score_beside(weak, spans)
    assert got is not None
    assert np.isnan(got[0][0]).all()
    assert apart(got[0][1:], expected[0][1:]) <= 1e-5
    assert apart(got[1], expected[1]) <= 1e-5


def test_much_work_goes_one_after_the_other(
    tiny_model: TinyModel,
    tiny_adapter: TinyAdapter,
    opened: Callable[..., LocalModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beside, "MOST_TOKENS", {"cpu": 20})
    folder = tiny_model()
    strong, weak = opened(folder, tiny_adapter(folder, 1)), opened(folder)
    few, many = TokenSpan(tuple(range(10)), (5, 6)), TokenSpan(tuple(range(60)), (5, 6))
    assert strong.score_beside(weak, [few]) is not None
    assert strong.score_beside(weak, [few, many]) is None


def test_unloading_gives_all_back(
    tiny_model: TinyModel, tiny_adapter: TinyAdapter, hard_spans: Spans, opened: Callable[..., LocalModel]
) -> None:
    from gdr_plugin.models.local import weights

    folder, spans = tiny_model(), hard_spans()
    strong, weak = opened(folder, tiny_adapter(folder, 1)), opened(folder)
    first = strong.score_beside(weak, spans)
    weak.unload()
    strong.unload()
    assert not weights._shared
    again = strong.score_beside(weak, spans)
    assert first is not None
    assert again is not None
    assert max(map(apart, again, first)) <= 1e-6


@pytest.mark.parametrize(("placement", "together"), [("both", True), ("none", True), ("strong", False)])
@pytest.mark.parametrize("stored", [False, True])
def test_the_reward_asks_once_where_both_are_shown_the_same(
    placement: Any,
    together: bool,
    stored: bool,
    tiny_model: TinyModel,
    tiny_adapter: TinyAdapter,
    opened: Callable[..., LocalModel],
    tmp_path: Path,
    passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tiny_model()
    strong, weak = opened(folder, tiny_adapter(folder, 1)), opened(folder)
    prompt = (Message("user", "Hello?"),)
    samples = [Sample(prompt, text) for text in ("Hello.", "", "No.", "Hello.")]

    def ratio(store: Path | None) -> GuidedDensityRatio:
        return GuidedDensityRatio.from_models(strong, weak, guidance="chat", placement=placement, store=store)

    got = ratio(tmp_path / "store.sqlite" if stored else None).score(samples)
    assert (2 in passes) is together
    assert (1 in passes) is not together
    monkeypatch.setattr(beside, "MOST_TOKENS", {})
    strong.unload()
    expected = ratio(None).score(samples)
    rewards = [(a.reward, b.reward) for a, b in zip(got, expected, strict=True) if a.reward is not None]
    assert len(rewards) >= 3
    assert all(abs(a - b) <= 1e-4 for a, b in rewards if b is not None)
    assert [one.reason for one in got] == [one.reason for one in expected]
