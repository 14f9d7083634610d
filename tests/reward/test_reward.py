"""The reward's arithmetic and provenance, against numbers computed by hand from the two models."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gdr_plugin.api.errors import ChatError, ConfigError, EngineWarning
from gdr_plugin.api.guidance import Exemplar, Guidance
from gdr_plugin.api.routers import RoutingContext
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Conversation, Logprobs, Message, Sample, TokenSpan, ToolCall
from gdr_plugin.config.load import parse_config
from gdr_plugin.config.schema import GuidanceSection, RewardSection
from gdr_plugin.guidance import apply, render
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import RouterChain
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.store import LogprobStore

GUIDANCE = Guidance("short", "Answer in one sentence.", (Exemplar("e1", "Hi?", "Hello.", "Well, hello...", "Brief."),))


def sample(prompt: str = "What is two plus two?", response: str = "Four.", **kwargs: Any) -> Sample:
    return Sample((Message("user", prompt),), response, **kwargs)


def total(name: str, conversation: Conversation, response: str, end: bool = True) -> tuple[float, int]:
    model = FakeModel(name, Limits())
    span = model.chat.span(conversation, response, end=end)
    return math.fsum(model.score([span])[0].tolist()), len(span.response)


def test_sum_is_strong_minus_weak_under_the_guidance() -> None:
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b", guidance=GUIDANCE)
    guided = apply(render(GUIDANCE, instruction=True, exemplars=1, seed=0), sample().prompt)
    (strong, n), (weak, _) = total("a", guided, "Four."), total("b", guided, "Four.")

    (score,) = ratio.score([sample()])

    assert score.reward == pytest.approx(strong - weak, abs=1e-9)
    assert score.strong_logprob == pytest.approx(strong, abs=1e-9)
    assert score.weak_logprob == pytest.approx(weak, abs=1e-9)
    assert score.strong_tokens == score.weak_tokens == n
    assert score.exemplars == ("e1",)
    assert score.guidance.startswith("short")
    assert score.reason is None


@pytest.mark.parametrize(
    ("placement", "strong_guided", "weak_guided"),
    [("both", True, True), ("strong", True, False), ("none", False, False)],
)
def test_placement_says_which_model_sees_the_guidance(placement: Any, strong_guided: bool, weak_guided: bool) -> None:
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b", guidance=GUIDANCE, placement=placement)
    guided = apply(render(GUIDANCE, instruction=True, exemplars=1, seed=0), sample().prompt)

    (score,) = ratio.score([sample()])

    assert score.strong_logprob == pytest.approx(total("a", guided if strong_guided else sample().prompt, "Four.")[0])
    assert score.weak_logprob == pytest.approx(total("b", guided if weak_guided else sample().prompt, "Four.")[0])
    assert (score.guidance == "none") is (placement == "none")


def test_mean_divides_each_side_by_its_own_tokens_and_per_byte_by_bytes() -> None:
    one = sample(response="Vier… naïve 🙂")
    (strong, n), (weak, m) = total("a", one.prompt, one.response), total("b", one.prompt, one.response)

    mean = GuidedDensityRatio.from_models("fake:a", "fake:b", reduction="mean").score([one])[0].reward
    per_byte = GuidedDensityRatio.from_models("fake:a", "fake:b", reduction="per_byte").score([one])[0].reward

    assert mean == pytest.approx(strong / n - weak / m, abs=1e-9)
    assert per_byte == pytest.approx((strong - weak) / len(one.response.encode()), abs=1e-9)


def test_end_of_turn_counts_exactly_when_the_response_ended() -> None:
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b")

    done, cut = ratio.score([sample(), sample(finished=False)])

    assert done.strong_tokens == cut.strong_tokens + 1
    assert cut.strong_logprob == pytest.approx(total("a", sample().prompt, "Four.", end=False)[0])


@pytest.mark.parametrize(("policy", "extra"), [("always", 1), ("never", 0)])
def test_end_of_turn_policy_overrides_finished(policy: str, extra: int) -> None:
    data = {"strong": "fake:a", "weak": "fake:b", "reward": {"end_of_turn": policy}}
    ratio = GuidedDensityRatio.from_config(parse_config(data))
    bare = total("a", sample().prompt, "Four.", end=False)[1]

    scores = ratio.score([sample(), sample(finished=False)])

    assert [s.strong_tokens for s in scores] == [bare + extra] * 2


def test_nothing_to_score_is_none_with_a_reason_not_zero() -> None:
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b")
    ended, cut = ratio.score([sample(response=""), sample(response="", finished=False)])
    (byte,) = GuidedDensityRatio.from_models("fake:a", "fake:b", reduction="per_byte").score([sample(response="")])

    assert ended.reward is not None
    assert ended.strong_tokens == 1
    assert (cut.reward, cut.reason) == (None, "the response has no tokens to score")
    assert byte.reward is None
    assert "no bytes" in (byte.reason or "")


class _Broken:
    """A model that overflows on one response and refuses another; everything else is the real fake."""

    def __init__(self, name: str) -> None:
        self._inner = FakeModel(name, Limits())
        self.name, self.identity, self.chat = name, "broken", self

    def span(self, conversation: Conversation, response: str, *, end: bool) -> TokenSpan:
        if response == "refuse":
            raise ChatError("the template takes no such turn")
        return self._inner.chat.span(conversation, response, end=end)

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        nan = self._inner.chat.span(sample().prompt, "overflow", end=True)
        return [
            np.full(len(s.response), np.nan, np.float32) if s == nan else a
            for s, a in zip(spans, self._inner.score(spans), strict=True)
        ]

    def describe(self) -> dict[str, str]:
        return {}

    def unload(self) -> None:
        pass


def test_a_backend_that_writes_no_calls_scores_none_that_it_would_drop() -> None:
    call = (ToolCall("timer", "{}"),)
    asked = (Message("user", "Q"),)
    samples = [
        Sample((*asked, Message("assistant", "", tool_calls=call), Message("tool", "ok")), "A"),
        Sample(asked, "A", tool_calls=call),
        Sample(asked, "A", reasoning="B"),
        Sample(asked, "A"),
    ]
    scores = GuidedDensityRatio.from_models(_Broken("a"), "fake:b").score(samples)
    apart = "strong model: its backend cannot write reasoning or tool calls that are given apart from the text"
    assert [score.reason for score in scores] == [
        "strong model: its backend cannot write the tool calls of the prompt",
        apart,
        apart,
        None,
    ]


def test_one_bad_sample_does_not_touch_the_others() -> None:
    ratio = GuidedDensityRatio.from_models(_Broken("a"), "fake:b")

    good, overflow, refused, again = ratio.score(
        [sample(), sample(response="overflow"), sample(response="refuse"), sample(response="Five.")]
    )

    assert good.reward == pytest.approx(GuidedDensityRatio.from_models("fake:a", "fake:b").score([sample()])[0].reward)
    assert (overflow.reward, overflow.strong_logprob) == (None, None)
    assert "not finite" in (overflow.reason or "")
    assert refused.reward is None
    assert "the template takes no such turn" in (refused.reason or "")
    assert again.reward is not None


def test_an_unknown_domain_is_a_reason_on_its_own_row() -> None:
    ratio = GuidedDensityRatio.from_config(parse_config({"strong": "fake:a", "weak": "fake:b"}))

    bad, good = ratio.score([sample(fields={"domain": "maths"}), sample(fields={"domain": "math"})])

    assert bad.reward is None
    assert "maths" in (bad.reason or "")
    assert good.domain == "math"
    assert good.router == "field"
    assert good.guidance.startswith("math")
    assert (ratio.routing_counts["error"], ratio.routing_counts["field"]) == (1, 1)


def test_default_domain_is_counted() -> None:
    data = {"strong": "fake:a", "weak": "fake:b", "routing": {"routers": ["field"], "default_domain": "chat"}}
    ratio = GuidedDensityRatio.from_config(parse_config(data))

    scores = ratio.score([sample(), sample(fields={"domain": "safety"})])

    assert [s.router for s in scores] == ["default", "field"]
    assert ratio.routing_counts == {"field": 1, "default": 1}


def test_tokens_add_up_to_the_sums() -> None:
    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b")

    (score,) = ratio.score([sample()], tokens=True)
    (plain,) = ratio.score([sample()])

    assert score.token_ratios is not None
    assert sum(score.token_ratios) == pytest.approx(score.reward)
    assert sum(score.strong_token_logprobs or ()) == pytest.approx(score.strong_logprob)
    assert plain.token_ratios is None


def test_places_of_tokens_are_each_models_own_and_the_end_of_turn_is_behind_the_text() -> None:
    ratio = GuidedDensityRatio.from_models(_Broken("a"), "fake:b")

    (score,) = ratio.score([sample(response="H\N{LATIN SMALL LETTER E WITH ACUTE}")], tokens=True)

    assert score.strong_token_offsets is None  # its chat format does not say where tokens are
    assert score.weak_token_offsets == ((0, 1), (1, 2), (1, 2), (2, 2))
    assert score.weak_tokens == 4


class _Telling(_Broken):
    """A model that says of itself what a test wants."""

    def __init__(self, name: str, **facts: str) -> None:
        super().__init__(name)
        self.facts, self.unloaded = facts, 0

    def describe(self) -> dict[str, str]:
        return self.facts

    def unload(self) -> None:
        self.unloaded += 1


def test_models_stay_loaded_unless_they_are_used_one_after_the_other() -> None:
    strong, weak = _Telling("a"), _Telling("b")
    GuidedDensityRatio(strong, weak, domains={"all": None}, chain=RouterChain([], "all")).score([sample()])
    assert (strong.unloaded, weak.unloaded) == (0, 0)
    data = {"strong": "fake:a", "weak": "fake:b"}
    assert not GuidedDensityRatio.from_config(parse_config(data)).sequential
    assert GuidedDensityRatio.from_config(parse_config({**data, "load": "sequential"})).sequential


@pytest.mark.parametrize(("one_model", "expected"), [(False, ["+a", "-a", "+b", "-b"]), (True, ["+a", "+a", "-a"])])
def test_one_model_after_the_other_leaves_memory_when_it_has_scored(one_model: bool, expected: list[str]) -> None:
    events: list[str] = []

    class Logged(_Broken):
        def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
            events.append(f"+{self.name}")
            return super().score(spans)

        def unload(self) -> None:
            events.append(f"-{self.name}")

    strong = Logged("a")
    weak = strong if one_model else Logged("b")
    ratio = GuidedDensityRatio(strong, weak, domains={"all": None}, chain=RouterChain([], "all"), sequential=True)
    ratio.score([sample()])
    assert events == expected


def test_warmed_samples_need_no_model_and_unloading_reaches_both(tmp_path: Any) -> None:
    strong, weak = FakeModel("a"), FakeModel("b")
    ratio = GuidedDensityRatio(
        strong,
        weak,
        domains={"all": GUIDANCE},
        chain=RouterChain([], "all"),
        store=LogprobStore(tmp_path / "s.sqlite"),
    )
    ratio.warm("strong", [sample()])
    assert (strong.scored_spans, weak.scored_spans) == (1, 0)
    ratio.warm("weak", [sample()])
    ratio.score([sample()])
    assert (strong.scored_spans, weak.scored_spans) == (1, 1)
    telling = _Telling("a"), _Telling("b")
    GuidedDensityRatio(*telling, domains={"all": None}, chain=RouterChain([], "all")).unload()
    assert [model.unloaded for model in telling] == [1, 1]


def test_strategies_are_told_with_their_reason_or_not_at_all() -> None:
    strong, weak = _Telling("a", strategy="shared prefix", why="checked"), _Telling("b", strategy="plain")
    ratio = GuidedDensityRatio(strong, weak, domains={"all": None}, chain=RouterChain([], "all"))
    assert ratio.strategies == {"strong": "shared prefix (checked)"}
    weak.facts = {"why": "nobody knows"}
    assert ratio.strategies == {"strong": "shared prefix (checked)"}
    weak.facts = {"strategy": "plain", "why": "one row"}
    assert ratio.strategies == {"strong": "shared prefix (checked)", "weak": "plain (one row)"}


def test_routers_see_every_domain_and_the_strong_model() -> None:
    seen: list[RoutingContext] = []

    class Watching:
        name = "watching"

        def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
            seen.append(context)
            return ["bare"] * len(samples)

    described = replace(GUIDANCE, description="Short answers.")
    chain = RouterChain([Watching()], "short")
    ratio = GuidedDensityRatio(FakeModel("a"), FakeModel("b"), domains={"short": described, "bare": None}, chain=chain)

    (score,) = ratio.score([sample()])

    assert (score.domain, score.router, score.guidance) == ("bare", "watching", "none")
    assert [(dict(context.domains), context.model) for context in seen] == [
        ({"short": "Short answers.", "bare": ""}, ratio.strong)
    ]


def test_two_models_by_name_take_one_exemplar_limits_and_a_reduction() -> None:
    more = replace(GUIDANCE, exemplars=(*GUIDANCE.exemplars, Exemplar("e2", "Bye?", "Bye.", "Well, bye...", "Brief.")))
    assert [
        len(GuidedDensityRatio.from_models("fake:a", "fake:b", guidance=more, **count).score([sample()])[0].exemplars)
        for count in ({}, {"exemplars": 2})
    ] == [1, 2]
    tight = GuidedDensityRatio.from_models("fake:a", "fake:b", reduction="mean", limits=Limits(max_length=16))
    assert tight.reduction == "mean"
    (score,) = tight.score([sample()])
    assert score.reward is None
    assert "16" in (score.reason or "")


def test_store_answers_the_second_time(tmp_path: Any) -> None:
    strong = FakeModel("a", Limits())
    first = GuidedDensityRatio.from_models(strong, "fake:b", store=tmp_path / "s.sqlite").score([sample()])
    known = strong.scored_tokens

    second = GuidedDensityRatio.from_models(strong, "fake:b", store=tmp_path / "s.sqlite").score([sample()])

    assert second == first
    assert strong.scored_tokens == known


def test_stream_equals_score_and_sequential_equals_together(tmp_path: Any) -> None:
    samples = [sample(f"Question {i}?", f"Answer {i * 7}.") for i in range(10)]
    together = GuidedDensityRatio.from_config(parse_config({"strong": "fake:a", "weak": "fake:b"}))
    sequential = GuidedDensityRatio.from_config(
        parse_config({"strong": "fake:a", "weak": "fake:b", "load": "sequential"}), store=tmp_path / "s.sqlite"
    )

    expected = together.score(samples)
    sequential.warm("strong", samples)
    sequential.warm("weak", samples)

    assert sequential.score(samples) == expected
    assert list(together.stream(iter(samples), window=3)) == expected


def test_a_variant_differs_in_what_is_said_and_shares_the_rest(tmp_path: Any) -> None:
    strong = FakeModel("a", Limits())
    store = LogprobStore(tmp_path / "s.sqlite")
    base = GuidedDensityRatio(
        strong,
        FakeModel("b", Limits()),
        domains={"all": GUIDANCE, "bare": None},
        chain=RouterChain([], "all"),
        reward=RewardSection(end_of_turn="never"),
        store=store,
        sequential=True,
    )
    base.config = parse_config({"strong": "fake:a", "weak": "fake:b"})
    (score,) = base.score([sample()])

    same = base.variant()
    assert same.score([sample()]) == [score]
    assert (same.store, same.config, same.sequential, same.domains) == (store, base.config, True, base.domains)
    assert strong.scored_spans == 1  # the second time from the store
    assert [model.hits for model in (same.strong, same.weak) if isinstance(model, StoredModel)] == [1, 1]
    assert same.routing_counts == {"default": 1}

    guided = apply(render(GUIDANCE, instruction=True, exemplars=1, seed=0), sample().prompt)
    (one_side,) = base.variant(placement="strong", reduction="mean").score([sample()])
    (high, n), (low, m) = total("a", guided, "Four.", end=False), total("b", sample().prompt, "Four.", end=False)
    assert one_side.reward == pytest.approx(high / n - low / m, abs=1e-9)
    bare = total("a", sample().prompt, "Four.", end=False)[0] - total("b", sample().prompt, "Four.", end=False)[0]
    for unguided in (
        base.variant(placement="none"),
        base.variant(guidance=GuidanceSection(placement="none")),
        base.variant(guidance=GuidanceSection(), placement="none"),
        base.variant(domains={"all": None}),
        base.variant(chain=RouterChain([], "bare")),
    ):
        (found,) = unguided.score([sample()])
        assert (found.guidance, found.reward) == ("none", pytest.approx(bare, abs=1e-9))
    assert base.variant(chain=RouterChain([], "bare")).score([sample()])[0].domain == "bare"
    assert base.score([sample()]) == [score]  # the base is as it was


def test_a_variant_of_stored_models_without_a_store_keeps_asking_their_store(tmp_path: Any) -> None:
    strong = FakeModel("a", Limits())
    stored = StoredModel(strong, LogprobStore(tmp_path / "s.sqlite"))
    base = GuidedDensityRatio(stored, FakeModel("b", Limits()), domains={"all": None}, chain=RouterChain([], "all"))
    assert base.variant().score([sample()]) == base.score([sample()])
    assert (base.variant().strong, strong.scored_spans, stored.hits) == (stored, 1, 1)


def test_warming_without_a_store_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"store\.path"):
        GuidedDensityRatio.from_models("fake:a", "fake:b").warm("strong", [sample()])


def test_an_unknown_guidance_name_says_what_is_known() -> None:
    with pytest.raises(ConfigError, match="did you mean 'safety'"):
        GuidedDensityRatio.from_models("fake:a", "fake:b", guidance="saftey")


def test_two_precisions_are_warned_about(tiny_model: Any) -> None:
    spec = ModelSpec(model=str(tiny_model()), dtype="float32")
    other = ModelSpec(model=str(tiny_model(seed=1)), dtype="bfloat16")

    with pytest.warns(EngineWarning, match="strong computes in float32, weak in bfloat16"):
        GuidedDensityRatio.from_models(spec, other)
    GuidedDensityRatio.from_models(spec, other.model_copy(update={"dtype": "float32"}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        one = GuidedDensityRatio.from_models(spec, other)
        GuidedDensityRatio(one.strong, one.weak, domains=one.domains, chain=RouterChain([], "all"))
    assert len(caught) == 1


def test_spelt_out_template_marks_are_counted_and_warned_about_once(tiny_model) -> None:
    """Text that somebody has rendered already is scored as text, as it always was, but not silently."""
    ratio = GuidedDensityRatio.from_models(str(tiny_model(seed=1)), str(tiny_model(seed=2)))
    turn, rendered = (Message("user", "Hi"),), (Message("user", "<|im_start|>user\nHi<|im_end|>"),)
    clean = [
        Sample(turn, "Hello."),
        Sample(turn, "<|im_begin|> <|im_start"),
        Sample((Message("text", "Hi<|im_end|>"),), "a"),
    ]
    ratio.score(clean)
    assert ratio.spelt_marks == 0
    marked = [Sample(rendered, "Hello."), Sample(rendered, "Hi."), Sample(turn, "Hello.<|im_end|>")]
    with pytest.warns(
        EngineWarning, match=r"spells out '<\|im_start\|>', a mark of the models' chat template"
    ) as caught:
        first = ratio.score([*clean, *marked])
    assert len(caught) == 1
    assert ratio.spelt_marks == 3
    ratio.score(marked)  # pytest makes a second warning an error
    assert ratio.spelt_marks == 6
    assert [score.reason for score in first] == [None] * 6
    literal = ratio.strong.chat.span(turn, "Hello.<|im_end|>", end=False)
    assert literal.mark == "<|im_end|>"
    assert 2 not in literal.response
    assert len(literal.response) > len(ratio.strong.chat.span(turn, "Hello.", end=False).response) + 1


def test_three_steps_in_three_processes_are_score(tiny_model: Any) -> None:
    """`guide`, `ask` and `combine` of objects of their own, with pickles between them, as on machines of their own."""
    config = {
        "strong": str(tiny_model(seed=1)),
        "weak": str(tiny_model(seed=2)),
        "guidance": {"domains": {"chat": "none", "safety": "safety"}},
        "routing": {"routers": ["field"]},
        "limits": {"max_length": 2048},
    }
    samples = [
        sample("Hi?", "Hello.", fields={"domain": "safety"}),
        sample("Hi?", "", finished=False),
        sample("no such domain", "x", fields={"domain": "nowhere"}),
        sample("too long " * 1000, "y"),
        sample("marked", "ends <|im_end|> here"),
    ]

    def elsewhere() -> GuidedDensityRatio:
        return GuidedDensityRatio.from_config(config)

    def sent(value: Any) -> Any:
        return pickle.loads(pickle.dumps(value))

    guided = sent(elsewhere().guide(sent(samples)))
    strong, weak = (sent(elsewhere().ask(side, guided)) for side in ("strong", "weak"))
    whole, last = elsewhere(), elsewhere()
    with pytest.warns(EngineWarning, match="im_end"):
        expected = whole.score(samples, tokens=True)
    with pytest.warns(EngineWarning, match="im_end"):
        assert last.combine(guided, strong, weak, tokens=True) == expected
    assert [score.reward is None for score in expected] == [False, True, True, True, False]
    assert (last.spelt_marks, last.routing_counts) == (whole.spelt_marks, whole.routing_counts)
