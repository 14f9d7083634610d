"""What the reward does with everything that TRL may pass, against numbers worked out from the core."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from gdr_plugin.api.errors import ConfigError, DataError, ModelError
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.api.types import Message, Sample, Score, ToolCall
from gdr_plugin.config.load import parse_config
from gdr_plugin.config.schema import Config
from gdr_plugin.data.tools import definitions_of
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_trl import AsyncGDRReward, GDRReward
from gdr_trl.ends import Ends

TinyModel = Callable[..., Path]
USER = Message("user", "Question?")
ASKED = [{"role": "user", "content": "Question?"}]
END = 99


def config(reduction: str = "mean", **more: Any) -> Config:
    return parse_config(
        {
            "strong": "fake:a",
            "weak": "fake:b",
            "guidance": {"domains": {"chat": "none", "safety": "safety"}},
            "routing": {"routers": ["field"]},
            "reward": {"reduction": reduction},
            **more,
        }
    )


def expected(*samples: Sample, reduction: str = "mean") -> list[Score]:
    return GuidedDensityRatio.from_config(config(reduction)).score(samples)


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


class Logs:
    """Stands where a trainer's log functions are; knows its end tokens as GRPO's trainer does."""

    def __init__(self, *ends: int) -> None:
        self.eos_token_ids = list(ends)
        self.metrics: dict[str, float] = {}
        self.columns: dict[str, list[Any]] = {}
        self.tools: list[Any] = []

    def metric(self, name: str, value: float) -> None:
        assert name not in self.metrics
        self.metrics[name] = value

    def extra(self, name: str, values: list[Any]) -> None:
        self.columns[name] = values


class OlderLogs(Logs):
    """As the trainers of TRL 1.9, which Axolotl pins: they stop at their tokenizer's own end."""

    def __init__(self, processing: object) -> None:
        super().__init__()
        del self.eos_token_ids
        self.processing_class = processing


def test_an_older_trainer_is_asked_for_its_tokenizers_end() -> None:
    tokenizer = SimpleNamespace(eos_token_id=7)
    for processing in (tokenizer, SimpleNamespace(tokenizer=tokenizer)):
        assert Ends(None).find(OlderLogs(processing).metric) == {7}
    assert Ends(None).find(OlderLogs(SimpleNamespace(eos_token_id=None)).metric) is None
    assert Ends(None).find(Logs(3, 4).metric) == {3, 4}
    assert Ends(None).find(None) is None


def weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: The city's name.
    """
    return city


DEFINED = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city's name."}},
            "required": ["city"],
        },
        "return": {"type": "string"},
    },
}
OTHER = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}


class Garden:
    """An environment, as GRPO makes one for each rollout."""

    def reset(self) -> None: ...

    def water(self, litres: int) -> str:
        """Waters the garden.

        Args:
            litres: How much.
        """
        return str(litres)


class Kitchen(Garden):
    def reset(self) -> None: ...


class TestTools:
    """Both models are shown the tools that the policy was shown."""

    def told(self, *definitions: dict[str, Any]) -> float | None:
        (score,) = expected(Sample((definitions_of(definitions), USER), "Rain."))
        return score.reward

    def test_a_rows_own_column_goes_first(self) -> None:
        reward = GDRReward(config(), tools=[weather])
        prompts, completions = [ASKED] * 3, [[answer("Rain.")]] * 3
        found = reward(prompts, completions, tools=[[OTHER], None, json.dumps([OTHER])])
        assert found == [self.told(OTHER), self.told(DEFINED), self.told(OTHER)]
        assert len(set(found)) == 2

    def test_functions_and_definitions(self) -> None:
        for given in (weather, DEFINED):
            assert GDRReward(config(), tools=[given])([ASKED], [[answer("Rain.")]]) == [self.told(DEFINED)]

    def test_the_trainers_own_unless_others_are_named(self) -> None:
        logs = Logs(END)
        logs.tools = [weather]
        for reward, right in (
            (GDRReward(config()), self.told(DEFINED)),
            (GDRReward(config(), tools=[OTHER]), self.told(OTHER)),
            (GDRReward(config(), tools=[]), expected(Sample((USER,), "Rain."))[0].reward),
        ):
            logs.metrics.clear()
            assert reward([ASKED], [[answer("Rain.")]], [[1, END]], log_metric=logs.metric) == [right]

    def test_each_rows_environment_has_its_own(self) -> None:
        logs = Logs(END)
        garden = Garden()
        logs.tools = [weather, garden.water, Kitchen().water]
        watering = {
            "type": "function",
            "function": {
                "name": "water",
                "description": "Waters the garden.",
                "parameters": {
                    "type": "object",
                    "properties": {"litres": {"type": "integer", "description": "How much."}},
                    "required": ["litres"],
                },
                "return": {"type": "string"},
            },
        }
        reward = GDRReward(config())
        rows = {"environments": [Garden(), Kitchen()], "log_metric": logs.metric}
        found = reward([ASKED] * 2, [[answer("Rain.")]] * 2, [[1, END]] * 2, **rows)
        assert found == [self.told(DEFINED, watering)] * 2  # not one environment's method twice
        logs.metrics.clear()
        logs.tools = [weather, Kitchen().water]  # another environment's, of which this batch has no row
        rows["environments"] = [garden]
        assert reward([ASKED], [[answer("Rain.")]], [[1, END]], **rows) == [self.told(DEFINED)]

    def test_calls_of_tools_that_nobody_named_are_warned_of(self) -> None:
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Lyon"}}}
        with pytest.warns(UserWarning, match=r"asked without them: pass tools="):
            (blind,) = GDRReward(config())([ASKED], [[answer("", tool_calls=[call])]])
        assert GDRReward(config(), tools=[])([ASKED], [[answer("", tool_calls=[call])]]) == [blind]
        (seen,) = GDRReward(config(), tools=[weather])([ASKED], [[answer("", tool_calls=[call])]])
        assert seen != blind

    def test_what_is_no_tool(self) -> None:
        with pytest.raises(ConfigError, match=r"tools: .*docstring"):
            GDRReward(config(), tools=[lambda city: city])
        with pytest.raises(ConfigError, match="tools: definition 1 of `tools` must be a mapping with `function`"):
            GDRReward(config(), tools=[{"description": "nameless"}])

    def test_it_pickles(self) -> None:
        reward = pickle.loads(pickle.dumps(GDRReward(config(), tools=[weather])))
        assert reward([ASKED], [[answer("Rain.")]]) == [self.told(DEFINED)]


class TestWhatIsScored:
    def test_plain_and_conversational_prompts_are_the_same_prompt(self) -> None:
        (score,) = expected(Sample((USER,), "An answer."))
        reward = GDRReward(config())
        assert reward(["Question?"], ["An answer."]) == [score.reward]
        assert reward([ASKED], [[answer("An answer.")]]) == [score.reward]

    def test_blocks_of_text_are_joined(self) -> None:
        (score,) = expected(Sample((USER,), "An answer."))
        prompt = [{"role": "user", "content": [{"type": "text", "text": "Ques"}, {"type": "text", "text": "tion?"}]}]
        completion = [answer([{"type": "text", "text": "An answer."}])]  # type: ignore[arg-type]
        assert GDRReward(config())([prompt], [completion]) == [score.reward]

    def test_an_image_is_refused(self) -> None:
        prompt = [{"role": "user", "content": [{"type": "image", "image": object()}]}]
        with pytest.raises(DataError, match=r"'image'.*text alone"):
            GDRReward(config())([prompt], [[answer("It shows a cat.")]])

    @pytest.mark.parametrize("reduction", ["sum", "mean", "per_byte"])
    @pytest.mark.filterwarnings("ignore:.*summed over tokens", "ignore:.*pass tools=")
    def test_of_tool_turns_only_the_assistants_count(self, reduction: str) -> None:
        call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
        tool = {"role": "tool", "name": "add", "content": "3"}
        completion = [answer("Let me see.", tool_calls=[call]), tool, answer("It is 3.")]
        calls = (ToolCall("add", '{"a": 1, "b": 2}'),)
        asked = Message("assistant", "Let me see.", "", calls)
        turns = (
            Sample((USER,), asked.content, tool_calls=calls),
            Sample((USER, asked, Message("tool", "3", name="add")), "It is 3."),
        )
        first, second = expected(*turns, reduction=reduction)
        strong = first.strong_logprob + second.strong_logprob  # type: ignore[operator]
        weak = first.weak_logprob + second.weak_logprob  # type: ignore[operator]
        size = {
            "sum": 1,
            "mean": first.strong_tokens + second.strong_tokens,
            "per_byte": len((turns[0].text + "It is 3.").encode()),
        }[reduction]
        (reward,) = GDRReward(config(reduction))([ASKED], [completion])
        assert reward == pytest.approx((strong - weak) / size, rel=1e-12)

    def test_a_messages_role_is_read_once(self) -> None:
        asked: list[str] = []

        class Watched(dict[str, Any]):
            def get(self, key: str, default: Any = None) -> Any:
                asked.append(f"{self['content']} {key}")
                return super().get(key, default)

        turns = [
            answer("A"),
            {"role": "tool", "content": "B"},
            answer("C"),
            {"role": "tool", "content": "D"},
            answer("E"),
        ]
        ids = [[1, END, 2, 3, END]]
        reward = GDRReward(config())
        (found,) = reward([ASKED], [[Watched(turn) for turn in turns]], ids, log_metric=Logs(END).metric)
        assert [found] == reward([ASKED], [turns], ids, log_metric=Logs(END).metric)
        assert [key for key in asked if key.endswith(" role")] == [f"{text} role" for text in "ABCDE"]

    def test_a_completion_without_an_assistant_turn_is_not_scored(self) -> None:
        with pytest.warns(UserWarning, match="no assistant turn"):
            assert GDRReward(config())([ASKED], [[{"role": "tool", "content": "3"}]]) == [None]

    def test_a_run_that_begins_without_any_reward_ends(self) -> None:
        unread = [{"role": "tool", "content": "3"}]
        reward = GDRReward(config(), name="gdr")
        with pytest.raises(DataError, match=r"none of the first 2 completions was scored.*no assistant turn"):
            reward([ASKED] * 2, [unread] * 2)
        (known,) = expected(Sample((USER,), "Yes."))
        begun = GDRReward(config())
        with pytest.warns(UserWarning, match="no assistant turn"):
            assert begun([ASKED] * 2, [[answer("Yes.")], unread]) == [known.reward, None]
        assert begun([ASKED] * 2, [unread] * 2) == [None, None], "later batches are left out, as TRL can"

    def test_what_is_not_scored_gets_what_the_user_says(self) -> None:
        unread = [{"role": "tool", "content": "3"}]
        (known,) = expected(Sample((USER,), "Yes."))
        batch = [ASKED] * 2, [[answer("Yes.")], unread]
        with pytest.warns(UserWarning, match="were not scored"):
            assert GDRReward(config(), unscored=-9.5)(*batch) == [known.reward, -9.5]
        with pytest.raises(DataError, match="completion 1 was not scored: the completion has no assistant turn"):
            GDRReward(config(), unscored="raise")(*batch)
        with pytest.warns(UserWarning, match="were not scored"):
            assert GDRReward(config(), unscored="-9.5")([ASKED] * 2, [unread] * 2) == [-9.5, -9.5]

    def test_a_domain_that_is_not_configured_ends_the_run_at_its_first_batch(self) -> None:
        with pytest.raises(DataError, match=r"column 'domain': unknown domain 'safty'.*did you mean 'safety'"):
            GDRReward(config())([ASKED] * 2, [[answer("Yes.")]] * 2, domain=["safety", "safty"])

    def test_reasoning_is_scored_before_the_answer_or_dropped(self) -> None:
        completion = [answer("366.", reasoning_content="A leap year.\n")]
        whole, bare, text = expected(
            Sample((USER,), "366.", reasoning="A leap year.\n"),
            Sample((USER,), "366."),
            Sample((USER,), "<think>\nA leap year.\n</think>\n\n366."),
        )
        assert GDRReward(config())([ASKED], [completion]) == [whole.reward]
        drop = GDRReward(config(), reasoning="drop")
        assert drop([ASKED], [completion]) == [bare.reward]
        assert drop([ASKED], ["<think>\nA leap year.\n</think>\n\n366."]) == [bare.reward]
        assert drop([ASKED], ["A leap year.\n</think>\n\n366."]) == [bare.reward]
        assert GDRReward(config())([ASKED], ["<think>\nA leap year.\n</think>\n\n366."]) == [text.reward]

    def test_reasoning_that_never_ended_leaves_nothing_to_score(self) -> None:
        logs = Logs(END)
        reward = GDRReward(config(), reasoning="drop")
        with pytest.warns(UserWarning, match="no tokens to score"):
            assert reward([ASKED], ["<think>\nWell"], [[1, 2]], log_metric=logs.metric) == [None]

    def test_reasoning_of_earlier_answers_is_not_shown(self) -> None:
        earlier = [*ASKED, answer("366.", reasoning_content="A leap year."), {"role": "user", "content": "Sure?"}]
        (score,) = expected(Sample((USER, Message("assistant", "366."), Message("user", "Sure?")), "Yes."))
        assert GDRReward(config())([earlier], [[answer("Yes.")]]) == [score.reward]

    def test_the_domain_column_reaches_the_router(self) -> None:
        scores = expected(*(Sample((USER,), "No.", fields={"domain": name}) for name in ("chat", "safety")))
        logs = Logs(END)
        rewards = GDRReward(config(), name="gdr")(
            ["Question?"] * 2, ["No."] * 2, domain=["chat", "safety"], log_extra=logs.extra, log_metric=logs.metric
        )
        assert rewards == [score.reward for score in scores]
        assert rewards[0] != rewards[1]
        assert logs.columns["gdr_domain"] == ["chat", "safety"]

    def test_what_is_no_column_is_ignored(self) -> None:
        (score,) = expected(Sample((USER,), "No."))
        columns: dict[str, Any] = {"environments": [object()], "mode": "train", "three": [1, 2, 3]}
        assert GDRReward(config())(["Question?"], ["No."], **columns) == [score.reward]

    def test_an_empty_batch_and_one_of_two_lengths(self) -> None:
        assert GDRReward(config())([], []) == []
        with pytest.raises(DataError, match="2 prompts but 1 completions"):
            GDRReward(config())(["a", "b"], ["c"])


class TestTheEndOfTurn:
    FINISHED, CUT = ((Sample((USER,), "Yes.", finished),) for finished in (True, False))

    def rewards(self, ids: Sequence[Sequence[int]], completion: Any = "Yes.", **more: Any) -> list[float | None]:
        logs = Logs(END, 98)
        reward = GDRReward(config(), **more)
        return reward(["Question?"] * len(ids), [completion] * len(ids), ids, log_metric=logs.metric)

    def test_it_counts_where_the_end_is_among_the_ids(self) -> None:
        (whole,), (cut,) = expected(*self.FINISHED), expected(*self.CUT)
        assert whole.strong_tokens == cut.strong_tokens + 1
        found = self.rewards([[5, 6, END], [5, 6, 7], [5, 98], [5, END, 0, 0], [5, END, END]])
        assert found == [whole.reward, cut.reward, whole.reward, whole.reward, whole.reward]

    def test_of_tool_turns_the_last_one_matters(self) -> None:
        completion = [answer("A"), {"role": "tool", "content": "B"}, answer("C")]
        whole, cut = self.rewards([[1, END, 2, 3, END], [1, END, 2, 3]], completion)
        assert whole != cut
        assert GDRReward(config())(["Question?"], [completion]) == [whole]

    def test_without_ids_everything_is_finished(self) -> None:
        assert GDRReward(config())(["Question?"], ["Yes."]) == [expected(*self.FINISHED)[0].reward]

    def test_where_nobody_knows_the_end_it_says_so_once(self) -> None:
        reward = GDRReward(config())
        with pytest.warns(UserWarning, match="pass policy_tokenizer="):
            found = reward(["Question?"], ["Yes."], [[1, 2]])
        assert found == [expected(*self.FINISHED)[0].reward]
        assert reward(["Question?"], ["Yes."], [[1, 2]]) == found  # a second warning would be an error

    def test_a_named_tokenizer_knows(self, tiny_model: TinyModel) -> None:
        from transformers import AutoTokenizer

        folder = tiny_model(seed=3)
        end = AutoTokenizer.from_pretrained(folder).eos_token_id
        for tokenizer in (str(folder), AutoTokenizer.from_pretrained(folder)):
            reward = GDRReward(config(), policy_tokenizer=tokenizer)
            whole, cut = reward(["Question?"] * 2, ["Yes."] * 2, [[5, end], [5, 6]])
            assert (whole, cut) == (expected(*self.FINISHED)[0].reward, expected(*self.CUT)[0].reward)

    def test_a_tokenizer_stops_where_its_template_ends_a_turn(self, tiny_model: TinyModel) -> None:
        """Gemma's EOS is `<eos>`, and its turns end with another token."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_model(seed=3))
        tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m.role + ':' + m.content + '<end_of_turn>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'model:' }}{% endif %}"
        )
        end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
        reward = GDRReward(config(), policy_tokenizer=tokenizer)
        whole, cut = reward(["Question?"] * 2, ["Yes."] * 2, [[5, end], [5, 6]])
        assert (whole, cut) == (expected(*self.FINISHED)[0].reward, expected(*self.CUT)[0].reward)


