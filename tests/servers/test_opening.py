"""What is found out about a server before any work starts, and the one line for what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdr_plugin.api.errors import ChatError, ConfigError, ModelError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Message
from gdr_plugin.models.servers import open_server
from tests.conftest import CHATML
from tests.servers.conftest import KINDS, MakeServer
from tests.servers.fake import Numbers
from tests.servers.test_scoring import LIMITS, address, opened


def refused(spec: dict[str, Any], message: str, error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error, match=message) as caught:
        open_server(ModelSpec.model_validate(spec), LIMITS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fast", "strategy", "why"),
    [
        ("yes", "vLLM, /inference/v1/generate", "cached contexts are reused"),
        ("none", "vLLM, /v1/completions with prompt_logprobs", "this vLLM has no /inference/v1/generate: 0.31 has it"),
        ("closed", "vLLM, /v1/completions with prompt_logprobs", "started without --enable-scale-out"),
        ("v1", "vLLM, /v1/completions with prompt_logprobs", "V2 model runner"),
    ],
)
def test_vllm_is_asked_in_the_best_way_it_has_and_says_why(
    fast: str, strategy: str, why: str, server: MakeServer
) -> None:
    facts = opened(server("vllm", fast=fast)).describe()
    assert facts["strategy"] == strategy
    assert why in facts["why"]
    assert facts["backend"] == "vLLM 0.32.0"
    assert "as the server's, with its chat template" in facts["tokenizer"]


def test_a_vllm_that_never_gives_the_array_is_asked_in_the_other_way(server: MakeServer) -> None:
    def after(path: str, _body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        return answer | {"prompt_token_id_logprobs": None} if "inference" in path else answer

    facts = opened(server("vllm", after=after)).describe()
    assert "completions" in facts["strategy"]
    assert "answered without log-probs, also without its cache" in facts["why"]


def test_what_is_said_of_sglang_and_of_providers(server: MakeServer) -> None:
    facts = opened(server("sglang")).describe()
    assert (facts["backend"], facts["dtype"], facts["strategy"]) == ("SGLang 0.5.23", "float32", "SGLang, /generate")
    assert opened(server("openai")).describe()["strategy"] == "/v1/completions with echo, token ids"
    assert opened(server("openai", takes_ids=False)).describe()["strategy"] == "/v1/completions with echo, text"


@pytest.mark.parametrize(("kind", "longest"), [("vllm", 2047), ("sglang", 2047)])
def test_the_server_s_limit_counts(kind: str, longest: int, server: MakeServer) -> None:
    model = open_server(ModelSpec(model=address(server(kind))), Limits())
    assert model.chat.max_length == longest
    with pytest.raises(ChatError, match=f"exceed max_length {longest}"):
        model.chat.span((Message("user", "Hi"),), "word " * 2000, end=True)


def test_a_provider_that_does_not_say_how_long_wants_a_limit(server: MakeServer) -> None:
    with pytest.raises(ConfigError, match=r"does not say how long a text may be: set limits\.max_length"):
        open_server(ModelSpec(model=address(server("openai"))), Limits())


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_may_be_left_out_where_there_is_one(kind: str, server: MakeServer) -> None:
    fake = server(**KINDS[kind])
    model = open_server(ModelSpec(model=f"{fake.kind}:{fake.url}"), LIMITS)
    assert model.describe()["served as"] == "tiny"


@pytest.mark.parametrize("scheme", ["vllm", "sglang"])
def test_a_wrong_name_lists_what_is_there(scheme: str, server: MakeServer) -> None:
    fake = server(scheme)
    refused({"model": address(fake, "tinny")}, r"unknown model 'tinny': known are .*tiny.*did you mean 'tiny'")


@pytest.mark.parametrize(
    ("kind", "scheme", "message"),
    [
        ("sglang", "vllm", "is no vLLM server .*is the port right"),
        ("openai", "vllm", "is no vLLM server"),
        ("vllm", "sglang", "is no SGLang server"),
        ("openai", "sglang", "is no SGLang server"),
    ],
)
def test_a_server_of_another_kind(kind: str, scheme: str, message: str, server: MakeServer) -> None:
    refused({"model": f"{scheme}:{server(kind).url}/tiny"}, message)


def test_a_server_that_is_not_there(server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gdr_plugin.models.servers.client._FIRST_PAUSE_S", 0.01)
    fake = server("sglang")
    fake.kill()
    text = refused({"model": address(fake)}, "the connection failed .*is the server running", ModelError)
    assert fake.url in text


@pytest.mark.parametrize(("key", "value"), [("dtype", "bfloat16"), ("device", "cuda"), ("device_map", "auto")])
def test_keys_of_a_local_model_do_not_apply(key: str, value: str) -> None:
    refused({"model": "vllm:http://127.0.0.1:1/x", key: value}, f"`{key}` does not apply to a model on a server")


def test_a_tokenizer_has_to_be_here(server: MakeServer) -> None:
    fake = server("vllm", root="/nowhere/model")
    refused({"model": address(fake)}, "set `tokenizer` to a folder or hub id.*'/nowhere/model'")


def test_a_named_tokenizer_serves_a_model_whose_folder_is_elsewhere(server: MakeServer, tiny_model: Any) -> None:
    fake = server("vllm", root="/nowhere/model")
    model = opened(fake, tokenizer=str(tiny_model("llama")))
    assert len(model.score([model.chat.span((Message("user", "Hi"),), "Yes", end=True)])[0]) > 1


def other_tokenizer(folder: Path, chat_template: str = CHATML) -> str:
    """A tokenizer of other merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["The capital of France is Paris, and def f(x) return"], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    made.chat_template = chat_template
    made.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["vllm", "openai ids", "openai text"])
