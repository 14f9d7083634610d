"""What a policy is asked, and where an assistant's turn with tool calls ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import TEXT, Message, ToolCall
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
    # It may also be what the usual end of two tokens begins with.
    longer = chat_of(tokenizer, template.replace("'<|end|>'", "'<|return|><|end|>'"))
    assert [calling(tokenizer, longer, end=end) for end in (True, False)] == ["[weather]<|return|>"] * 2


def test_a_call_without_an_end_of_its_own_ends_where_the_tools_answer_begins(tokenizer: Any) -> None:
    chat = chat_of(tokenizer, TURN + NAMES + ASK)
    assert calling(tokenizer, chat, end=True) == "[weather]<|tool|>"
    assert calling(tokenizer, chat, end=False) == "[weather]"
    refusing = "{% for m in messages if m.role == 'tool' %}{{ raise_exception('No tools') }}{% endfor %}"
    silent = chat_of(tokenizer, refusing + TURN + NAMES + ASK)
    assert calling(tokenizer, silent, end=True) == "[weather]<|user|>"  # the usual end, where nothing says another


def test_behind_a_tools_answer_a_template_may_ask_otherwise(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}"
        "{% if m.role == 'assistant' and loop.previtem.role != 'tool' %}{{ '<think></think>' }}{% endif %}"
        "{{ m.content + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|assistant|>\n' + ('' if messages[-1].role == 'tool' else '<think>\n') }}{% endif %}"
    )
    chat = chat_of(tokenizer, template)
    looked = (*QUESTION, Message("assistant", "Let me look."), Message("tool", "12 mm"))
    shown = [
        tokenizer.decode(list(chat.span(turns, "Yes.", end=True).context), skip_special_tokens=False)
        for turns in (QUESTION, looked)
    ]
    assert shown[0] == "<|user|>\nRain?<|end|><|assistant|>\n<think></think>"
    assert shown[1] == (
        "<|user|>\nRain?<|end|><|assistant|>\n<think></think>Let me look.<|end|><|tool|>\n12 mm<|end|><|assistant|>\n"
    )


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


END = "{{ '<|end|>' }}"
HEADS = "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}"
OTHERWISE = "{% for m in messages %}{{ '<|' + ('tool' if m.tool_calls else m.role) + '|>\n' + m.content }}"


@pytest.mark.parametrize(
    ("template", "turn", "why"),
    [
        (
            HEADS + "{{ '' if m.tool_calls else m.content }}" + NAMES + END + ASK,
            replace(CALL, content=" Look. "),
            "drops the text of a turn with tool calls: remove it, or split the turn",
        ),
        (
            TURN + NAMES + END + ASK,
            replace(CALL, reasoning="Rain"),  # the question's word is not the reasoning's
            "drops the reasoning of a turn with tool calls",
        ),
        (TURN + NAMES + END + "{% endfor %}<|assistant|>\n", CALL, "nothing tells where a tool call ends"),
        (OTHERWISE + NAMES + END + ASK, CALL, "behind another header than it asks with"),
    ],
)
def test_calls_that_a_template_does_not_write_whole_are_refused(
    tokenizer: Any, template: str, turn: Message, why: str
) -> None:
    with pytest.raises(ChatError, match=why):
        chat_of(tokenizer, template).turn_span(QUESTION, turn, end=True)


def test_a_text_that_the_question_holds_too_is_found_in_the_turn(tokenizer: Any) -> None:
    chat = chat_of(tokenizer, TURN + NAMES + END + ASK)
    span = chat.turn_span(QUESTION, replace(CALL, content="Rain?"), end=True)
    assert tokenizer.decode(list(span.response), skip_special_tokens=False) == "Rain?[weather]<|end|>"


def test_rendered_text_and_begun_turns_take_no_calls_and_no_reasoning(tokenizer: Any) -> None:
    chat, thoughtful = chat_of(tokenizer, TURN + NAMES + END + ASK), Message("assistant", "Yes.", "Hm.")
    with pytest.raises(ChatError, match="rendered text cannot be answered by tool calls: give messages"):
        chat.turn_span((Message(TEXT, "Rain?"),), CALL, end=True)
    for conversation in ((Message(TEXT, "Rain?"),), (*QUESTION, Message("assistant", "Well"))):
        with pytest.raises(ChatError, match="reasoning apart from its answer cannot go on with a turn that is begun"):
            chat.turn_span(conversation, thoughtful, end=True)


def test_reasoning_apart_is_refused_where_the_template_reads_it_and_shows_no_form(tokenizer: Any) -> None:
    reads = "{% if false %}{{ messages[0].reasoning_content }}{% endif %}"
    with pytest.raises(ChatError, match="shows no form for reasoning apart from its answer"):
        chat_of(tokenizer, reads + TURN + END + ASK).turn_span(QUESTION, Message("assistant", "Yes.", "Hm."), end=True)
    others = "{% if false %}[THINK][/THINK]{% endif %}"
    with pytest.raises(ChatError, match="shows no form for reasoning apart from its answer"):
        chat_of(tokenizer, others + TURN + END + ASK).turn_span(QUESTION, Message("assistant", "Yes.", "Hm."), end=True)
