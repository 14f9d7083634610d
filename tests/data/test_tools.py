"""Definitions of tools in the shapes that data sets have them in."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import TOOLS, Message
from gdr_plugin.data.prompts import prompt_of
from gdr_plugin.data.tools import definitions_of, tools_of

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string", "default": None}}}
TOLD = {"type": "function", "function": {"name": "weather", "description": "Wie's wird", "parameters": SCHEMA}}
BARE = {"type": "object", "properties": {"city": {"type": "string"}}}
TIDY = {"type": "function", "function": {"name": "weather", "description": "Wie's wird", "parameters": BARE}}


def turn(*definitions: object) -> Message:
    return Message(TOOLS, json.dumps(definitions, ensure_ascii=False))


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ([TIDY], TIDY),
        (TIDY, TIDY),
        ([TIDY["function"]], TIDY),  # as in data sets of before tools
        ([{"type": "function", **TIDY["function"]}], TIDY),  # as OpenAI's Responses have it
        ([TOLD], TIDY),  # a table's null may be Arrow's
        (json.dumps([TOLD]), TOLD),  # JSON has its own nulls
        (json.dumps(TOLD), TOLD),
        ([json.dumps(TOLD)], TOLD),
    ],
)
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_shapes(value: object, right: object, column: str) -> None:
    assert tools_of({column: value}) == (column, turn(right))


@pytest.mark.parametrize("value", [None, [], "", "[]", "{}", "search the web", ["search", "mail"], 3, math.nan, [3]])
def test_what_is_no_definition(value: object) -> None:
    assert tools_of({"tools": value}) == (None, None)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([TIDY, {"type": "function"}], r"definition 2 of `tools` must be a mapping with `function`: \{"),
        ([{"type": "web_search"}], "definition 1 of `tools` must be a mapping with `function`"),
        ([{"function": {"name": 3}}], "the name of definition 1 of `tools` must be a string, not a number"),
        ([{"name": "a", "x": float("nan")}], "`tools` cannot be written as JSON"),
        ([{"name": "a", "x": object()}], "`tools` cannot be written as JSON"),
        ([{"name": "a\ud800"}], "`tools` holds an unpaired surrogate"),
    ],
)
def test_malformed_definitions(value: object, match: str) -> None:
    with pytest.raises(DataError, match=match):
        tools_of({"tools": value})


def test_only_mappings_are_defined() -> None:
    with pytest.raises(DataError, match="definition 1 of `tools` must be a mapping, not a string"):
        definitions_of(["weather"])


def test_they_are_a_prompts_first_turn() -> None:
    data = {"tools": [TIDY], "system": "Be brief.", "functions": [{"name": "other"}]}
    prompt = prompt_of(data, "Rain?")
    assert prompt.turns == (turn(TIDY), Message("system", "Be brief."), Message("user", "Rain?"))
    assert prompt.columns == ("system", "tools")
    assert prompt_of({"tools": ["search"]}, "Rain?").columns == ()