class TestWhatIsReturned:
    def test_a_row_that_cannot_be_scored_is_none_with_a_reason_told_once(self) -> None:
        reward = GDRReward(config())
        reward(["Question?"], ["Yes."])  # a first batch with such a domain would end the run
        with pytest.warns(UserWarning, match=r"1 of 2 completions were not scored.*nowhere"):
            found = reward(["Question?"] * 2, ["Yes."] * 2, domain=["chat", "nowhere"])
        assert found[0] is not None
        assert found[1] is None
        assert reward(["Question?"] * 2, ["Yes."] * 2, domain=["chat", "nowhere"]) == found

    @pytest.mark.parametrize("prompt", ["", [], [{"role": "robot", "content": "x"}], 3])
    def test_a_prompt_that_is_none(self, prompt: Any) -> None:
        with pytest.warns(UserWarning, match="not scored"):
            found = GDRReward(config())([prompt, "Question?"], ["Yes.", "Yes."])
        assert found[0] is None
        assert found[1] is not None

    def test_a_trainer_that_turns_none_into_zero_is_named(self) -> None:
        reward = GDRReward(config())
        with pytest.warns(UserWarning, match="not scored"), pytest.warns(UserWarning, match="of reward 0"):
            reward([ASKED], [[{"role": "tool", "content": "3"}]], trainer_state=object())

    def test_numbers_are_finite_whatever_the_models_say(self) -> None:
        class Broken:
            domains = ("all",)
            reduction = "mean"

            def score(self, samples: Sequence[Sample], *, tokens: bool = False) -> list[Score]:
                values = [math.inf, math.nan, 1.0]
                return [Score(v, None, -1.0, -1.0, 1, 1, "all", "default", "none") for v in values[: len(samples)]]

        logs = Logs(END)
        with pytest.warns(UserWarning, match="not finite"):
            found = GDRReward(ratio=Broken())(["q"] * 3, ["a"] * 3, log_metric=logs.metric)  # type: ignore[arg-type]
        assert found == [None, None, 1.0]
        assert all(map(math.isfinite, logs.metrics.values()))

    def test_a_sum_is_warned_of_once_unless_length_costs(self) -> None:
        reward = GDRReward(config("sum"))
        with pytest.warns(UserWarning, match="raise it by length alone"):
            reward(["Question?"], ["Yes."])
        reward(["Question?"], ["Yes."])
        GDRReward(config("sum"), length_penalty=0.1)(["Question?"], ["Yes."])

    @pytest.mark.parametrize("reduction", ["sum", "mean", "per_byte"])
    @pytest.mark.filterwarnings("ignore:.*summed over tokens")
    def test_tokens_are_clipped(self, reduction: str) -> None:
        ratio = GuidedDensityRatio.from_config(config(reduction))
        (score,) = ratio.score([Sample((USER,), "A longer answer, with words.")], tokens=True)
        assert score.token_ratios is not None
        assert max(map(abs, score.token_ratios)) > 1
        size = {"sum": 1, "mean": score.strong_tokens, "per_byte": len(b"A longer answer, with words.")}[reduction]
        clipped = math.fsum(max(-1.0, min(1.0, ratio)) for ratio in score.token_ratios) / size
        (found,) = GDRReward(config(reduction), token_clip=1.0)(["Question?"], ["A longer answer, with words."])
        assert found == pytest.approx(clipped)
        (loose,) = GDRReward(config(reduction), token_clip=1e6)(["Question?"], ["A longer answer, with words."])
        assert loose == pytest.approx(score.reward)

    def test_clipping_needs_one_tokenizer(self, tiny_model: TinyModel) -> None:
        reward = GDRReward(strong="fake:a", weak=str(tiny_model(seed=2)), reduction="mean", token_clip=1.0)
        with pytest.raises(ConfigError, match="same tokenizer and end of turn"):
            reward(["Question?"], ["Yes."])

    def test_length_costs(self) -> None:
        (score,) = expected(Sample((USER,), "Yes."))
        assert score.reward is not None
        (found,) = GDRReward(config(), length_penalty=0.25)(["Question?"], ["Yes."])
        assert found == pytest.approx(score.reward - 0.25 * score.strong_tokens)


