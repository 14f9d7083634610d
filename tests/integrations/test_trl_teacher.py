"""TRL's distillation trainers with our server as their teacher: tiny models on the CPU, real generation, real steps.

TRL's client for servers refuses to be made where vLLM is not installed, though it only speaks HTTP: that check, and no
more, is switched off here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.reward.teacher import RawIds, Teacher

# The trainers' own warnings, not ours: deprecations inside TRL, transformers and torch, and notes on tiny models.
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
TinyModel = Callable[..., Path]
QUESTIONS = ["Tell me about the river.", "How can I help you?", "Write a short story.", "What is a ratio?"]
LENGTH = 6
SETTINGS: dict[str, Any] = {
    "max_steps": 12,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "max_completion_length": LENGTH,
    "seed": 5,
}


@pytest.fixture(autouse=True)
def _client(monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("trl.generation.vllm_client")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setattr(client, "is_vllm_available", lambda *_, **__: True)


@pytest.fixture
def teacher(tiny_model: TinyModel) -> Teacher:
    """A ratio that prefers some tokens by nats: the weak model is where the policy starts."""
    ratio = GuidedDensityRatio.from_models(str(tiny_model(seed=1)), str(tiny_model(seed=3)))
    return Teacher.from_ratio(ratio, str(tiny_model(seed=3)), scale=2.0)


def mean_ratio(teacher: Teacher, model: Any, tokenizer: Any) -> float:
    """The mean ratio of each token that the policy writes, over many responses to the training's prompts."""
    import torch

    torch.manual_seed(11)
    ratios: list[float] = []
    for question in QUESTIONS:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        length = {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH}
        rows = model.generate(**asked, **length, do_sample=True, top_k=0, top_p=1.0, num_return_sequences=16)
        size = asked["input_ids"].shape[1]
        for found in teacher.score([RawIds(tuple(row), size - 1) for row in rows.tolist()]):
            ratios += found.ratios.tolist()  # type: ignore[union-attr]
    return sum(ratios) / len(ratios)


def test_a_policy_learns_from_the_teacher_in_trls_sampled_token_distillation(
    teacher: Teacher,
    tiny_model: TinyModel,
    serving: Callable[..., AbstractContextManager[str]],
    tmp_path: Path,
) -> None:
    """`IWOPDTrainer` takes `teacher - student` of sampled tokens as their advantage: linear, any number fits."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer

    folder = tiny_model(seed=3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = mean_ratio(teacher, model, tokenizer)
    # TRL 1.16 divides by the tokens of the data set's answers, even where it trains on the policy's own: without an
    # answer in the row its loss is infinite.
    answer = {"role": "assistant", "content": "A river of people."}
    rows = Dataset.from_dict(
        {"messages": [[{"role": "user", "content": question}, answer] for question in QUESTIONS * 2]}
    )
    with serving(teacher.ratio, teacher=teacher) as url:
        args = IWOPDConfig(
            output_dir=str(tmp_path),
            use_teacher_server=True,
            teacher_model_server_url=url,
            num_generations=2,
            max_length=96,
            top_p=1.0,
            **SETTINGS,
        )
        trainer = IWOPDTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
    advantages = [
        step["iw_opd/mean_advantage"] for step in trainer.state.log_history if "iw_opd/mean_advantage" in step
    ]
    assert len(advantages) == SETTINGS["max_steps"]
    after = mean_ratio(teacher, trainer.model, tokenizer)
    assert after > before + 0.5, (before, after)


def test_server_distillation_reads_virtual_logprobs_above_0_as_near_certainty(
    teacher: Teacher,
    tiny_model: TinyModel,
    serving: Callable[..., AbstractContextManager[str]],
    tmp_path: Path,
) -> None:
    """`ServerDistillationTrainer` with beta 1 is no linear loss: its tail bucket bounds the teacher's probability by 1.

    Values above 0 stay finite there, and pull their token up; this holds both.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer
    from trl.experimental.server_distillation import server_distillation_trainer as module

    folder = tiny_model(seed=3)
    rows = Dataset.from_dict({"prompt": [[{"role": "user", "content": question}] for question in QUESTIONS * 2]})
    with serving(teacher.ratio, teacher=teacher) as url:
        args = ServerDistillationConfig(
            output_dir=str(tmp_path), teacher_model_server_url=url, beta=1.0, **{**SETTINGS, "max_steps": 2}
        )
        trainer = ServerDistillationTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder),
            args=args,
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
        trainer.train()
    losses = [step["loss"] for step in trainer.state.log_history if "loss" in step]
    assert len(losses) == 2
    assert all(abs(loss) < 1e3 for loss in losses)
    one = torch.ones(1, 1, dtype=torch.bool)
    student = torch.tensor([[-1.0]], requires_grad=True)
    pulls = []
    for value in (-0.5, 0.0, 3.0):
        teacher_row, mask = module._add_tail_bucket(torch.tensor([[value]]), one)
        assert torch.isfinite(teacher_row).all()
        student_row, _ = module._add_tail_bucket(student, one)
        loss = module._jsd_divergence(student_row, teacher_row, 1.0, mask).sum()
        (gradient,) = torch.autograd.grad(loss, student)
        pulls.append(-gradient.item())
    assert 0 < pulls[0] < 1 < pulls[1] < pulls[2]  # between -0.5 and 0 the tail's log jumps to -16
