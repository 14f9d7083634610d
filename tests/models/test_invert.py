"""Rendered prompts back to messages, and decoded queries back to responses: by template family, and for any content."""

from __future__ import annotations

import datetime
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from gdr_plugin.api.errors import ChatError, DataError, ModelError
from gdr_plugin.api.types import Conversation, Message
from gdr_plugin.models.local.source import open_tokenizer
from gdr_plugin.models.text.chat import Chat
from gdr_plugin.models.text.layout import TurnLayout
from gdr_plugin.models.text.rendered_prompt import RenderedPromptReader, _aligned
from gdr_plugin.models.text.template import ChatTemplate

Family: TypeAlias = Callable[[str], PreTrainedTokenizerFast]

FAMILIES = ["chatml", "llama3", "mistral", "mistral-legacy", "mistral-control", "gemma", "qwen3", "zephyr"]
TRIMMING = {"llama3", "gemma"}
SYSTEM = {"chatml", "llama3", "qwen3", "zephyr"}
# What the families' templates write around turns: a content that holds it is another text to anybody who reads it.
MARKS = re.compile(
    r"\[/?INST\]|</?s>|<\|\w*\|>|<\w+>|</?think>|<unk>|<(?:start|end)_of_turn>|<(?:bos|eos)>|<0x..>|User:|Assistant:|Tool:"
)
DEEPSEEK = (
    "{{ bos_token }}{% set ns = namespace(system='') %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}"
    "{{ ns.system }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'system' %}{% else %}"
    "{% if m.role == 'user' %}{% set sys = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' "
    "if loop.index0 == 1 and messages[0].role == 'system' else '' %}"
    "{{ bos_token + '[INST] ' + sys + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endif %}{% endfor %}"
)
DATED = (
    "{{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\n\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ '<|eot_id|>' }}"
    "{% for m in messages %}{% if m.role != 'system' %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def turns(*contents: str, system: str | None = None) -> Conversation:
    """User and assistant in turn, after a system turn where one is given."""
    own = [] if system is None else [Message("system", system)]
    roles = ("user", "assistant")
    return (*own, *(Message(roles[i % 2], content) for i, content in enumerate(contents)))


def rendered(tokenizer: PreTrainedTokenizerFast, conversation: Conversation, template: str | None = None) -> str:
    return ChatTemplate(tokenizer, template).render(conversation)


def query(
    tokenizer: PreTrainedTokenizerFast, prompt: str, response: str, *, keep: int | None = None, pad: int = 0
) -> str:
    """What OpenRLHF sends: the decoded ids of prompt (its last `keep`) and response, with padding on both sides."""
    ids = tokenizer(text=prompt, add_special_tokens=False)["input_ids"][-keep if keep else 0 :]
    answer = tokenizer(text=response, add_special_tokens=False)["input_ids"]
    padding = [tokenizer.convert_tokens_to_ids(tokenizer.pad_token)] * pad if pad else []
    return str(tokenizer.decode([*padding, *ids, *answer, *padding], skip_special_tokens=False))


contents = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            ["\n", "\n\n", " ", "<", "|", "[", "</", "<|im", "]", "\t", "ü", "e\u0301", "🙂", "##", "system\n"]
        ),
    ),
    max_size=5,
).map("".join)


@pytest.mark.parametrize("name", FAMILIES)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(data=st.data())
def test_render_then_invert_gives_the_messages_back(family: Family, name: str, data: st.DataObject) -> None:
    said = data.draw(st.lists(contents, min_size=1, max_size=5).filter(lambda drawn: len(drawn) % 2 == 1))
    system = data.draw(st.none() | contents) if name in SYSTEM else None
    conversation = turns(*said, system=system)
    assume(not any(MARKS.search(turn.content) for turn in conversation))
    inverter = _inverter(family, name)
    text = rendered(family(name), conversation)
    expected = conversation
    if name in TRIMMING:
        expected = tuple(Message(turn.role, turn.content.strip()) for turn in conversation)
    assert inverter.messages(text) == expected


_made: dict[str, RenderedPromptReader] = {}