class TestLogs:
    def test_numbers_and_columns(self) -> None:
        logs = Logs(END)
        answers, ids = ["Yes.", "No, not at all.", "A", "x"], [[1, END], [1, 2], [END], [END]]
        domains = ["chat", "safety", "chat", "nowhere"]
        samples = [
            Sample((USER,), text, END in tokens, {"domain": domain})
            for text, tokens, domain in zip(answers, ids, domains, strict=True)
        ]
        scores = expected(*samples)
        reward = GDRReward(config(), name="mine")
        reward(["Question?"], ["Yes."])  # a first batch with such a domain would end the run
        with pytest.warns(UserWarning, match="not scored"):
            found = reward(
                ["Question?"] * 4, answers, ids, domain=domains, log_metric=logs.metric, log_extra=logs.extra
            )
        good = scores[:3]
        rewards = [score.reward for score in good]
        assert found == [*rewards, None]
        assert logs.columns["mine_reward"] == found
        assert logs.columns["mine_strong"] == [*(score.strong_logprob for score in good), None]
        assert logs.columns["mine_weak"][:3] == [score.weak_logprob for score in good]
        mean, tokens = sum(rewards) / 3, sum(score.strong_tokens for score in good)  # type: ignore[arg-type]
        numbers = logs.metrics
        assert numbers["mine/ratio"] == pytest.approx(mean)
        assert numbers["mine/strong_per_token"] == pytest.approx(sum(s.strong_logprob or 0 for s in good) / tokens)
        assert numbers["mine/weak_per_token"] == pytest.approx(sum(s.weak_logprob or 0 for s in good) / tokens)
        assert numbers["mine/truncated"] == 0.25
        assert numbers["mine/not_scored"] == 0.25
        assert numbers["mine/chat/share"] == 0.5
        assert numbers["mine/safety/reward"] == pytest.approx(rewards[1])
        assert numbers["mine/tokens_per_s"] > 0

    def test_hacking_by_length_shows_as_a_correlation(self) -> None:
        class Longer:
            domains = ("all",)
            reduction = "mean"
            sign = 1.0

            def score(self, samples: Sequence[Sample], *, tokens: bool = False) -> list[Score]:
                sizes = [len(sample.response) for sample in samples]
                return [Score(self.sign * n, None, -1.0, -1.0, n, n, "all", "default", "none") for n in sizes]

        def hack(sign: float, answers: list[str]) -> float | None:
            logs, ratio = Logs(END), Longer()
            ratio.sign = sign
            reward = GDRReward(ratio=ratio, name="gdr")  # type: ignore[arg-type]
            reward(["q"] * len(answers), answers, log_metric=logs.metric)
            return logs.metrics.get("gdr_hack")

        assert hack(1.0, ["a", "ab", "abc"]) == pytest.approx(1)
        assert hack(-1.0, ["a", "ab", "abcd"]) == pytest.approx(-1)
        assert hack(1.0, ["ab", "cd", "ef"]) is None
        assert hack(1.0, ["a", "ab"]) is None

    def test_completions_that_all_reached_the_limit_have_no_correlation(self) -> None:
        """However the pair's own tokenizer cuts their texts."""
        logs, ids = Logs(END), [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
        GDRReward(config(), name="gdr")(["q"] * 3, ["a", "ab", "abc"], ids, log_metric=logs.metric)
        assert "gdr_hack" not in logs.metrics
        logs, ids = Logs(END), [[1, END, 0, 0], [1, 2, END, 0], [1, 2, 3, 4]]
        GDRReward(config(), name="gdr")(["q"] * 3, ["a", "ab", "abc"], ids, log_metric=logs.metric)
        assert "gdr_hack" in logs.metrics

    def test_what_a_batch_does_not_have_is_left_out(self) -> None:
        logs = Logs(END)
        with pytest.warns(UserWarning, match="not scored"):
            GDRReward(config(), name="gdr")([ASKED], [[{"role": "tool", "content": "3"}]], log_metric=logs.metric)
        assert "gdr/ratio" not in logs.metrics
        assert "gdr/chat/reward" not in logs.metrics
        assert logs.metrics["gdr/chat/share"] == 0
        assert logs.metrics["gdr/not_scored"] == 1


class TestTheObject:
    def test_every_instance_has_a_name_of_its_own(self) -> None:
        names = [GDRReward(config()).__name__, AsyncGDRReward(config()).__name__, GDRReward(config()).__name__]
        assert len(set(names)) == 3
        assert all(name.startswith("gdr") for name in names)
        assert GDRReward(config(), name="helpful").__name__ == "helpful"
        with pytest.raises(ConfigError, match="advantage"):
            GDRReward(config(), name="advantage")

    def test_trl_knows_it_for_what_it_is(self) -> None:
        from torch import nn
        from trl.trainer.utils import get_callable_name, is_async_callable

        reward, later = GDRReward(config(), name="a"), AsyncGDRReward(config(), name="b")
        assert not isinstance(reward, nn.Module)
        assert [get_callable_name(reward), get_callable_name(later)] == ["a", "b"]
        assert [is_async_callable(reward), is_async_callable(later)] == [False, True]

    def test_one_source_and_only_one(self) -> None:
        with pytest.raises(ConfigError, match="not none"):
            GDRReward()
        with pytest.raises(ConfigError, match=r"not a gdr\.yaml and remote"):
            GDRReward(config(), remote="http://host:1")
        with pytest.raises(ConfigError, match="both strong and weak"):
            GDRReward(strong="fake:a")
        with pytest.raises(ConfigError, match="token_clip"):
            GDRReward(config(), token_clip=0)

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"reducton": "mean"}, "unknown keyword 'reducton'.*did you mean 'reduction'"),
            ({"reduction": "avg"}, "reduction: unknown value 'avg'"),
            ({"placement": "weak"}, "placement: unknown value 'weak'"),
            ({"exemplars": -1}, "exemplars: must be 0 or more"),
            ({"unscored": "zero"}, "unscored must be raise, none or a number"),
        ],
    )
    def test_a_wrong_keyword_is_told_before_training(self, keywords: dict[str, Any], message: str) -> None:
        for source in ({"config": config()}, {"strong": "fake:a", "weak": "fake:b"}):
            with pytest.raises(ConfigError, match=message):
                GDRReward(**source, **keywords)

    def test_keywords_replace_settings_of_the_file(self) -> None:
        samples = [Sample((USER,), "An answer.", fields={"domain": "safety"})]
        asked = {"completions": ["An answer."], "domain": ["safety"]}
        summed = GDRReward(config("mean"), reduction="sum", length_penalty=0.0)
        with pytest.warns(UserWarning, match="summed over tokens"):
            assert summed(["Question?"], **asked) == [expected(*samples, reduction="sum")[0].reward]
        bare = GuidedDensityRatio.from_config(config(guidance={"domains": {"chat": "none", "safety": "none"}}))
        unguided = GDRReward(config(), placement="none")
        assert unguided(["Question?"], **asked) == [bare.score(samples)[0].reward]

    def test_keywords_without_models_of_its_own_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"set it in the server's gdr\.yaml"):
            GDRReward(remote="http://host:1", reduction="mean")
        with pytest.raises(ConfigError, match="set it in the ratio itself"):
            GDRReward(ratio=GuidedDensityRatio.from_config(config()), reduction="mean")
        with pytest.raises(ConfigError, match=r"guidance\.domains"):
            GDRReward(config(), guidance="safety")

    def test_a_wrong_file_is_told_before_training(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="gdr init"):
            GDRReward(tmp_path / "gdr.yaml")

    def test_two_models_by_name_with_guidance(self) -> None:
        reward = GDRReward(strong="fake:a", weak="fake:b", guidance="safety", reduction="mean")
        ratio = GuidedDensityRatio.from_models("fake:a", "fake:b", guidance="safety", reduction="mean")
        assert reward(["Question?"], ["No."]) == [ratio.score([Sample((USER,), "No.")])[0].reward]

    def test_it_pickles_without_its_models_and_scores_the_same_again(self, tiny_model: TinyModel) -> None:
        made = config(strong=str(tiny_model(seed=1)), weak=str(tiny_model(seed=2)))
        for reward in (
            GDRReward(made, name="gdr"),
            GDRReward(strong=str(tiny_model(seed=1)), weak=str(tiny_model(seed=2)), reduction="mean"),
            GDRReward(ratio=GuidedDensityRatio.from_config(made)),
        ):
            before = reward(["Question?"], ["Yes."])
            sent = pickle.dumps(reward)
            assert len(sent) < 10_000
            again = pickle.loads(sent)
            assert again.__name__ == reward.__name__
            assert again(["Question?"], ["Yes."]) == before

    def test_a_process_opens_the_models_of_all_equal_pickles_once(self) -> None:
        sent = pickle.dumps(GDRReward(config()))
        first, second = pickle.loads(sent), pickle.loads(sent)
        assert first.ratio is second.ratio
        assert first.ratio is not GDRReward(config()).ratio
        other = pickle.loads(pickle.dumps(GDRReward(config(), reduction="sum", length_penalty=0.1)))
        assert other.ratio is not first.ratio

    def test_what_is_loaded_already_cannot_be_sent(self) -> None:
        from gdr_plugin.models.fake import FakeModel

        ready = GuidedDensityRatio.from_models("fake:a", "fake:b", reduction="mean")
        for reward in (GDRReward(ratio=ready), GDRReward(strong=FakeModel("a"), weak="fake:b", reduction="mean")):
            with pytest.raises(pickle.PicklingError, match=r"make it from a gdr\.yaml"):
                pickle.dumps(reward)

    def test_the_trainers_gradients_and_autocast_do_not_reach_the_models(self, tiny_model: TinyModel) -> None:
        import torch

        reward = GDRReward(strong=str(tiny_model(seed=1)), weak=str(tiny_model(seed=2)), reduction="mean")
        plain = reward(["Question?"], ["Yes, of course."])
        seen: list[tuple[bool, bool]] = []
        ratio: Any = reward.ratio
        with ratio.strong.running() as model:
            model.get_input_embeddings().register_forward_hook(
                lambda *_: seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            )
        with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            found = reward(["Question?"], ["Yes, of course."])
            assert torch.is_grad_enabled()
        assert found == plain
        assert seen
        assert all(state == (False, True) for state in seen)


