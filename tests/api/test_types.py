"""Samples and scores as people write and read them."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest

import gdr_plugin
from gdr_plugin import GuidedDensityRatio, Message, Sample, Score
from gdr_plugin.api.errors import ConfigError, DataError
from gdr_plugin.api.types import TOOLS, ToolCall, parts_of

TURNS = (Message("system", "Be brief."), Message("user", "Hi"))


@pytest.mark.parametrize(
    "prompt",
    [
        TURNS,
        list(TURNS),
        [{"role": "system", "content": "Be brief."}, {"content": "Hi", "role": "user"}],
        [TURNS[0], {"role": "user", "content": "Hi"}],
    ],
)
def test_turns_in_every_form_are_the_same_prompt(prompt: Any) -> None:
    sample = Sample(prompt, "Yo", fields={"domain": "chat"})
    assert sample == Sample(prompt=TURNS, response="Yo", finished=True, fields={"domain": "chat"})
    assert type(sample.prompt) is tuple


def test_a_text_is_one_user_turn() -> None:
    assert Sample("Hi", "Yo").prompt == (Message("user", "Hi"),)


def test_a_response_may_be_the_assistants_message() -> None:
    call = (ToolCall("timer", "{}"),)
    sample = Sample("Hi", Message("assistant", "Yo", "Hm.", call))
    assert (sample.response, sample.reasoning, sample.tool_calls) == ("Yo", "Hm.", call)
    assert sample.turn == Message("assistant", "Yo", "Hm.", call)


@pytest.mark.parametrize(
    ("prompt", "response", "match"),
    [
        (None, "Yo", "`prompt` must be a text or a list of turns, not None"),
        (3, "Yo", "`prompt` must be a text or a list of turns, not a int"),
        (["Hi"], "Yo", r"turn 1 of `prompt` must be a Message or \{\"role\": ..., \"content\": ...\}, not a str"),
        ([*TURNS, {"role": "user"}], "Yo", "turn 3 of `prompt` must have `role` and `content`, two texts"),
        ([{"role": "user", "content": None}], "Yo", "turn 1 of `prompt` must have"),
        ([{"role": "assistant", "content": "", "tool_calls": []}], "Yo", "score a row .* where turns have tool calls"),
        ("Hi", None, "`response` must be a text or an assistant's Message, not None"),
        ("Hi", [{"role": "assistant", "content": "Yo"}], "`response` must be a text .*, not a list"),
        ("Hi", Message("user", "Yo"), "`response` must be a text or an assistant's Message, not a Message"),
    ],
)
def test_what_is_no_sample_says_so_at_once(prompt: Any, response: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        Sample(prompt, response)


def test_samples_are_values() -> None:
    sample = Sample(TURNS, "Yo", False, {"n": 1}, "Hm.")
    assert pickle.loads(pickle.dumps(sample)) == copy.deepcopy(sample) == sample
    assert replace(sample, response="No") == Sample(TURNS, "No", False, {"n": 1}, "Hm.")
    with pytest.raises(AttributeError):
        sample.response = "No"  # type: ignore[misc]


def test_short_reprs() -> None:
    assert repr(Sample("Hi", "x" * 100)) == f"Sample('Hi', '{'x' * 57}...')"
    told = Sample(TURNS, "Yo", False, {"domain": "chat"})
    assert repr(told) == "Sample(2 turns ending 'Hi', 'Yo', finished=False, fields={'domain': 'chat'})"
    score = Score(-2.35657, None, -61.2764, -58.9198, 23, 24, "safety", "field", "none")
    shown = "strong=-61.28 over 23 tokens, weak=-58.92 over 24, domain='safety', guidance='none'"
    assert repr(score) == f"Score(reward=-2.3566, {shown})"
    unscored = Score(None, "too long", None, None, 0, 0, "chat", "default", "none")
    assert repr(unscored) == "Score(reward=None, reason='too long', domain='chat')"
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b", reduction="mean")
    shown = "strong='fake:a', weak='fake:b', domains=['all'], reduction='mean'"
    assert repr(ratio) == f"GuidedDensityRatio({shown})"


def test_rows_are_scored_as_samples_are() -> None:
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b")
    call = {"function": {"name": "timer", "arguments": {"minutes": 5}}}
    rows = [
        {"prompt": "Hi", "response": "Yo"},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "tool_calls": [call]}]},
        Sample("Hi", "Yo"),
    ]
    samples = [Sample("Hi", "Yo"), Sample("Hi", "Yo", tool_calls=(ToolCall("timer", '{"minutes": 5}'),))]
    assert ratio.score(rows) == ratio.score([*samples, samples[0]]) == list(ratio.stream(rows, window=2))
    with pytest.raises(DataError, match="item 1: there is no column 'response'"):
        ratio.score([samples[0], {"prompt": "Hi"}])
    with pytest.raises(DataError, match="item 0 must be a Sample or a row with `prompt` and `response`, not a string"):
        ratio.score(["Hi"])  # type: ignore[list-item]


def test_a_mapping_configures_a_ratio() -> None:
    ratio = GuidedDensityRatio.from_config({"strong": "fake:a", "weak": "fake:b", "reward": {"reduction": "mean"}})
    assert ratio.reduction == "mean"
    with pytest.raises(ConfigError, match=r"configuration: .*weak"):
        GuidedDensityRatio.from_config({"strong": "fake:a"})


def test_a_model_without_its_tokenizer_is_refused_at_once(tiny_model: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model())
    with pytest.raises(ConfigError, match=r"strong: a LlamaForCausalLM is no model .* \(model, tokenizer\)"):
        GuidedDensityRatio.from_models(model, "fake:b")


def test_completion_shows_the_public_names_alone() -> None:
    shown = [name for name in dir(gdr_plugin) if not name.startswith("__")]
    assert shown == sorted(gdr_plugin.__all__)


def test_parts_of_a_conversation() -> None:
    tools = Message(TOOLS, "[]")
    assert parts_of((tools, *TURNS)) == ((tools,), TURNS[:1], TURNS[1:])
    assert parts_of(TURNS) == ((), TURNS[:1], TURNS[1:])
    assert parts_of(()) == ((), (), ())
