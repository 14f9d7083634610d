"""Rendering is deterministic, and the guidance is the shared start of every prompt of a domain."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.guidance import NO_GUIDANCE, Exemplar, Guidance, RenderedGuidance
from gdr_plugin.api.types import Message
from gdr_plugin.guidance import apply, library, render

FIVE = Guidance(
    name="five",
    instruction="Answer well.",
    exemplars=tuple(
        Exemplar(f"e{i}", f"prompt {i}", f"good {i}", f"bad {i}", f"why {i}", f"rule {i}") for i in range(5)
    ),
)

texts = st.text(max_size=40)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), texts)
conversations = st.lists(messages, max_size=6).map(tuple)


def test_text_has_the_parts_in_order() -> None:
    rendered = render(replace(FIVE, exemplars=FIVE.exemplars[:1]))
    assert rendered.text == (
        "Answer well.\n\nExample 1. rule 0\n\nUser:\nprompt 0\n\nGood Assistant:\ngood 0\n\nBad Assistant:\nbad 0\n\n"
        "Explanation: why 0\n\n"
        "Each reply to the user follows the standard of the good assistant above, not that of the bad one."
    )
    assert rendered.exemplars == ("e0",)
    assert rendered.id.startswith("five[instruction,exemplars=1,seed=0]@")


@pytest.mark.parametrize(
    ("instruction", "exemplars", "switches"),
    [(True, 0, "instruction"), (False, 2, "exemplars=2,seed=3"), (True, 9, "instruction,exemplars=5,seed=3")],
)
def test_switches_are_independent_and_recorded(instruction: bool, exemplars: int, switches: str) -> None:
    rendered = render(FIVE, instruction=instruction, exemplars=exemplars, seed=3)
    assert rendered.id.startswith(f"five[{switches}]@")
    assert ("Answer well." in rendered.text) is instruction
    assert rendered.text.count("Good Assistant:") == len(rendered.exemplars) == min(exemplars, 5)


def test_nothing_to_render_is_no_guidance() -> None:
    assert render(None) is NO_GUIDANCE
    assert render(FIVE, instruction=False, exemplars=0) is NO_GUIDANCE
    assert render(Guidance("blank", " \n"), exemplars=3) is NO_GUIDANCE


def test_a_larger_draw_begins_with_the_smaller_one() -> None:
    for seed in range(20):
        whole = render(FIVE, exemplars=5, seed=seed).exemplars
        assert sorted(whole) == [f"e{i}" for i in range(5)]
        for count in range(5):
            assert render(FIVE, exemplars=count, seed=seed).exemplars == whole[:count]


def test_the_draw_does_not_depend_on_the_order_in_the_file() -> None:
    turned = replace(FIVE, exemplars=FIVE.exemplars[::-1])
    assert render(turned, exemplars=3, seed=7) == render(FIVE, exemplars=3, seed=7)


def test_seeds_and_names_draw_differently_and_evenly() -> None:
    firsts = [render(FIVE, seed=seed).exemplars[0] for seed in range(500)]
    counts = [firsts.count(f"e{i}") for i in range(5)]
    assert min(counts) > 70  # 100 expected, sd about 9
    other = [render(replace(FIVE, name="six"), seed=seed).exemplars[0] for seed in range(500)]
    assert firsts != other


def test_the_id_follows_the_text() -> None:
    changed = replace(FIVE, instruction="Answer very well.")
    assert render(FIVE).id != render(changed).id
    assert render(FIVE).id == render(replace(FIVE)).id
    # The description is for routers: it is not part of what a model reads.
    assert render(replace(FIVE, description="anything")).id == render(FIVE).id


def test_the_same_in_every_process() -> None:
    code = (
        "from gdr_plugin.guidance import library, render; print([render(g, exemplars=2, seed=5).id for g in library()])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1")
    }
    assert answers == {str([render(g, exemplars=2, seed=5).id for g in library()])}


def test_negative_exemplars_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"guidance\.exemplars: must be 0 or more, not -1"):
        render(FIVE, exemplars=-1)


@given(conversations)
def test_no_guidance_changes_nothing(conversation: tuple[Message, ...]) -> None:
    assert apply(NO_GUIDANCE, conversation) is conversation


@given(conversations, st.text(min_size=1, max_size=30))
def test_guidance_comes_first_and_everything_else_is_kept(conversation: tuple[Message, ...], text: str) -> None:
    guided = apply(RenderedGuidance(text, "x"), conversation)
    own = 0
    while own < len(conversation) and conversation[own].role == "system":
        own += 1
    assert guided[0].role == "system"
    assert guided[0].content.startswith(text)  # the prefix that all prompts of the domain share
    assert guided[1:] == conversation[own:]
    rest = "\n\n".join(m.content for m in conversation[:own] if m.content)
    assert guided[0].content == (f"{text}\n\n{rest}" if rest else text)


def test_own_system_turns_are_merged_after_the_guidance() -> None:
    conversation = (Message("system", " Speak French.\n"), Message("system", "Be brief."), Message("user", "Hi"))
    assert apply(RenderedGuidance("G", "x"), conversation) == (
        Message("system", "G\n\n Speak French.\n\n\nBe brief."),
        Message("user", "Hi"),
    )
