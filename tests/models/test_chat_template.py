"""Where a chat template comes from, what is learned of it, what a person is told, and what identifies it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import Conversation, Message, ToolCall
from gdr_plugin.models.text.chat import Chat
from gdr_plugin.models.text.template import ChatTemplate

Family = Callable[[str], Any]


def chat_of(tokenizer: Any, template: str | None = None) -> Chat:
    return Chat(tokenizer, template=template, max_length=4096, max_response=100, long_input="error")


def said(*texts: str) -> Conversation:
    return tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))


def text_of(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def test_base_model_needs_a_template(family: Family) -> None:
    with pytest.raises(ChatError, match="has no chat template: set `chat_template: plain`"):
        chat_of(family("base-bytes"))


@pytest.mark.parametrize(("name", "bos"), [("base-bytes", ""), ("base-spaces", "<s>")])
def test_plain_template(family: Family, name: str, bos: str) -> None:
    tokenizer = family(name)
    chat = chat_of(tokenizer, "plain")
    conversation = (Message("system", "Be short."), *said("What is this?", "A test.", "Why?"))
    span = chat.span(conversation, "To be sure.", end=True)
    text = "Be short.\n\nUser: What is this?\n\nAssistant: A test.\n\nUser: Why?\n\nAssistant:"
    assert text_of(tokenizer, span.context).replace("<s> ", "<s>") == bos + text
    assert span.context == tuple(tokenizer(text)["input_ids"]), "BOS where the tokenizer itself puts one"
    assert tokenizer.convert_ids_to_tokens(list(span.response))[-1] == tokenizer.eos_token
    assert text_of(tokenizer, span.context + span.response).endswith("Assistant: To be sure." + tokenizer.eos_token)
    assert not chat.has_template


def test_plain_wins_over_the_tokenizers_own(family: Family) -> None:
    text = text_of(family("chatml"), chat_of(family("chatml"), "plain").span(said("Hi"), "x", end=True).context)
    assert text == "User: Hi\n\nAssistant:"


def test_template_from_a_file_and_as_text(family: Family, tmp_path: Path) -> None:
    jinja = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    file = tmp_path / "chat.jinja"
    file.write_text(jinja, encoding="utf-8")
    for given in (str(file), jinja):
        chat = chat_of(family("base-bytes"), given)
        span = chat.span(said("Hi"), "Hello", end=True)
        assert text_of(family("base-bytes"), span.context) == "[user] Hi\n[assistant]"
        assert text_of(family("base-bytes"), span.response) == " Hello<|endoftext|>"
        assert chat.has_template


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("missing.jinja", r"'missing.jinja' cannot be read \(No such file or directory\)"),
        ("{% for m in messages %}", "the chat template refuses these turns"),
        ("{{ messages[0].text.strip() }}", "the chat template refuses these turns"),
        ("{{ raise_exception('never') }}", r"refuses these turns \(user\): never"),
        ("{{ 'Assistant:' }}", "leaves out the user's text"),
    ],
)
def test_bad_templates_are_named_at_once(family: Family, template: str, message: str) -> None:
    with pytest.raises(ChatError, match=message) as caught:
        chat_of(family("base-bytes"), template)
    assert "\n" not in str(caught.value)


def test_file_that_is_not_text(family: Family, tmp_path: Path) -> None:
    (tmp_path / "x.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ChatError, match="not UTF-8"):
        chat_of(family("base-bytes"), str(tmp_path / "x.jinja"))


def test_several_templates_without_default(fresh_family: Family) -> None:
    tokenizer = fresh_family("chatml")
    own = tokenizer.chat_template
    tokenizer.chat_template = {"tool_use": own, "rag": own}
    with pytest.raises(ChatError, match="several chat templates and no default"):
        chat_of(tokenizer)
    tokenizer.chat_template = {"default": own, "rag": "{{ 'no' }}"}
    assert chat_of(tokenizer).describe()["template"] == "ChatML (the tokenizer)"


def test_no_end_of_turn_anywhere(fresh_family: Family) -> None:
    tokenizer = fresh_family("base-bytes")
    tokenizer.eos_token = None
    chat = chat_of(tokenizer, "plain")
    assert text_of(tokenizer, chat.span(said("Hi"), "Hello", end=False).response) == " Hello"
    with pytest.raises(ChatError, match=r"the tokenizer's eos_token, or `reward\.end_of_turn: never`"):
        chat.span(said("Hi"), "Hello", end=True)
    assert chat.describe()["end of turn"] == ("none: set the tokenizer's eos_token, or `end_of_turn_token` in gdr.yaml")


def test_end_of_turn_is_the_templates_before_the_tokenizers(family: Family) -> None:
    assert family("llama3").eos_token == "<|end_of_text|>"
    assert text_of(family("llama3"), chat_of(family("llama3")).end_of_turn) == "<|eot_id|>"
    # Text before the marker is part of the end; what follows it is not.
    jinja = "{% for m in messages %}{{ m.role }}:{{ m.content }} ;<|eot_id|>\n<|end_of_text|>{% endfor %}"
    assert text_of(family("llama3"), chat_of(family("llama3"), jinja).end_of_turn) == " ;<|eot_id|>"


def test_template_that_loses_the_system_turn_gets_it_folded(family: Family) -> None:
    jinja = "{% for m in messages if m.role != 'system' %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    chat = chat_of(family("base-bytes"), jinja)
    two = (Message("system", "One."), Message("system", "Two."), *said("Hi"))
    assert text_of(family("base-bytes"), chat.span(two, "x", end=True).context).startswith("user:One.\n\nTwo.\n\nHi\n")
    assert chat.describe()["system role"].startswith("no")


def test_template_that_wants_lists_of_parts(family: Family) -> None:
    jinja = (
        "{% for m in messages %}{{ m.role }}:"
        "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
        "{{ '\\n' }}{% endfor %}"
    )
    chat = chat_of(family("base-bytes"), jinja)
    conversation = (Message("system", "Be short."), *said("Hi"))
    text = text_of(family("base-bytes"), chat.span(conversation, "x", end=True).context)
    assert text == "system:Be short.\nuser:Hi\nassistant:"


def _installed_templates() -> list[Path]:
    spec = importlib.util.find_spec("trl")
    folders = (spec.submodule_search_locations or []) if spec else []
    return [file for folder in folders for file in sorted(Path(folder, "chat_templates").glob("*.jinja"))]


@pytest.mark.parametrize("file", _installed_templates(), ids=lambda file: file.stem)
def test_real_templates(fresh_family: Family, file: Path) -> None:
    """Templates of some thirty released models, as TRL ships them: what is learned of each fits its own rendering."""
    jinja = file.read_text(encoding="utf-8")
    tokenizer = fresh_family("base-bytes")
    marks = set(
        re.findall(r"<[|\uff5c][^<>'\"]{1,40}[|\uff5c]>|<(?:start|end)_of_\w+>|<turn\|>|<\|turn>|</?think>", jinja)
    )
    tokenizer.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": sorted(marks)})
    chat = chat_of(tokenizer, jinja)
    assert chat.end_of_turn
    prompt = said("What is 17 + 25?")
    span = chat.span(prompt, "It is 42.", end=True)
    context = text_of(tokenizer, span.context)
    assert context.count("What is 17 + 25?") == 1
    assert context.count("<bos>") == int("bos_token" in jinja)
    answer = chat.lead + "It is 42."
    assert text_of(tokenizer, span.response) == answer + text_of(tokenizer, chat.end_of_turn)
    if chat._layout.inside:
        assert "It is 42." in chat._template.render((*prompt, Message("assistant", "It is 42.")), ask=False)
    else:
        full = chat._template.render((*prompt, Message("assistant", "It is 42.")), ask=False)
        assert full.startswith(context + answer)
        more = chat._template.render((*prompt, Message("assistant", "It is 42."), *said("And?")))
        asked = text_of(tokenizer, span.context + span.response)
        assert chat.end_of_turn == (tokenizer.eos_token_id,) or full.startswith(asked) or more.startswith(asked)


def test_describe(family: Family) -> None:
    assert chat_of(family("gemma")).describe() == {
        "template": "Gemma (the tokenizer)",
        "bos": "<bos>",
        "end of turn": "'<end_of_turn>' (the template writes it behind an answer)",
        "system role": "no: folded into the first user turn",
    }
    assert chat_of(family("qwen3")).describe()["before an answer"] == r"'<think>\n\n</think>\n\n'"
    dated = "{{ strftime_now('%Y') }}" + family("chatml").chat_template
    assert "another day" in chat_of(family("chatml"), dated).describe()["date"]


def test_fingerprint_follows_tokenizer_and_template(family: Family, fresh_family: Family) -> None:
    prints = {name: chat_of(family(name)).fingerprint for name in ("chatml", "llama3", "mistral", "mistral-legacy")}
    assert len(set(prints.values())) == 4
    assert all(len(text) == 32 and int(text, 16) for text in prints.values())
    other = fresh_family("chatml")
    assert chat_of(other).fingerprint == prints["chatml"]
    # Settings that calls leave behind in a tokenizer are not part of it.
    other("a long text", truncation=True, max_length=2, padding="max_length")
    assert chat_of(other).fingerprint == prints["chatml"]
    assert len(chat_of(other).span(said("a long text"), "x", end=True).context) > 10
    assert chat_of(other, other.chat_template + " ").fingerprint != prints["chatml"]
    other.add_tokens(["newword"])
    assert chat_of(other).fingerprint != prints["chatml"]


def test_later_changes_to_the_tokenizer_do_not_reach_it(fresh_family: Family) -> None:
    tokenizer = fresh_family("chatml")
    chat = chat_of(tokenizer)
    before = chat.span(said("Hello world"), "one", end=True).response
    tokenizer.add_tokens(["one"])
    tokenizer.backend_tokenizer.encode_special_tokens = True
    tokenizer.backend_tokenizer.enable_truncation(max_length=2)
    assert chat.span(said("Hello there"), "one", end=True).response == before


def test_slow_tokenizers_are_refused() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(ChatError, match="no fast"):
        chat_of(ByT5Tokenizer(), "plain")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_in_whichever_field_the_template_reads(family: Family, field: str) -> None:
    jinja = "{% for m in messages %}{{ m.role + ':' + (m.FIELD or '') + m.content + ';' }}{% endfor %}"
    template = ChatTemplate(family("base-bytes"), jinja.replace("FIELD", field))
    assert template.render((*said("Hi"), Message("assistant", "Yes", "Hm,"))) == "user:Hi;assistant:Hm,Yes;"


def test_ids_of_calls_and_names_are_given_where_a_turn_has_them(family: Family) -> None:
    jinja = (
        "{% for m in messages %}{{ m.role }}"
        "{% if 'tool_call_id' in m %}/{{ m.tool_call_id }}{% endif %}{% if 'name' in m %}/{{ m.name }}{% endif %}"
        "{% for call in m.tool_calls or [] %}/{{ call.type[:2] + call.function.name }}"
        "{% if 'id' in call %}={{ call.id }}{% endif %}"
        "{% endfor %}:{{ m.content }};{% endfor %}"
    )
    calls = (ToolCall("f", "{}", "c1"), ToolCall("g", "{}"))
    turns = (*said("Hi"), Message("assistant", "", "", calls), Message("tool", "1", "", (), "c1", "f"))
    assert ChatTemplate(family("base-bytes"), jinja).render(turns) == "user:Hi;assistant/fuf=c1/fug:;tool/c1/f:1;"


@pytest.mark.parametrize(("count", "more"), [(8, ""), (9, ", ...")])
def test_a_refusal_names_eight_roles_at_most(family: Family, count: int, more: str) -> None:
    jinja = "{% if messages | length > 1 %}{{ raise_exception('One only') }}{% endif %}{{ messages[0].content }}"
    with pytest.raises(ChatError) as caught:
        ChatTemplate(family("base-bytes"), jinja).render(said(*"abcdefghi"[:count]))
    roles = ", ".join(["user", "assistant"] * 4) + more
    assert str(caught.value) == f"the chat template refuses these turns ({roles}): One only"