def _inverter(family: Family, name: str) -> RenderedPromptReader:
    return _made.setdefault(name, RenderedPromptReader(family(name)))


@pytest.mark.parametrize("name", FAMILIES)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(said=contents, response=contents, finished=st.booleans())
def test_the_response_comes_back_from_the_query(
    family: Family, name: str, said: str, response: str, finished: bool
) -> None:
    assume(not MARKS.search(said) and not MARKS.search(response))
    tokenizer, inverter = family(name), _inverter(family, name)
    prompt = rendered(tokenizer, turns(said))
    ids = tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
    # The ids that a model would generate: those of the text as it continues the prompt.
    chat = Chat(tokenizer, max_length=4096)
    span = chat.span(turns(said), response, end=finished)
    text = tokenizer.decode([*ids, *span.response], skip_special_tokens=False)
    plain = tokenizer.decode([*ids], skip_special_tokens=False)
    assume(text.startswith(plain))
    got, ended = inverter.response(text, prompt)
    expected = tokenizer.decode([*ids, *(id for id in span.response if id not in chat.end_of_turn)])[len(plain) :]
    assert ended is finished
    assert (
        got == expected.removeprefix(chat.lead)
        if finished
        else got == expected.removeprefix(chat.lead).rstrip("\ufffd")
    )
    assert inverter.response_of_ids(ids, span.response) == (got, ended)


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "gemma", "qwen3"])
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(said=st.lists(contents, min_size=1, max_size=3), response=contents, finished=st.booleans())
def test_a_text_of_both_is_split_as_if_the_prompt_were_known(
    family: Family, name: str, said: list[str], response: str, finished: bool
) -> None:
    """What LLaMA-Factory sends: nothing but the decoded ids of prompt and response together."""
    said = said if len(said) % 2 else said[:1]
    assume(not any(MARKS.search(text) for text in (*said, response)))
    tokenizer, reader = family(name), _inverter(family, name)
    prompt = rendered(tokenizer, turns(*said))
    ids = tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
    assume(tokenizer.decode(ids, skip_special_tokens=False) == prompt)
    span = Chat(tokenizer, max_length=4096).span(turns(*said), response, end=finished)
    text = str(tokenizer.decode([*ids, *span.response], skip_special_tokens=False))
    assert reader.split(text) == (prompt, *reader.response(text, prompt))


def test_a_text_of_both_with_padding_or_without_a_prompt(family: Family) -> None:
    tokenizer, reader = family("chatml"), _inverter(family, "chatml")
    prompt = rendered(tokenizer, turns("2 + 2?", "4", "3 + 3?", system="Be brief."))
    pad = str(tokenizer.pad_token)
    assert reader.split(f"{pad}{pad}{prompt}6{tokenizer.eos_token}") == (prompt, "6", True)
    assert reader.split(f"{prompt}6, for") == (prompt, "6, for", False)
    for text in ("", "6", "User: 3 + 3?\nAssistant: 6", rendered(tokenizer, turns("Hi"))[:-12]):
        with pytest.raises(DataError, match="no prompt that the template"):
            reader.split(text)


def test_a_default_system_turn_is_the_templates_own(family: Family) -> None:
    inverter = RenderedPromptReader(family("chatml"))
    text = rendered(family("chatml"), turns("Hello"))
    assert "You are a helpful test model" in text
    assert inverter.messages(text) == turns("Hello")
    own = rendered(family("chatml"), turns("Hello", system="You are a helpful test model"))
    assert own == text  # nobody can tell these apart
    assert inverter.messages(rendered(family("chatml"), turns("Hello", system="You are a poet"))) == turns(
        "Hello", system="You are a poet"
    )
    assert inverter.messages(rendered(family("chatml"), turns("Hello", system=""))) == turns("Hello", system="")


def test_tool_turns_come_back(family: Family) -> None:
    conversation = (*turns("Weather?", "call()"), Message("tool", "12 degrees"), *turns("cold", "and now?")[:0])
    assert RenderedPromptReader(family("qwen3")).messages(rendered(family("qwen3"), conversation)) == conversation


