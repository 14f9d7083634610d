"""The reward inside TRL's real trainers: tiny models on the CPU, real generation, real steps."""

from __future__ import annotations

import asyncio
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.settings import Limits
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.config.load import parse_config
from gdr_plugin.config.schema import Config
from gdr_trl import AsyncGDRReward, GDRReward

# The trainers' own warnings, not ours: deprecations inside TRL, transformers and torch, and notes on tiny models.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

TinyModel = Callable[..., Path]
QUESTIONS = ["Tell me about the river.", "How can I help you?", "Write a short story.", "What is a ratio?"]
LENGTH = 8


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.fixture(scope="session")
def pair(tiny_model: TinyModel) -> Config:
    """Two random models; two domains that a column names."""
    return parse_config(
        {
            "strong": str(tiny_model(seed=1)),
            "weak": str(tiny_model(seed=2)),
            "guidance": {"domains": {"chat": "none", "safety": "safety"}},
            "routing": {"routers": ["field"]},
            "reward": {"reduction": "mean"},
        }
    )


@pytest.fixture
def policy(tiny_model: TinyModel) -> str:
    return str(tiny_model(seed=3))


def rows(conversational: bool = True) -> Any:
    from datasets import Dataset

    asked: list[Any] = (
        [[{"role": "user", "content": question}] for question in QUESTIONS] if conversational else QUESTIONS
    )
    return Dataset.from_dict({"prompt": asked, "domain": ["safety", "chat", None, "safety"]})


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "seed": 5,
        **more,
    }


def group_settings(folder: Path, **more: Any) -> dict[str, Any]:
    return settings(folder, num_generations=4, max_completion_length=LENGTH, **more)


