"""Drawing responses: the distribution, repeatability, and what counts as text."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdr_plugin.api.errors import ConfigError, GDRError, ModelError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Conversation, Message
from gdr_plugin.models.local import open_local
from gdr_plugin.sampling import decode as decoding
from gdr_plugin.sampling.decode import decode, draw, uniforms
from gdr_plugin.sampling.sample import PolicySampler, Sampling

TinyModel = Callable[..., Path]


def ask(text: str) -> Conversation:
    return (Message("user", text),)


PROMPTS = [ask("Hello"), ask("How can I help you today? " * 6), ask("river"), ask("def add(a, b):")]
IDS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def sampler(tiny_model: TinyModel) -> Iterator[PolicySampler]:
    made = PolicySampler(ModelSpec(model=str(tiny_model())))
    yield made
    made.unload()


def test_uniforms_are_repeatable_independent_and_uniform() -> None:
    first = uniforms(0, "row", 0, 4000)
    assert first.tolist()[:3] == uniforms(0, "row", 0, 3).tolist()
    assert first.min() >= 0
    assert first.max() < 1
    assert np.histogram(first, bins=10)[0] == pytest.approx(np.full(10, 400), abs=80)
    others = [uniforms(1, "row", 0, 4000), uniforms(0, "row", 1, 4000), uniforms(0, "other", 0, 4000)]
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.06


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8), (1.0, 0.3)])
def test_draws_follow_the_distribution(temperature: float, top_p: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -4.0, float("-inf")])
    probs = torch.softmax(logits.double() / temperature, dim=-1)
    kept = int((probs.cumsum(-1) - probs < top_p).sum())  # the logits are in falling order
    expected = torch.where(torch.arange(len(probs)) < kept, probs, 0)
    expected /= expected.sum()
    count = 200_000
    numbers = torch.from_numpy(uniforms(0, "x", 0, count))
    ids = draw(logits.expand(count, -1), numbers, temperature=temperature, top_p=top_p)
    seen = torch.bincount(ids, minlength=len(probs)).double() / count
    assert seen.tolist() == pytest.approx(expected.tolist(), abs=5 / math.sqrt(count))
    assert seen[expected == 0].sum() == 0


@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=9),
    st.sampled_from([0.0, 1 - 2**-32, 0.5]),
    st.floats(0.05, 1),
)
def test_extreme_numbers_draw_tokens_of_the_nucleus(logits: list[float], uniform: float, top_p: float) -> None:
    row = torch.tensor([logits])
    token = int(draw(row, torch.tensor([uniform], dtype=torch.float64), temperature=1.0, top_p=top_p))
    probs = torch.softmax(row[0], dim=-1).double()
    likelier = float(probs[probs > probs[token]].sum())
    assert probs[token] > 0
    assert likelier < top_p + 1e-6


def test_a_wide_nucleus_is_found_in_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    probs = torch.softmax(torch.randn(3, 2000, generator=torch.Generator().manual_seed(0)), dim=-1)
    narrow, wide = (decoding._nucleus_bound(probs, p) for p in (0.05, 0.95))
    monkeypatch.setattr(decoding, "_NUCLEUS", 2000)
    assert torch.equal(narrow, decoding._nucleus_bound(probs, 0.05))
    assert torch.equal(wide, decoding._nucleus_bound(probs, 0.95))


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ModelError, match="not finite"):
        draw(torch.tensor([[0.0, float("nan")]]), torch.tensor([0.5]).double(), temperature=1.0, top_p=1.0)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gemma3_text", "gpt_neox"])
def test_tokens_are_those_of_a_plain_forward(tiny_model: TinyModel, arch: str) -> None:
    """Padding, the shared prompt, the cache and dropped rows change nothing: each token comes from p(token | all)."""
    contexts = [(5, 6, 7), tuple(range(40, 70)), (9,)]
    limit, samples = 24, 3
    numbers = np.stack([uniforms(0, str(row), number, limit) for row in range(3) for number in range(samples)])
    with open_local(ModelSpec(model=str(tiny_model(arch)))).running() as model:
        ends = set(range(0, 320, 9))  # so many that rows end at different steps
        drawn = decode(model, contexts, numbers, end_ids=ends, temperature=0.9, top_p=0.95)
        for row, ids in enumerate(drawn):
            context = contexts[row // samples]
            logits = model(torch.tensor([[*context, *ids[:-1]]])).logits[0, len(context) - 1 :]
            again = draw(logits, torch.from_numpy(numbers[row, : len(ids)]), temperature=0.9, top_p=0.95)
            assert again.tolist() == ids
            assert (ids[-1] in ends) or len(ids) == limit
            assert not ends & set(ids[:-1])
    assert len({len(ids) for ids in drawn}) > 2


def test_first_tokens_follow_the_model(sampler: PolicySampler, tiny_model: TinyModel) -> None:
    model = open_local(ModelSpec(model=str(tiny_model())))
    context = model.chat.span(ask("Hello"), "", end=False).context
    with model.running() as loaded:
        probs = torch.softmax(loaded(torch.tensor([context])).logits[0, -1].double(), dim=-1)
        count = 4000
        numbers = np.stack([uniforms(7, "a", number, 1) for number in range(count)])
        ids = decode(loaded, [context], numbers, end_ids={2}, temperature=1.0, top_p=1.0)
    seen = torch.bincount(torch.tensor([row[0] for row in ids]), minlength=len(probs)).double()
    common = probs * count >= 5
    expected = torch.cat([probs[common] * count, (probs[~common].sum() * count)[None]])
    found = torch.cat([seen[common], seen[~common].sum()[None]])
    chi_square = float(((found - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    assert freedom > 10
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_responses_depend_on_neither_batch_nor_order_nor_global_state(sampler: PolicySampler) -> None:
    sampling = Sampling(samples=3, max_new_tokens=12, seed=5)
    together = sampler.sample(PROMPTS, IDS, sampling)
    torch.manual_seed(99)
    random.seed(99)
    state = torch.get_rng_state()
    assert [sampler.sample([prompt], [one], sampling)[0] for prompt, one in zip(PROMPTS, IDS, strict=True)] == together
    assert sampler.sample(PROMPTS[::-1], IDS[::-1], sampling) == together[::-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert sampler.sample(PROMPTS, IDS, Sampling(samples=3, max_new_tokens=12, seed=6)) != together
    texts = [text for one in together for text, _ in one.responses]
    assert len(set(texts)) == len(texts) == 12


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 9))
def test_any_batch_size_gives_the_same(tiny_model: TinyModel, size: int) -> None:
    sampling = Sampling(samples=4, max_new_tokens=6)
    spec = ModelSpec(model=str(tiny_model()))
    small = PolicySampler(spec, batch=size).sample(PROMPTS, IDS, sampling)
    assert small == PolicySampler(spec).sample(PROMPTS, IDS, sampling)


def test_memory_that_runs_out_halves_the_batch(sampler: PolicySampler, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(samples=4, max_new_tokens=6)
    whole = sampler.sample(PROMPTS, IDS, sampling)
    sizes: list[int] = []
    plain = decoding.decode

    def tight(model: object, contexts: object, numbers: np.ndarray, **options: object) -> list[list[int]]:
        sizes.append(len(numbers))
        if len(numbers) > 3:
            raise torch.OutOfMemoryError("no")
        return plain(model, contexts, numbers, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "decode", tight)
    assert sampler.sample(PROMPTS, IDS, sampling) == whole
    assert sizes[:4] == [16, 16, 8, 4]
    assert set(sizes[4:]) == {2}
    monkeypatch.setattr(decoding, "decode", _out_of_memory)
    with pytest.raises(ModelError, match="lower --max-new-tokens"):
        sampler.sample(PROMPTS, IDS, sampling)


def _out_of_memory(*args: object, **options: object) -> list[list[int]]:
    raise torch.OutOfMemoryError("no")


def test_texts_hold_no_markers_and_say_whether_they_ended(sampler: PolicySampler, tiny_model: TinyModel) -> None:
    sampled = sampler.sample(PROMPTS, IDS, Sampling(samples=60, max_new_tokens=16))
    responses = [response for one in sampled for response in one.responses]
    assert {finished for _, finished in responses} == {True, False}
    chat = open_local(ModelSpec(model=str(tiny_model()))).chat
    for text, finished in responses:
        assert "<|" not in text
        assert finished or not text.endswith("\ufffd")
        assert len(chat.span(ask("Hello"), text, end=finished).response) <= 16 + 3 * text.count("\ufffd")


def test_a_prompt_that_leaves_no_room_has_a_reason(tiny_model: TinyModel) -> None:
    spec = ModelSpec(model=str(tiny_model()))
    prompts = [ask("Hello"), ask("river " * 30), ask("river " * 200)]
    sampling = Sampling(samples=2, max_new_tokens=32)
    small = PolicySampler(spec, Limits(max_length=128, max_response=32)).sample(prompts, IDS[:3], sampling)
    assert [len(one.responses) for one in small] == [2, 0, 0]
    assert small[0].reason is None
    assert "32 new tokens exceed 128: lower --max-new-tokens" in (small[1].reason or "")
    assert "limits.long_input: keep_end" in (small[2].reason or "")
    kept = PolicySampler(spec, Limits(max_length=128, max_response=32, long_input="keep_end"))
    assert [len(one.responses) for one in kept.sample(prompts, IDS[:3], sampling)] == [2, 2, 2]


def test_the_policy_shares_the_weights_of_its_base(tiny_model: TinyModel) -> None:
    spec = ModelSpec(model=str(tiny_model()))
    weak, policy = open_local(spec), PolicySampler(spec)
    policy.sample(PROMPTS[:1], IDS[:1], Sampling(samples=1, max_new_tokens=1))
    with weak.running() as model, policy._model.running() as other:
        assert model is other


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 0}, "--samples"),
        ({"temperature": 0.0}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.5}, "--top-p"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_a_policy_that_does_not_exist_is_one_line() -> None:
    with pytest.raises(GDRError) as caught:
        PolicySampler(ModelSpec(model="no/such/policy"))
    assert "no/such/policy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_template_writes_around_an_answer_is_no_part_of_the_response(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn ids that hold the space before the answer and the line break before its end: both come back once."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>' + m.content + '<|im_start|>' }}"
        "{% else %}{{ ' ' + m.content + '\n<|im_end|>' }}{% endif %}{% endfor %}"
    )
    sampler = PolicySampler(ModelSpec(model=str(tiny_model(chat_template=template))))
    chat = sampler._model.chat
    whole = chat.span(ask("Hello"), "I am here.", end=True).response
    assert sampler._model.tokenizer.decode(whole) == " I am here.\n<|im_end|>"
    merged = sampler._model.tokenizer(text=" I am here.\n<|im_end|>")["input_ids"]
    cut = chat.span(ask("Hello"), "I am here.", end=False).response
    drawn = iter([[list(whole)], [merged], [list(cut)], [[*cut, 0]]])
    monkeypatch.setattr(decoding, "decode", lambda *args, **options: next(drawn))
    got = [sampler.sample([ask("Hello")], ["a"], Sampling(samples=1))[0].responses[0] for _ in range(4)]
    # `<|endoftext|>`, id 0, is in no template: the model's generation config does not list it either.
    assert got == [("I am here.", True), ("I am here.", True), ("I am here.", False), ("I am here.", False)]


def test_a_policy_stops_before_the_next_turn(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """GLM's template writes nothing behind an answer: the next turn's mark ends it."""
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    sampler = PolicySampler(ModelSpec(model=str(tiny_model(chat_template=template))))
    seen: list[frozenset[int]] = []

    def stopped(*args: object, end_ids: frozenset[int], **options: object) -> list[list[int]]:
        seen.append(end_ids)
        return [[*sampler._model.tokenizer(text="I am here.")["input_ids"], 1]]

    monkeypatch.setattr(decoding, "decode", stopped)
    (sampled,) = sampler.sample([ask("Hello")], ["a"], Sampling(samples=1))
    assert seen == [{1, 2}]  # `<|im_start|>`, and the tokenizer's and generation config's `<|im_end|>`
    assert sampled.responses == (("I am here.", True),)


CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
HISTORY = CHATML.replace("+ m.content", "+ ('<think>\n\n</think>\n\n' if m.role == 'assistant' else '') + m.content")


@pytest.mark.parametrize(
    ("template", "prompt_end", "opened"),
    [
        (CHATML + ASK, "<|im_start|>assistant\n", ""),
        (HISTORY + ASK, "<|im_start|>assistant\n", ""),  # Qwen3: whether it reasons is the model's choice
        (CHATML + ASK.replace("\n'", "\n<think>\n'"), "<|im_start|>assistant\n<think>\n", "<think>\n"),  # R1
    ],
)
def test_a_policy_is_asked_with_the_generation_prompt(
    tiny_model: TinyModel, template: str, prompt_end: str, opened: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it writes is scored as the very ids that were drawn, behind the very ids that it was asked."""
    model = str(tiny_model(chat_template=template))
    made = PolicySampler(ModelSpec(model=model))
    chat = open_local(ModelSpec(model=model)).chat
    thought = ("" if opened else "<think>\n") + "Two.\n</think>\n\nIt is 2."
    tokenizer = made._model.tokenizer
    drawn = [*tokenizer(thought)["input_ids"], tokenizer.eos_token_id]
    asked: list[list[tuple[int, ...]]] = []

    def decode(model: object, contexts: list[tuple[int, ...]], numbers: object, **options: object) -> list[list[int]]:
        asked.append(contexts)
        return [drawn]

    monkeypatch.setattr(decoding, "decode", decode)
    (sampled,) = made.sample([ask("1 + 1?")], ["a"], Sampling(samples=1))
    ((context,),) = asked
    assert tokenizer.decode(context).endswith("1 + 1?<|im_end|>\n" + prompt_end)
    (response,) = sampled.responses
    assert (response.text, response.finished) == (opened + thought, True)
    if "think" in template:
        span = chat.span(ask("1 + 1?"), response.text, end=True)
        assert ([*span.context], [*span.response]) == ([*context], drawn)
    made.unload()


def test_marks_of_reasoning_that_are_special_tokens_stay_in_the_text(tiny_model: TinyModel) -> None:
    made = PolicySampler(ModelSpec(model=str(tiny_model())))
    made._model.tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    marks = made._model.tokenizer.convert_tokens_to_ids(["[THINK]", "[/THINK]"])
    text = made._model.tokenizer("Two.")["input_ids"]
    end = made._model.tokenizer.eos_token_id
    response = made._texts.response([marks[0], *text, marks[1], *text, end], frozenset([end]), "")
    assert response.text == "[THINK]Two.[/THINK]Two."
