"""Kernels that take a whole packed row, on a CPU: by plain stand-ins with the same signature, and uncompiled.

What they give equals the CPU's own way, segment by segment, whose results test_tree.py compares with one sequence at a
time. That torch's kernels for GPUs do what the stand-ins do is checked where they run: before their first use.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from gdr_plugin.api.errors import EngineWarning
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.local import attention, engine, fetch, varlen, ways
from gdr_plugin.models.local.compiling import Fused
from gdr_plugin.models.local.engine import Engine
from gdr_plugin.models.local.flex import Flex, block_mask, bucket
from gdr_plugin.models.local.forward import start_tree
from gdr_plugin.models.local.kernels import Kernel
from gdr_plugin.models.local.kvcache import PrefixCache
from gdr_plugin.models.local.memory import bytes_per_token, token_budget
from gdr_plugin.models.local.network import Network
from gdr_plugin.models.local.planner import Pack, ResponseRow
from gdr_plugin.models.local.row import LayerKV, RowLayout, Shape
from gdr_plugin.models.local.tree import Branch, lay_out
from gdr_plugin.models.local.varlen import Varlen, merge
from gdr_plugin.models.local.ways import Segments, Way, Ways

CPU = torch.device("cpu")
HEADS, KV_HEADS, WIDTH = 4, 2, 8
Truth = Callable[[Network, Sequence[TokenSpan]], list[Logprobs]]


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention runs as it is written, all scores at once: torch's own switch for that."""
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


