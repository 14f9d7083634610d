"""What a policy is asked, and where an assistant's turn with tool calls ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gdr_plugin.api.types import Message, ToolCall
from gdr_plugin.models.text.chat import Chat

Family = Callable[[str], Any]

MARKS = ("<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|return|>")
TURN = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
NAMES = "{% for call in m.tool_calls or [] %}{{ '[' + call.function.name + ']' }}{% endfor %}"
ASK = "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"

QUESTION = (Message("user", "Rain?"),)
CALL = Message("assistant", "", tool_calls=(ToolCall("weather", "{}"),))


@pytest.fixture
def tokenizer(fresh_family: Family) -> Any:
    made = fresh_family("base-bytes")
    made.add_special_tokens({"additional_special_tokens": list(MARKS)})
    made.add_tokens(["<think>", "</think>"])
    return made


def chat_of(tokenizer: Any, template: str, **options: Any) -> Chat:
    return Chat(tokenizer, template=template, max_length=512, **options)


def calling(tokenizer: Any, chat: Chat, *, end: bool) -> str:
    return str(tokenizer.decode(list(chat.turn_span(QUESTION, CALL, end=end).response), skip_special_tokens=False))


@pytest.mark.parametrize("behind", ["<|tool|>", "\n<|tool|>", "<|tool|>\n<|tool|>"])
def test_what_a_template_writes_behind_the_end_of_a_call_is_no_part_of_it(tokenizer: Any, behind: str) -> None:
    ends = "{{ '<|end|>' + (BEHIND if m.tool_calls else '\n') }}".replace("BEHIND", repr(behind))
    chat = chat_of(tokenizer, TURN + NAMES + ends + ASK)
    assert calling(tokenizer, chat, end=True) == "[weather]<|end|>"
    assert calling(tokenizer, chat, end=False) == "[weather]"


def test_a_token_of_its_own_closes_a_call(tokenizer: Any) -> None:
    template = TURN + NAMES + "{{ '<|return|>' if m.tool_calls else '<|end|>' }}" + ASK
    for end in (True, False):
        assert calling(tokenizer, chat_of(tokenizer, template), end=end) == "[weather]<|return|>"
    stopping = chat_of(tokenizer, template, stops=tokenizer.convert_tokens_to_ids(["<|return|>", "<|end|>"]))
    assert calling(tokenizer, stopping, end=True) == "[weather]<|return|>"
    assert calling(tokenizer, stopping, end=False) == "[weather]"  # a policy that was cut has not written it


def test_a_call_without_an_end_of_its_own_ends_where_the_tools_answer_begins(tokenizer: Any) -> None:
    chat = chat_of(tokenizer, TURN + NAMES + ASK)
    assert calling(tokenizer, chat, end=True) == "[weather]<|tool|>"
    assert calling(tokenizer, chat, end=False) == "[weather]"
    refusing = "{% for m in messages if m.role == 'tool' %}{{ raise_exception('No tools') }}{% endfor %}"
    silent = chat_of(tokenizer, refusing + TURN + NAMES + ASK)
    assert calling(tokenizer, silent, end=True) == "[weather]<|user|>"  # the usual end, where nothing says another


@pytest.mark.parametrize(
    ("answer", "ask", "right", "opened"),
    [
        ("{{ m.content }}", "<|assistant|>\n", "<|assistant|>\n", ""),
        ("{{ '<think></think>' + m.content }}", "<|assistant|>\n<think>\n", "<|assistant|>\n<think>\n", "<think>\n"),
        # A form that is more than marks: an answer without reasoning begins behind its channel.
        (
            "{{ ('think:' + m.thinking + '<|end|><|assistant|>\n' if m.thinking else '') + 'final:' + m.content }}",
            "<|assistant|>\n",
            "<|assistant|>\nfinal:",
            "",
        ),
    ],
)
def test_a_policy_is_asked_with_the_generation_prompt(
    tokenizer: Any, answer: str, ask: str, right: str, opened: str
) -> None:
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{% if m.role == 'assistant' %}"
        + answer
        + "{% else %}{{ m.content }}{% endif %}{{ '<|end|>' }}{% endfor %}"
        + "{% if add_generation_prompt %}{{ ASK }}{% endif %}".replace("ASK", repr(ask))
    )
    ids, begun = chat_of(tokenizer, template).asked(QUESTION)
    assert tokenizer.decode(list(ids), skip_special_tokens=False) == "<|user|>\nRain?<|end|>" + right
    assert begun == opened