def weights(model: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def changed(model: Any, before: dict[str, Any]) -> bool:
    return any(not value.equal(before[name]) for name, value in model.named_parameters())


def logged(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_grpo_learns_from_it_and_logs_why(pair: Config, policy: str, tmp_path: Path) -> None:
    import pandas as pd
    from trl import GRPOConfig, GRPOTrainer

    reward = GDRReward(pair, name="gdr")
    args = GRPOConfig(**group_settings(tmp_path, log_completions=True, num_completions_to_print=0))
    trainer = GRPOTrainer(model=policy, reward_funcs=reward, args=args, train_dataset=rows())
    before = weights(trainer.model)
    trainer.train()

    assert changed(trainer.model, before)
    assert all(value > 0 and math.isfinite(value) for value in logged(trainer, "grad_norm"))
    for key in ("ratio", "strong_per_token", "weak_per_token", "truncated", "not_scored", "tokens_per_s"):
        values = logged(trainer, f"gdr/{key}")
        assert len(values) == 2
        assert all(map(math.isfinite, values))
    assert logged(trainer, "gdr/not_scored") == [0.0, 0.0]
    assert logged(trainer, "gdr/ratio") == pytest.approx(logged(trainer, "rewards/gdr/mean"), rel=1e-5)
    assert {"gdr/chat/share", "gdr/safety/share"} <= trainer.state.log_history[0].keys()

    table = pd.concat(pd.read_parquet(file) for file in sorted((tmp_path / "completions").glob("*.parquet")))
    assert len(table) == 8
    assert list(table["gdr"]) == pytest.approx(list(table["gdr_reward"]), rel=1e-5)
    domains = {question: domain or "chat" for question, domain in zip(QUESTIONS, rows()["domain"], strict=True)}
    for row in table.to_dict("records"):
        question, answer = row["prompt"][0]["content"], row["completion"][0]["content"]
        assert row["gdr_domain"] == domains[question]
        # Untrained and eight tokens long: the policy never ends its turn here, so the end does not count.
        sample = Sample((Message("user", question),), answer, finished=False, fields={"domain": domains[question]})
        (score,) = reward.ratio.score([sample])
        assert score.reward == pytest.approx(row["gdr_reward"], rel=1e-4)
        assert score.strong_logprob == pytest.approx(row["gdr_strong"], rel=1e-4)
        assert score.weak_logprob == pytest.approx(row["gdr_weak"], rel=1e-4)
    assert logged(trainer, "gdr/truncated") == [1.0, 1.0]


def test_the_trainer_tells_which_completions_were_cut(pair: Config, policy: str, tmp_path: Path) -> None:
    """A policy that ends at once: the end of turn is what is scored, so rewards differ from a cut completion's."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    model = AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    reward = GDRReward(pair, name="gdr")
    args = GRPOConfig(**group_settings(tmp_path, max_steps=1))
    trainer = GRPOTrainer(model=model, reward_funcs=reward, args=args, train_dataset=rows(), processing_class=tokenizer)
    head = model.get_output_embeddings()
    bias = torch.zeros(head.out_features)
    bias[tokenizer.eos_token_id] = 1e3
    head.register_forward_hook(lambda module, inputs, output: output + bias)
    trainer.train()
    assert logged(trainer, "gdr/truncated") == [0.0]
    assert logged(trainer, "gdr/not_scored") == [0.0]


def test_rloo_waits_for_the_async_reward(pair: Config, policy: str, tmp_path: Path) -> None:
    from trl import RLOOConfig, RLOOTrainer

    reward = AsyncGDRReward(pair, name="gdr")
    args = RLOOConfig(**group_settings(tmp_path))
    trainer = RLOOTrainer(model=policy, reward_funcs=reward, args=args, train_dataset=rows(conversational=False))
    before = weights(trainer.model)
    trainer.train()
    assert changed(trainer.model, before)
    assert len(logged(trainer, "rewards/gdr/mean")) == 2
    assert logged(trainer, "gdr/not_scored") == [0.0, 0.0]


@pytest.fixture
def server(pair: Config, serving: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    """A real `gdr serve` of the pair."""
    from gdr_plugin.reward.reward import GuidedDensityRatio

    with serving(GuidedDensityRatio.from_config(pair)) as url:
        yield url


def test_a_server_gives_the_same_training(pair: Config, policy: str, tmp_path: Path, server: str) -> None:
    from trl import GRPOConfig, GRPOTrainer

    def run(*rewards: Any) -> Any:
        args = GRPOConfig(**group_settings(tmp_path))
        trainer = GRPOTrainer(model=policy, reward_funcs=list(rewards), args=args, train_dataset=rows())
        trainer.train()
        return trainer

    there = run(AsyncGDRReward(remote=server, name="there"), GDRReward(pair, name="here"))
    for key in ("ratio", "strong_per_token", "truncated", "safety/share"):
        assert logged(there, f"there/{key}") == pytest.approx(logged(there, f"here/{key}"), rel=1e-4)
    assert logged(there, "rewards/there/mean") == pytest.approx(logged(there, "rewards/here/mean"), rel=1e-4)


def test_online_dpo(pair: Config, policy: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    seen: list[tuple[int, float | None]] = []

    class Watched(GDRReward):
        def _run(self, call: Any) -> list[float | None]:
            found = super()._run(call)
            seen.extend(zip(map(len, call.completion_ids), found, strict=True))
            return found

    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    trainer = OnlineDPOTrainer(
        model=model,
        reward_funcs=Watched(pair, name="gdr", policy_tokenizer=policy),
        args=OnlineDPOConfig(**settings(tmp_path, max_new_tokens=LENGTH)),
        train_dataset=rows(),
        processing_class=tokenizer,
    )
    before = weights(trainer.model)
    trainer.train()
    assert changed(trainer.model, before)
    assert len(seen) == 2 * 2 * 4
    assert all(reward is not None and math.isfinite(reward) for _, reward in seen)


def test_sdpo(pair: Config, policy: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    trainer = SDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy),
        reward_funcs=GDRReward(pair, name="gdr", policy_tokenizer=policy),
        args=SDPOConfig(**group_settings(tmp_path, success_reward_threshold=-1e9)),
        train_dataset=rows(),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    before = weights(trainer.model)
    trainer.train()
    assert changed(trainer.model, before)
    assert all(map(math.isfinite, logged(trainer, "loss")))


def test_rows_that_cannot_be_scored_do_not_move_the_policy(pair: Config, policy: str, tmp_path: Path) -> None:
    """Half of the prompts are too long for the pair: no reward, no advantage, and the run goes on."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    asked = [question + " Please." * (number % 2 * 100) for number, question in enumerate(QUESTIONS)]
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in asked]})
    reward = GDRReward(pair, name="gdr", limits=Limits(max_length=200))
    args = GRPOConfig(**group_settings(tmp_path, max_steps=4, shuffle_dataset=False))
    trainer = GRPOTrainer(model=policy, reward_funcs=reward, args=args, train_dataset=data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    assert sorted(logged(trainer, "gdr/not_scored")) == [0.0, 0.0, 1.0, 1.0]
    for entry in trainer.state.log_history:
        if entry.get("gdr/not_scored") == 1.0:
            assert entry["grad_norm"] == 0
            assert "gdr/ratio" not in entry
        elif "gdr/not_scored" in entry:
            assert entry["grad_norm"] > 0
            assert math.isfinite(entry["reward"])
    ours = [str(warning.message) for warning in caught if "not scored" in str(warning.message)]
    assert len(ours) == 1
    assert "exceed max_length 200" in ours[0]


def test_a_run_that_scores_nothing_ends_at_its_first_batch(pair: Config, policy: str, tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    reward = GDRReward(pair, name="gdr", limits=Limits(max_length=8))
    args = GRPOConfig(**group_settings(tmp_path))
    trainer = GRPOTrainer(model=policy, reward_funcs=reward, args=args, train_dataset=rows())
    with pytest.raises(DataError, match="none of the first 4 completions was scored"):
        trainer.train()


def test_training_resumes_from_a_checkpoint(pair: Config, policy: str, tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    def run(folder: Path, resume: bool | None = None, **more: Any) -> Any:
        args = GRPOConfig(
            **group_settings(
                folder, **{"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant", **more}
            )
        )
        reward = GDRReward(pair, name="gdr")
        trainer = GRPOTrainer(model=policy, reward_funcs=reward, args=args, train_dataset=rows())
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole", max_steps=3, save_strategy="no")
    run(tmp_path / "parts", max_steps=2)
    resumed = run(tmp_path / "parts", max_steps=3, resume=True)
    assert [entry["step"] for entry in resumed.state.log_history if "gdr/ratio" in entry] == [1, 2, 3]
    assert logged(resumed, "gdr/ratio")[:2] == pytest.approx(logged(whole, "gdr/ratio")[:2], rel=1e-5)
    assert logged(resumed, "gdr/ratio")[2] == pytest.approx(logged(whole, "gdr/ratio")[2], rel=1e-5)


@pytest.mark.parametrize("kind", [GDRReward, AsyncGDRReward])
def test_async_grpo_scores_its_groups(pair: Config, policy: str, kind: Any) -> None:
    """Its rollout worker scoring, after the pickling that sends the reward there (generation would need vLLM)."""
    from transformers import AutoTokenizer
    from trl.experimental.async_grpo.async_rollout_worker import (
        RolloutGroup,
        TrainingSequence,
        _AsyncRolloutLoop,
    )

    end = AutoTokenizer.from_pretrained(policy).eos_token_id
    reward = pickle.loads(pickle.dumps(kind(pair, name="gdr", policy_tokenizer=policy)))
    texts, ids = ["Yes.", "No, never.", "Well"], [[9, 8, end], [9, 8, 7, end], [9, 8]]
    question = [{"role": "user", "content": QUESTIONS[0]}]
    group = RolloutGroup(
        prompts=[question] * 3,
        reward_kwargs={"domain": ["safety"] * 3},
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        completions_ids=ids,
        completions_sequences=[
            [TrainingSequence(tokens, [1] * len(tokens), [0.0] * len(tokens), None)] for tokens in ids
        ],
        tool_call_counts=[0] * 3,
        tool_failure_counts=[0] * 3,
        model_version=0,
        group_id=0,
        env_rewards=[None] * 3,
        rollout_rewards=[None] * 3,
    )
    loop: Any = object.__new__(_AsyncRolloutLoop)
    loop.reward_funcs, loop.reward_func_names = [reward], ["gdr"]
    loop._env_reward_types, loop._provides_rollout_reward = [], False
    samples = asyncio.run(loop._score_group(group))

    asked = (Message("user", QUESTIONS[0]),)
    scores = reward.ratio.score(
        [Sample(asked, text, end in tokens, {"domain": "safety"}) for text, tokens in zip(texts, ids, strict=True)]
    )
    assert [sample.metrics["rewards/gdr"] for sample in samples] == pytest.approx([score.reward for score in scores])
    assert sum(sample.advantage for sample in samples) == pytest.approx(0, abs=1e-5)