class Flash:
    """Variable-length attention written out, with the signature of the kernel."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_bounds: Tensor,
        k_bounds: Tensor,
        longest_q: int,
        longest_k: int,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        self.calls += 1
        assert q_bounds.dtype == k_bounds.dtype == torch.int32, "what the kernel takes"
        assert (len(q), len(k)) == (q_bounds[-1], k_bounds[-1])
        assert len(q_bounds) == len(k_bounds)
        assert longest_q >= q_bounds.diff().max()
        assert longest_k >= k_bounds.diff().max()
        assert k_bounds.diff().min() > 0, "the kernel's log-sum-exp of nothing is plus infinity"
        group = q.shape[1] // k.shape[1]
        out, lse = torch.empty_like(q), torch.empty(q.shape[1], len(q))
        for n in range(len(q_bounds) - 1):
            rows, keys = slice(q_bounds[n], q_bounds[n + 1]), slice(k_bounds[n], k_bounds[n + 1])
            scores = torch.einsum("qhd,khd->hqk", q[rows].float(), k[keys].float().repeat_interleave(group, 1)) * scale
            if causal:
                scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf)
            lse[:, rows] = scores.logsumexp(-1)
            found = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[keys].float().repeat_interleave(group, 1))
            out[rows] = found.to(out.dtype)
        return out, lse


def fast_ways() -> tuple[Ways, Flash]:
    flash = Flash()
    return Ways([Varlen(flash, merge), Flex(flex_attention)]), flash


def random_branches(rng: random.Random) -> list[Branch]:
    """Prompts and responses of unequal lengths, some of a single token, each token with an id of its own."""
    fresh = iter(range(10**6))

    def ids(count: int) -> list[int]:
        return [next(fresh) for _ in range(count)]

    return [
        Branch(ids(rng.choice([1, 2, 9, 40])), [ids(rng.choice([1, 1, 2, 7, 8, 60])) for _ in range(rng.randint(1, 4))])
        for _ in range(rng.randint(1, 5))
    ]


KERNELS = [Kernel(0.4, None, None), Kernel(0.4, 500, None), Kernel(0.4, 11, None), Kernel(0.4, 30, 2.0)]


@pytest.mark.parametrize("kernel", KERNELS, ids=["full", "wide window", "window", "window and soft-capping"])
@pytest.mark.parametrize("before", [0, 1, 140])
def test_each_way_gives_what_segments_give(kernel: Kernel, before: int) -> None:
    for seed in range(3):
        rng, draw = random.Random(f"{seed} {before}"), torch.Generator().manual_seed(seed)
        branches = random_branches(rng)
        front = [(torch.randn(1, KV_HEADS, before, WIDTH, generator=draw),) * 2] if before else None
        plain, packed = lay_out(branches, front, CPU), lay_out(branches, front, CPU, fast_ways()[0])
        tokens = len(plain.ids)
        values = [torch.randn(heads, tokens, WIDTH, generator=draw) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        expected = attention.attend(plain.row, *values, front[0] if front else None, kernel).transpose(0, 1)
        order = [plain.ids.tolist().index(token) for token in packed.ids]  # the same tokens, prompts first
        moved = [x[:, order] for x in values]
        ran = []
        for way in (Varlen(Flash(), merge), Flex(flex_attention), Segments()):
            if way.refuses(packed.row, moved[0], moved[2], kernel) is None:
                got = way.attend(packed.row, *moved, front[0] if front else None, kernel)
                torch.testing.assert_close(got, expected[order], atol=2e-5, rtol=0, msg=f"{way.name}, tree {seed}")
                ran.append(way.name)
        written = ways.written_out(packed.row, *moved, front[0] if front else None, kernel)
        torch.testing.assert_close(written, expected[order], atol=2e-5, rtol=0)
        outgrown = kernel.window is not None and packed.row.last >= kernel.window
        assert ("variable-length flash attention" in ran) == (not outgrown and kernel.softcap is None)
        assert torch.equal(packed.targets, plain.targets)
        predicted = [packed.ids[packed.predictors[place]] for place in packed.which]
        assert predicted == [plain.ids[plain.predictors[place]] for place in plain.which]


def test_half_precision_is_rounded_once() -> None:
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(50, 2, 8, generator=draw).bfloat16() for _ in range(3)]
    norms = [torch.randn(2, 50, generator=draw) for _ in range(3)]
    weights = torch.stack(norms).softmax(0).transpose(1, 2).unsqueeze(-1)
    expected = (torch.stack(parts).float() * weights).sum(0)

    got = merge(parts[0], norms[0], parts[1], norms[1], parts[2], norms[2])

    assert got.dtype == torch.bfloat16
    assert ((got.float() - expected).abs() <= expected.abs() * 2**-8).all(), "half of the last bit, and no more"


@torch.inference_mode()
@pytest.mark.parametrize(
    ("flavour", "config", "says"),
    [
        ("llama", {}, "variable-length flash attention"),
        ("gpt_neox", {}, "variable-length flash attention"),
        ("mistral", {"sliding_window": 4096}, "variable-length flash attention"),
        ("mistral", {"sliding_window": 16}, "FlexAttention for a window of 16 tokens"),
        ("gemma2", {}, "FlexAttention for soft-capping"),
    ],
    ids=["llama", "gpt_neox", "wide window", "window", "gemma2"],
)
def test_models_give_the_same_by_these_ways(
    flavour: str,
    config: dict[str, Any],
    says: str,
    tiny_model: Callable[..., Path],
    network: Callable[..., Network],
    hard_spans: Callable[..., list[TokenSpan]],
    one_by_one: Truth,
) -> None:
    net = network(tiny_model(flavour, **config))
    spans = hard_spans()
    net.ways, _ = fast_ways()
    scorer = Engine(net, tokens=200, kept_bytes=1 << 20)
    got = scorer.score(spans)
    assert max(float(np.abs(a - b).max()) for a, b in zip(got, one_by_one(net, spans), strict=True) if len(b)) <= 1e-4
    assert scorer.attention is not None
    assert says in scorer.attention
    assert "segment by segment" not in scorer.attention


def net_and_pack(tiny_model: Callable[..., Path], network: Callable[..., Network], size: int) -> tuple[Network, Pack]:
    net = network(tiny_model("llama"))
    net.find_head((5, 6, 7))
    draw = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 300) for _ in range(count))

    rows = tuple(ResponseRow(n // 3, ids(draw.randint(1, 30)), (n,)) for n in range(3 * size))
    return net, Pack(ids(40), tuple(ids(draw.randint(1, 20)) for _ in range(size)), rows, ())


class Counter(TorchDispatchMode):
    """Counts the operations for which a GPU's host waits: a value is read from the device, or a size depends on one."""

    WAITS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "bincount"})

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.overloadpacket.__name__
        if name in self.WAITS or (name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])):
            self.waits.append(name)
        return op(*args, **(kwargs or {}))


