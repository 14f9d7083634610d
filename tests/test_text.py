"""Small rules for texts and values that come from outside."""

from __future__ import annotations

import math

import pytest

from gdr_plugin.text import (
    first_line,
    is_missing,
    one_line,
    printable,
    text_problem,
    type_name,
    typed_line,
    without_numbers,
)


def test_an_error_on_one_line() -> None:
    error = ValueError("  first\n\n  second ")
    assert first_line(error) == "first"
    assert one_line(error) == "first second"
    assert one_line(error, limit=7) == "first s"
    assert first_line(KeyError()) == one_line(KeyError()) == "KeyError"


def test_an_error_with_its_class() -> None:
    assert typed_line(ValueError("no\n number")) == "ValueError: no number"
    assert typed_line(KeyError()) == "KeyError"


def test_a_line_of_a_log_cannot_be_forged() -> None:
    assert printable("Grüße, 日本語", limit=50) == "Grüße, 日本語"
    assert printable("a\r\n\x1b[2K\x00\u2028\u202e\ud800z", limit=50) == "a\\r\\n\\x1b[2K\\x00\\u2028\\u202e\\ud800z"
    assert printable("x" * 60, limit=10) == "xxxxxxx..."


def test_reasons_of_one_kind_are_one_reason() -> None:
    assert without_numbers("4,096 tokens exceed 12") == without_numbers("512 tokens exceed 7") == "N tokens exceed N"


@pytest.mark.parametrize(("text", "at"), [("\ud83d", 1), ("aé\udc00", 3)])
def test_an_unpaired_surrogate_is_named_with_its_place(text: str, at: int) -> None:
    assert text_problem(text) == f"holds an unpaired surrogate at character {at}: not valid text"


@pytest.mark.parametrize("text", ["", "plain", "é", "\U0001f600"])
def test_valid_text_has_no_problem(text: str) -> None:
    assert text_problem(text) is None


@pytest.mark.parametrize(
    ("value", "missing"),
    [(None, True), ("", True), (math.nan, True), (0, False), (0.0, False), (False, False), (" ", False), ([], False)],
)
def test_no_value(value: object, missing: bool) -> None:
    assert is_missing(value) is missing


@pytest.mark.parametrize(
    ("value", "name"),
    [(None, "null"), (True, "true or false"), (1, "a number"), (1.5, "a number"), ([], "a list"), ({}, "a mapping")],
)
def test_types_are_called_as_json_calls_them(value: object, name: str) -> None:
    assert type_name(value) == name