class TestAsync:
    def test_it_gives_the_same_and_leaves_the_loop_free(self) -> None:
        class Slow:
            domains = ("all",)
            reduction = "mean"
            threads: ClassVar[set[str]] = set()

            def score(self, samples: Sequence[Sample], *, tokens: bool = False) -> list[Score]:
                self.threads.add(threading.current_thread().name)
                time.sleep(0.3)
                return [Score(1.0, None, -1.0, -2.0, 1, 1, "all", "default", "none") for _ in samples]

        async def main() -> tuple[list[list[float | None]], int]:
            reward = AsyncGDRReward(ratio=Slow(), name="slow")  # type: ignore[arg-type]
            work = asyncio.gather(*(reward(["q"] * 5, ["a"] * 5) for _ in range(2)))
            ticks = 0
            while not work.done():
                await asyncio.sleep(0.01)
                ticks += 1
            return list(await work), ticks

        found, ticks = asyncio.run(main())
        assert found == [[1.0] * 5] * 2
        assert ticks >= 10
        assert len(Slow.threads) == 1

    def test_a_batch_for_a_server_is_one_request_on_one_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from gdr_plugin.reward.remote import RemoteRatio

        sent: list[int] = []
        together = threading.Barrier(3, timeout=20)

        def exchange(self: RemoteRatio, method: str, path: str, body: bytes = b"{}") -> dict[str, Any]:
            if method == "GET":
                return {"domains": {"chat": "none"}, "config": {"reward": {"reduction": "mean"}}}
            rows = json.loads(body)["rows"]
            sent.append(len(rows))
            together.wait()  # passes only when three batches are under way at once
            score = Score(0.5, None, -1.0, -2.0, 2, 2, "chat", "default", "none")
            return {"scores": [{name: getattr(score, name) for name in Score.__slots__} for _ in rows]}

        monkeypatch.setattr(RemoteRatio, "_exchange", exchange)
        reward = AsyncGDRReward(remote="http://127.0.0.1:1")

        async def main() -> list[list[float | None]]:
            return await asyncio.gather(*(reward(["q"] * 7, ["a"] * 7) for _ in range(3)))

        assert asyncio.run(main()) == [[0.5] * 7] * 3
        assert sent == [7, 7, 7]

    def test_an_unreachable_server_stops_the_run(self) -> None:
        from gdr_plugin.reward.remote import RemoteRatio

        reward = AsyncGDRReward(remote=RemoteRatio("http://127.0.0.1:1", tries=1))
        with pytest.raises(ModelError, match="is `gdr serve` running"):
            asyncio.run(reward(["q"], ["a"]))  # type: ignore[arg-type]


