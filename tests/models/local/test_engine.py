"""What the engine does when something is wrong: a wrong forward, no memory, overflow, foreign ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gdr_plugin.api.errors import EngineWarning, ModelError
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.local.compiling import is_out_of_memory
from gdr_plugin.models.local.engine import Engine, deviation
from gdr_plugin.models.local.fetch import Fetched
from gdr_plugin.models.local.network import Network
from gdr_plugin.models.local.planner import Pack
from gdr_plugin.models.local.strategies import Strategy

Loader = Callable[..., Network]
Truth = Callable[[Network, Sequence[TokenSpan]], list[Logprobs]]


class Faulty(Engine):
    """An engine some of whose forwards go wrong, as a kernel or an allocator would make them."""

    def __init__(
        self, net: Network, fault: Callable[[Strategy, Pack, list[Logprobs]], list[Logprobs]], **options: Any
    ) -> None:
        super().__init__(net, **options)
        self.fault = fault
        self.ran: list[tuple[Strategy, int]] = []

    def _forward(self, strategy: Strategy, pack: Pack) -> Fetched:
        self.ran.append((strategy, len(pack.rows)))
        rows = self.fault(strategy, pack, super()._forward(strategy, pack).rows())
        return Fetched(torch.from_numpy(np.concatenate(rows)), [len(row) for row in rows])


@pytest.fixture
def net(tiny_model: Callable[..., Path], network: Loader) -> Network:
    return network(tiny_model("llama"))


def apart(got: Sequence[Logprobs], expected: Sequence[Logprobs]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(got, expected, strict=True) if len(b))


@torch.inference_mode()
def test_a_wrong_way_is_left_with_a_warning_and_results_are_right(
    net: Network, hard_spans: Callable[..., list[TokenSpan]], one_by_one: Truth
) -> None:
    spans = hard_spans()
    wrong = {min(Strategy): 3.0, Strategy.CACHED: 0.05}

    engine = Faulty(net, lambda strategy, pack, rows: [row + np.float32(wrong.get(strategy, 0.0)) for row in rows])
    with pytest.warns(EngineWarning, match="self-check found") as caught:
        got = engine.score(spans)
    assert apart(got, one_by_one(net, spans)) <= 1e-4
    assert engine.strategy is Strategy.PADDED
    assert len(caught) == len(wrong)
    assert "self-check" in engine.why
    assert not any(strategy in wrong for strategy, _ in engine.ran[-3:])


@torch.inference_mode()
def test_the_self_check_costs_two_rows_and_runs_once(net: Network, hard_spans: Callable[..., list[TokenSpan]]) -> None:
    engine = Faulty(net, lambda strategy, pack, rows: rows)
    engine.merge = False
    engine.strategy = Strategy.CACHED
    engine.score(hard_spans())
    engine.score(hard_spans(seed=1))
    plain = [rows for strategy, rows in engine.ran if strategy is Strategy.PLAIN]
    assert len(plain) == 1
    assert plain[0] <= 2


@torch.inference_mode()
@pytest.mark.parametrize("strategy", list(Strategy))
def test_out_of_memory_halves_the_budget_and_goes_on(
    strategy: Strategy, net: Network, hard_spans: Callable[..., list[TokenSpan]], one_by_one: Truth
) -> None:
    """Forwards of more than a few rows run out of memory."""

    def fault(at: Strategy, pack: Pack, rows: list[Logprobs]) -> list[Logprobs]:
        if at is not Strategy.PLAIN and sum(len(row.response) for row in pack.rows) > 24:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return rows

    spans = [span for span in hard_spans() if len(span.response) < 20]
    engine = Faulty(net, fault, tokens=512)
    engine.merge, engine.strategy = True, strategy
    if strategy is Strategy.PLAIN:
        got = engine.score(spans)
    else:
        with pytest.warns(EngineWarning, match=r"out of memory: going on with \d+ tokens"):
            got = engine.score(spans)
        engine.ran.clear()
        assert apart(engine.score(spans), got) <= 1e-5  # remembered: a second warning would be an error
    assert engine.strategy is strategy
    assert apart(got, one_by_one(net, spans)) <= 1e-4


@torch.inference_mode()
def test_no_memory_for_a_single_sequence_is_an_error(net: Network) -> None:
    def fault(at: Strategy, pack: Pack, rows: list[Logprobs]) -> list[Logprobs]:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.warns(EngineWarning), pytest.raises(ModelError, match=r"not enough memory .* limits\.max_length"):
        Faulty(net, fault).score([TokenSpan((1, 2, 3), (4, 5))])


@torch.inference_mode()
def test_other_errors_are_not_taken_for_memory(net: Network) -> None:
    def fault(at: Strategy, pack: Pack, rows: list[Logprobs]) -> list[Logprobs]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Faulty(net, fault).score([TokenSpan((1, 2, 3), (4, 5))])
    assert not is_out_of_memory(ValueError("no"))
    assert is_out_of_memory(MemoryError())


@torch.inference_mode()
def test_overflow_is_nan_for_that_span_alone(tiny_model: Callable[..., Path], network: Loader) -> None:
    net = network(tiny_model("llama", tie_word_embeddings=False))
    bad = 300
    net.model.get_input_embeddings().weight[bad] = torch.inf
    context = tuple(range(10, 40))
    spans = [TokenSpan(context, (5, 6, 7)), TokenSpan(context, (5, bad, 7)), TokenSpan((*context, 8), (9, 10))]
    fine, overflowed, other = Engine(net).score(spans)
    assert np.isfinite(fine).all()
    assert np.isfinite(other).all()
    assert overflowed.shape == (3,)
    assert np.isnan(overflowed).all()


@torch.inference_mode()
def test_ids_of_another_tokenizer_are_refused(net: Network) -> None:
    engine = Engine(net)
    for span in (TokenSpan((1, 320), (3,)), TokenSpan((1,), (3, 999)), TokenSpan((1,), (-1,))):
        with pytest.raises(ModelError, match="vocabulary of 320"):
            engine.score([span])
    with pytest.raises(ModelError, match="without context"):
        engine.score([TokenSpan((), (1,))])


@torch.inference_mode()
def test_nothing_to_score(net: Network) -> None:
    engine = Engine(net)
    assert engine.score([]) == []
    (empty,) = engine.score([TokenSpan((1, 2), ())])
    assert empty.shape == (0,)
    assert empty.dtype == np.float32


@torch.inference_mode()
def test_results_may_be_changed_by_their_owner(net: Network) -> None:
    first, second = Engine(net).score([TokenSpan((1, 2, 3), (4, 5, 6))] * 2)
    first[:] = 0
    assert (second < 0).all()


@torch.inference_mode()
def test_a_prefix_is_computed_once_for_all_calls(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[int] = []
    inner = net.decoder.forward

    def counting(*args: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        tokens.append(input_ids.numel())
        return inner(*args, input_ids=input_ids, **options)

    guidance = tuple(range(50, 250))
    spans = [TokenSpan((*guidance, i), (1, 2, 3)) for i in range(4)]
    engine = Engine(net, kept_bytes=1 << 24)
    engine.score(spans)
    monkeypatch.setattr(net.decoder, "forward", counting)
    engine.score([TokenSpan((*guidance, i), (1, 2, 3)) for i in range(10, 14)])
    assert sum(tokens) <= 4 * (1 + 3)


@torch.inference_mode()
def test_guidance_is_kept_from_the_second_call_on_with_one_prompt_of_each_domain_a_call(net: Network) -> None:
    guidances = [tuple(range(start, start + 60)) for start in (10, 80, 150, 220)]
    engine = Engine(net, kept_bytes=1 << 24)
    for prompt in (5, 6):
        engine.score([TokenSpan((*guidance, prompt, 7), (1, 2)) for guidance in guidances])
    assert set(engine.kept.known) == set(guidances)


@torch.inference_mode()
def test_architectures_without_keys_and_values_run_whole(
    tiny_model: Callable[..., Path], network: Loader, hard_spans: Callable[..., list[TokenSpan]], one_by_one: Truth
) -> None:
    net = network(tiny_model("mamba", state_size=4))
    engine = Engine(net)
    assert engine.strategy >= Strategy.PADDED
    spans = hard_spans()[::3]
    # The recurrence of random weights magnifies rounding; it is still 1e-5 of the log-probs' size.
    assert apart(engine.score(spans), one_by_one(net, spans)) <= 2e-3


@torch.inference_mode()
def test_an_unknown_head_is_used_as_it_is(
    tiny_model: Callable[..., Path],
    network: Loader,
    hard_spans: Callable[..., list[TokenSpan]],
    one_by_one: Truth,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = network(tiny_model("cohere"))
    monkeypatch.setattr(net.config, "logit_scale", None)
    engine = Engine(net)
    spans = hard_spans()
    assert apart(engine.score(spans), one_by_one(net, spans)) <= 1e-4
    assert engine.strategy is Strategy.PADDED
    assert "head" in engine.why


def test_deviation_is_the_worst_rows_mean() -> None:
    long = np.zeros(1600, np.float32)
    overflowed = np.array([np.nan], np.float32)
    assert deviation([long + 0.11, overflowed], [long, overflowed]) == pytest.approx(0.1, rel=1e-4)
    assert deviation([long[:1] + 0.5], [long[:1]]) == pytest.approx(0.1)  # one token may be off by chance
    assert deviation([long + 0.11, long[:1] + 9], [long, long[:1]]) == pytest.approx(1.8)
    assert deviation([overflowed], [long[:1]]) == np.inf