def test_deepseek_opens_the_reasoning_and_has_no_mark_for_the_system_turn(fresh_family: Family) -> None:
    tokenizer = fresh_family("base-bytes")
    tokenizer.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": ["<|User|>", "<|Assistant|>"]})
    inverter = RenderedPromptReader(tokenizer, DEEPSEEK)
    for conversation in (turns("2+2?"), turns("2+2?", "4", "and 3?"), turns("2+2?", system="Be short")):
        assert inverter.messages(rendered(tokenizer, conversation, DEEPSEEK)) == conversation
    reasoned = turns("2+2?", "<think>two and two</think>4", "and 3?")
    assert inverter.messages(rendered(tokenizer, reasoned, DEEPSEEK)) == turns("2+2?", "4", "and 3?")
    prompt = rendered(tokenizer, turns("2+2?"), DEEPSEEK)
    assert inverter.response(prompt + "easy\n</think>4<|endoftext|>", prompt) == ("easy\n</think>4", True)


def test_llama_2_folds_the_system_turn_with_marks(family: Family) -> None:
    tokenizer = family("base-spaces")
    inverter = RenderedPromptReader(tokenizer, LLAMA2)
    for conversation in (turns("Hi", system="Be short"), turns("Hi", "Yes?", "Bye", system="Be short"), turns("Hi")):
        assert inverter.messages(rendered(tokenizer, conversation, LLAMA2)) == conversation


def test_the_date_of_another_day_fits(family: Family) -> None:
    tokenizer = family("llama3")
    inverter = RenderedPromptReader(tokenizer, DATED)
    today = datetime.datetime.now().strftime("%d %b %Y")
    for conversation in (turns("Hi"), turns("Hi", "Yes?", "Bye"), turns("Hi", system="Be short")):
        text = rendered(tokenizer, conversation, DATED)
        assert inverter.messages(text) == conversation
        assert inverter.messages(text.replace(today, "01 Feb 2024")) == conversation


def _installed_templates() -> list[Path]:
    spec = importlib.util.find_spec("trl")
    folders = (spec.submodule_search_locations or []) if spec else []
    return [
        file
        for folder in folders
        for file in sorted(Path(folder, "chat_templates").glob("*.jinja"))
        if "training" not in file.stem
    ]


@pytest.mark.parametrize("file", _installed_templates(), ids=lambda file: file.stem)
def test_real_templates(fresh_family: Family, file: Path) -> None:
    """Released models' templates, as TRL ships them: what is read renders as the same text again."""
    jinja = file.read_text(encoding="utf-8")
    tokenizer = fresh_family("base-bytes")
    marks = set(re.findall(r"<[|\uff5c][^<>'\"]{1,40}[|\uff5c]>|<(?:start|end)_of_\w+>|<turn\|>|<\|turn>", jinja))
    tokenizer.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": sorted(marks)})
    inverter, template = RenderedPromptReader(tokenizer, jinja), ChatTemplate(tokenizer, jinja)
    asked, answered = turns("What is 17 + 25?"), turns("What is 17 + 25?", "It is 42.", "And half of it?\n\nSay.")
    for conversation in (asked, answered):
        text = template.render(conversation)
        assert inverter.messages(text) == conversation
        assert inverter.response(text + "Twenty-one." + inverter.ends[0], text) == ("Twenty-one.", True)
    if TurnLayout(template).takes_system:
        text = template.render((Message("system", "Be short."), *asked))
        read = inverter.messages(text)
        assert template.render(read) == text
        assert "Be short." in read[0].content
        assert read[-1].content.endswith("What is 17 + 25?")


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "mistral-legacy", "gemma", "qwen3", "zephyr"])
def test_a_prompt_that_was_cut_on_the_left(family: Family, name: str) -> None:
    """Over-long prompts lose their first tokens: the response is still found, whatever the number left."""
    tokenizer, inverter = family(name), _inverter(family, name)
    prompt = rendered(tokenizer, turns("Grüße aus München! " * 4, "Ja?", "Grüße aus München! " * 3 + "And now?"))
    count = len(tokenizer(text=prompt, add_special_tokens=False)["input_ids"])
    whole = inverter.response(query(tokenizer, prompt, "Hello world"), prompt)
    assert whole[0].strip() == "Hello world"
    kept = range(16, count, 7)
    assert {inverter.response(query(tokenizer, prompt, "Hello world", keep=keep), prompt) for keep in kept} == {whole}


