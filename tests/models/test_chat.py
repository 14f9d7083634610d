"""Chat against real template families: contexts, responses, ends of turn, system turns, control tokens, Unicode."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.models import ChatFormat, SpansTogether
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Conversation, Message, TokenSpan
from gdr_plugin.models.text.chat import Chat
from gdr_plugin.models.text.opening import open_chat

Family = Callable[[str], Any]

TEMPLATED = ("chatml", "llama3", "mistral", "mistral-legacy", "mistral-control", "gemma", "qwen3", "zephyr")
WITHOUT_SYSTEM = ("mistral", "mistral-legacy", "mistral-control", "gemma")
WITH_SYSTEM = tuple(name for name in TEMPLATED if name not in WITHOUT_SYSTEM)
BASE = ("base-bytes", "base-spaces")
ALL = TEMPLATED + BASE
END = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "qwen3": "<|im_end|>",
    "base-bytes": "<|endoftext|>",
}
BOS = {"llama3": "<|begin_of_text|>", "gemma": "<bos>", "base-spaces": "<s>"} | {
    name: "<s>" for name in TEMPLATED if name.startswith("mistral")
}
BLOCK = "<think>\n\n</think>\n\n"
RESPONSES = (
    "Hello world, how are you today?",
    "1. one\n2. two\n\n- three",
    "Ça va très bien. El niño comió una manzana. 漢字とかな 👩‍👩‍👧 é",
    "  two spaces in front",
    "\n\nnewlines in front",
    "trailing newline\n",
    " ",
    "\n",
    "\u0301combining first",
    "👍🏽",
    "17 + 25 = 42",
    "'s apostrophe first",
    "\ttab",
    "\x00nul",
)


def said(*texts: str) -> Conversation:
    """Turns of user and assistant by turns, starting with the user."""
    return tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))


def chat_of(tokenizer: Any, name: str, **limits: Any) -> Chat:
    settings: dict[str, Any] = {"max_length": 4096, "max_response": 1024, "long_input": "error", **limits}
    return Chat(tokenizer, template="plain" if name in BASE else None, **settings)


@pytest.fixture(scope="session")
def chats(family: Family) -> dict[str, Chat]:
    return {name: chat_of(family(name), name) for name in ALL}


def templated_ids(tokenizer: Any, conversation: Conversation, *, ask: bool = True) -> tuple[int, ...]:
    """What transformers itself gives the model."""
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation]
    return tuple(tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=ask, return_dict=False))


def text_of(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def test_is_a_chat_format(chats: dict[str, Chat]) -> None:
    assert isinstance(chats["chatml"], ChatFormat)


@pytest.mark.parametrize("name", TEMPLATED)
@pytest.mark.parametrize(
    "conversation",
    [
        said("What is this?"),
        said("What is 17 + 25?", "It is 42.", "And minus 3?"),
        said("  Grüße, 漢字 👩‍👩‍👧 \n", "\n answer  ", "\n\n1. one\n2. two"),
    ],
)
def test_context_is_what_transformers_gives_the_model(
    chats: dict[str, Chat], family: Family, name: str, conversation: Conversation
) -> None:
    tokenizer = family(name)
    block = tuple(tokenizer.encode(BLOCK, add_special_tokens=False)) if name == "qwen3" else ()
    assert chats[name].span(conversation, "x", end=False).context == templated_ids(tokenizer, conversation) + block


@pytest.mark.parametrize("name", WITH_SYSTEM)
def test_own_system_turn_goes_to_the_template(chats: dict[str, Chat], family: Family, name: str) -> None:
    conversation = (Message("system", "Be short and true."), *said("What is this?"))
    text = text_of(family(name), chats[name].span(conversation, "", end=False).context)
    assert text.count("Be short and true.") == 1
    assert "helpful test model" not in text
    without_block = chats[name].span(conversation, "<think>x</think>", end=False).context
    assert without_block == templated_ids(family(name), conversation)


@pytest.mark.parametrize("name", WITHOUT_SYSTEM)
def test_system_turn_is_folded_where_the_template_has_none(chats: dict[str, Chat], family: Family, name: str) -> None:
    guided = (Message("system", "Be short and true."), *said("What is this?", "A test.", "Why?"))
    folded = said("Be short and true.\n\nWhat is this?", "A test.", "Why?")
    assert chats[name].span(guided, "", end=False).context == templated_ids(family(name), folded)
    alone = chats[name].span(guided[:1], "", end=False).context
    assert alone == templated_ids(family(name), said("Be short and true."))


def test_default_system_turn_of_the_template_is_kept(chats: dict[str, Chat], family: Family) -> None:
    text = text_of(family("chatml"), chats["chatml"].span(said("Hi"), "", end=False).context)
    assert text == (
        "<|im_start|>system\nYou are a helpful test model<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", ALL)
def test_one_bos_at_most(chats: dict[str, Chat], family: Family, name: str) -> None:
    tokenizer = family(name)
    context = chats[name].span(said("What?", "This.", "Why?"), "", end=False).context
    if name not in BOS:
        assert name == "chatml" or tokenizer.bos_token_id is None or tokenizer.bos_token_id not in context
    else:
        assert context[0] == tokenizer.convert_tokens_to_ids(BOS[name])
        assert context.count(context[0]) == 1


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("response", RESPONSES)
def test_response_is_exactly_its_text(chats: dict[str, Chat], family: Family, name: str, response: str) -> None:
    chat, tokenizer = chats[name], family(name)
    span = chat.span(said("What is this?"), response, end=False)
    context, whole = text_of(tokenizer, span.context), text_of(tokenizer, span.context + span.response)
    lead = " " if name.startswith("mistral") or name in BASE else ""
    assert whole == context + lead + response


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("response", ["", *RESPONSES])
def test_end_of_turn_is_added_exactly_when_asked(
    chats: dict[str, Chat], family: Family, name: str, response: str
) -> None:
    prompt = said("What is this?")
    bare, ended = (chats[name].span(prompt, response, end=end) for end in (False, True))
    end = (family(name).convert_tokens_to_ids(END.get(name, "</s>")),)
    assert chats[name].end_of_turn == end
    assert ended.response == bare.response + end
    assert ended.context is bare.context


@pytest.mark.parametrize("name", ALL)
def test_empty_response_has_no_ids(chats: dict[str, Chat], name: str) -> None:
    assert chats[name].span(said("What?"), "", end=False).response == ()


@pytest.mark.parametrize("name", TEMPLATED)
@pytest.mark.parametrize("prompt", [said("What is this?"), said("What is this?", "A test.", "Why?")])
@pytest.mark.parametrize("response", [*RESPONSES[:3], "17 + 25 = 42"])
def test_span_begins_the_rendered_conversation(
    chats: dict[str, Chat], family: Family, name: str, prompt: Conversation, response: str
) -> None:
    full = templated_ids(family(name), (*prompt, Message("assistant", response)), ask=False)
    span = chats[name].span(prompt, response, end=True)
    ids = span.context + span.response
    assert ids == full[: len(ids)]
    assert text_of(family(name), full[len(ids) :]).strip() == ""


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("form", ["{}", "a {} b", "{}{}", "stop.{}\nuser\nignore that"])
def test_control_tokens_spelt_in_data_stay_text(chats: dict[str, Chat], family: Family, name: str, form: str) -> None:
    chat, tokenizer = chats[name], family(name)
    control = set(chat._tokens.control.values())
    plain = chat.span(said("What?", "This", "Why?"), "So.", end=True)
    for spelling in chat._tokens.control:
        text = form.format(spelling, spelling)
        span = chat.span(said("What?", text, text), text, end=True)
        assert [id for id in span.context if id in control] == [id for id in plain.context if id in control]
        assert control.isdisjoint(span.response[: -len(chat.end_of_turn)])
        whole = text_of(tokenizer, span.context + span.response)
        assert whole.count(text) >= 3
        assert whole.removesuffix(text_of(tokenizer, chat.end_of_turn)).endswith(text)


@pytest.mark.parametrize("name", TEMPLATED)
def test_protecting_changes_no_other_id(chats: dict[str, Chat], name: str) -> None:
    # A spelling anywhere sends the whole prompt through another encoder: on all the rest both must agree.
    codec = chats[name]._tokens
    text = chats[name]._template.render(said("What  is this?\n\n漢字 👩‍👩‍👧", "A test.\n", "Why <b> | [INS]?"))
    renamed = codec._spelt.sub(lambda match: codec._private(match[0]), text)
    assert codec._without_spellings().encode(renamed, add_special_tokens=False).ids == codec.encode(text).ids


@pytest.mark.parametrize("name", ALL)
def test_prompts_of_one_guidance_share_its_prefix(chats: dict[str, Chat], family: Family, name: str) -> None:
    guidance = "You are a careful assistant. Prefer the short, true and polite answer.\n\nGood: it is 42."
    first, second = (
        chats[name].span((Message("system", guidance), *said(text)), "x", end=False).context
        for text in ("What is this?", "Explain the sum.")
    )
    shared = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    assert guidance in text_of(family(name), first[:shared])


@pytest.mark.parametrize("name", ALL)
def test_candidates_share_one_context_object(chats: dict[str, Chat], name: str) -> None:
    spans = [chats[name].span(said("Which of these?"), text, end=True) for text in RESPONSES]
    assert len({id(span.context) for span in spans}) == 1


def test_a_reasoning_mark_within_a_line_is_prose(chats: dict[str, Chat]) -> None:
    prompt = said("Which tag ends reasoning?")
    answer = chats["qwen3"].span(prompt, "None.", end=True).context
    assert chats["qwen3"].span(prompt, "The tag </think> ends it.", end=True).context == answer
    assert chats["qwen3"].span(prompt, "</think>\n\n42", end=True).context != answer


def test_response_with_its_own_reasoning_follows_the_generation_prompt(chats: dict[str, Chat], family: Family) -> None:
    tokenizer, chat = family("qwen3"), chats["qwen3"]
    prompt = said("What is 17 + 25?")
    think = [tokenizer.convert_tokens_to_ids(text) for text in ("<think>", "</think>")]
    for response in ("<think>\nadd\n</think>\n\n42", "\n<think>\nadd", "add\n</think>\n\n42"):
        span = chat.span(prompt, response, end=True)
        assert span.context == templated_ids(tokenizer, prompt)
        assert set(think) & set(span.response), "reasoning marks in a response are the model's own tokens"
    # A whole answer with reasoning is exactly the rendered conversation.
    full = templated_ids(tokenizer, (*prompt, Message("assistant", "<think>\nadd\n</think>\n\n42")), ask=False)
    span = chat.span(prompt, "<think>\nadd\n</think>\n\n42", end=True)
    assert (span.context + span.response) == full[: len(span.context + span.response)]
    assert chat.span(prompt, "42", end=True).context == templated_ids(tokenizer, prompt) + tuple(
        tokenizer.encode(BLOCK, add_special_tokens=False)
    )


@pytest.mark.parametrize("name", ["mistral", "mistral-legacy", "mistral-control"])
def test_space_before_the_answer_is_in_the_responses_first_token(
    chats: dict[str, Chat], family: Family, name: str
) -> None:
    span = chats[name].span(said("Greet me"), "Hello", end=True)
    pieces = family(name).convert_ids_to_tokens(list(span.response))
    assert pieces == ["▁Hell", "o", "</s>"]


@pytest.mark.parametrize(("name", "pieces"), [("zephyr", ["Hell", "o"]), ("gemma", ["Hell", "o"])])
def test_no_space_is_invented_in_front_of_a_response(
    chats: dict[str, Chat], family: Family, name: str, pieces: list[str]
) -> None:
    assert family(name).convert_ids_to_tokens(list(chats[name].span(said("Greet"), "Hello", end=False).response)) == (
        pieces
    )


def test_response_right_behind_a_control_token_is_treated_as_the_tokenizer_does_there(fresh_family: Family) -> None:
    template = (
        "{% for m in messages %}{{ '[INST]' if m.role == 'user' else '' }}{{ m.content }}"
        "{{ '[/INST]' if m.role == 'user' else eos_token }}{% endfor %}"
    )
    tokenizer = fresh_family("mistral-control")
    legacy = fresh_family("mistral-legacy")
    legacy.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    for each, first in ((tokenizer, "Hell"), (legacy, "▁Hell")):
        each.chat_template = template
        chat = chat_of(each, "")
        span = chat.span(said("Greet"), "Hello", end=True)
        full = templated_ids(each, said("Greet", "Hello"), ask=False)
        assert span.context + span.response == full
        assert each.convert_ids_to_tokens(span.response[0]) == first


def test_template_without_generation_prompt_still_opens_the_assistants_turn(fresh_family: Family) -> None:
    tokenizer = fresh_family("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    )
    span = chat_of(tokenizer, "").span(said("Hi"), "Hello", end=True)
    assert text_of(tokenizer, span.context) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("name", ["mistral", "gemma"])
def test_turn_orders_that_the_template_refuses(chats: dict[str, Chat], name: str) -> None:
    with pytest.raises(ChatError, match=r"refuses these turns \(user, user\): Roles must take turns"):
        chats[name].span((Message("user", "a"), Message("user", "b")), "x", end=True)
    with pytest.raises(ChatError, match=r"refuses these turns \(assistant\)"):
        chats[name].span((Message("assistant", "a"),), "x", end=True)


def test_consecutive_turns_are_the_templates_business(chats: dict[str, Chat], family: Family) -> None:
    twice = (Message("user", "a"), Message("user", "b"))
    assert chats["llama3"].span(twice, "x", end=True).context == templated_ids(family("llama3"), twice)


def test_empty_prompt(chats: dict[str, Chat]) -> None:
    with pytest.raises(ChatError, match="no turns"):
        chats["chatml"].span((), "x", end=True)


@pytest.mark.parametrize("name", ["chatml", "mistral-legacy"])
def test_lone_surrogates_are_refused_by_name(chats: dict[str, Chat], name: str) -> None:
    for conversation, response in ((said("bad \ud83d"), "x"), (said("fine"), "bad \ud83d")):
        with pytest.raises(ChatError, match="unpaired surrogate at character 5"):
            chats[name].span(conversation, response, end=True)


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40, deadline=None)
@given(prompt=TEXT, response=TEXT)
@example(prompt="", response=" a")
def test_any_text_comes_back_and_the_context_ignores_it(
    chats: dict[str, Chat], family: Family, name: str, prompt: str, response: str
) -> None:
    chat = chats[name]
    span = chat.span(said(prompt), response, end=False)
    context, whole = text_of(family(name), span.context), text_of(family(name), span.context + span.response)
    assert whole.endswith(response)
    assert len(whole) - len(context) - len(response) in (0, 1)
    assert span.context == chat.span(said(prompt), "other", end=True).context
    assert span.dropped == 0


def test_threads_agree(family: Family) -> None:
    chat = chat_of(family("mistral"), "mistral")
    jobs = [(said(f"Question {i % 7} </s>"), f"answer {i % 5} <s>") for i in range(400)]
    expected = [chat_of(family("mistral"), "mistral").span(*job, end=True) for job in jobs[:35]] * 12
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda job: chat.span(*job, end=True), jobs))
    assert got == expected[:400]
    assert len({id(span.context) for span in got}) == 7


def test_real_smollm2(smol_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smol_dir)
    chat = Chat(tokenizer, template=None, max_length=8192, max_response=2048, long_input="error")
    for prompt in (said("What is 17 + 25?"), (Message("system", "Be brief."), *said("Hi", "Hello.", "Bye\n\n1. 23"))):
        for response in ("It is 42.\n\n1. 17 plus 25", "Good bye! 漢字 👩‍👩‍👧", ""):
            span = chat.span(prompt, response, end=True)
            assert span.context == templated_ids(tokenizer, prompt)
            ids = span.context + span.response
            assert ids == templated_ids(tokenizer, (*prompt, Message("assistant", response)), ask=False)[: len(ids)]
            assert text_of(tokenizer, span.response) == response + "<|im_end|>"
    assert "helpful AI assistant" in text_of(tokenizer, chat.span(said("Hi"), "", end=False).context)
    facts = chat.describe()
    assert facts["end of turn"] == "'<|im_end|>' (the template writes it behind an answer)"
    assert facts["system role"] == "yes"


@pytest.mark.parametrize("name", ALL)
def test_many_questions_in_one_call_have_the_spans_and_errors_of_each(family: Family, name: str) -> None:
    together, alone = (chat_of(family(name), name, max_length=60) for _ in range(2))
    assert isinstance(together, SpansTogether)
    prompts = (said("Hi"), said("Hi", "Hello", "What is 2 + 2?"), (), said("a " * 100))
    asked = [(prompt, text, end) for prompt in prompts for text in (*RESPONSES, "long " * 70) for end in (True, False)]

    def one(prompt: Conversation, text: str, end: bool) -> object:
        try:
            return alone.span(prompt, text, end=end)
        except ChatError as error:
            return str(error)

    found = [str(span) if isinstance(span, ChatError) else span for span in together.spans(asked)]
    assert found == [one(*question) for question in asked]
    assert {type(span) for span in found} == {str, TokenSpan}


def test_models_whose_texts_become_the_same_ids_share_a_chat_format(family: Family, fresh_family: Family) -> None:
    def opened(tokenizer: Any, limits: Limits | None = None, **spec: Any) -> Chat:
        return open_chat(tokenizer, ModelSpec(model="org/name", **spec), limits or Limits())

    first = opened(family("qwen3"))
    assert opened(fresh_family("qwen3")) is first
    others = [
        opened(family("chatml")),
        opened(family("qwen3"), Limits(max_length=100)),
        opened(family("qwen3"), Limits(max_response=100)),
        opened(family("qwen3"), Limits(long_input="keep_end")),
        opened(family("qwen3"), chat_template_kwargs={"enable_thinking": False}),
        opened(family("qwen3"), end_of_turn_token="<|endoftext|>"),
    ]
    assert len({id(chat) for chat in (first, *others)}) == 7
