"""What ends a turn: which tokens a policy may stop at, which one is scored, and text that stands before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import GenerationConfig, PreTrainedTokenizerFast

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.api.types import Conversation, Message
from gdr_plugin.models.local import open_local
from gdr_plugin.models.text.chat import Chat
from gdr_plugin.models.text.opening import generation_stops
from gdr_plugin.models.text.rendered_prompt import RenderedPromptReader
from gdr_plugin.models.text.template import ChatTemplate

Family = Callable[[str], PreTrainedTokenizerFast]
ASKED: Conversation = (Message("user", "What is 5 + 3?"),)

GLM = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK_CODER = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n' }}"
    "{% elif m.role == 'assistant' %}{{ '### Response:\n' + m.content + '\n<|EOT|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)


def with_tokens(family: Family, template: str, *added: str, **named: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with these control tokens under this template."""
    tokenizer = family("base-bytes")
    tokenizer.add_special_tokens({"additional_special_tokens": list(added), **named})
    tokenizer.chat_template = template
    return tokenizer


def glm(family: Family) -> PreTrainedTokenizerFast:
    roles = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
    return with_tokens(family, GLM, "[gMASK]", "<sop>", *roles, pad_token="<|endoftext|>")


def ids_of(tokenizer: PreTrainedTokenizerFast, *spellings: str) -> set[int]:
    return {int(tokenizer.convert_tokens_to_ids(spelling)) for spelling in spellings}


def rendered(tokenizer: PreTrainedTokenizerFast, turns: Conversation, *, ask: bool = True) -> str:
    return ChatTemplate(tokenizer, None).render(turns, ask=ask)


@pytest.mark.parametrize("stops", [False, True])
def test_glm_ends_with_the_next_turns_token(fresh_family: Family, stops: bool) -> None:
    tokenizer = glm(fresh_family)
    listed = ids_of(tokenizer, "<|endoftext|>", "<|user|>", "<|observation|>") if stops else set()
    chat = Chat(tokenizer, stops=listed, max_length=512)
    assert set(chat.end_of_turn) == ids_of(tokenizer, "<|user|>")
    assert chat.stop_ids == listed | ids_of(tokenizer, "<|endoftext|>", "<|user|>")
    assert chat.describe()["end of turn"] == "'<|user|>' (the template writes it before the next turn)"


