"""Prompts that somebody else has rendered: scored as they are, without the model's own template."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
from transformers import PreTrainedTokenizerFast

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import TEXT, Message
from gdr_plugin.models.text.chat import Chat

Family: TypeAlias = Callable[[str], PreTrainedTokenizerFast]


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "zephyr"])
def test_a_text_of_the_models_own_template_gives_the_same_ids(family: Family, name: str) -> None:
    chat = Chat(family(name), max_length=512)
    turns = (Message("user", "Hello world"),)
    text = (Message(TEXT, chat._template.render(turns)),)
    assert chat.span(text, "How are you?", end=True) == chat.span(turns, "How are you?", end=True)


def test_plain_text_gets_the_tokenizers_bos_once(family: Family) -> None:
    tokenizer = family("llama3")
    chat = Chat(tokenizer, max_length=512)
    begin = tokenizer.bos_token_id
    for text in ("The sum of 17 and 25 is", "<|begin_of_text|>The sum of 17 and 25 is", ""):
        context = chat.span((Message(TEXT, text),), " 42", end=False).context
        assert context[0] == begin
        assert begin not in context[1:]
    span = chat.span((Message(TEXT, "The sum of 17 and 25 is"),), " 42", end=False)
    assert tokenizer.decode(span.context[1:] + span.response) == "The sum of 17 and 25 is 42"


def test_a_long_text_loses_its_beginning(family: Family) -> None:
    tokenizer = family("llama3")
    chat = Chat(tokenizer, max_length=64, max_response=16, long_input="keep_end")
    span = chat.span((Message(TEXT, "many words and " * 60 + "then the end"),), " of it", end=False)
    assert span.dropped > 0
    assert len(span.context) <= 48
    assert tokenizer.decode(span.context).endswith("then the end")


def test_a_text_cannot_be_guided(family: Family) -> None:
    with pytest.raises(ChatError, match=r"no place for guidance: set guidance\.placement to none"):
        Chat(family("chatml"), max_length=512).span((Message("system", "Be short"), Message(TEXT, "x")), "y", end=True)
