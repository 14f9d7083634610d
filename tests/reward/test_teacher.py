"""The teacher's numbers: those of the models, of the ratio, and of a conversation that has the guidance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdr_plugin.api.errors import ConfigError, DataError, ModelError
from gdr_plugin.api.guidance import Guidance
from gdr_plugin.api.types import Logprobs, Message, Sample, TokenSpan
from gdr_plugin.models.fake import BOS, FakeModel
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.reward.teacher import RawIds, Teacher, TokenValues, policy_vocabulary

VOCABULARY = FakeModel("x").chat.vocabulary()  # type: ignore[attr-defined]
GUIDANCE = Guidance(name="careful", description="", instruction="Check each step.", exemplars=())
IDS = (BOS, 257, *b"user\nHi", 258, 10, 257, *b"assistant\nYo.", 258)


def teacher_of(guidance: Guidance | None = None, placement: Any = "both", **options: Any) -> Teacher:
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b", guidance=guidance, placement=placement)
    return Teacher(ratio, VOCABULARY, **options)


def alone(name: str, context: tuple[int, ...], response: tuple[int, ...]) -> Logprobs:
    return FakeModel(name).score([TokenSpan(context, response)])[0].astype(np.float64)


def values_of(teacher: Teacher, *questions: RawIds) -> list[TokenValues]:
    found = teacher.score(questions)
    assert all(isinstance(values, TokenValues) for values in found)
    return found  # type: ignore[return-value]


def test_every_id_after_the_first_gets_reference_plus_scaled_ratio() -> None:
    (found,) = values_of(teacher_of(scale=2.5), RawIds(IDS))
    strong, weak = alone("a", IDS[:1], IDS[1:]), alone("b", IDS[:1], IDS[1:])
    assert found.values.shape == (len(IDS) - 1,)
    np.testing.assert_allclose(found.values, weak + 2.5 * (strong - weak), atol=1e-5)
    np.testing.assert_allclose(found.ratios, strong - weak, atol=1e-5)


def test_with_the_weak_model_as_reference_and_scale_1_it_is_the_strong_model() -> None:
    (found,) = values_of(teacher_of(), RawIds(IDS))
    np.testing.assert_allclose(found.values, alone("a", IDS[:1], IDS[1:]), atol=1e-5)


def test_a_reference_of_its_own_sees_no_guidance_and_clip_bounds_each_token() -> None:
    teacher = teacher_of(GUIDANCE, reference=FakeModel("c"), scale=3.0, clip=0.5)
    (found,) = values_of(teacher, RawIds(IDS))
    clipped = np.clip(3 * found.ratios, -0.5, 0.5)
    np.testing.assert_allclose(found.values, alone("c", IDS[:1], IDS[1:]) + clipped, atol=1e-5)
    assert (abs(3 * found.ratios) > 0.5).any()


@pytest.mark.parametrize("placement", ["both", "strong", "none"])
def test_behind_the_prompt_it_is_the_ratio_of_the_guided_conversation(placement: Any) -> None:
    teacher = teacher_of(GUIDANCE, placement)
    prompt, response = (Message("user", "What is 2 + 2?"),), "Four."
    span = teacher.ratio.strong.chat.span(prompt, response, end=True)
    (found,) = values_of(teacher, RawIds(span.context + span.response, len(span.context) - 1))
    (score,) = teacher.ratio.score([Sample(prompt, response)], tokens=True)
    np.testing.assert_allclose(found.ratios, score.token_ratios, atol=1e-5)
    assert found.ratios.sum() == pytest.approx(score.reward, abs=1e-5)


def test_bos_stands_once_in_front_of_the_guidance() -> None:
    block = FakeModel("a").chat.system_block("Check each step.")  # type: ignore[attr-defined]
    for ids, context in ((IDS, block), (IDS[1:], block + IDS[1:2])):
        (found,) = values_of(teacher_of(GUIDANCE, "strong"), RawIds(ids))
        ratios = alone("a", context, ids[1:]) - alone("b", ids[:1], ids[1:])
        np.testing.assert_allclose(found.ratios, ratios, atol=1e-5)


def test_an_opening_of_several_ids_stands_in_front_of_the_guidance_and_has_values() -> None:
    strong = FakeModel("a")
    strong.chat.opening = (BOS, 257)  # type: ignore[attr-defined]
    ratio = GuidedDensityRatio.from_models(strong, "fake:b", guidance=GUIDANCE, placement="strong")
    (found,) = values_of(Teacher(ratio, VOCABULARY), RawIds(IDS))
    block = strong.chat.system_block("Check each step.")  # type: ignore[attr-defined]
    expected = np.concatenate([alone("a", IDS[:1], IDS[1:2]), alone("a", block, IDS[2:])])
    np.testing.assert_allclose(found.ratios, expected - alone("b", IDS[:1], IDS[1:]), atol=1e-5)


def test_many_questions_are_answered_in_order_and_each_model_is_asked_once() -> None:
    strong = FakeModel("a")
    teacher = Teacher(GuidedDensityRatio.from_models(strong, "fake:b"), VOCABULARY)
    questions = [RawIds(IDS[: 1 + number], start=number // 2) for number in range(9)]
    found = values_of(teacher, *questions)
    assert strong.calls == 1
    for asked, values in zip(questions, found, strict=True):
        assert values.values.tolist() == values_of(teacher, asked)[0].values.tolist()
        assert len(values.values) == len(asked.ids) - asked.start - 1
    assert teacher.score([]) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (RawIds(()), "there are no ids"),
        (RawIds((BOS, 259)), "id 259 is not in the vocabulary of 259 tokens"),
        (RawIds((BOS, -1)), "id -1 is not in the vocabulary"),
        (RawIds((BOS, 1), 2), "cannot begin behind place 2 of 2 ids"),
        (RawIds((BOS, 1), domain="maths"), "domain 'maths'"),
    ],
)
def test_ids_that_cannot_be_scored_are_refused(asked: RawIds, said: str) -> None:
    with pytest.raises(DataError, match=said):
        teacher_of().check(asked)


def test_too_long_counts_the_guidance() -> None:
    from gdr_plugin.api.settings import Limits

    limits = Limits(max_length=64)
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b", guidance=GUIDANCE, limits=limits)
    teacher = Teacher(ratio, VOCABULARY)
    block = len(FakeModel("a").chat.system_block("Check each step."))  # type: ignore[attr-defined]
    ids = (BOS, *[65] * (64 - block))
    teacher.check(RawIds(ids))
    with pytest.raises(DataError, match=f"{len(ids) + 1} ids behind {block - 1} of guidance exceed the 64 tokens"):
        teacher.check(RawIds((*ids, 65)))


def test_what_is_not_finite_is_an_error_of_that_question_alone() -> None:
    class Overflows(FakeModel):
        def score(self, spans: Any) -> list[Logprobs]:
            found = super().score(spans)
            return [values * np.float32("nan") if 66 in span.response else values
                    for span, values in zip(spans, found, strict=True)]  # fmt: skip

    teacher = Teacher(GuidedDensityRatio.from_models("fake:a", Overflows("b")), VOCABULARY)
    good, bad = teacher.score([RawIds((BOS, 65, 67)), RawIds((BOS, 65, 66))])
    assert isinstance(good, TokenValues)
    assert isinstance(bad, ModelError)
    assert "weak model: log-probs are not finite" in str(bad)


def test_another_vocabulary_is_refused_before_anything_is_scored() -> None:
    with pytest.raises(ConfigError, match=r"strong model's vocabulary is not the policy's \(2 ids differ: 65 is"):
        Teacher(GuidedDensityRatio.from_models("fake:a", "fake:b"), {**VOCABULARY, "A": 65} | {"<0x41>": 300})
    weak = FakeModel("b")
    weak.chat.vocabulary = lambda: {"a": 0}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="weak model's vocabulary is not the policy's"):
        Teacher(GuidedDensityRatio.from_models("fake:a", weak), VOCABULARY)
    reference = FakeModel("c")
    reference.chat.vocabulary = lambda: {**VOCABULARY, "more": 259}  # type: ignore[attr-defined]
    with pytest.raises(
        ConfigError, match=r"reference model's .*259 is 'more' for the model and no token for the policy"
    ):
        teacher_of(reference=reference)


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"scale": float("inf")}, {"clip": 0.0}, {"domain": "maths"}])
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"above 0|domain 'maths'"):
        teacher_of(**options)


PAIR = {"seed": 1}, {"seed": 2}
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = "<|endoftext|>" + DEFAULT_SYSTEM[DEFAULT_SYSTEM.index("{% for") :]
FOLDED = (
    "{% set lead = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
    "{{ lead if loop.first else '' }}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", ["chatml", WITH_BOS])
def test_local_models_guided_ids_are_the_guided_conversation(tiny_model: Callable[..., Path], template: str) -> None:
    own = {} if template == "chatml" else {"chat_template": template}
    strong, weak = (str(tiny_model(**seed, **own)) for seed in PAIR)
    ratio = GuidedDensityRatio.from_models(strong, weak, guidance=GUIDANCE)
    teacher = Teacher.from_ratio(ratio, strong, scale=1.5)
    bare = GuidedDensityRatio.from_models(strong, weak)
    questions, samples = [], []
    for prompt, response in (("Who are you?", "A river."), ("Add 1.", "def add(a, b):"), ("Add 1.", "Two.")):
        samples.append(Sample(prompt, response))
        span = bare.strong.chat.span(samples[-1].prompt, response, end=True)
        questions.append(RawIds(span.context + span.response, len(span.context) - 1))
    found = values_of(teacher, *questions)
    for values, score in zip(found, ratio.score(samples, tokens=True), strict=True):
        np.testing.assert_allclose(values.ratios, score.token_ratios, atol=1e-4)
        expected = np.array(score.weak_token_logprobs) + 1.5 * np.array(score.token_ratios)
        np.testing.assert_allclose(values.values, expected, atol=1e-4)


def test_local_models_score_each_id_given_all_before_it(tiny_model: Callable[..., Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    strong, weak = (str(tiny_model(**seed)) for seed in PAIR)
    ids = [0, 5, 99, 7, 300, 42, 2, 11]
    (found,) = values_of(Teacher.from_ratio(GuidedDensityRatio.from_models(strong, weak), strong), RawIds(tuple(ids)))
    with torch.no_grad():
        rows = [
            AutoModelForCausalLM.from_pretrained(name)(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            for name in (strong, weak)
        ]
    one, other = (row.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy() for row in rows)
    np.testing.assert_allclose(found.ratios, one - other, atol=1e-4)
    np.testing.assert_allclose(found.values, one, atol=1e-4)


def test_a_system_block_ends_before_the_users_turn(tiny_model: Callable[..., Path]) -> None:
    from gdr_plugin.api.settings import ModelSpec
    from gdr_plugin.models.local import open_local

    def chat(template: str) -> Any:
        return open_local(ModelSpec(model=str(tiny_model(chat_template=template)))).chat

    default = chat(DEFAULT_SYSTEM)
    encode = default._tokens.encode
    assert list(default.system_block("Be brief.")) == encode("<|im_start|>system\nBe brief.<|im_end|>\n").ids
    assert chat(WITH_BOS).opening == (0,)
    assert chat(WITH_BOS).system_block("Be brief.")[0] == 0
    with pytest.raises(Exception, match="writes the system turn into the user's"):
        chat(FOLDED).system_block("Be brief.")
    strong, weak = (str(tiny_model(chat_template=FOLDED, **seed)) for seed in PAIR)
    with pytest.raises(ConfigError, match=r"strong model, domain all: .*set guidance.placement to none"):
        Teacher.from_ratio(GuidedDensityRatio.from_models(strong, weak, guidance=GUIDANCE), strong)


def test_the_reference_of_a_configuration_is_opened_and_its_path_found(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "policy").symlink_to(tiny_model(seed=3))
    strong, weak = (str(tiny_model(**seed)) for seed in PAIR)
    file = tmp_path / "gdr.yaml"
    file.write_text(f"strong: {strong}\nweak: {weak}\nteacher: {{reference: policy}}\n")
    ratio = GuidedDensityRatio.from_config(file)
    assert ratio.config is not None
    assert ratio.config.teacher is not None
    assert ratio.config.teacher.reference.model == str(tmp_path / "policy")
    teacher = Teacher.from_ratio(ratio, strong, domain="math")
    assert list(teacher.models) == ["strong", "weak", "reference"]
    assert teacher.describe()["guidance"].startswith("math[")
    assert set(policy_vocabulary(strong)) >= {"<|im_start|>"}
