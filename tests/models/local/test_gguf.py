"""GGUF files: converted once, equal to the model they hold, with the tokenizer that the file means."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from gdr_plugin.api.errors import EngineWarning
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.models.local import gguf as conversion
from gdr_plugin.models.local import identity, open_local
from gdr_plugin.models.local.gguf import converted, read_gguf

gguf = pytest.importorskip("gguf")
TinyModel = Callable[..., Path]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Llama's query and key rows in the order in which GGUF files keep them."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(folder: Path, path: Path, pre: str) -> None:
    """A tiny llama folder as a GGUF file in float32, with its byte-level tokenizer and chat template."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    special = set(tokenizer.all_special_ids) | {1}
    writer.add_token_types([3 if place in special else 1 for place in range(len(words))])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        data = tensor.float().numpy()
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            part = rest.removesuffix(".weight")
            data = interleaved(data, heads[part]) if part in heads else data
            writer.add_tensor(f"blk.{layer}.{NAMES[part]}.weight", np.ascontiguousarray(data))
        else:
            top = {
                "model.embed_tokens.weight": "token_embd",
                "model.norm.weight": "output_norm",
                "lm_head.weight": "output",
            }
            writer.add_tensor(f"{top[name]}.weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GDR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_known", {})
    return tmp_path / "cache"


@pytest.fixture
def tiny_gguf(tmp_path: Path, tiny_model: TinyModel) -> Callable[[str], Path]:
    def make(pre: str = "smollm") -> Path:
        path = tmp_path / f"tiny-{pre}.gguf"
        write_gguf(tiny_model("llama", tie_word_embeddings=False), path, pre)
        return path

    return make


def same_weights(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)


def test_the_converted_model_is_the_model_in_the_file(
    tiny_gguf: Callable[..., Path], tiny_model: TinyModel, cache: Path
) -> None:
    path = tiny_gguf()
    folder = converted(path, "float32")
    assert folder.parent == cache / "gguf"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert same_weights(loaded, read_gguf(path, "float32")[0])
    original = AutoModelForCausalLM.from_pretrained(tiny_model("llama", tie_word_embeddings=False))
    ids = torch.arange(3, 60)[None]
    torch.testing.assert_close(loaded(ids).logits, original(ids).logits, atol=1e-4, rtol=0)
    assert not hasattr(loaded.config, "quantization_config")
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".jinja", ".safetensors"}
    assert not [entry for entry in folder.parent.iterdir() if entry.name.startswith(".making")]


def test_it_is_converted_once_by_content_and_dtype(
    tiny_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_gguf()
    first, half = converted(path, "float32"), converted(path, "bfloat16")
    assert first != half
    assert AutoModelForCausalLM.from_pretrained(half, dtype="auto").dtype is torch.bfloat16
    monkeypatch.setattr(conversion, "_convert", None)  # another conversion would fail
    moved = tmp_path / "elsewhere.gguf"
    shutil.copy(path, moved)
    assert converted(moved, "float32") == first


def test_the_files_own_template_and_tokens_survive(tiny_gguf: Callable[..., Path], tiny_model: TinyModel) -> None:
    spec = ModelSpec(model=str(tiny_gguf()))
    tokenizer = AutoTokenizer.from_pretrained(converted(Path(spec.model), "float32"))
    original = AutoTokenizer.from_pretrained(tiny_model("llama", tie_word_embeddings=False))
    assert tokenizer.chat_template == original.chat_template
    assert tokenizer.eos_token == "<|im_end|>"
    text = "The reward of a response\n\nHow can I"
    assert tokenizer.encode(text) == original.encode(text)
    assert tokenizer.encode("<|im_start|>user") == original.encode("<|im_start|>user")
    assert open_local(spec).chat.has_template


def test_an_adapter_beside_the_file_is_not_followed(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    beside = tmp_path / "pair" / "base.gguf"
    beside.parent.mkdir()
    shutil.copy(tiny_gguf(), beside)
    (beside.parent / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "nobody/none"}'
    )

    model, tokenizer = read_gguf(beside, "float32")

    assert model.config.model_type == "llama"
    assert tokenizer.chat_template


def test_digits_are_split_where_the_file_says_so(tiny_gguf: Callable[..., Path]) -> None:
    def pieces(pre: str) -> list[str]:
        backend = AutoTokenizer.from_pretrained(converted(tiny_gguf(pre), "float32")).backend_tokenizer
        return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("\n\n1. 2024")]

    assert pieces("gpt-2")[-1] == "Ġ2024"
    assert pieces("smollm")[-4:] == ["2", "0", "2", "4"]


def test_an_unknown_splitting_rule_is_named(tiny_gguf: Callable[..., Path]) -> None:
    with pytest.warns(EngineWarning, match=r"rule 'no-such-rule' \(tokenizer.ggml.pre\).*set `tokenizer:`"):
        converted(tiny_gguf("no-such-rule"), "float32")


def convert_too(path: Path, results: multiprocessing.Queue[str]) -> None:
    results.put(str(converted(path, "float32")))


@pytest.mark.slow
def test_several_processes_may_ask_at_once(tiny_gguf: Callable[..., Path], cache: Path) -> None:
    path = tiny_gguf()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=convert_too, args=(path, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    folders = {results.get(timeout=200) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(folders) == 1
    AutoModelForCausalLM.from_pretrained(folders.pop())
    assert len([entry for entry in (cache / "gguf").iterdir() if entry.is_dir()]) == 1


def test_a_changed_file_has_another_digest_and_an_unchanged_one_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"a" * (5 << 20))
    first = identity.file_digest(file)
    monkeypatch.setattr(identity, "_known", {})  # as in a new process
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_hash", None)
        assert identity.file_digest(file) == first
    file.write_bytes(b"b" * (5 << 20))
    assert identity.file_digest(file) != first


@pytest.mark.slow
def test_the_real_file(smol_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GDR_CACHE")  # the shared cache: converting takes twenty seconds
    folder = converted(smol_gguf, "float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("\n\n1. 2024") == [1116, 33, 30, 216, 34, 32, 34, 36]
    assert "helpful AI assistant named SmolLM" in tokenizer.chat_template
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert same_weights(model, read_gguf(smol_gguf, "float32")[0])
    paris = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_dict=False
    )
    answer = model.generate(torch.tensor([paris]), max_new_tokens=8, do_sample=False)[0, len(paris) :]
    assert "Paris" in tokenizer.decode(answer)
