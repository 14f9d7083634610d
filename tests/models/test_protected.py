"""Every text of a turn is protected, and an assistant's marks of reasoning stay what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import TOOLS, Message, ToolCall
from gdr_plugin.models.text.protected import protected, texts_of
from gdr_plugin.models.text.tokens import Tokens

Family = Callable[[str], Any]

BOTH = "[THINK] and <|end|>"


@pytest.fixture
def tokens(fresh_family: Family) -> Tokens:
    tokenizer = fresh_family("base-bytes")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", "[THINK]"]})
    return Tokens(tokenizer)


def left(tokens: Tokens, text: str) -> set[str]:
    """Which spellings are still tokens in a protected text, which must be `BOTH` when it is restored."""
    assert tokens.restored(text) == BOTH
    ids = tokens.encode(text).ids
    return {spelling for spelling in ("[THINK]", "<|end|>") if tokens.id_of(spelling) in ids}


@pytest.mark.parametrize("role", ["system", "user", "tool"])
def test_others_spell_out_text_only(tokens: Tokens, role: str) -> None:
    assert left(tokens, protected(Message(role, BOTH), tokens).content) == set()


def test_an_assistants_marks_of_reasoning_stay_tokens_and_its_control_tokens_are_text(tokens: Tokens) -> None:
    safe = protected(Message("assistant", BOTH, BOTH), tokens)
    assert (left(tokens, safe.content), left(tokens, safe.reasoning)) == ({"[THINK]"}, {"[THINK]"})


def test_calls_names_and_ids_are_protected_too(tokens: Tokens) -> None:
    call = ToolCall(BOTH, json.dumps({BOTH: [{"é": BOTH}, 3, None, True]}), BOTH)
    safe = protected(Message("assistant", "", "", (call, ToolCall("f", "{}", None)), BOTH, BOTH), tokens)
    ((key, (inner, *rest)),) = json.loads(safe.tool_calls[0].arguments).items()
    texts = (safe.tool_calls[0].name, safe.tool_calls[0].id or "", key, inner["é"], safe.name, safe.tool_call_id)
    assert [left(tokens, text or "") for text in texts] == [set()] * 6
    assert rest == [3, None, True]
    assert "é" in safe.tool_calls[0].arguments  # as it is, not as \u00e9
    assert safe.tool_calls[1] == ToolCall("f", "{}", None)
    bare = Message("user", "Hi")
    assert protected(bare, tokens) == bare


def test_definitions_of_tools_are_protected_as_json(tokens: Tokens) -> None:
    (definition,) = json.loads(protected(Message(TOOLS, json.dumps([{"name": BOTH, "n": 1.5}])), tokens).content)
    assert left(tokens, definition["name"]) == set()
    assert definition["n"] == 1.5


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (Message(TOOLS, "[{"), r"^the definitions of tools are not JSON: Expecting property name"),
        (
            Message("assistant", "", "", (ToolCall("weather", "city=Lyon"),)),
            r"^the arguments of the call of weather are not JSON: Expecting value",
        ),
    ],
)
def test_what_is_not_json_is_refused(tokens: Tokens, turn: Message, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        protected(turn, tokens)


def test_the_texts_of_a_turn_are_all_of_its_parts() -> None:
    calls = (ToolCall("f", '{"a": 1}', "c1"), ToolCall("g", "{}"))
    turn = Message("assistant", "text", "thought", calls, "c0", "name")
    assert list(texts_of(turn)) == ["text", "thought", "name", "c0", "f", '{"a": 1}', "c1", "g", "{}", ""]
    assert list(texts_of(Message("user", "Hi"))) == ["Hi", "", "", ""]
