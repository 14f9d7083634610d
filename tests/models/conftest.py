"""Small tokenizers of real kinds, trained here, under chat templates of real families, written here.

The byte-level ones split as GPT-2, SmolLM or Llama 3 do; the SentencePiece-like ones have Metaspace or its legacy form,
byte fallback, and newlines without a token of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Hello world, how are you today? The weather in the north was cold, and the rain did not stop for 12 days.",
    "You are a careful assistant. The system tells the user what a good answer is: short, true and polite.",
    "Explain why the sum of 17 and 25 is 42, then write a function that returns the larger of two numbers.",
    "Grüße aus München! Ça va très bien, merci. El niño comió una manzana en el jardín de la casa.",
    "def larger(a, b):\n    return a if a > b else b\n\nprint(larger(3, 4))\n",
    "User: what is this?\n\nAssistant: it is a test.\n1. one\n2. two\n\n- three",
] * 4

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful test model<|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must take turns: user, assistant, user, ...') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant turns') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('No system turns, please') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must take turns') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim "
    "+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN3 = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set text = m.content %}{% set thought = '' %}"
    "{% if m.role == 'assistant' and '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' + text.lstrip('\n') }}{% else %}{{ text }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def byte_level(splitter: Any, *special: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitter is None)
    tokenizer.pre_tokenizer = byte if splitter is None else pre_tokenizers.Sequence([splitter, byte])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=256 + 160 + len(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=list(special),
            show_progress=False,
        ),
    )
    return tokenizer


def sentencepiece_like(style: str, *special: str) -> Tokenizer:
    """BPE over pieces that start with a space sign, with byte fallback; `style`: first, always, legacy or gemma."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        [line.replace("\n", " ") for line in CORPUS], trainers.BpeTrainer(vocab_size=260, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", *special, *(f"<0x{i:02X}>" for i in range(256)), *model["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[tuple(pair) for pair in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    strip = [decoders.Strip(content=" ", left=1, right=0)] if style != "gemma" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    if style in ("first", "always"):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=style, split=False)
    elif style == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.add_special_tokens(["<unk>", *special])
    return tokenizer


def add_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def wrap(tokenizer: Tokenizer, template: str | None, **special: str) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = template
    return fast


def chatml() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(pre_tokenizers.Digits(individual_digits=True), "<|im_start|>", "<|im_end|>")
    return wrap(tokenizer, CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")


def llama3() -> PreTrainedTokenizerFast:
    splitter = pre_tokenizers.Split(
        Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"
    )
    names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id")
    tokenizer = add_bos(byte_level(splitter, *(f"<|{name}|>" for name in names)), "<|begin_of_text|>")
    return wrap(tokenizer, LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


def mistral(style: str, *control: str) -> PreTrainedTokenizerFast:
    tokenizer = add_bos(sentencepiece_like(style, "<s>", "</s>", *control), "<s>")
    return wrap(tokenizer, MISTRAL, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gemma() -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece_like("gemma", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    tokenizer.add_tokens([AddedToken("\n" * i, normalized=False) for i in range(1, 5)])
    return wrap(add_bos(tokenizer, "<bos>"), GEMMA, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


def qwen3() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(None, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>")])
    return wrap(tokenizer, QWEN3, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def zephyr() -> PreTrainedTokenizerFast:
    tokenizer = add_bos(sentencepiece_like("always", "<s>", "</s>"), "<s>")
    tokenizer.add_tokens([AddedToken(f"<|{role}|>", normalized=False) for role in ("system", "user", "assistant")])
    return wrap(tokenizer, ZEPHYR, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def base_bytes() -> PreTrainedTokenizerFast:
    return wrap(byte_level(None, "<|endoftext|>"), None, eos_token="<|endoftext|>")


def base_spaces() -> PreTrainedTokenizerFast:
    tokenizer = add_bos(sentencepiece_like("legacy", "<s>", "</s>"), "<s>")
    return wrap(tokenizer, None, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


BUILDERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "chatml": chatml,
    "llama3": llama3,
    "mistral": lambda: mistral("first"),
    "mistral-legacy": lambda: mistral("legacy"),
    "mistral-control": lambda: mistral("first", "[INST]", "[/INST]"),
    "gemma": gemma,
    "qwen3": qwen3,
    "zephyr": zephyr,
    "base-bytes": base_bytes,
    "base-spaces": base_spaces,
}


@pytest.fixture(scope="session")
def family() -> Callable[[str], PreTrainedTokenizerFast]:
    """The tokenizer of a family by name, the same object every time; tests do not change it."""
    return cache(lambda name: BUILDERS[name]())


@pytest.fixture
def fresh_family() -> Callable[[str], PreTrainedTokenizerFast]:
    """A family's tokenizer that the test may change."""
    return lambda name: BUILDERS[name]()
