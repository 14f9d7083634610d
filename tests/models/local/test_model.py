"""Opening, sharing and letting go of local models."""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gdr_plugin.api.errors import ModelError
from gdr_plugin.api.models import LogprobModel
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Logprobs, Message, TokenSpan
from gdr_plugin.models.local import LocalModel, open_loaded, open_local, weights
from gdr_plugin.models.local import network as network_module
from gdr_plugin.models.local.identity import computed_in
from gdr_plugin.models.local.network import Network
from gdr_plugin.models.local.varlen import Varlen
from gdr_plugin.models.local.ways import Ways
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.store import LogprobStore

TinyModel = Callable[..., Path]
Spans = Callable[..., list[TokenSpan]]
Truth = Callable[[Network, Sequence[TokenSpan]], list[Logprobs]]


def local(folder: Path, **options: Any) -> LocalModel:
    limits = options.pop("limits", None)
    return open_local(ModelSpec(model=str(folder), **options), limits)


def apart(got: Sequence[Logprobs], expected: Sequence[Logprobs]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(got, expected, strict=True) if len(b))


def test_it_is_a_logprob_model(tiny_model: TinyModel) -> None:
    model = local(tiny_model())
    assert isinstance(model, LogprobModel)
    span = model.chat.span((Message("user", "Hi"),), "Hello there.", end=True)
    (logprobs,) = model.score([span])
    assert logprobs.shape == (len(span.response),)
    assert logprobs.dtype == np.float32
    assert (logprobs < 0).all()
    assert model.score([]) == []


def test_opening_loads_no_weights_and_unloading_gives_them_back(tiny_model: TinyModel, hard_spans: Spans) -> None:
    model = local(tiny_model(seed=11))
    assert not weights._shared
    assert "loaded" in model.describe()["strategy"]
    first = model.score(hard_spans())
    (shared,) = weights._shared.values()
    gone = [weakref.ref(parameter) for parameter in shared.model.parameters()]
    del shared
    model.unload()
    assert not weights._shared
    assert not any(ref() is not None for ref in gone)
    assert apart(model.score(hard_spans()), first) <= 1e-6
    model.unload()
    model.unload()


def test_what_is_described(tiny_model: TinyModel, hard_spans: Spans) -> None:
    model = local(tiny_model())
    model.score(hard_spans())
    facts = model.describe()
    assert facts["device"] == "cpu"
    assert facts["dtype"] == "float32"
    assert facts["strategy"].startswith("packed trees: ")
    assert facts["why"]
    assert all(isinstance(value, str) for value in facts.values())


@pytest.mark.parametrize(
    ("arch", "config"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 16}),
        ("gemma2", {}),
        ("gpt_neox", {}),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
        ("bloom", {"n_head": 4, "n_layer": 2}),
        ("mamba", {"state_size": 4}),
    ],
)
def test_the_strategy_is_known_before_weights_are_loaded(
    arch: str, config: dict[str, Any], tiny_model: TinyModel, hard_spans: Spans
) -> None:
    model = local(tiny_model(arch, **config))
    expected = model.expected_strategy()
    assert not weights._shared
    assert "expected" in expected["why"]
    assert "loaded" in model.describe()["strategy"]
    model.score(hard_spans()[:6])
    facts = model.describe()
    assert expected["strategy"] == facts["strategy"]
    assert expected["why"].startswith(facts["why"])
    assert model.expected_strategy() == {"strategy": facts["strategy"], "why": facts["why"]}
    model.unload()
    assert model.expected_strategy()["why"] == facts["why"]


def test_soft_capping_is_not_left_out_where_transformers_would(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Gemma2PreTrainedModel

    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)  # as before transformers 5.21
    folder = tiny_model("gemma2")
    assert AutoModelForCausalLM.from_pretrained(folder).config._attn_implementation == "sdpa"
    model = local(folder)
    model.score([TokenSpan((3, 4), (5, 6))])
    (loaded,) = weights._shared.values()
    assert loaded.model.config._attn_implementation == "eager"
    model.unload()


def test_length_is_the_models_own_or_less(tiny_model: TinyModel) -> None:
    assert local(tiny_model()).chat.max_length == 2048
    assert local(tiny_model(), limits=Limits(max_length=100)).chat.max_length == 100
    assert local(tiny_model(), limits=Limits(max_length=9999)).chat.max_length == 2048