def test_another_model_s_tokenizer_is_noticed(kind: str, server: MakeServer, tmp_path: Path) -> None:
    fake = server(**KINDS[kind])
    message = "its tokenizer is another one|cuts the text into other tokens"
    refused({"model": address(fake), "tokenizer": other_tokenizer(tmp_path)}, message, (ConfigError, ModelError))  # type: ignore[arg-type]


def test_another_chat_template_is_noticed_unless_it_is_named(
    server: MakeServer, tiny_model: Any, tmp_path: Path
) -> None:
    changed = tiny_model("llama", chat_template=CHATML.replace("assistant", "helper"))
    fake = server("vllm")
    refused({"model": address(fake), "tokenizer": str(changed)}, "its chat template renders .*set `chat_template`")
    template = tmp_path / "own.jinja"
    template.write_text(CHATML.replace("assistant", "helper"))
    opened(fake, chat_template=str(template))


Spoiled = Callable[[Numbers], Numbers]


def shifted(by: int) -> Spoiled:
    return lambda numbers: lambda ids: np.roll(numbers(ids), by)


def noisy(numbers: Numbers) -> Numbers:
    rng = np.random.default_rng(0)
    return lambda ids: numbers(ids) - rng.uniform(0, 3, len(ids))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spoil", [shifted(1), shifted(-1), noisy], ids=["later", "earlier", "sampled"])
def test_numbers_of_other_tokens_are_refused(kind: str, spoil: Spoiled, server: MakeServer) -> None:
    fake = server(**KINDS[kind])
    true = fake.models["tiny"]
    wrong = spoil(lambda ids: np.nan_to_num(true(ids), nan=-1.0))
    fake.models["tiny"] = wrong
    refused({"model": address(fake)}, "the server's numbers cannot be used: what can is vLLM", ModelError)


@pytest.mark.parametrize(
    ("owner", "name"), [("llamacpp", "llama.cpp's server"), ("library", "Ollama"), ("organization_owner", "LM Studio")]
)
def test_servers_that_give_no_numbers_are_known(owner: str, name: str, server: MakeServer) -> None:
    fake = server("openai", owner=owner)
    refused({"model": address(fake)}, f"is {name}, which gives no log-probs of a given text: what can is vLLM")


def test_a_provider_that_ignores_echo_is_refused(server: MakeServer) -> None:
    def after(_path: str, _body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        answer["choices"][0]["logprobs"] = {"tokens": ["x"], "token_logprobs": [-1.0]}  # those of the sampled token
        return answer

    message = "log-probs of what it wrote, not of the given text: what can is"
    refused({"model": address(server("openai", after=after))}, message, ModelError)


def test_replicas_have_to_be_equal(server: MakeServer) -> None:
    first, second = server("sglang"), server("sglang", version="7")
    refused({"model": f"sglang:{first.url},{second.url}/tiny"}, "serve different models .*weight version 7")
    other = server("sglang", seed=1, root=first.root)
    refused({"model": f"sglang:{first.url},{other.url}/tiny"}, "serve different weights as 'tiny'")


def test_the_identity_names_the_weights_and_nothing_else(server: MakeServer) -> None:
    fake, other = server("sglang"), server("sglang")
    base = opened(fake).identity
    assert opened(other).identity == base  # another address
    assert open_server(ModelSpec(model=f"sglang:{fake.url},{other.url}/tiny"), LIMITS).identity == base
    assert opened(fake, server={"concurrency": 2}).identity == base
    true = fake.models["tiny"]
    fake.models["tiny"] = lambda ids: true(ids) + np.random.default_rng().normal(0, 0.01, len(ids)) - 0.03
    assert opened(fake).identity == base  # rounding
    assert opened(fake, revision="second").identity != base
    assert opened(fake, chat_template="plain").identity != base
    assert opened(server("sglang", version="7")).identity != base
    assert opened(server("vllm")).identity != base


def test_an_adapter_is_a_model_of_its_own(server: MakeServer, tiny_model: Any) -> None:
    for kind in ("vllm", "sglang"):
        fake = server(kind, adapters=("strong",))
        base, strong = opened(fake), opened(fake, adapter="strong")
        span = base.chat.span((Message("user", "Hi"),), "Yes, of course", end=True)
        assert base.identity != strong.identity
        expected = fake.models["strong"](span.context + span.response)[len(span.context) :]
        np.testing.assert_allclose(strong.score([span])[0], expected, atol=1e-5)
        assert not np.allclose(base.score([span])[0], expected, atol=0.1)
        refused({"model": address(fake), "adapter": "strnog"}, "unknown adapter 'strnog'.*did you mean 'strong'")