class TestPlacement:
    def test_models_load_whole_under_zero_3(self, tiny_model: TinyModel) -> None:
        """Without the guard transformers would import deepspeed and shard the model over the ranks."""
        from transformers.integrations import deepspeed

        class Zero3:
            def is_zero3(self) -> bool:
                return True

            config: ClassVar[dict[str, Any]] = {}

        kept = Zero3()  # transformers holds a weak reference only
        deepspeed.set_hf_deepspeed_config(kept)
        try:
            reward = GDRReward(strong=str(tiny_model(seed=1)), weak=str(tiny_model(seed=2)), reduction="mean")
            (found,) = reward(["Question?"], ["Yes."])
            assert found is not None
            assert deepspeed.is_deepspeed_zero3_enabled()
            with pytest.raises(DataError):
                reward(["q"], [[answer([{"type": "image"}])]])  # type: ignore[arg-type]
            assert deepspeed.deepspeed_config() is kept.config
        finally:
            deepspeed.unset_hf_deepspeed_config()
        assert GDRReward(strong=str(tiny_model(seed=1)), weak=str(tiny_model(seed=2)), reduction="mean")(
            ["Question?"], ["Yes."]
        ) == [found]

    def test_the_reference_comes_back_after_an_error(self) -> None:
        from transformers.integrations import deepspeed

        from gdr_trl.placement import outside_zero3

        class Zero3:
            def is_zero3(self) -> bool:
                return True

        kept = Zero3()
        deepspeed.set_hf_deepspeed_config(kept)
        try:
            with pytest.raises(ZeroDivisionError), outside_zero3():
                _ = 1 / int(deepspeed.is_deepspeed_zero3_enabled())
            assert deepspeed.is_deepspeed_zero3_enabled()
        finally:
            deepspeed.unset_hf_deepspeed_config()
        with outside_zero3():
            assert not deepspeed.is_deepspeed_zero3_enabled()

    @pytest.mark.parametrize(
        ("rank", "gpus", "device"),
        [("3", 8, "cuda:3"), ("3", 1, "cuda:0"), (None, 2, "cuda:1"), ("0", 0, "auto")],
    )
    def test_each_rank_has_its_own_gpu(
        self, monkeypatch: pytest.MonkeyPatch, rank: str | None, gpus: int, device: str
    ) -> None:
        import torch

        from gdr_plugin.models.local.device import on_rank

        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("LOCAL_RANK", rank)
        pair = Config(
            strong=ModelSpec(model="org/strong"), weak=ModelSpec(model="org/weak", device="cpu", dtype="bfloat16")
        )
        placed = on_rank(pair)
        assert (placed.strong.device, placed.weak.device) == (device, "cpu")
        spread = ModelSpec(model="org/strong", device_map="auto")
        assert on_rank(Config(strong=spread, weak=ModelSpec(model="fake:b"))).strong == spread


