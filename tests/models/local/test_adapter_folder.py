"""What lies in an adapter's folder: trained tokens, a resized vocabulary, a tokenizer and a chat template."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gdr_plugin.api.errors import ModelError
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.api.types import Message, TokenSpan
from gdr_plugin.models.local import LocalModel, open_local
from gdr_plugin.models.local.network import Network

TinyModel = Callable[..., Path]
TinyAdapter = Callable[..., Path]
Truth = Callable[..., Any]

SPANS = [TokenSpan((1, 5, 6), (2, 7, 1)), TokenSpan((1, 9), (10, 11, 2))]
ASKED = (Message("user", "Hello"),)
OWN = "{% for m in messages %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endfor %}{{ '<|im_start|>' }}"


def opened(base: Path, adapter: Path | None = None, **options: Any) -> LocalModel:
    return open_local(ModelSpec(model=str(base), adapter=adapter and str(adapter), **options))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [{}, {"target_modules": "all-linear"}])
def test_single_tokens_that_were_trained_are_loaded_as_peft_does(
    tiny_model: TinyModel, tiny_adapter: TinyAdapter, one_by_one: Truth, tied: bool, lora: dict[str, Any]
) -> None:
    from peft import PeftModel

    base = tiny_model(tie_word_embeddings=tied)
    folder = _moved(tiny_adapter(base, trainable_token_indices=[1, 2], **lora))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    expected = one_by_one(Network(by_peft.get_base_model()), SPANS)
    strong, weak = opened(base, folder), opened(base)
    before = weak.score(SPANS)
    for got, wanted in zip(strong.score(SPANS), expected, strict=True):
        assert np.abs(got - wanted).max() <= 2e-5
    for got, wanted in zip(weak.score(SPANS), before, strict=True):  # the shared base is as it was
        assert np.abs(got - wanted).max() <= 1e-6
    assert max(np.abs(a - b).max() for a, b in zip(before, expected, strict=True)) > 0.01


def _moved(folder: Path) -> Path:
    """The adapter with trained tokens that differ from the base's: new ones begin as these."""
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    trained = [key for key in tensors if "trainable_tokens" in key]
    assert trained
    for key in trained:
        tensors[key] = tensors[key] + 0.5 * torch.randn(tensors[key].shape, generator=torch.Generator().manual_seed(3))
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
)
def test_a_resized_vocabulary_is_the_reason(tiny_model: TinyModel, tmp_path: Path, options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model(tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(base)
    size = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(size + 8)
    config = LoraConfig(task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        opened(base, tmp_path)
    message = str(caught.value)
    assert "was trained on a vocabulary of another size than that of" in message
    assert str(size + 8) in message
    assert str(size) in message
    assert "resize its embeddings, then merge it into its base" in message
    assert "another base" not in message


def test_the_tokenizer_beside_an_adapter_counts(
    tiny_model: TinyModel, tiny_adapter: TinyAdapter, tmp_path: Path
) -> None:
    base = tiny_model()
    plain = tiny_adapter(base)
    tokenizer = AutoTokenizer.from_pretrained(base)

    def beside(name: str, template: str | None) -> Path:
        folder = tmp_path / name
        shutil.copytree(plain, folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        return folder

    chatml = tokenizer.chat_template
    same, other, none = beside("same", chatml), beside("other", OWN), beside("none", None)
    expected = opened(base, plain)
    assert expected.describe()["tokenizer"] == "the model's"
    for folder in (same, none):  # what is not there is the base's
        model = opened(base, folder)
        assert model.describe()["tokenizer"] == "the adapter's own"
        assert model.identity == expected.identity
    model = opened(base, other)
    assert model.identity != expected.identity
    text = model.tokenizer.decode(model.chat.span(ASKED, "Hi", end=True).context)
    assert text == "<|im_start|>Hello<|im_end|><|im_start|>"
    named = opened(base, other, tokenizer=str(base))
    assert named.identity == expected.identity
    assert named.describe()["tokenizer"] == str(base)


def test_a_chat_template_alone_beside_an_adapter(tiny_model: TinyModel, tiny_adapter: TinyAdapter) -> None:
    """A base model without a template, trained with one: its adapter brings it."""
    base = tiny_model(chat_template=None)
    folder = tiny_adapter(base)
    with pytest.raises(ModelError, match="has no chat template"):
        opened(base, folder)
    (folder / "chat_template.jinja").write_text(OWN)
    model = opened(base, folder)
    assert model.describe()["tokenizer"] == "the model's, with the adapter's chat template"
    text = model.tokenizer.decode(model.chat.span(ASKED, "Hi", end=True).context)
    assert text == "<|im_start|>Hello<|im_end|><|im_start|>"
