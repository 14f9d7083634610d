"""The end of a text that has so many tokens: never inside a character, and however long its tokens are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gdr_plugin.models.text.tokens import Tokens

Family = Callable[[str], Any]

LONG = "abcdefghijklmnopqrst"


def test_the_end_of_a_text_of_long_tokens(fresh_family: Family) -> None:
    tokenizer = fresh_family("base-bytes")
    tokenizer.add_tokens([LONG])
    tokens = Tokens(tokenizer)
    assert [tokens.tail(LONG * 100, count) for count in (10, 99)] == [(1800, 10), (20, 99)]
    assert [tokens.tail(LONG * 100, count) for count in (100, 101, 10**6)] == [(0, 100)] * 3


@pytest.mark.parametrize(
    ("text", "count", "right"),
    [
        ("👍" * 50, 10, (48, 8)),  # four ids each: two whole ones have eight
        ("👍" * 50, 8, (48, 8)),
        ("👍" * 50, 3, (50, 0)),  # no whole one fits
        ("👍🏽" * 50, 11, (98, 8)),  # the colour belongs to the thumb: four ids and four
        ("xe\u0301" * 50, 4, (147, 4)),
        ("xe\u0301" * 50, 3, (148, 3)),
    ],
)
def test_characters_stay_whole(family: Family, text: str, count: int, right: tuple[int, int]) -> None:
    assert Tokens(family("base-bytes")).tail(text, count) == right