class TestTheModule:
    def test_the_ready_made_instance(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import gdr_trl

        path = tmp_path / "gdr.yaml"
        path.write_text(config().to_yaml(), encoding="utf-8")
        monkeypatch.setenv("GDR_CONFIG", str(path))
        made = gdr_trl.reward
        try:
            assert gdr_trl.reward is made
            assert made(["Question?"], ["Yes."]) == [expected(Sample((USER,), "Yes."))[0].reward]
        finally:
            vars(gdr_trl).pop("reward")
        monkeypatch.setenv("GDR_CONFIG", "http://127.0.0.1:5000")
        assert gdr_trl._from_environment()._source._remote == "http://127.0.0.1:5000"
        for given, action, number in (("", "none", 0.0), ("raise", "raise", 0.0), ("-5", "number", -5.0)):
            monkeypatch.setenv("GDR_UNSCORED", given)
            unscored = gdr_trl._from_environment()._unscored
            assert (unscored.action, unscored.number) == (action, number)
        monkeypatch.delenv("GDR_CONFIG")
        with pytest.raises(ConfigError, match="GDR_CONFIG"):
            _ = gdr_trl.reward
        with pytest.raises(AttributeError, match="nothing"):
            _ = gdr_trl.nothing

    def test_public_names(self) -> None:
        import gdr_trl

        assert gdr_trl.__all__ == sorted(gdr_trl.__all__) == ["AsyncGDRReward", "GDRReward"]