@torch.inference_mode()
def test_calls_do_not_grow_with_the_tree_and_nothing_waits(
    tiny_model: Callable[..., Path], network: Callable[..., Network]
) -> None:
    calls = []
    for size in (2, 12):
        net, pack = net_and_pack(tiny_model, network, size)
        flash = Flash()
        net.ways = Ways([Varlen(quiet(flash), merge)])
        kept = PrefixCache(1 << 20)
        start_tree(net, pack, kept)  # checks the way, and computes the prefix
        flash.calls = 0
        with Counter() as counter:
            start_tree(net, pack, kept)
        calls.append(flash.calls)
        assert counter.waits == []
    assert calls == [3 * net.layers] * 2


def quiet(flash: Flash) -> Any:
    """The stand-in outside of dispatch modes: its own loops read values, which the kernel does not."""
    from torch.utils._python_dispatch import _disable_current_modes

    def call(*args: Any) -> tuple[Tensor, Tensor]:
        with _disable_current_modes():
            return flash(*args)

    return call


@torch.inference_mode()
def test_the_next_pack_is_started_before_results_are_read(
    tiny_model: Callable[..., Path],
    network: Callable[..., Network],
    hard_spans: Callable[..., list[TokenSpan]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []
    start, rows = engine.start_tree, fetch.Fetched.rows
    scorer = Engine(network(tiny_model("llama")), tokens=60)
    scorer.score(hard_spans())  # checked
    monkeypatch.setattr(engine, "start_tree", lambda *args: (events.append("start"), start(*args))[1])
    monkeypatch.setattr(fetch.Fetched, "rows", lambda self: (events.append("read"), rows(self))[1])
    scorer.score(hard_spans(seed=2))
    packs = events.count("start")
    assert packs > 3
    assert events == ["start", *["start", "read"] * (packs - 1), "read"]


def broken(*args: Any) -> Any:
    raise NotImplementedError("aten::_flash_attention_forward is not here")


def base_two(*args: Any) -> Any:
    out, lse = Flash()(*args)
    return out, lse / 0.6931


@torch.inference_mode()
@pytest.mark.parametrize(
    ("flash", "why"), [(broken, "NotImplementedError: aten::_flash"), (base_two, r"on a small tree it is \d")]
)
def test_a_way_that_fails_is_left_with_a_warning(
    flash: Any,
    why: str,
    tiny_model: Callable[..., Path],
    network: Callable[..., Network],
    hard_spans: Callable[..., list[TokenSpan]],
    one_by_one: Truth,
) -> None:
    net, spans = network(tiny_model("llama")), hard_spans()
    net.ways = Ways([Varlen(flash, merge), Flex(flex_attention)])
    scorer = Engine(net, tokens=200)
    with pytest.warns(EngineWarning, match=f"variable-length flash attention is not used: {why}") as caught:
        got = scorer.score(spans)
    assert len(caught) == 1
    assert "slower way: FlexAttention" in str(caught[0].message)
    assert max(float(np.abs(a - b).max()) for a, b in zip(got, one_by_one(net, spans), strict=True) if len(b)) <= 1e-4
    assert scorer.attention is not None
    assert scorer.attention.startswith("FlexAttention; not variable-length flash attention: ")


@torch.inference_mode()
def test_a_way_that_is_wrong_on_real_layers_alone_is_found_by_the_engine(
    tiny_model: Callable[..., Path],
    network: Callable[..., Network],
    hard_spans: Callable[..., list[TokenSpan]],
    one_by_one: Truth,
) -> None:
    flash = Flash()

    def wrong(q: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        out, lse = flash(q, *args)
        return (out if len(q) in (69, 46) else out * 1.5), lse  # right on the small tree that is checked first

    net, spans = network(tiny_model("llama")), hard_spans()
    net.ways = Ways([Varlen(wrong, merge)])
    scorer = Engine(net, tokens=200)
    with pytest.warns(EngineWarning, match="flash attention is not used: the self-check found .* segment by segment"):
        got = scorer.score(spans)
    assert max(float(np.abs(a - b).max()) for a, b in zip(got, one_by_one(net, spans), strict=True) if len(b)) <= 1e-4
    assert scorer.strategy is min(engine.Strategy), "packed trees go on, segment by segment"


def test_no_memory_is_not_taken_for_a_broken_way() -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    fast = Ways([Varlen(full, merge)])
    row = RowLayout(torch.arange(4), 3, shape=Shape.single(4))
    with pytest.raises(torch.OutOfMemoryError):
        fast.attend(row, *(torch.zeros(n, 4, 8) for n in (2, 1, 1)), None, Kernel(1.0, None, None))
    assert not fast.dropped


def test_the_librarys_kernel_is_refused_what_it_cannot_do() -> None:
    row = RowLayout(torch.arange(4), 3, shape=Shape.single(4))
    plain = Kernel(1.0, None, None)

    def refused(dtype: torch.dtype, width: int, value_width: int | None = None, kernel: Kernel = plain) -> str | None:
        query, value = torch.zeros(2, 4, width, dtype=dtype), torch.zeros(2, 4, value_width or width, dtype=dtype)
        return Varlen(varlen.library_flash, merge).refuses(row, query, value, kernel)

    assert refused(torch.bfloat16, 128) is refused(torch.float16, 256) is None
    assert refused(torch.float32, 128) == "float32 (it takes half precision)"
    assert refused(torch.bfloat16, 288) == "heads of 288 and 288"
    assert refused(torch.bfloat16, 192, 128) == "heads of 192 and 128"
    assert refused(torch.bfloat16, 128, kernel=Kernel(1.0, 3, None)) == "a window of 3 tokens"
    assert refused(torch.bfloat16, 128, kernel=Kernel(1.0, 4, None)) is None
    assert Flex().refuses(row, torch.zeros(2, 4, 8), torch.zeros(2, 4, 8), plain) == "heads of 8"


def test_torch_still_takes_what_is_given_to_its_kernel() -> None:
    """The signature, and the shape of the log-sum-exp: by torch's own description of the operator, without a GPU."""
    meta = {"device": "meta", "dtype": torch.bfloat16}
    q, k = torch.empty(100, 8, 64, **meta), torch.empty(100, 2, 64, **meta)  # type: ignore[arg-type]
    bounds = torch.empty(5, device="meta", dtype=torch.int32)
    out, lse = varlen.library_flash(q, k, k, bounds, bounds, 1, 1, True, 0.1)
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, (8, 100), torch.float32)


@pytest.mark.parametrize("window", [None, 7, 100, 300])
def test_no_block_that_somebody_sees_is_left_out(window: int | None) -> None:
    draw = random.Random(0)
    branches = [Branch([0] * draw.randint(1, 90), [[0] * draw.randint(2, 120) for _ in range(3)]) for _ in range(4)]
    before = 300
    front = [(torch.zeros(1, 1, before, 8),) * 2]
    row = lay_out(branches, front, CPU, fast_ways()[0]).row
    assert row.shape is not None
    tokens = row.shape.bounds[-1]
    sizes = bucket(tokens), bucket(before + tokens)
    mask = block_mask(row.shape, row.positions, before, sizes, window)
    q, k = torch.arange(sizes[0])[:, None], torch.arange(sizes[1])[None]
    seen = mask.mask_mod(0, 0, q, k)  # type: ignore[arg-type]
    blocks, real = (
        x.reshape(sizes[0] // 128, 128, sizes[1] // 128, 128).transpose(1, 2).flatten(2)
        for x in (seen, seen & (q < tokens))
    )
    some, whole = torch.zeros(2, *blocks.shape[:2], dtype=torch.bool)
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    for block in range(len(some)):
        some[block, mask.kv_indices[0, 0, block, : mask.kv_num_blocks[0, 0, block]].long()] = True
        whole[block, mask.full_kv_indices[0, 0, block, : mask.full_kv_num_blocks[0, 0, block]].long()] = True
    assert not (real.any(-1) & ~(some | whole)).any()
    assert blocks.all(-1)[whole].all()
    assert not (some & whole).any()
    assert not (some | whole).all(), "some blocks are left out"


def test_sizes_come_in_buckets_with_little_padding() -> None:
    for tokens in (1, 128, 129, 1000, 5000, 16384, 20000):
        assert tokens <= bucket(tokens) <= max(tokens * 1.125 + 1, tokens + 127)
        assert bucket(tokens) % 128 == 0
        assert bucket(bucket(tokens)) == bucket(tokens)
    assert len({bucket(tokens) for tokens in range(8193, 16385)}) == 8


def test_what_cannot_be_compiled_runs_uncompiled_with_a_warning() -> None:
    def no_compiler(function: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")

    double = Fused(lambda x: 2 * x, "doubling", no_compiler)
    with pytest.warns(EngineWarning, match=r"doubling cannot be compiled here \(RuntimeError: Failed to find C comp"):
        assert double(3) == 6
    assert double(4) == 8  # a second warning would be an error


def test_the_token_budget_follows_free_memory() -> None:
    from transformers import LlamaConfig

    large = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=32
    )
    small = LlamaConfig(
        hidden_size=896, intermediate_size=4864, num_attention_heads=14, num_key_value_heads=2, num_hidden_layers=24
    )
    half = torch.bfloat16
    assert token_budget(large, half, None) == 2048
    assert bytes_per_token(large, half) == 2 * (4 * 4096 + 3 * 14336)
    assert token_budget(large, half, 5 << 30) == ((5 << 29) - (1 << 30)) // 118784
    assert token_budget(large, half, 100 << 30) == token_budget(small, half, 100 << 30) == 16384
    assert token_budget(large, half, 1 << 30) == 1024
    assert token_budget(small, half, 3 << 30) > token_budget(large, half, 3 << 30)
    assert bytes_per_token(large, torch.float32) == 2 * bytes_per_token(large, half)


def test_a_written_out_way_passes_its_own_check() -> None:
    class Written:
        name = "written out"

        def refuses(self, *args: Any) -> None:
            return None

        def attend(self, row: RowLayout, q: Tensor, k: Tensor, v: Tensor, prefix: LayerKV, kernel: Kernel) -> Tensor:
            return ways.written_out(row, q, k, v, prefix, kernel)

    def off(way: Way, window: int | None, softcap: float | None) -> float:
        query = torch.zeros(HEADS, 3, WIDTH)
        return ways.check(way, query, query[:KV_HEADS], Kernel(0.3, window, softcap))

    for window, softcap in ((None, None), (9, None), (9, 2.0)):
        assert off(Written(), window, softcap) == 0.0
        assert off(Segments(), window, softcap) < 1e-5
        assert off(Flex(flex_attention), window, softcap) < 1e-5
    assert off(Varlen(Flash(), merge), 9, None) < 1e-5, "checked without a window, since it takes none"
