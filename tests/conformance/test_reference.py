"""The reference itself: against answers worked out by hand, and against whole renderings."""

from __future__ import annotations

from functools import cache

import pytest

from tests.conformance import cases, families
from tests.conformance.cases import ANSWER, THOUGHT
from tests.conformance.reference import Judgement, Reference

CONTEXTS = {context.name: context for context in cases.CONTEXTS}
RESPONSES = {case.response.name: case.response for case in cases.cases()}
REASONED = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"


@cache
def reference_of(name: str) -> Reference:
    template = families.load(f"trl:{name}")
    return Reference(template.tokenizer, template.text)


def judged(name: str, context: str, response: str) -> Judgement:
    given = RESPONSES[response]
    turns = CONTEXTS[context].turns
    return reference_of(name).judge(turns, given.text, kind=given.kind, message=given.message)


@pytest.mark.parametrize(
    ("name", "response", "context", "text", "end"),
    [
        ("llama3_1", "plain", "<|start_header_id|>assistant<|end_header_id|>\n\n", ANSWER, "<|eot_id|>"),
        ("llava_next", "plain", "twenty-five? [/INST]", f" {ANSWER}", "</s>"),
        ("llava_next", "empty", "twenty-five? [/INST]", "", "</s>"),
        ("qwen3", "plain", "<|im_start|>assistant\n<think>\n\n</think>\n\n", ANSWER, "<|im_end|>"),
        ("qwen3", "reasoning", "<|im_start|>assistant\n", REASONED, "<|im_end|>"),
        ("qwen3", "reasoning-cut", "<|im_start|>assistant\n", f"<think>\n{THOUGHT}", "<|im_end|>"),
        ("qwen3_5_think", "plain", "assistant\n<think>\n\n</think>\n\n", ANSWER, "<|im_end|>"),
        ("qwen3_5_think", "reasoning", "assistant\n<think>\n", f"{THOUGHT}\n</think>\n\n{ANSWER}", "<|im_end|>"),
        ("nemotron_3_nano", "plain", "assistant\n<think></think>", ANSWER, "<|im_end|>"),
        ("nemotron_3_ultra", "reasoning-field", "<think>\n", f"{THOUGHT}</think>{ANSWER}", "<|im_end|>"),
        ("glm4moe", "plain", "<|assistant|>\n<think></think>\n", ANSWER, "<|user|>"),
        ("glm4moe", "reasoning-field", "<|assistant|>", f"\n<think>{THOUGHT}</think>\n{ANSWER}", "<|user|>"),
        ("cohere2", "plain", "<|START_RESPONSE|>", ANSWER, "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
        ("phi3_5", "plain", "<|end|>\n<|assistant|>\n", ANSWER, "<|end|>"),
        ("gptoss", "plain", "<|start|>assistant<|channel|>final<|message|>", ANSWER, "<|return|>"),
        (
            "gptoss",
            "reasoning-field",
            "<|start|>assistant",
            f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}",
            "<|return|>",
        ),
        (
            "gptoss",
            "call",
            "<|start|>assistant",
            ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Marseille", "days": 3}<|call|>',
            "",
        ),
    ],
)
def test_one_right_way(name: str, response: str, context: str, text: str, end: str) -> None:
    found = judged(name, "user", response)
    assert not found.refusable
    assert [(one.response, one.end) for one in found.right] == [(text, end)]
    assert found.right[0].context.endswith(context)


def test_reasoning_that_history_does_not_show() -> None:
    """DeepSeek-R1's prompt opens a thought and its history shows none: a plain answer may stand in either."""
    opened, bare = judged("deepseek_r1_distill", "user", "plain").right
    assert opened.context.endswith("twenty-five?<\uff5cAssistant\uff5c><think>\n")
    assert bare.context == opened.context.removesuffix("<think>\n")
    assert opened.response == bare.response == ANSWER
    (only,) = judged("deepseek_r1_distill", "user", "reasoning").right
    assert only.context.endswith("<think>\n")
    assert only.response == f"{THOUGHT}\n</think>\n\n{ANSWER}"