@pytest.mark.parametrize("name", FAMILIES)
def test_messages_of_a_cut_prompt(family: Family, name: str) -> None:
    inverter = _inverter(family, name)
    text = rendered(family(name), turns("The first question", "An answer", "The last question"))
    begin = text.index("question")
    assert inverter.messages(text[begin:], cut=True) == turns("question", "An answer", "The last question")
    assert inverter.messages(text[text.index("answer") :], cut=True) == turns("The last question")
    assert inverter.messages(text, cut=True) == turns("The first question", "An answer", "The last question")
    with pytest.raises(DataError, match="cannot have written"):
        inverter.messages(text[begin:])


@pytest.mark.parametrize("name", ["chatml", "qwen3"])
def test_padding_of_old_clients(family: Family, name: str) -> None:
    tokenizer, inverter = family(name), _inverter(family, name)
    prompt = rendered(tokenizer, turns("Hello"))
    for pad in (1, 3, 200):
        assert inverter.response(query(tokenizer, prompt, "World<|im_end|>", pad=pad), prompt) == ("World", True)
    assert inverter.response(query(tokenizer, prompt, ""), prompt) == ("", False)
    assert inverter.response(query(tokenizer, prompt, "<|im_end|>"), prompt) == ("", True)


def test_padding_before_inserted_spaces(fresh_family: Family) -> None:
    tokenizer = fresh_family("mistral-legacy")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    inverter = RenderedPromptReader(tokenizer)
    prompt = rendered(tokenizer, turns("Hello world"))
    # Some decoders put a space behind every special token, as the text of released tokenizers shows.
    spaced = "<pad> <pad> <s> [INST] Hello world [/INST] It is.</s> <pad>"
    assert inverter.response(spaced, prompt) == ("It is.", True)
    assert inverter.response(query(tokenizer, prompt, "It is.</s>", pad=2), prompt) == ("It is.", True)


def test_the_space_that_decoding_puts_behind_a_control_token_is_not_the_responses(fresh_family: Family) -> None:
    tokenizer = fresh_family("mistral-legacy")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '[INST]' if m.role == 'user' else '' }}{{ m.content }}"
        "{{ '[/INST]' if m.role == 'user' else eos_token }}{% endfor %}"
    )
    reader, prompt = RenderedPromptReader(tokenizer), rendered(tokenizer, turns("Greet"))
    ids = tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
    for response in ("Hello", "a", "Hello world"):
        span = Chat(tokenizer, max_length=64).span(turns("Greet"), response, end=True)
        sent = tokenizer.decode([*ids, *span.response])
        assert sent.endswith(f"[/INST] {response}</s>")
        assert reader.response(sent, prompt) == (response, True)
    plain = rendered(fresh_family("chatml"), turns("Greet"))
    for response in (" Hello", "  Hello"):  # such a tokenizer puts none there: it was generated
        assert RenderedPromptReader(fresh_family("chatml")).response(plain + response, plain) == (response, False)


@pytest.mark.parametrize(
    ("sent", "at", "prompt", "end"),
    [
        ("<s> [INST]  a b", 0, "<s>[INST] a", 13),
        ("<s>[INST] a b", 0, "<s>  [INST] a", 11),
        ("..<s> a\nb", 2, "<s>a\n", 8),  # the prompt's own line break is not the response's
        ("..<s> a b", 2, "<s>a\n", 7),
        ("<s> a", 0, "<s>b", None),
        ("<s>  ", 0, "<s>b", None),
    ],
)
def test_prompts_are_found_but_for_white_space(sent: str, at: int, prompt: str, end: int | None) -> None:
    assert _aligned(sent, at, prompt) == end


