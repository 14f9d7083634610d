"""Reasoning, ends of turn, tool calls and prefills: what a model is asked, against the template's own text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import Conversation, Message, ToolCall
from gdr_plugin.data.tools import definitions_of
from gdr_plugin.models.text.chat import Chat
from gdr_plugin.models.text.layout import _shape
from gdr_plugin.models.text.reasoning import Marks, is_mark, marks_in, opens
from gdr_plugin.models.text.rendered_prompt import RenderedPromptReader

Family = Callable[[str], Any]

MARKS = ("<|user|>", "<|assistant|>", "<|tool|>", "<|system|>", "<|end|>", "<|return|>")

HEAD = "{% for m in messages %}"
BODY = "{{ '<|' + m.role + '|>\n' + m.content }}"
NEMOTRON = (
    HEAD + "{% set thought = m.reasoning_content or '' %}{% if m.role == 'assistant' %}"
    "{% if '</think>' in m.content %}{{ '<|assistant|>\n' + m.content + '<|end|>\n' }}{% else %}"
    "{{ '<|assistant|>\n<think>' + ('\n' + thought + '\n' if thought else '') + '</think>' + m.content + '<|end|>\n' }}"
    "{% endif %}{% else %}" + BODY + "{{ '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n<think>\n' }}{% endif %}"
)
"""Opens reasoning in its generation prompt, and shows it closed before a plain answer."""
R1 = (
    HEAD + "{% if m.role == 'assistant' %}{{ '<|assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}"
    "{% else %}"
    + BODY
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)
"""Opens reasoning, drops it from history, and shows a plain answer without any."""
GLM = HEAD + BODY + "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
"""Writes nothing behind a turn: the next role's token ends it."""
COHERE = (
    HEAD + BODY + "{{ '<|return|><|end|>' if m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
ONE_QUESTION = "{% if messages | length > 2 %}{{ raise_exception('One question only') }}{% endif %}"
"""Shows nothing behind an answer that is not the last turn."""
LED = (
    HEAD + "{{ '<|' + m.role + '|>' + (' ' if m.role == 'assistant' else '') + m.content.split('</think>')[-1] }}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""A space leads an answer, which the model generates, with reasoning before it or not."""
LAST_ONLY = (
    HEAD + BODY + "{{ '<|return|>' if loop.last and m.role == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SPACED = HEAD + BODY + "{{ ' <|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
CHANNELS = (
    HEAD + "{% if m.role == 'assistant' %}{% if m.thinking %}{{ '<|assistant|>think:' + m.thinking + '<|end|>' }}"
    "{% endif %}{{ '<|assistant|>final:' + m.content + '<|return|>' }}{% else %}" + BODY + "{{ '<|end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CALLS = (
    HEAD + "{{ '<|' + m.role + '|>\n' + m.content }}{% for call in m.tool_calls or [] %}"
    "{{ '[' + call.function.name + ' ' + call.function.arguments | tojson + ']' }}{% endfor %}{{ '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
NO_TOOLS = (
    "{% for m in messages if m.role != 'tool' %}" + BODY + "{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LAST_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' or messages[loop.index0 + 1].role != 'system' %}"
    + BODY
    + "{{ '<|end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

ASK = (Message("user", "What is 17 + 25?"),)


@pytest.fixture
def tokenizer(fresh_family: Family) -> Any:
    made = fresh_family("base-bytes")
    made.add_special_tokens({"additional_special_tokens": list(MARKS)})
    made.add_tokens(["<think>", "</think>"])
    return made


def chat_of(tokenizer: Any, template: str, **options: Any) -> Chat:
    return Chat(tokenizer, template=template, max_length=4096, **options)


def asked(tokenizer: Any, chat: Chat, turns: Conversation, response: str | Message, *, end: bool = False) -> str:
    """Context and response as text, a bar between them."""
    if isinstance(response, str):
        span = chat.span(turns, response, end=end)
    else:
        span = chat.turn_span(turns, response, end=end)
    texts = [str(tokenizer.decode(list(ids), skip_special_tokens=False)) for ids in (span.context, span.response)]
    return "│".join(texts)


def test_marks_are_found_in_pairs() -> None:
    text = "'<think>' ... split('</think>') <|START_THINKING|> <|END_THINKING|> [/THINK] </seed:think> <|user|>"
    assert marks_in(text) == [
        Marks("<think>", "</think>"),
        Marks("<|START_THINKING|>", "<|END_THINKING|>"),
        Marks("[THINK]", "[/THINK]"),
        Marks("<seed:think>", "</seed:think>"),
    ]
    for bar in ("|", "\uff5c"):  # the slash stands behind the bar
        opening, closing = f"<{bar}think{bar}>", f"<{bar}/think{bar}>"
        assert marks_in(opening) == marks_in(closing) == [Marks(opening, closing)]
    assert is_mark("</think>")
    assert not is_mark("<tool_call>")
    assert opens("<|assistant|><think>\n")
    assert not opens("<|assistant|><think></think>")


@pytest.mark.parametrize(
    ("template", "response", "right"),
    [
        (NEMOTRON, "42", "<think></think>│42"),
        (NEMOTRON, "<think>\nEasy.\n</think>\n42", "<think>\n│Easy.\n</think>\n42"),
        (NEMOTRON, "<think>Easy.</think>42", "<think>\n│Easy.</think>42"),
        (NEMOTRON, "Easy.\n</think>\n42", "<think>\n│Easy.\n</think>\n42"),
        (NEMOTRON, "<think>\nEas", "<think>\n│Eas"),
        (R1, "42", "<|assistant|><think>\n│42"),
        (R1, "<think>\nEasy.\n</think>\n\n42", "<|assistant|><think>\n│Easy.\n</think>\n\n42"),
        (GLM, "<think>Easy.</think>42", "<|assistant|>\n│<think>Easy.</think>42"),
        (LED, "42", "<|assistant|>│ 42"),
        (LED, "<think>Easy.</think>42", "<|assistant|>│ <think>Easy.</think>42"),
    ],
)
def test_reasoning_is_written_once_and_answers_have_the_right_header(
    tokenizer: Any, template: str, response: str, right: str
) -> None:
    assert asked(tokenizer, chat_of(tokenizer, template), ASK, response).endswith(right)


def test_marks_of_reasoning_in_a_response_are_ids(tokenizer: Any) -> None:
    span = chat_of(tokenizer, NEMOTRON).span(ASK, "<think>\nEasy.\n</think>\n42", end=False)
    assert tokenizer.convert_tokens_to_ids("</think>") in span.response


def test_marks_that_a_tokenizer_calls_special_are_ids_in_an_answer_and_text_in_a_question(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS, "[THINK]", "[/THINK]"]})
    chat = chat_of(tokenizer, GLM)
    mark = tokenizer.convert_tokens_to_ids("[THINK]")
    assert mark in chat.span(ASK, "[THINK]Easy.[/THINK]42", end=False).response
    assert mark not in chat.span((Message("user", "What is [THINK]?"),), "42", end=False).context


def test_earlier_reasoning_is_dropped_as_the_template_drops_it(tokenizer: Any) -> None:
    turns = (*ASK, Message("assistant", "<think>Easy.</think>42"), Message("user", "Sure?"))
    assert asked(tokenizer, chat_of(tokenizer, R1), turns, "Yes").startswith(
        "<|user|>\nWhat is 17 + 25?<|assistant|>42<|end|><|user|>\nSure?<|assistant|><think>\n"
    )


@pytest.mark.parametrize(
    ("template", "right"),
    [
        (NEMOTRON, "<|assistant|>\n<think>\n│Easy.\n</think>42"),
        (CHANNELS, "<|assistant|>│think:Easy.<|end|><|assistant|>final:42"),
        (R1, "<|assistant|><think>\n│Easy.\n</think>\n\n42"),
        (GLM, "<|assistant|>\n│<think>\nEasy.\n</think>\n\n42"),
    ],
)
def test_reasoning_that_came_apart_is_written_as_the_template_writes_it(
    tokenizer: Any, template: str, right: str
) -> None:
    chat, turn = chat_of(tokenizer, template), Message("assistant", "42", "Easy.")
    assert asked(tokenizer, chat, ASK, turn).endswith(right)
    places, ids = chat.turn_offsets(ASK, turn), chat.turn_span(ASK, turn, end=False).response
    assert places is not None
    assert len(places) == len(ids)
    assert places[0] == (0, 0), "reasoning has no place in the answer"
    assert places[-1][1] == 2


def test_reasoning_does_not_belong_behind_a_prompt_that_has_closed_it(tokenizer: Any) -> None:
    chat = chat_of(tokenizer, GLM.replace("'<|assistant|>\n'", "'<|assistant|>\n<think></think>'"))
    with pytest.raises(ChatError, match="closes reasoning before it began, so a response with reasoning does not"):
        chat.turn_span(ASK, Message("assistant", "42", "Easy."), end=True)
    assert asked(tokenizer, chat, ASK, Message("assistant", "42", " \n")).endswith("<think></think>│42")
    assert chat.describe()["reasoning"].startswith("the prompt closes it: for responses with reasoning, see ")
    inside = chat_of(tokenizer, R1).describe()["reasoning"]
    assert inside == "the prompt opens <think>: answers without reasoning are scored inside it"


@pytest.mark.parametrize(
    ("template", "options", "end", "why"),
    [
        (NEMOTRON, {}, "<|end|>", "the template writes it behind an answer"),
        (GLM, {}, "<|user|>", "the template writes it before the next turn"),
        (GLM, {"end_of_turn": "<|return|>"}, "<|return|>", "end_of_turn_token in gdr.yaml"),
        (COHERE, {}, "<|return|><|end|>", "the template writes it behind an answer"),
        (SPACED, {}, " <|end|>", "the template writes it behind an answer"),
        (ONE_QUESTION + COHERE, {}, "<|return|><|end|>", "the template writes it behind an answer"),
        (LAST_ONLY, {}, "<|return|>", "the template writes it behind the last answer"),
        ("plain", {}, "<|endoftext|>", "the tokenizer's eos_token"),
    ],
)
def test_the_end_of_a_turn_and_why(tokenizer: Any, template: str, options: dict[str, Any], end: str, why: str) -> None:
    chat = chat_of(tokenizer, template, **options)
    assert tokenizer.decode(list(chat.end_of_turn), skip_special_tokens=False) == end
    assert chat.describe()["end of turn"] == f"{end!r} ({why})"


def test_generation_config_says_where_a_turn_ends(tokenizer: Any) -> None:
    ids = tokenizer.convert_tokens_to_ids
    stops = [ids("<|return|>"), tokenizer.eos_token_id]
    assert chat_of(tokenizer, COHERE, stops=stops).end_of_turn == (ids("<|return|>"),)
    assert chat_of(tokenizer, GLM, stops=[tokenizer.eos_token_id]).end_of_turn == (tokenizer.eos_token_id,)
    ends = {
        own: chat_of(tokenizer, "plain", stops=[ids("<|return|>"), ids("<|end|>"), *own]).describe()["end of turn"]
        for own in ((), (tokenizer.eos_token_id,))
    }
    assert list(ends.values()) == [
        f"{min(('<|return|>', '<|end|>'), key=ids)!r} (the generation config's eos_token_id)",
        "'<|endoftext|>' (the tokenizer's eos_token)",
    ]


def test_a_policy_may_stop_at_the_end_and_at_what_stands_before_the_next_turn(tokenizer: Any) -> None:
    stops = {
        template: set(map(tokenizer.convert_ids_to_tokens, chat_of(tokenizer, template).stop_ids))
        for template in (LAST_ONLY, COHERE, SPACED, SPACED.replace(" <", " <|return|><"))
    }
    assert stops[LAST_ONLY] == {"<|return|>", "<|user|>", "<|endoftext|>"}
    assert stops[COHERE] == {"<|end|>", "<|endoftext|>"}  # what its end of two tokens begins with ends nothing
    assert list(stops.values())[2:] == [{"<|end|>", "<|endoftext|>"}] * 2


def test_an_end_that_is_no_token_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ChatError, match=r"end_of_turn_token '<\|over\|>' is not a token of this model"):
        chat_of(tokenizer, GLM, end_of_turn="<|over|>")


def test_template_variables_reach_the_template_and_the_identity(tokenizer: Any) -> None:
    template = GLM.replace("'<|assistant|>\n'", "'<|assistant|>\n' + ('' if thinking else '<think></think>')")
    plain, thinking = chat_of(tokenizer, template), chat_of(tokenizer, template, variables={"thinking": True})
    assert asked(tokenizer, plain, ASK, "42").endswith("<think></think>│42")
    assert asked(tokenizer, thinking, ASK, "42").endswith("<|assistant|>\n│42")
    assert plain.fingerprint != thinking.fingerprint
    assert thinking.describe()["template variables"] == "thinking=True"


def test_a_tool_turn_that_a_template_drops_is_refused(tokenizer: Any) -> None:
    turns = (*ASK, Message("assistant", "Let me look."), Message("tool", "42"))
    with pytest.raises(ChatError, match=r"leaves out the tool turn"):
        chat_of(tokenizer, NO_TOOLS).span(turns, "42", end=True)
    assert "<|tool|>\n42" in asked(tokenizer, chat_of(tokenizer, GLM), turns, "It is 42")


def test_system_turns_are_merged_where_a_template_drops_one(tokenizer: Any) -> None:
    turns = (Message("system", "Be short."), Message("system", "Be true."), *ASK)
    text = asked(tokenizer, chat_of(tokenizer, LAST_SYSTEM), turns, "42")
    assert text.startswith("<|system|>\nBe short.\n\nBe true.<|end|>\n<|user|>")
    kept = asked(tokenizer, chat_of(tokenizer, GLM), turns, "42")
    assert kept.startswith("<|system|>\nBe short.<|system|>\nBe true.<|user|>")


def test_a_long_conversation_is_probed_as_one_whose_roles_take_turns(tokenizer: Any) -> None:
    order = (
        "{% for m in messages if m.role != 'system' %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must take turns') }}{% endif %}{% endfor %}"
    )
    chat = chat_of(tokenizer, order + LAST_SYSTEM)
    for more in range(12):
        talk = tuple(turn for _ in range(more) for turn in (*ASK, Message("assistant", "42")))
        text = asked(
            tokenizer, chat, (Message("system", "Be short."), Message("system", "Be true."), *talk, *ASK), "42"
        )
        assert text.startswith("<|system|>\nBe short.\n\nBe true.<|end|>\n<|user|>")
        assert text.count("<|user|>") == more + 1


def test_the_shape_of_a_long_conversation_is_short_and_keeps_what_is_not_plain() -> None:
    def roles(*turns: Message) -> str:
        return "".join(role[0] for role, _, _ in _shape(turns))

    system, tool = Message("system", "Be short."), Message("tool", "42")
    talk = (*ASK, Message("assistant", "42"))
    assert [roles(*talk * pairs, *ASK) for pairs in range(5)] == ["u", "uau", "uauau", "uauauau", "uauauauau"]
    assert {roles(*talk * pairs, *ASK) for pairs in range(5, 100)} == {"uauauauauau"}
    assert {roles(system, *talk * pairs, *ASK) for pairs in range(5, 100)} == {"suauauauauau"}
    assert {roles(*talk * pairs, tool, *talk * 50) for pairs in range(2, 100)} == {"uauatuauauaua"}
    called = Message("assistant", "", tool_calls=(ToolCall("weather", "{}"),))
    shape = _shape((*talk * 50, *ASK, called, tool, *talk * 50))
    assert shape.count(("assistant", True, False)) == 1


def test_tool_calls_are_written_by_the_template(tokenizer: Any) -> None:
    chat = chat_of(tokenizer, CALLS)
    call = Message("assistant", "", tool_calls=(ToolCall("weather", '{"city": "Lyon"}'),))
    text = asked(tokenizer, chat, ASK, call, end=True)
    assert text.endswith('<|assistant|>\n│[weather {"city": "Lyon"}]<|end|>')
    assert chat.turn_offsets(ASK, call) is None
    answered = (*ASK, call, Message("tool", "12 degrees"))
    shown = asked(tokenizer, chat, answered, "Cold")
    assert (
        '<|assistant|>\n[weather {"city": "Lyon"}]<|end|>\n<|tool|>\n12 degrees<|end|>\n<|assistant|>\n│Cold' in shown
    )
    with pytest.raises(ChatError, match="does not write tool calls"):
        chat_of(tokenizer, GLM).turn_span(ASK, call, end=True)
    with pytest.raises(ChatError, match="leaves out the tool-calling assistant turn"):
        chat_of(tokenizer, GLM).span(answered, "Cold", end=True)


@pytest.mark.parametrize("text", ["", "Your timer is set."])
def test_a_dropped_call_is_noticed_where_the_conversation_names_its_function(text: str, family: Any) -> None:
    chat = Chat(family("chatml"), max_length=1000)
    call = Message("assistant", text, tool_calls=(ToolCall("timer", '{"minutes": 5}'),))
    with pytest.raises(ChatError, match="does not write tool calls"):
        chat.turn_span((Message("user", "Set a timer."),), call, end=True)


def test_a_prompt_that_ends_with_an_assistants_turn_is_gone_on_with(tokenizer: Any) -> None:
    turns = (*ASK, Message("assistant", "The sum"))
    for template in (GLM, COHERE, SPACED):
        text = asked(tokenizer, chat_of(tokenizer, template), turns, " is 42", end=True)
        assert "<|assistant|>\nThe sum│ is 42" in text


@pytest.mark.parametrize("end", ["<|user|>", "<|return|>", "<|endoftext|>"])
def test_a_policy_may_stop_at_any_of_its_ends(tokenizer: Any, end: str) -> None:
    ids = tokenizer.convert_tokens_to_ids
    reader = RenderedPromptReader(tokenizer, GLM, stops=[ids("<|return|>")])
    prompt = "<|user|>\nWhat is 17 + 25?<|assistant|>\n"
    assert reader.response(prompt + "42" + end, prompt) == ("42", True)
    encoded = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert reader.response_of_ids(encoded, [*tokenizer("42")["input_ids"], ids(end)]) == ("42", True)
    assert reader.response(prompt + "42", prompt) == ("42", False)


def test_a_token_that_nobody_named_ends_a_response_where_nothing_follows_it(tokenizer: Any) -> None:
    reader = RenderedPromptReader(tokenizer, NEMOTRON)
    prompt = "<|user|>\nWhat is 17 + 25?<|end|>\n<|assistant|>\n<think>\n"
    assert reader.response(prompt + "</think>42<|return|>", prompt) == ("</think>42", True)


def test_text_before_the_end_is_counted_once(tokenizer: Any) -> None:
    reader, chat = RenderedPromptReader(tokenizer, SPACED), chat_of(tokenizer, SPACED)
    prompt = "<|user|>\nWhat is 17 + 25? <|end|><|assistant|>\n"
    text, finished = reader.response(prompt + "42 <|end|>", prompt)
    assert (text, finished) == ("42", True)
    span = chat.span(ASK, text, end=finished)
    assert tokenizer.decode(list(span.response), skip_special_tokens=False) == "42 <|end|>"


def test_definitions_of_tools_reach_the_template_or_are_refused(tokenizer: Any) -> None:
    told = definitions_of([{"name": "weather", "description": "Tells <|end|> it.", "parameters": {"type": "object"}}])
    template = "{% if tools %}<|system|>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}" + CALLS
    text = asked(tokenizer, chat_of(tokenizer, template), (told, *ASK), "Rain", end=True)
    definition = '{"type": "function", "function": {"name": "weather", "description": "Tells <|end|> it.", '
    assert text.startswith(f"<|system|>\n{definition}")
    assert text.count("<|user|>") == 1
    span = chat_of(tokenizer, template).span((told, *ASK), "Rain", end=True)
    assert span.mark == "<|end|>"
    ends = span.context.count(tokenizer.convert_tokens_to_ids("<|end|>"))
    assert ends == text.partition("│")[0].count("<|end|>") - 1 == 1  # the definition's own is text
    with pytest.raises(ChatError, match=r"does not show the definitions of tools: set another `chat_template`, or"):
        chat_of(tokenizer, CALLS).span((told, *ASK), "Rain", end=True)


def test_a_template_that_wants_a_list_of_tools_gets_one(tokenizer: Any) -> None:
    template = "<|system|>\n{% for tool in tools %}{{ tool.function.name }}\n{% endfor %}" + CALLS
    chat = chat_of(tokenizer, template)
    assert asked(tokenizer, chat, ASK, "Rain").startswith("<|system|>\n<|user|>")
    assert "an empty list" in chat.describe()["tools"]
    told = definitions_of([{"name": "weather"}])
    assert asked(tokenizer, chat, (told, *ASK), "Rain").startswith("<|system|>\nweather\n<|user|>")


def test_arguments_that_are_no_json_are_our_error(tokenizer: Any) -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("weather", "Lyon"),))
    with pytest.raises(ChatError, match="the arguments of the call of weather are not JSON"):
        chat_of(tokenizer, CALLS).turn_span(ASK, call, end=True)
    with pytest.raises(ChatError, match="the definitions of tools are not JSON"):
        chat_of(tokenizer, CALLS).span((Message("tools", "["), *ASK), "Rain", end=True)