def test_system_turns() -> None:
    both = judged("llama3_1", "two-systems", "plain")
    assert not both.refusable
    assert "Answer briefly.<|eot_id|>" in both.right[0].context
    assert "Answer briefly.\n\nPrefer French words.<|eot_id|>" in both.right[1].context
    (merged,) = judged("deepseek_r1_distill", "two-systems", "reasoning").right
    assert "Answer briefly.\n\nPrefer French words.<\uff5cUser\uff5c>" in merged.context
    (folded,) = judged("gemma", "two-systems", "plain").right
    assert "<start_of_turn>user\nAnswer briefly.\n\nPrefer French words.\n\nWhat makes" in folded.context
    assert judged("gemma", "two-systems", "plain").refusable


@pytest.mark.parametrize(
    ("name", "context", "response"),
    [
        ("phi3", "tool", "plain"),
        ("gemma4", "system-tool", "plain"),
        ("cohere2", "call", "plain"),
        ("qwen2_5_vl", "call", "plain"),
        ("llama3", "user", "call"),
        ("cohere", "tool", "plain"),
    ],
)
def test_what_no_rendering_shows(name: str, context: str, response: str) -> None:
    assert judged(name, context, response) == Judgement((), True)


@pytest.mark.parametrize("context", ["call", "call-string"])
def test_tool_calls(context: str) -> None:
    """Arguments as an object, whatever the data has, and none of Python's spelling."""
    (qwen,) = judged("qwen2_5", context, "plain").right
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Marseille", "days": 3}}\n</tool_call><|im_end|>'
    assert call in qwen.context
    assert qwen.context.endswith(
        "<tool_response>\nEighteen degrees\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    # This one adds the arguments to a string: as an object they cannot be written.
    deepseek = judged("deepseekv3", context, "plain")
    assert '```json\n{"city": "Marseille", "days": 3}\n```' in deepseek.right[0].context
    assert not deepseek.refusable


def test_earlier_reasoning_is_the_templates_to_drop() -> None:
    (qwen,) = judged("qwen3", "thought", "plain").right
    assert "subtract" not in qwen.context
    assert "Nothing special happens." in qwen.context
    (nemotron,) = judged("nemotron_3_ultra", "thought", "plain").right
    assert nemotron.context.count("<think>") == 2


def test_prefill() -> None:
    turns = CONTEXTS["prefill"].turns
    (only,) = reference_of("qwen3").prefilled(turns, ANSWER).right
    assert only.context.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nThe sum of both")
    assert (only.response, only.end) == (ANSWER, "<|im_end|>")


@pytest.mark.parametrize("key", [key for key in families.present() if key.startswith("trl:")])
def test_whole_rendering_and_its_ids(key: str) -> None:
    """An answer stands in the whole rendering where the reference says, and the parts' ids are the whole's."""
    template = families.load(key)
    reference = Reference(template.tokenizer, template.text)
    for name in ("user", "turns"):
        turns = CONTEXTS[name].turns
        right = reference.judge(turns, ANSWER).right
        whole = reference.render([*turns, {"role": "assistant", "content": ANSWER}], ask=False)
        assert whole is not None
        (shown, *_) = [one for one in right if whole.startswith(one.context + one.response)]
        ids = reference.ids(shown)
        text = shown.context + shown.response + shown.end
        assert (
            list(ids.context + ids.response + ids.end)
            == template.tokenizer(text, add_special_tokens=False)["input_ids"]
        )
        assert ANSWER in template.tokenizer.decode(list(ids.response))
        assert ids.end
        last = template.tokenizer.convert_ids_to_tokens(ids.end[-1])
        assert last in {token.content for token in template.tokenizer.added_tokens_decoder.values()}
