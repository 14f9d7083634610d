"""The end of a text that has so many tokens, never inside a character; and many texts encoded together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gdr_plugin.api.errors import ChatError
from gdr_plugin.models.text import tokens as module
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


FAMILIES = ("chatml", "llama3", "mistral", "gemma", "qwen3", "base-bytes", "base-spaces")
TEXTS = [
    "Four.",
    " four",
    "\n\nFour, as 2 + 2 is.",
    "",
    " ",
    "Ça va, 漢字 👍🏽",
    "say <|im_end|> or </s> or <end_of_turn>",
    "Four.",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_that_are_encoded_together_have_the_ids_of_each_alone(family: Family, name: str) -> None:
    tokens = Tokens(family(name))
    after = tokens.encode("a").ids[-1]
    asked = [(tokens.protect(text), after) for text in TEXTS]
    together = tokens.continuations(asked)
    assert together == [tuple(tokens._continued(*question)[0]) for question in asked]
    assert tokens.continuations(asked[::-1]) == together[::-1]  # from memory where there is one
    assert [len(ids) for text, ids in zip(TEXTS, together, strict=True) if not text and isinstance(ids, tuple)] == [0]


def test_what_is_remembered_has_a_bound(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 200)
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 64)
    tokens = Tokens(family("chatml"))
    asked = [(f"answer number {number}", 0) for number in range(50)]
    first = tokens.continuations(asked)
    assert first == [tuple(tokens.encode(text).ids) for text, _ in asked]
    assert 2 <= len(tokens._memory) < 12
    assert list(tokens._memory.recall(["answer number 49", "answer number 0"]).values()) == [first[-1], None]
    assert tokens.continuations(asked[:1]) == first[:1]
    assert not any(isinstance(ids, ChatError) for ids in first)
