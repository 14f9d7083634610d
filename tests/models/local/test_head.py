from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gdr_plugin.api.errors import EngineWarning
from gdr_plugin.models.local import head as module
from gdr_plugin.models.local.head import Head, Transform
from gdr_plugin.models.local.network import Network

WIDTH, VOCABULARY = 24, 1000


class Wrapped(nn.Module):
    """A projection that is more than a matrix, as adapters make it."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.inner(states)
        return out


def case(dtype: torch.dtype = torch.float32, bias: bool = False) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    states = torch.randn(70, WIDTH, generator=generator).to(dtype)
    rows = torch.cat([torch.arange(70), torch.randint(70, (30,), generator=generator)])
    targets = torch.randint(VOCABULARY, (100,), generator=generator)
    return linear, states, rows, targets


def truth(linear: nn.Linear, states: Tensor, rows: Tensor, targets: Tensor, transform: Transform) -> Tensor:
    logits = states.double() @ linear.weight.double().T
    if linear.bias is not None:
        logits += linear.bias.double()
    return transform(logits).log_softmax(-1)[rows, targets].float()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that do not divide rows or vocabulary evenly."""
    monkeypatch.setattr(module, "_COLUMNS", 300)
    monkeypatch.setattr(module, "_BLOCK_BYTES", {"cpu": 4 * 300 * 16})


@pytest.mark.parametrize("transform", [Transform(), Transform(scale=0.25), Transform(cap=5.0), Transform(0.5, 3.0)])
@pytest.mark.parametrize("bias", [False, True])
def test_blocks_give_the_full_softmax(transform: Transform, bias: bool) -> None:
    linear, states, rows, targets = case(bias=bias)
    with torch.inference_mode():
        for projection in (linear, Wrapped(linear)):
            got = Head(projection, transform).logprobs(states, rows, targets)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, truth(linear, states, rows, targets, transform), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transform", [Transform(), Transform(0.5, 30.0)])
@torch.inference_mode()
def test_half_precision_weights_lose_little_in_the_head(dtype: torch.dtype, transform: Transform) -> None:
    linear, states, rows, _ = case(dtype)
    logits = transform(states.double() @ linear.weight.double().T)
    # Likely targets, as in text: what a model finds nearly certain is where rounded logits hurt.
    targets = logits.argmax(-1)[rows]
    expected = truth(linear, states, rows, targets, transform)
    ours = (Head(linear, transform).logprobs(states, rows, targets) - expected).abs().mean()
    usual = (transform(linear(states).float()).log_softmax(-1)[rows, targets] - expected).abs().mean()
    assert ours < 3e-3
    assert ours < usual / 2


@torch.inference_mode()
def test_extreme_logits_do_not_overflow() -> None:
    linear, states, rows, targets = case()
    got = Head(linear, Transform(scale=1e4)).logprobs(states, rows, targets)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, truth(linear, states, rows, targets, Transform(1e4)), rtol=1e-4, atol=1.0)


@torch.inference_mode()
def test_memory_is_bounded_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, states, rows, targets = case()
    made: list[int] = []
    for name in ("exp_", "exp2_"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda self, of=original: made.append(self.numel()) or of(self))
    Head(linear, Transform()).logprobs(states, rows, targets)
    assert 300 <= max(made) <= 300 * 16


@pytest.mark.parametrize(
    ("arch", "transform"),
    [
        ("llama", Transform()),
        ("gemma2", Transform(1.0, 30.0)),
        ("cohere", Transform(0.25)),
        ("granite", Transform(0.25)),
    ],
)
@torch.inference_mode()
def test_the_transform_is_read_from_the_configuration(
    arch: str, transform: Transform, tiny_model: Callable[..., Path], network: Callable[..., Network]
) -> None:
    net = network(tiny_model(arch))
    assert Transform.of(net.config) == transform
    net.find_head((5, 6, 7))
    assert net.head is not None


@torch.inference_mode()
def test_an_unknown_step_between_states_and_logits_is_noticed(
    tiny_model: Callable[..., Path], network: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(tiny_model("cohere"))
    monkeypatch.setattr(net.config, "logit_scale", None)  # as if the configuration called it something else
    net.find_head((5, 6, 7))
    assert net.head is None


@torch.inference_mode()
@pytest.mark.parametrize("transform", [Transform(), Transform(0.5, 30.0)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_in_float32_need_no_reference(transform: Transform, bias: bool) -> None:
    linear, states, rows, targets = case(torch.bfloat16, bias)
    head = Head(linear, transform)
    head._wide = lambda x, weight: x.float() @ weight.float().T  # what a GPU's product gives
    expected = truth(linear, states, rows, targets, transform)
    torch.testing.assert_close(head.logprobs(states, rows, targets), expected, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_a_product_that_rounds_or_fails_is_left_with_a_warning() -> None:
    linear, states, rows, targets = case(torch.bfloat16)
    expected = Head(linear, Transform()).logprobs(states, rows, targets)

    def missing(x: Tensor, weight: Tensor) -> Tensor:
        raise RuntimeError("mm() got an unexpected keyword argument 'out_dtype'")

    for wide, why in ((missing, "RuntimeError: mm"), (lambda x, weight: x @ weight.T, "off, in torch.bfloat16")):
        head = Head(linear, Transform())
        head._wide = wide
        with pytest.warns(EngineWarning, match=f"float32 results are not used in the head: .*{why}"):
            assert torch.equal(head.logprobs(states, rows, targets), expected)
        assert torch.equal(head.logprobs(states, rows, targets), expected)  # a second warning would be an error
