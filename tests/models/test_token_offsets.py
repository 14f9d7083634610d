"""Where in a response its tokens are: every tokenizer's pieces make up the text, characters in several ids included."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
from transformers import PreTrainedTokenizerFast

from gdr_plugin.api.models import TokenOffsets
from gdr_plugin.api.types import TEXT, Message
from gdr_plugin.models.fake import FakeChat
from gdr_plugin.models.text.chat import Chat

Family: TypeAlias = Callable[[str], PreTrainedTokenizerFast]
FAMILIES = [
    *("chatml", "llama3", "mistral", "mistral-legacy", "mistral-control", "gemma", "qwen3", "zephyr"),
    *("base-bytes", "base-spaces"),
]
PROMPT = (Message("user", "Say something."),)
TEXTS = [
    "The sum of 17 and 25 is 42.\n\n  Then stop.",
    "Zażółć gęślą jaźń — 好的, 世界!",
    "مرحبا بالعالم",
    "family 👨‍👩‍👧 and 👍🏽 e\u0301nd",
    "\t tabs\r\nand   spaces  ",
    "spelt <|im_end|> out </s> and <|eot_id|> <end_of_turn> [INST]",
    " leads with a space",
    "x",
    "",
]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_up_the_text(family: Family, name: str, text: str) -> None:
    tokenizer = family(name)
    chat = Chat(tokenizer, template=None if tokenizer.chat_template else "plain", max_length=2048)
    ids, offsets = chat.span(PROMPT, text, end=False).response, chat.offsets(PROMPT, text)
    assert len(offsets) == len(ids)
    assert list(offsets) == sorted(offsets)
    assert offsets == () or offsets[-1][1] == len(text)
    for at, (_, stop) in enumerate(offsets):
        known = tokenizer.decode(ids[: at + 1])
        clean = at + 1 == len(offsets) or offsets[at + 1][0] >= stop
        if clean and "<" not in known:  # unknown characters and spelt-out markers are spelt otherwise
            # Between two characters, the ids so far spell exactly the text so far.
            assert known.lstrip(" ") == text[:stop].lstrip(" ")


def test_bytes_of_one_character_share_its_place(family: Family) -> None:
    chat = Chat(family("base-bytes"), template="plain", max_length=2048)
    text = "a👍b"
    places = ((0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3))
    assert chat.offsets(PROMPT, text)[-6:] == FakeChat().offsets(PROMPT, text) == places


def test_rendered_prompts_and_reasoning_blocks(family: Family) -> None:
    chat = Chat(family("qwen3"), max_length=2048)
    for prompt, text in (((Message(TEXT, "Once upon"),), " a time"), (PROMPT, "<think>\nhm\n</think>\n\n42")):
        offsets = chat.offsets(prompt, text)
        assert len(offsets) == len(chat.span(prompt, text, end=False).response)
        assert offsets[-1][1] == len(text)


def test_protocol() -> None:
    assert isinstance(FakeChat(), TokenOffsets)
