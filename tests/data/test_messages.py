"""Messages with tool calls and reasoning, in the shapes in which data sets, trainers and Arrow have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Message, ToolCall
from gdr_plugin.data.messages import message_of
from gdr_plugin.data.prompts import parse_prompt
from gdr_plugin.data.sources import read_rows

LYON = ToolCall("weather", '{"city": "Lyon"}')


def called(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": arguments}}], **more}


def read(item: object) -> Message:
    return message_of(item, "message 1")


@pytest.mark.parametrize(
    "arguments", [{"city": "Lyon"}, '{"city": "Lyon"}', '{"city":"Lyon"}', {"city": "Lyon", "amount": None}]
)
def test_arguments_are_an_object_in_whatever_spelling(arguments: Any) -> None:
    assert read(called(arguments, content="")) == Message("assistant", "", tool_calls=(LYON,))


def test_nulls_inside_arguments_go_and_other_values_stay() -> None:
    given = {"to": {"name": "Zoë", "street": None}, "stops": [{"at": 1, "until": None}], "ok": False, "n": 0}
    (call,) = read(called(given)).tool_calls
    assert call.arguments == '{"to": {"name": "Zoë"}, "stops": [{"at": 1}], "ok": false, "n": 0}'


@pytest.mark.parametrize("arguments", [None, "", " ", {}, "{}"])
def test_no_arguments(arguments: Any) -> None:
    assert read(called(arguments)).tool_calls == (ToolCall("weather", "{}"),)


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}])
def test_content_may_be_null_where_there_are_calls(content: dict[str, Any]) -> None:
    assert read(called({"city": "Lyon"}, **content)) == Message("assistant", "", tool_calls=(LYON,))
    with pytest.raises(DataError, match="the content of message 1 must be a string, not null"):
        read({"role": "assistant", "content": None, "tool_calls": []})


def test_text_before_a_call_ids_and_the_old_form_of_one_call() -> None:
    call = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": {"city": "Lyon"}}}
    assert read({"role": "assistant", "content": "On it.", "tool_calls": [call]}) == Message(
        "assistant", "On it.", tool_calls=(ToolCall("weather", '{"city": "Lyon"}', "c1"),)
    )
    old = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Lyon"}'}}
    assert read(old).tool_calls == (LYON,)
    flat = {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": {"city": "Lyon"}}]}
    assert read(flat).tool_calls == (LYON,)


@pytest.mark.parametrize(
    ("given", "role"),
    [("developer", "system"), ("function", "tool"), ("ipython", "tool"), ("model", "assistant"), ("user", "user")],
)
def test_roles(given: str, role: str) -> None:
    assert read({"role": given, "content": "x"}) == Message(role, "x")


def test_a_developer_turn_is_the_prompts_system_turn() -> None:
    turns = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert parse_prompt(turns) == (Message("system", "Be brief."), Message("user", "Hi"))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning(name: str) -> None:
    assert read({"role": "assistant", "content": "8", name: "4 + 4"}) == Message("assistant", "8", "4 + 4")
    assert read({"role": "assistant", "content": "8", name: None}) == Message("assistant", "8")
    assert read({"role": "user", "content": "8", name: "4 + 4"}) == Message("user", "8")


def test_tool_turns_keep_what_they_answer() -> None:
    turn = read({"role": "tool", "content": "ok", "tool_call_id": "c1", "name": "timer", "tool_calls": None})
    assert turn == Message("tool", "ok", tool_call_id="c1", name="timer")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (called("Lyon"), "the arguments of a tool call of message 1 are not JSON"),
        (called("[1]"), "must be an object, not a list"),
        (called({"x": float("nan")}), "cannot be written as JSON"),
        ({"role": "assistant", "content": "", "tool_calls": "weather()"}, "`tool_calls` of message 1 must be a list"),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}, "must be a mapping with `function`"),
        (called({}) | {"role": "user"}, "message 1 is a user turn with tool calls: only assistants call tools"),
        ({"role": "assistant", "content": "", "reasoning": 7}, "the reasoning of message 1 must be a string"),
    ],
)
def test_what_is_refused(item: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(item)


def test_arrows_nulls(tmp_path: Path) -> None:
    """Arrow gives each message the keys of all, and each call the arguments of all."""
    turns = [
        {"role": "user", "content": "Weather?"},
        called({"city": "Lyon"}, content=None, thinking="Look it up."),
        {"role": "tool", "content": "Rain.", "tool_call_id": "c1"},
        called({"amount": 3, "currency": "EUR"}),
        {"role": "tool", "content": "ok"},
    ]
    pq.write_table(pa.Table.from_pylist([{"prompt": turns}]), tmp_path / "in.parquet")
    (row,) = read_rows(tmp_path / "in.parquet")
    assert set(row.data["prompt"][0]) == {"role", "content", "tool_calls", "thinking", "tool_call_id"}
    prompt = parse_prompt(row.data["prompt"])
    assert prompt == parse_prompt(turns)
    assert prompt[1] == Message("assistant", "", "Look it up.", (LYON,))
    assert prompt[3].tool_calls[0].arguments == '{"amount": 3, "currency": "EUR"}'