@pytest.mark.parametrize("end", ["<|user|>", "<|observation|>", "<|endoftext|>"])
@pytest.mark.parametrize("padding", [0, 2])
def test_a_glm_query_ends_at_each_of_its_stop_tokens(fresh_family: Family, end: str, padding: int) -> None:
    tokenizer = glm(fresh_family)
    reader = RenderedPromptReader(tokenizer, stops=ids_of(tokenizer, "<|endoftext|>", "<|user|>", "<|observation|>"))
    prompt = rendered(tokenizer, ASKED)
    assert reader.response(f"{prompt}Eight.{end}" + "<|endoftext|>" * padding, prompt) == ("Eight.", True)
    assert reader.response(f"{prompt}Eight.", prompt) == ("Eight.", False)
    ids = tokenizer(text=prompt)["input_ids"]
    answer = tokenizer(text=f"Eight.{end}" + "<|endoftext|>" * padding)["input_ids"]
    assert reader.response_of_ids(ids, answer) == ("Eight.", True)
    assert reader.response_of_ids(ids, tokenizer(text="Eight.")["input_ids"]) == ("Eight.", False)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("end", ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"])
@pytest.mark.parametrize("padding", [0, 2])
def test_llama_3_ends_with_any_of_three_tokens(fresh_family: Family, known: bool, end: str, padding: int) -> None:
    """A released Llama 3: EOS is `<|eot_id|>`, the generation config lists three. Without it, the last token counts."""
    tokenizer = fresh_family("llama3")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eom_id|>"], "pad_token": "<|pad|>"})
    tokenizer.eos_token = "<|eot_id|>"
    listed = ids_of(tokenizer, "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")
    reader = RenderedPromptReader(tokenizer, stops=listed if known else ())
    prompt = rendered(tokenizer, ASKED)
    tail = end + "<|pad|>" * padding
    assert reader.response(f"{prompt}Eight.{tail}", prompt) == ("Eight.", True)
    ids = tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(text=f"Eight.{tail}", add_special_tokens=False)["input_ids"]
    assert reader.response_of_ids(ids, answer) == ("Eight.", True)
    assert Chat(tokenizer, stops=listed, max_length=512).stop_ids == listed
    if known:  # the end comes first, whatever a policy that ran on wrote behind it
        assert reader.response(f"{prompt}Eight.{end}user\n\nAnd?{end}", prompt) == ("Eight.", True)


@pytest.mark.parametrize("end", ["<eos>", "<end_of_turn>"])
def test_gemma_ends_with_eos_or_the_templates_end(family: Family, end: str) -> None:
    tokenizer = family("gemma")
    reader, prompt = RenderedPromptReader(tokenizer), rendered(tokenizer, ASKED)
    assert reader.response(f"{prompt}Eight.{end}", prompt) == ("Eight.", True)
    assert Chat(tokenizer, max_length=512).stop_ids == ids_of(tokenizer, "<eos>", "<end_of_turn>")


def test_a_control_token_inside_a_finished_answer_stays(fresh_family: Family) -> None:
    tokenizer = with_tokens(fresh_family, GLM, "<|user|>", "<|assistant|>", "<|call_end|>", pad_token="<|pad|>")
    reader, prompt = RenderedPromptReader(tokenizer), rendered(tokenizer, ASKED)
    assert reader.response(f"{prompt}f()<|call_end|><|user|><|pad|>", prompt) == ("f()<|call_end|>", True)


def _llama2(family: Family) -> PreTrainedTokenizerFast:
    tokenizer = family("base-spaces")
    tokenizer.chat_template = LLAMA2
    return tokenizer


def _coder(family: Family) -> PreTrainedTokenizerFast:
    return with_tokens(family, DEEPSEEK_CODER, "<|EOT|>", bos_token="<|begin|>", eos_token="<|EOT|>")


@pytest.mark.parametrize("make", [_llama2, _coder])
@pytest.mark.parametrize("answer", ["It is 8.", "Eight", "8.\n\nOr so:\n- 8"])
def test_text_before_the_end_token_counts_once(
    fresh_family: Family, make: Callable[[Family], PreTrainedTokenizerFast], answer: str
) -> None:
    """A finished query is read back and scored: the ids are those of the whole rendered conversation."""
    tokenizer = make(fresh_family)
    reader, chat = RenderedPromptReader(tokenizer), Chat(tokenizer, max_length=512)
    prompt = rendered(tokenizer, ASKED)
    whole = rendered(tokenizer, (*ASKED, Message("assistant", answer)), ask=False).removesuffix("\n")
    assert whole.startswith(prompt)
    expected = tokenizer(text=whole, add_special_tokens=False)["input_ids"]
    query = tokenizer.decode(expected, skip_special_tokens=False)
    response, finished = reader.response(query, prompt)
    assert (response, finished) == (answer, True)
    context = tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
    assert reader.response_of_ids(context, expected[len(context) :]) == (answer, True)
    span = chat.span(ASKED, response, end=finished)
    assert tokenizer.decode([*span.context, *span.response]) == query
    assert len(span.context) + len(span.response) - len(expected) in (0, 1)  # "." and "\n" may be one token


def test_a_generation_config_of_one_many_or_none(tmp_path: Path) -> None:
    assert generation_stops(str(tmp_path)) == frozenset()
    assert generation_stops(str(tmp_path / "nothing")) == frozenset()
    GenerationConfig(eos_token_id=[1, 7]).save_pretrained(tmp_path)
    assert generation_stops(str(tmp_path)) == {1, 7}
    GenerationConfig(eos_token_id=7).save_pretrained(tmp_path)
    assert generation_stops(str(tmp_path)) == {7}
    GenerationConfig().save_pretrained(tmp_path)
    assert generation_stops(str(tmp_path)) == frozenset()


def test_gdr_yaml_names_the_end(tiny_model: Callable[..., Path]) -> None:
    model = str(tiny_model())
    own, named = (
        open_local(ModelSpec(model=model)),
        open_local(ModelSpec(model=model, end_of_turn_token="<|endoftext|>")),
    )
    assert own.describe()["end of turn"] == "'<|im_end|>' (the template writes it behind an answer)"
    assert named.describe()["end of turn"] == "'<|endoftext|>' (end_of_turn_token in gdr.yaml)"
    assert named.chat.span(ASKED, "8.", end=True).response[-1] == 0
    assert named.chat.stop_ids == {0, 2}
    assert named.identity != own.identity
    with pytest.raises(ChatError, match=r"^end_of_turn_token '<\|im_edn\|>' is not a token of this model: name one of"):
        open_local(ModelSpec(model=model, end_of_turn_token="<|im_edn|>"))


def test_gdr_yaml_sets_the_templates_variables(tiny_model: Callable[..., Path]) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{% endif %}"
    )
    model = str(tiny_model(chat_template=template))
    plain, off = (
        open_local(ModelSpec(model=model, chat_template_kwargs=variables))
        for variables in ({}, {"enable_thinking": False})
    )
    shown = {
        chat: chat.span(ASKED, "8.", end=False).context[len(plain.chat.span(ASKED, "8.", end=False).context) :]
        for chat in (plain.chat, off.chat)
    }
    assert shown[plain.chat] == ()
    assert off.tokenizer.decode(shown[off.chat]) == "<think>\n\n</think>\n\n"
    assert off.describe()["template variables"] == "enable_thinking=False"
    assert "template variables" not in plain.describe()
    assert off.identity != plain.identity
    on = open_local(ModelSpec(model=model, chat_template_kwargs={"enable_thinking": True}))
    assert len({plain.identity, off.identity, on.identity}) == 3
