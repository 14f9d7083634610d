"""Chat's limits: what fits, what is refused, and what is left out of a prompt that is too long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import Conversation, Message, TokenSpan
from gdr_plugin.models.text.chat import Chat

Family = Callable[[str], Any]

NAMES = ("chatml", "llama3", "mistral", "mistral-legacy", "gemma", "qwen3", "zephyr", "base-spaces")


def chat_of(family: Family, name: str, max_length: int, max_response: int = 2048, policy: Any = "keep_end") -> Chat:
    template = "plain" if name.startswith("base") else None
    return Chat(family(name), template=template, max_length=max_length, max_response=max_response, long_input=policy)


def said(*texts: str) -> Conversation:
    return tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))


def text_of(family: Family, name: str, ids: tuple[int, ...]) -> str:
    return str(family(name).decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


WORDS = " ".join(f"word{i}" for i in range(300))


@pytest.mark.parametrize("name", NAMES)
def test_error_policy_scores_what_just_fits_and_refuses_one_token_more(family: Family, name: str) -> None:
    prompt, response = said("What is this? " * 10), "It is a test. " * 10
    span = chat_of(family, name, 4096).span(prompt, response, end=True)
    length = len(span.context) + len(span.response)
    assert chat_of(family, name, length, policy="error").span(prompt, response, end=True) == span
    with pytest.raises(
        ChatError, match=rf"prompt \({len(span.context)} tokens\) and response \({len(span.response)}\)"
    ):
        chat_of(family, name, length - 1, policy="error").span(prompt, response, end=True)


@pytest.mark.parametrize("name", NAMES)
def test_keep_end_cuts_the_beginning_of_a_single_turn(family: Family, name: str) -> None:
    whole = chat_of(family, name, 10**6, 10).span(said(WORDS), "", end=False).context
    chat = chat_of(family, name, 250, 50)
    span = chat.span(said(WORDS), "Fine.", end=True)
    assert len(span.context) <= 200
    assert len(span.context) > 190, "not much more than needed is left out"
    assert span.dropped == len(whole) - len(span.context)
    text = text_of(family, name, span.context)
    assert "word299" in text
    assert "word100 " not in text
    # The template around what is left is whole: its beginning and its generation prompt.
    assert span.context[:2] == whole[:2]
    assert span.context[-3:] == whole[-3:]


@pytest.mark.parametrize("name", NAMES)
def test_cutting_ignores_the_response(family: Family, name: str) -> None:
    chat = chat_of(family, name, 250, 50)
    spans = [chat.span(said(WORDS), text, end=end) for text in ("", "a", "Long answer. " * 3) for end in (True, False)]
    assert len({id(span.context) for span in spans}) == 1
    assert {span.dropped for span in spans} == {spans[0].dropped}


@pytest.mark.parametrize("name", NAMES)
def test_guidance_stays_whole_and_oldest_turns_go_first(family: Family, name: str) -> None:
    guidance = "You are a careful assistant. Prefer the short, true and polite answer."
    turns = said(*(f"turn{i} " + "and so on " * 10 for i in range(9)))
    span = chat_of(family, name, 520, 200).span((Message("system", guidance), *turns), "Yes.", end=True)
    text = text_of(family, name, span.context)
    assert guidance in text
    assert "turn0" not in text
    kept = [i for i in range(9) if f"turn{i} " in text]
    assert kept == list(range(kept[0], 9))
    assert kept[0] % 2 == 0, "what is kept starts with a user turn"
    assert len(kept) > 1
    # One user turn more would not have fitted.
    more = (Message("system", guidance), *turns[kept[0] - 2 :])
    assert len(chat_of(family, name, 10**6, 10).span(more, "", end=False).context) > 320
    assert span.context == chat_of(family, name, 10**6, 10).span((*more[:1], *more[3:]), "", end=False).context


@pytest.mark.parametrize("name", ["chatml", "mistral", "gemma"])
def test_last_turn_is_cut_behind_the_guidance(family: Family, name: str) -> None:
    guidance = "Prefer the short, true and polite answer."
    span = chat_of(family, name, 300, 100).span((Message("system", guidance), *said("a", "b", WORDS)), "x", end=True)
    text = text_of(family, name, span.context)
    assert guidance in text
    assert "word299" in text
    assert 185 <= len(span.context) <= 200


def test_short_contexts_are_not_cut(family: Family) -> None:
    chat = chat_of(family, "chatml", 250, 50)
    span = chat.span(said("short"), "x", end=True)
    assert span.dropped == 0
    # Room for the response is half of max_length at most.
    generous = chat_of(family, "chatml", 250, 10**6)
    assert generous.span(said("short"), "x", end=True) == span
    assert len(generous.span(said(WORDS), "x", end=True).context) in range(115, 126)


def test_only_so_many_tokens_of_contexts_are_remembered(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = chat_of(family, "chatml", 4096)
    monkeypatch.setattr("gdr_plugin.models.text.contexts._CACHED_TOKENS", 300)  # two of them: each weighs 64 at least
    first, second = (chat.span(said(text), "x", end=True).context for text in ("one", "two"))
    assert chat.span(said("one"), "y", end=True).context is first
    chat.span(said("three " * 10), "x", end=True)  # the one that was asked for longest ago goes
    assert chat.span(said("one"), "z", end=True).context is first
    again = chat.span(said("two"), "z", end=True).context
    assert again == second
    assert again is not second
    whole = chat.span(said("word " * 500), "x", end=True).context  # alone above the limit: the last one stays
    assert chat.span(said("word " * 500), "y", end=True).context is whole
    assert len(chat._contexts._cache) == 1


def test_response_that_does_not_fit_is_refused_without_cutting_more(family: Family) -> None:
    chat = chat_of(family, "chatml", 250, 50)
    with pytest.raises(ChatError, match=r"the response has \d+ tokens, but behind its prompt \(\d+\) only \d+"):
        chat.span(said(WORDS), "word " * 60, end=True)
    assert chat.span(said("short"), "a b " * 40, end=True).dropped == 0


@pytest.mark.parametrize("name", ["chatml", "gemma"])
def test_guidance_that_leaves_no_room_is_refused(family: Family, name: str) -> None:
    conversation = (Message("system", WORDS), *said("What is this?"))
    for _ in range(2):
        with pytest.raises(ChatError, match=r"alone exceed the 200 tokens that max_length 250"):
            chat_of(family, name, 250, 50).span(conversation, "x", end=True)
    with pytest.raises(ChatError, match="alone exceed"):
        chat_of(family, name, 250, 50).span(conversation[:1], "x", end=True)


def test_characters_are_not_torn(family: Family) -> None:
    people = "👩‍👩‍👧‍👦"
    for tail in (people, "é", "👍🏽", "漢"):
        for length in range(100, 140):
            span = chat_of(family, "chatml", length, 20).span(said(tail * 200), "x", end=True)
            text = text_of(family, "chatml", span.context)
            assert "�" not in text
            kept = text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
            assert kept
            assert kept == tail * kept.count(tail)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=120), min_size=1, max_size=7),
    length=st.integers(100, 160),
    guided=st.booleans(),
)
@pytest.mark.parametrize("name", ["chatml", "mistral", "gemma", "base-spaces"])
def test_what_comes_out_always_fits(family: Family, name: str, texts: list[str], length: int, guided: bool) -> None:
    texts = texts if len(texts) % 2 else texts[1:]
    system = (Message("system", "Be true."),) if guided else ()
    chat = _cached_chat(family, name, length)
    whole = _cached_chat(family, name, 10**6).span((*system, *said(*texts)), "", end=False).context
    span = chat.span((*system, *said(*texts)), "", end=True)
    assert len(span.context) <= length - 20
    assert span.dropped == len(whole) - len(span.context)
    assert (span.dropped == 0) == (len(whole) <= length - 20)


def _span_or_none(chat: Chat, conversation: Conversation, response: str) -> TokenSpan | None:
    try:
        return chat.span(conversation, response, end=True)
    except ChatError as error:
        if "exceed" not in str(error):
            raise
        return None


_made: dict[tuple[str, int], Chat] = {}


def _cached_chat(family: Family, name: str, length: int) -> Chat:
    return _made.setdefault((name, length), chat_of(family, name, length, 20))


@pytest.mark.parametrize("name", ["chatml", "mistral-legacy"])
@pytest.mark.parametrize(
    "conversation",
    [
        said("The quick brown fox jumps. " * 40_000),
        said("a" * 1_000_000),
        said(" " * 1_000_000 + "end"),
        said(*["ok"] * 40_001),
        (Message("system", "The quick brown fox jumps. " * 40_000), *said("a")),
    ],
    ids=["words", "one-letter", "spaces", "many-turns", "guidance"],
)
def test_very_long_inputs_are_fast_and_quiet(
    family: Family, name: str, conversation: Conversation, caplog: pytest.LogCaptureFixture
) -> None:
    chat = chat_of(family, name, 4096, 1024)
    refused = chat_of(family, name, 4096, 1024, "error")
    with caplog.at_level(logging.WARNING):
        for each in (chat, refused):
            began = time.perf_counter()
            for response in ("x", "y", "z"):
                span = _span_or_none(each, conversation, response)
                if span is not None:
                    assert len(span.context) <= 3072
                    assert span.dropped > 10_000
            # Generous for a busy machine: a quadratic step would take minutes.
            assert time.perf_counter() - began < 20
    assert not caplog.records