@pytest.mark.parametrize("sent", ["", " ", "<|im_end|>", "<|im_end|> \n", "Hello"])
def test_a_query_of_padding_alone_is_refused(family: Family, sent: str) -> None:
    prompt = rendered(family("chatml"), turns("Hello world"))
    with pytest.raises(DataError, match=r"does not begin with its prompt or the end of it: is the policy tokenizer"):
        _inverter(family, "chatml").response(sent, prompt)


def test_half_a_character_at_a_cut_is_dropped(family: Family) -> None:
    tokenizer, inverter = family("chatml"), _inverter(family, "chatml")
    prompt = rendered(tokenizer, turns("Hello"))
    ids = tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(text="Oh 🙂", add_special_tokens=False)["input_ids"][:-1]
    text = tokenizer.decode([*ids, *answer])
    assert text.endswith("\ufffd")
    assert inverter.response(text, prompt) == ("Oh ", False)
    assert inverter.response_of_ids(ids, answer) == ("Oh ", False)


def test_a_tokenizer_that_normalizes_text(fresh_family: Family) -> None:
    """Qwen's composes accents: the query shows other characters than the prompt."""
    from tokenizers import normalizers

    tokenizer = fresh_family("chatml")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    inverter = RenderedPromptReader(tokenizer)
    prompt = rendered(tokenizer, turns("Cafe\u0301 or not?"))
    sent = query(tokenizer, prompt, "Cafe\u0301.<|im_end|>")
    assert "Cafe\u0301" not in sent
    assert inverter.response(sent, prompt) == ("Caf\u00e9.", True)
    assert inverter.messages(prompt) == turns("Cafe\u0301 or not?")


def test_a_real_tokenizer_with_a_default_system_turn(smol_gguf: Path) -> None:
    """SmolLM2: whatever is read renders as the same text again."""
    inverter = RenderedPromptReader(open_tokenizer(str(smol_gguf)))
    template = inverter._template
    text = template.render(turns("Hello"))
    assert "You are a helpful AI assistant named SmolLM" in text
    for conversation in (turns("Hello"), turns("Hi", "Yes?", "Bye"), turns("Hi", system="Be short")):
        text = template.render(conversation)
        assert inverter.messages(text) == conversation
        assert inverter.response(text + "Indeed.<|im_end|>", text) == ("Indeed.", True)


def test_another_policys_text_is_refused(family: Family) -> None:
    inverter = _inverter(family, "llama3")
    text = rendered(family("chatml"), turns("Hello"))
    with pytest.raises(DataError, match="does not end as the template of the policy tokenizer"):
        inverter.messages(text)
    with pytest.raises(DataError, match="cannot have written this prompt"):
        inverter.messages("Hello" + inverter._turns.ends["user"][0])
    with pytest.raises(DataError, match="does not begin with its prompt"):
        inverter.response("Something else entirely", text)
    with pytest.raises(DataError):
        inverter.messages("")


def test_many_turns_and_many_marks_end_in_time(family: Family) -> None:
    """Hundreds of turns are read; a text full of marks that fits nothing is refused, not searched for ever."""
    inverter = _inverter(family, "chatml")
    long = turns(*(f"turn {number}" for number in range(1201)))
    assert inverter.messages(rendered(family("chatml"), long)) == long
    mad = "<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\n" * 400
    with pytest.raises(DataError, match="cannot have written"):
        inverter.messages("<|im_start|>nobody\n" + mad + "<|im_end|>\n<|im_start|>assistant\n")


def test_open_by_name(family: Family, tmp_path: Path) -> None:
    family("chatml").save_pretrained(tmp_path)
    inverter = RenderedPromptReader(open_tokenizer(str(tmp_path)))
    assert inverter.messages(rendered(family("chatml"), turns("Hello"))) == turns("Hello")
    with pytest.raises(ModelError, match=r"the policy tokenizer '.*nothing' cannot be opened"):
        RenderedPromptReader(open_tokenizer(str(tmp_path / "nothing")))
    with pytest.raises(ChatError, match="has no chat template"):
        RenderedPromptReader(family("base-bytes"))
