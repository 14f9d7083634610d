"""The data set that `gdr annotate` writes is one that TRL's trainers take as it is: two real steps with each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.annotation.annotate import annotate
from gdr_plugin.annotation.options import AnnotateOptions
from gdr_plugin.config.load import parse_config
from gdr_plugin.sampling.sample import Sampling

# The trainers' own: TRL still uses names that transformers calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")

TinyModel = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Path:
    """Annotated by two random models with on-policy responses of the weak one; one prompt has a system turn."""
    place = tmp_path_factory.mktemp("annotated")
    rows: list[dict[str, Any]] = [{"prompt": f"Tell me about the river {number}."} for number in range(7)]
    rows.append({"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]})
    (place / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = parse_config(
        {
            "strong": str(tiny_model(seed=1)),
            "weak": str(tiny_model(seed=2)),
            "guidance": {"domains": {"chat": "chat"}},
            "routing": {"routers": []},
        }
    )
    options = AnnotateOptions(policy="weak", sampling=Sampling(samples=3, max_new_tokens=12))
    summary = annotate(place / "prompts.jsonl", config, place / "out", options).summary
    assert summary["pairs"] == 8
    return place / "out"


@pytest.fixture
def load(folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Load a configuration of the data set, with a cache of its own."""
    from datasets import load_dataset

    def loaded(*name: str) -> Any:
        return load_dataset(str(folder), *name, split="train", cache_dir=str(tmp_path / "cache"))

    return loaded


@pytest.fixture
def policy(tiny_model: TinyModel) -> tuple[Any, Any]:
    """A tiny model to train, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tiny_model(seed=3)
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def settings(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path / "trained"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **more,
    }


def train_two_steps(trainer: Any, model: Any) -> None:
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert any(not value.equal(before[name]) for name, value in model.named_parameters())


def test_the_folder_loads_as_a_data_set(load: Callable[..., Any]) -> None:
    pairs, kto, candidates = load(), load("kto"), load("candidates")
    assert (len(pairs), len(kto), len(candidates)) == (8, 16, 24)
    assert load("preferences").column_names == pairs.column_names
    assert pairs[7]["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert pairs[0]["chosen"] == [{"role": "assistant", "content": pairs[0]["chosen"][0]["content"]}]
    assert sum(kto["label"]) == 8


def test_dpo(load: Callable[..., Any], policy: Any, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = policy
    trainer = DPOTrainer(
        model=model, args=DPOConfig(**settings(tmp_path)), train_dataset=load(), processing_class=tokenizer
    )
    train_two_steps(trainer, model)


def test_simpo(load: Callable[..., Any], policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    model, tokenizer = policy
    args = CPOConfig(**settings(tmp_path, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5, max_length=256))
    trainer = CPOTrainer(model=model, args=args, train_dataset=load(), processing_class=tokenizer)
    train_two_steps(trainer, model)


def test_reward_model(load: Callable[..., Any], tiny_model: TinyModel, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    path = tiny_model(seed=3)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**settings(tmp_path)),
        train_dataset=load(),
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    train_two_steps(trainer, model)


def test_kto(load: Callable[..., Any], policy: Any, tmp_path: Path) -> None:
    from trl import KTOConfig, KTOTrainer

    model, tokenizer = policy
    trainer = KTOTrainer(
        model=model, args=KTOConfig(**settings(tmp_path)), train_dataset=load("kto"), processing_class=tokenizer
    )
    train_two_steps(trainer, model)