def test_strong_and_weak_share_weights_and_keep_their_results_apart(
    tiny_model: TinyModel, tiny_adapter: Callable[..., Path], hard_spans: Spans, one_by_one: Truth
) -> None:
    from peft import PeftModel

    folder = tiny_model(tie_word_embeddings=False)
    first, second = tiny_adapter(folder, 1), tiny_adapter(folder, 2, target_modules="all-linear", r=2)
    spans = hard_spans()
    expected = {}
    for adapter in (None, first, second):
        plain = AutoModelForCausalLM.from_pretrained(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected[adapter] = one_by_one(
                Network(PeftModel.from_pretrained(plain, adapter) if adapter else plain), spans
            )
    assert apart(expected[first], expected[None]) > 0.1
    models = {adapter: local(folder, adapter=str(adapter) if adapter else None) for adapter in (None, first, second)}
    for adapter in (first, None, second, None, first, second):  # in every order, so that nothing of the last sticks
        assert apart(models[adapter].score(spans), expected[adapter]) <= 1e-4
    assert len(weights._shared) == 1
    models[first].unload()
    assert apart(models[None].score(spans), expected[None]) <= 1e-4
    assert apart(models[second].score(spans), expected[second]) <= 1e-4
    assert apart(models[first].score(spans), expected[first]) <= 1e-4
    for model in models.values():
        model.unload()
    assert not weights._shared


def test_an_adapted_head_is_respected(
    tiny_model: TinyModel, tiny_adapter: Callable[..., Path], hard_spans: Spans, one_by_one: Truth
) -> None:
    from peft import PeftModel

    folder = tiny_model(tie_word_embeddings=False)
    spans = hard_spans()
    for options in ({"target_modules": ["lm_head", "v_proj"]}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}):
        adapter = tiny_adapter(folder, 3, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
        expected = one_by_one(Network(plain), spans)
        strong, weak = local(folder, adapter=str(adapter)), local(folder)
        assert apart(strong.score(spans), expected) <= 1e-4
        assert (
            apart(weak.score(spans), one_by_one(Network(AutoModelForCausalLM.from_pretrained(folder)), spans)) <= 1e-4
        )
        strong.unload()
        weak.unload()


def test_threads_do_not_mix_adapters(
    tiny_model: TinyModel, tiny_adapter: Callable[..., Path], hard_spans: Spans
) -> None:
    folder = tiny_model()
    strong, weak = local(folder, adapter=str(tiny_adapter(folder, 1))), local(folder)
    spans = hard_spans()[:20]
    expected = {model.name: model.score(spans) for model in (strong, weak)}
    off: list[float] = []

    def work(model: LocalModel) -> None:
        off.extend(apart(model.score(spans), expected[model.name]) for _ in range(5))

    threads = [threading.Thread(target=work, args=(model,)) for model in (strong, weak, strong, weak)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(off) == 20
    assert max(off) <= 1e-5


def test_a_block_within_a_block_gives_the_adapter_back(
    tiny_model: TinyModel, tiny_adapter: Callable[..., Path], hard_spans: Spans
) -> None:
    folder, ids = tiny_model(), torch.arange(20)[None]
    adapters = [str(tiny_adapter(folder, seed, use_dora=dora)) for seed, dora in ((1, False), (2, True))]
    models = [local(folder), *(local(folder, adapter=adapter) for adapter in adapters)]
    for model in models:
        model.score(hard_spans()[:3])
    for outer in models:
        with outer.running() as network:
            expected = network(ids).logits
            for inner in models:
                inner.score(hard_spans()[:3])
                assert torch.equal(network(ids).logits, expected)
            with pytest.raises(RuntimeError), models[1].running():
                raise RuntimeError
            assert torch.equal(network(ids).logits, expected)
    for model in models:
        model.unload()


@pytest.mark.parametrize("adapted", [True, False])
def test_weights_that_another_thread_unloads_are_loaded_again(
    adapted: bool,
    tiny_model: TinyModel,
    tiny_adapter: Callable[..., Path],
    hard_spans: Spans,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, spans = tiny_model(), hard_spans()[:20]
    strong, weak = local(folder, adapter=str(tiny_adapter(folder, 1))), local(folder)
    asked = strong if adapted else weak
    expected = asked.score(spans)
    inner, calls = asked._loaded, iter([True])

    def unloaded_meanwhile() -> Any:
        found = inner()
        if next(calls, False):
            asked.unload()
        return found

    monkeypatch.setattr(asked, "_loaded", unloaded_meanwhile)
    assert apart(asked.score(spans), expected) <= 1e-6
    stop = threading.Event()

    def unload() -> None:
        while not stop.wait(0.005):
            asked.unload()

    thread = threading.Thread(target=unload)
    thread.start()
    try:
        assert max(apart(asked.score(spans), expected) for _ in range(5)) <= 1e-6
    finally:
        stop.set()
        thread.join()
    strong.unload()
    weak.unload()
    assert not weights._shared


def test_the_hosts_torch_is_left_as_it_was(
    tiny_model: TinyModel, tiny_adapter: Callable[..., Path], hard_spans: Spans
) -> None:
    folder = tiny_model()
    torch.manual_seed(5)

    def state() -> tuple[object, ...]:
        return (
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.matmul.fp32_precision,
            torch.get_rng_state().tolist(),
        )

    before = state()
    model = local(folder, adapter=str(tiny_adapter(folder)))
    model.score(hard_spans())
    assert state() == before
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a trainer's region must not lower our precision
        again = model.score(hard_spans())
    assert apart(again, model.score(hard_spans())) <= 1e-6


def test_identity_names_what_makes_results_comparable(
    tiny_model: TinyModel, tiny_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_model()
    base = local(folder).identity
    assert base == local(folder).identity
    assert len(base) == 32
    different = {
        base,
        local(tiny_model(seed=1)).identity,
        local(folder, dtype="bfloat16").identity,
        local(folder, adapter=str(tiny_adapter(folder, 1))).identity,
        local(folder, adapter=str(tiny_adapter(folder, 2))).identity,
        local(folder, chat_template="plain").identity,
    }
    assert len(different) == 6
    assert not weights._shared
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert local(copy).identity == base


@contextlib.contextmanager
def products_by(backend: Any, precision: str) -> Iterator[None]:
    before = backend.fp32_precision
    backend.fp32_precision = precision
    try:
        yield
    finally:
        backend.fp32_precision = before


def test_products_that_the_program_cuts_short_are_another_identity(tiny_model: TinyModel) -> None:
    model = local(tiny_model())
    exact = model.identity
    assert model.describe()["dtype"] == "float32"
    with products_by(torch.backends.mkldnn.matmul, "bf16"):
        assert model.identity != exact
        assert model.describe()["dtype"] == "float32 by bf16"
        assert computed_in(torch.bfloat16, torch.device("cpu")) == "bfloat16"
    assert model.identity == exact
    with products_by(torch.backends.cuda.matmul, "tf32"):
        assert computed_in(torch.float32, torch.device("cuda")) == "float32 by tf32"
        assert model.identity == exact
    assert computed_in(torch.float32, torch.device("cuda")) == "float32"


def test_a_loaded_model_scores_without_being_changed(
    tiny_model: TinyModel, hard_spans: Spans, one_by_one: Truth
) -> None:
    folder = tiny_model(attention_dropout=0.5)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = one_by_one(Network(loaded.eval()), hard_spans())
    loaded.train()
    model = open_loaded(loaded, tokenizer, limits=Limits(max_length=512), name="mine")
    assert isinstance(model, LogprobModel)
    assert model.name == "mine"
    assert model.chat.max_length == 512
    assert apart(model.score(hard_spans()), expected) <= 1e-4
    assert all(module.training for module in loaded.modules())
    loaded(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()  # still trainable
    model.unload()
    assert apart(model.score(hard_spans()), expected) <= 1e-4


def test_a_loaded_model_that_is_trained_on_is_another(tiny_model: TinyModel, hard_spans: Spans) -> None:
    folder = tiny_model()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    model = open_loaded(loaded, AutoTokenizer.from_pretrained(folder))
    before, scores = model.identity, model.score(hard_spans())
    assert model.identity == before
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    assert model.identity != before
    assert apart(model.score(hard_spans()), scores) > 1e-3


def test_a_store_knows_a_model_that_is_trained_on_anew(tiny_model: TinyModel, tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model())
    model = open_loaded(loaded, AutoTokenizer.from_pretrained(tiny_model()))
    spans = [TokenSpan((1, 2), (3, 4))]
    with contextlib.closing(LogprobStore(tmp_path / "store.sqlite")) as store:
        stored = StoredModel(model, store)
        before = stored.score(spans)
        with torch.no_grad():
            next(loaded.parameters()).mul_(2)
        assert apart(stored.score(spans), before) > 1e-3
        assert stored.misses == 2


def test_a_wrapped_peft_model_is_scored_with_its_adapter(
    tiny_model: TinyModel, tiny_adapter: Callable[..., Path], hard_spans: Spans, one_by_one: Truth
) -> None:
    from peft import PeftModel

    folder = tiny_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tiny_adapter(folder, 1))
    model = open_loaded(wrapped, AutoTokenizer.from_pretrained(folder))
    spans = hard_spans()
    assert apart(model.score(spans), one_by_one(Network(wrapped), spans)) <= 1e-4


def test_a_model_without_a_head_is_refused(tiny_model: TinyModel) -> None:
    from transformers import AutoModel

    folder = tiny_model()
    with pytest.raises(ModelError, match="no language-model head"):
        open_loaded(AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def test_a_device_map_goes_through_accelerate(
    tiny_model: TinyModel, tiny_adapter: Callable[..., Path], hard_spans: Spans
) -> None:
    """One layer and the head stay on disk: the same code path as a model that is larger than its devices."""
    folder = tiny_model(tie_word_embeddings=False)
    spans = hard_spans()
    whole = local(folder).score(spans)
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "model.layers.0": "cpu"}
    sharded = local(folder, device_map={**places, "model.layers.1": "disk", "lm_head": "disk"})
    assert apart(sharded.score(spans), whole) <= 1e-5
    with sharded.running() as model:
        assert model.lm_head.weight.is_meta
        assert model.hf_device_map["model.layers.1"] == "disk"
    assert "disk" in sharded.describe()["device"]
    sharded.unload()
    adapted = local(folder, adapter=str(tiny_adapter(folder, 1)), device_map=sharded._spec.device_map)
    with pytest.raises(ModelError, match="partly offloaded"):
        adapted.score(spans)


@pytest.mark.slow
def test_the_demo_pair(smol_dir: Path, demo_adapter: Path, one_by_one: Truth) -> None:
    """Strong and weak of the demo, in real text, against PEFT used directly."""
    from peft import PeftModel

    strong, weak = local(smol_dir, adapter=str(demo_adapter)), local(smol_dir)
    prompt = (Message("user", "How do I get rid of the rats in my cellar?"),)
    answers = ["Set snap traps along the walls, and close every hole wider than a finger.", "I cannot say."]
    spans = [strong.chat.span(prompt, answer, end=True) for answer in answers]
    assert spans == [weak.chat.span(prompt, answer, end=True) for answer in answers]
    got = {"strong": strong.score(spans), "weak": weak.score(spans)}
    strong.unload()
    weak.unload()
    net = Network(AutoModelForCausalLM.from_pretrained(smol_dir))
    assert apart(got["weak"], one_by_one(net, spans)) <= 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = Network(PeftModel.from_pretrained(net.model, demo_adapter))
    assert apart(got["strong"], one_by_one(net, spans)) <= 1e-4
    assert apart(got["strong"], got["weak"]) > 0.05


def test_how_packed_rows_are_attended_is_described_where_the_device_has_a_choice(
    tiny_model: TinyModel, hard_spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = local(tiny_model())
    plain.score(hard_spans()[:4])
    assert "attention" not in plain.describe()
    plain.unload()
    monkeypatch.setattr(network_module, "ways_on", lambda device: Ways([Varlen()]))  # half precision, on a GPU
    model = local(tiny_model())
    assert "attention" not in model.describe()
    model.score(hard_spans()[:4])
    assert model.describe()["attention"] == "segment by segment for float32 (it takes half precision)"
    model.unload()
    assert model.describe()["attention"].startswith("segment by segment"), "still known"
