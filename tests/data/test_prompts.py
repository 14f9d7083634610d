"""Rows as public data sets have them: transcripts, system columns, unused context, responses that are messages."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdr_plugin.api.errors import DataError, DataWarning
from gdr_plugin.api.types import Message, ToolCall
from gdr_plugin.data.items import load_items
from gdr_plugin.data.prompts import prompt_of
from gdr_plugin.data.read import check_rows
from gdr_plugin.data.rows import Response, parse_prompt_row, parse_score_row
from gdr_plugin.data.sources import Row

BASIL = "How do I keep basil alive?"
TRANSCRIPT = f"\n\nHuman: {BASIL}\n\nAssistant: Do you have a window?\n\nHuman: Yes.\n\nAssistant:"
TURNS = (Message("user", BASIL), Message("assistant", "Do you have a window?"), Message("user", "Yes."))
TIMER = {"function": {"name": "timer", "arguments": {"minutes": 5}}}
CALL = ToolCall("timer", '{"minutes": 5}')


def row(**data: Any) -> Row:
    return Row(1, "in.jsonl line 1", data)


def write(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


class TestTranscripts:
    def test_in_the_prompt(self) -> None:
        sample = parse_score_row(row(prompt=TRANSCRIPT, response=" Water it.\n")).sample
        assert (sample.prompt, sample.response) == (TURNS, "Water it.")
        assert parse_prompt_row(row(prompt=TRANSCRIPT, responses=[" a", {"text": " b"}])).responses == (
            Response("a"),
            Response("b"),
        )

    def test_in_preference_rows(self, tmp_path: Path) -> None:
        data = {"prompt": TRANSCRIPT, "chosen": " Water it.", "rejected": " Basil dies."}
        (item,) = load_items(write(tmp_path / "in.jsonl", data)).items
        assert (item.prompt, item.chosen[0].content, item.rejected[0].content) == (TURNS, "Water it.", "Basil dies.")

    @pytest.mark.parametrize(
        "text",
        [
            "Human: is that a good name?",
            "Continue: \n\nHuman: Hi\n\nAssistant:",
            "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: What now?",
            "\n\nHuman: Hi\n\nAssistant: Hello.",
        ],
    )
    def test_other_texts_are_texts(self, text: str) -> None:
        sample = parse_score_row(row(prompt=text, response=" r")).sample
        assert (sample.prompt, sample.response) == ((Message("user", text),), " r")


class TestSystemColumn:
    @pytest.mark.parametrize("name", ["system", "system_prompt"])
    def test_becomes_the_system_turn(self, name: str) -> None:
        given = {name: "You garden.", "prompt": BASIL}
        expected = (Message("system", "You garden."), Message("user", BASIL))
        parsed = parse_score_row(row(**given, response="r", n=1)).sample
        assert (parsed.prompt, parsed.fields) == (expected, {"n": 1})
        assert parse_prompt_row(row(**given)).prompt == expected

    def test_in_preference_rows_of_any_format(self, tmp_path: Path) -> None:
        hh = {name: f"\n\nHuman: Hi\n\nAssistant: {name}" for name in ("chosen", "rejected")}
        rows = [
            {"prompt": BASIL, "chosen": "a", "rejected": "b"},
            {"question": BASIL, "response_A": "a", "response_B": "b", "label": "A>B"},
            {"input": BASIL, "output_1": "a", "output_2": "b", "label": 1},
            hh,
        ]
        for number, data in enumerate(rows):
            (item,) = load_items(write(tmp_path / f"{number}.jsonl", {"system": "You garden.", **data})).items
            assert item.prompt[0] == Message("system", "You garden.")
            assert "system" not in item.fields

    @pytest.mark.parametrize("value", [None, "", " \n", 7])
    def test_without_text(self, value: object) -> None:
        assert prompt_of({"system": value}, BASIL).turns == (Message("user", BASIL),)

    def test_beside_a_system_turn(self) -> None:
        turns = [{"role": "system", "content": "You garden."}, {"role": "user", "content": BASIL}]
        same = prompt_of({"system": "You garden."}, turns)
        assert (same.turns, same.columns) == ((Message("system", "You garden."), Message("user", BASIL)), ("system",))
        other = prompt_of({"system": "You cook."}, turns)
        assert (other.turns, other.columns) == (same.turns, ())


class TestUnusedContext:
    def names(self, path: Path, **options: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            list(check_rows(path, parse_score_row, **options))
        assert all(one.category is DataWarning for one in caught)
        return [str(one.message) for one in caught]

    def test_one_warning_names_the_columns(self, tmp_path: Path) -> None:
        data = {"instruction": BASIL, "input": "It faces north.", "tools": ["search"], "response": "r"}
        path = write(tmp_path / "in.jsonl", {**data, "input": "", "tools": []}, data, data)
        assert self.names(path, columns={"prompt": "instruction"}) == [
            "the columns `input`, `tools` are not used: what belongs to the question must be in `prompt`"
        ]

    def test_another_system_turn(self, tmp_path: Path) -> None:
        turns = [{"role": "system", "content": "A"}, {"role": "user", "content": "Hi"}]
        path = write(tmp_path / "in.jsonl", {"prompt": turns, "response": "r", "system": "B"})
        (found,) = self.names(path)
        assert found.startswith("the column `system` is not used")

    def test_nothing_to_say(self, tmp_path: Path) -> None:
        data = {"prompt": "p", "response": "r", "system": "S", "input": None, "history": [], "source": "web"}
        assert self.names(write(tmp_path / "in.jsonl", data)) == []

    def test_preference_rows(self, tmp_path: Path) -> None:
        data = {"instruction": BASIL, "input": "It faces north.", "chosen": "a", "rejected": "b"}
        with pytest.warns(DataWarning, match="the column `input` is not used"):
            load_items(write(tmp_path / "in.jsonl", data), columns={"prompt": "instruction"})


class TestResponsesAsMessages:
    TURN: Mapping[str, Any] = {"role": "assistant", "content": "On it.", "reasoning": "Five.", "tool_calls": [TIMER]}

    @pytest.mark.parametrize("name", ["response", "completion"])
    def test_one_message(self, name: str) -> None:
        sample = parse_score_row(row(prompt="p", **{name: [self.TURN]}, n=1)).sample
        assert sample.turn == Message("assistant", "On it.", "Five.", (CALL,))
        assert sample.text == 'Five.On it.timer{"minutes": 5}'
        assert (sample.prompt, sample.fields) == ((Message("user", "p"),), {"n": 1})

    def test_a_conversation(self) -> None:
        turns = [{"role": "user", "content": "p"}, self.TURN]
        for data in ({"messages": turns}, {"messages": turns, "prompt": "p"}, {"response": turns, "prompt": "p"}):
            sample = parse_score_row(row(**data)).sample
            assert (sample.prompt, sample.turn.tool_calls) == ((Message("user", "p"),), (CALL,))

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"messages": [TURN]}, "`messages` has nothing before the assistant's message"),
            (
                {"messages": [{"role": "user", "content": "p"}]},
                "`messages` must end with an assistant message, not 'user'",
            ),
            (
                {"prompt": "q", "response": [{"role": "user", "content": "p"}, TURN]},
                "`prompt` is not in the conversation",
            ),
            ({"prompt": "p", "response": [{"role": "assistant", "content": None}]}, "must be a string, not null"),
        ],
    )
    def test_what_is_refused(self, data: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            parse_score_row(row(**data))

    def test_preference_rows(self, tmp_path: Path) -> None:
        prompt = [{"role": "user", "content": "Set a timer for 5 minutes."}]
        other = {"function": {"name": "timer", "arguments": {"minutes": 50}}}
        turns = [{"role": "assistant", "content": "On it.", "tool_calls": [call]} for call in (TIMER, other)]
        apart = {"prompt": prompt, "chosen": turns[:1], "rejected": turns[1:]}
        whole = {"chosen": [*prompt, turns[0]], "rejected": [*prompt, {"role": "assistant", "content": "No."}]}
        items = load_items(write(tmp_path / "in.jsonl", apart, whole)).items
        assert items[0].chosen == (Message("assistant", "On it.", tool_calls=(CALL,)),)
        assert items[0].rejected[0].tool_calls == (ToolCall("timer", '{"minutes": 50}'),)
        assert (items[1].prompt, items[1].chosen) == (items[0].prompt, items[0].chosen)
        # In a table the two columns may have different keys for the same turns.
        pq.write_table(pa.Table.from_pylist([whole]), tmp_path / "in.parquet")
        (item,) = load_items(tmp_path / "in.parquet").items
        assert (item.prompt, item.chosen, item.rejected) == (items[1].prompt, items[1].chosen, items[1].rejected)

    def test_candidates_are_texts(self) -> None:
        with pytest.raises(DataError, match="response 1 of `responses` has tool calls or reasoning"):
            parse_prompt_row(row(prompt="p", responses=[{"content": "", "tool_calls": [TIMER]}, "b"]))


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_messages_as_text_in_any_format(tmp_path: Path, format: str) -> None:
    """Tables made of other tables: JSON text is the messages, what Python printed is refused."""
    turns = [{"role": "user", "content": "Hi"}]
    path = tmp_path / f"in.{format}"
    for spelt in (json.dumps(turns), str(turns)):
        data = {"prompt": spelt, "chosen": "a", "rejected": "b"}
        if format == "jsonl":
            write(path, data)
        else:
            pq.write_table(pa.Table.from_pylist([data]), path)
        if spelt.startswith('[{"'):
            assert load_items(path).items[0].prompt == (Message("user", "Hi"),)
        else:
            with pytest.raises(DataError, match="`prompt` is a list of messages as Python prints it"):
                load_items(path)
    assert parse_score_row(row(prompt="p", response=json.dumps(turns))).sample.response == json.dumps(turns)
