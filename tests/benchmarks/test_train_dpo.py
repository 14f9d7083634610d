"""The packed DPO loss against two plain sequences and TRL's formula, and a run that stops and goes on."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Message
from gdr_plugin.models.local import open_local

REPOSITORY = Path(__file__).resolve().parent.parent.parent
ROWS = [
    {"id": f"r{n}", "prompt": f"Question {n}: what is a river?", "chosen": f"Water {n}.", "rejected": f"No idea, {n}!!"}
    for n in range(8)
]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.fixture
def dpo(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from benchmarks import train_dpo

    return train_dpo


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def plain_logprob(model: Any, context: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    """The response's log-prob from a sequence of its own, the way everybody computes it."""
    ids = torch.tensor([[*context, *response]])
    logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, ids[0, 1:, None])[len(context) - 1 :, 0].sum()


def trl_loss(policy: list[torch.Tensor], reference: list[torch.Tensor], beta: float) -> torch.Tensor:
    """TRL's `sigmoid` loss as its documentation writes it: chosen and rejected log-ratios, policy over reference."""
    chosen_logratios, rejected_logratios = policy[0] - reference[0], policy[1] - reference[1]
    return -logsigmoid(beta * (chosen_logratios - rejected_logratios))


def pairs_of(dpo: Any, folder: Path) -> list[Any]:
    chat = open_local(ModelSpec(model=str(folder)), Limits()).chat
    made = []
    for row in ROWS[:3]:
        spans = [chat.span((Message("user", row["prompt"]),), row[name], end=True) for name in ("chosen", "rejected")]
        made.append(dpo.Pair(row["id"], spans[0].context, spans[0].response, spans[1].response))
    return made


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_the_packed_loss_and_its_gradient_are_those_of_two_sequences(dpo: Any, tiny_model: Any, arch: str) -> None:
    folder, other = tiny_model(arch), tiny_model(arch, seed=1)
    reference = load(other)
    for pair in pairs_of(dpo, folder):
        packed, plain = load(folder), load(folder)
        with torch.no_grad():
            known = dpo.pair_logprobs(reference, pair)
            expected = [plain_logprob(reference, pair.context, response) for response in (pair.chosen, pair.rejected)]
        assert known.tolist() == pytest.approx([float(value) for value in expected], abs=1e-3, rel=1e-5)
        loss = dpo.dpo_loss(dpo.pair_logprobs(packed, pair), known, beta=0.1)
        loss.backward()
        policy = [plain_logprob(plain, pair.context, response) for response in (pair.chosen, pair.rejected)]
        wanted = trl_loss(policy, expected, beta=0.1)
        wanted.backward()
        assert loss.item() == pytest.approx(wanted.item(), abs=1e-5, rel=1e-5)
        for (name, packed_weight), plain_weight in zip(packed.named_parameters(), plain.parameters(), strict=True):
            assert packed_weight.grad is not None
            bound = 1e-5 * float(plain_weight.grad.abs().max() + 1)
            assert torch.allclose(packed_weight.grad, plain_weight.grad, atol=bound), name


def run(dpo: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train_dpo.py", *map(str, arguments)])
    dpo.main()


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_a_run_that_stopped_goes_on_to_the_same_adapters(
    dpo: Any, monkeypatch: pytest.MonkeyPatch, tiny_model: Any, data: Path, tmp_path: Path
) -> None:
    # Three pairs are trained on, two a step: the fifth step is in the fourth epoch.
    common = [data, "--model", tiny_model(), "--dtype", "float32", "--batch", 2, "--held-out", 5, "--rate", 0.01]
    run(dpo, monkeypatch, *common, "--out", tmp_path / "whole", "--steps", 2, 5)
    run(dpo, monkeypatch, *common, "--out", tmp_path / "parts", "--steps", 2)
    run(dpo, monkeypatch, *common, "--out", tmp_path / "parts", "--steps", 2, 5)
    for step in ("step-002", "step-005"):
        whole, parts = adapter(tmp_path / "whole" / step), adapter(tmp_path / "parts" / step)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "step" in entry] == [1, 2, 3, 4, 5]
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-4)  # before the first step policy and reference are the same
    assert [entry["checkpoint"] for entry in log if "checkpoint" in entry] == [2, 5]
    assert log[-1].keys() >= {"loss", "margin", "accuracy", "held_out"}
    # gdr.yaml takes it.
    tuned = open_local(ModelSpec(model=str(tiny_model()), adapter=str(tmp_path / "whole" / "step-005")))
    base = open_local(ModelSpec(model=str(tiny_model())))
    span = base.chat.span((Message("user", ROWS[0]["prompt"]),), ROWS[0]["chosen"], end=True)
    assert tuned.score([span])[0].sum() != pytest.approx(base.score([span])[0].sum(), abs=1e-3)


def test_training_prefers_what_it_is_shown_and_reversed_the_opposite(
    dpo: Any, monkeypatch: pytest.MonkeyPatch, tiny_model: Any, data: Path, tmp_path: Path
) -> None:
    common = [data, "--model", tiny_model(), "--dtype", "float32", "--batch", 4, "--held-out", 4, "--rate", 0.01]
    margins = {}
    for name, extra in (("plain", []), ("reversed", ["--reverse"])):
        run(dpo, monkeypatch, *common, *extra, "--out", tmp_path / name, "--steps", 6)
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        margins[name] = log[-1]["margin"]
        assert log[-2]["margin"] > log[0]["margin"] == 0
    assert margins["plain"] > 0 > margins["reversed"]  # held-out labels are never reversed


def test_with_decay_the_last_steps_change_least(
    dpo: Any, monkeypatch: pytest.MonkeyPatch, tiny_model: Any, data: Path, tmp_path: Path
) -> None:
    common = [data, "--model", tiny_model(), "--dtype", "float32", "--batch", 2, "--held-out", 4, "--rate", 0.01]
    run(dpo, monkeypatch, *common, "--decay", "--out", tmp_path / "decay", "--steps", 5, 7, 8)
    steps = [adapter(tmp_path / "decay" / f"step-00{number}") for number in (5, 7, 8)]
    moves = [
        max(float((after[name] - before[name]).abs().max()) for name in after)
        for before, after in itertools.pairwise(steps)
    ]
    # AdamW moves a weight by about the rate: at step 8 of 8 that is (1 + cos(7/8 pi)) / 2 = 3.8 % of it.
    assert 0 < moves[1] < 0.05 * 0.01 * 1.1
    assert moves[0] > moves[1]


def test_it_goes_on_from_an_adapter_and_exports_halves(
    dpo: Any, monkeypatch: pytest.MonkeyPatch, tiny_model: Any, data: Path, tmp_path: Path
) -> None:
    common = [data, "--model", tiny_model(), "--dtype", "float32", "--batch", 2, "--held-out", 4, "--rate", 0.01]
    half = tmp_path / "half"
    run(dpo, monkeypatch, *common, "--out", tmp_path / "first", "--steps", 3, "--export", half)
    first = adapter(tmp_path / "first" / "step-003")
    assert {tensor.dtype for tensor in adapter(half).values()} == {torch.float16}
    assert all(torch.equal(tensor, first[name].half()) for name, tensor in adapter(half).items())
    local = [
        open_local(ModelSpec(model=str(tiny_model()), adapter=str(folder)))
        for folder in (half, tmp_path / "first" / "step-003")
    ]
    span = local[0].chat.span((Message("user", ROWS[0]["prompt"]),), ROWS[0]["chosen"], end=True)
    assert local[0].score([span])[0].sum() == pytest.approx(local[1].score([span])[0].sum(), abs=1e-2)
    # The reference stays the base: before its first step the second run has the margins that the first one reached.
    run(dpo, monkeypatch, *common, "--start", half, "--out", tmp_path / "second", "--steps", 1)
    log = json.loads((tmp_path / "second" / "log.jsonl").read_text().splitlines()[0])
    assert log["margin"] > 0
    assert log["loss"] < 0.69
    second = adapter(tmp_path / "second" / "step-001")
    assert max(float((second[name] - first[name].half()).abs().max()) for name in second) == pytest.approx(
        0.002, rel=0.1
    )


def test_long_pairs_are_left_out_and_none_left_is_an_error(
    dpo: Any, monkeypatch: pytest.MonkeyPatch, tiny_model: Any, data: Path, tmp_path: Path
) -> None:
    chat = open_local(ModelSpec(model=str(tiny_model()))).chat
    every = dpo.read_pairs(data, chat, max_tokens=10_000)
    limit = sorted(pair.tokens for pair in every)[3]
    assert [pair for pair in every if pair.tokens <= limit] == dpo.read_pairs(data, chat, max_tokens=limit)
    with pytest.raises(SystemExit):
        run(dpo, monkeypatch, data, "--model", tiny_model(), "--out", tmp_path / "none", "--max-tokens", 5)
    assert not (tmp_path / "none").exists()


@pytest.mark.filterwarnings("ignore")  # of the trainer about its own settings
def test_the_loss_is_the_one_of_trls_trainer(dpo: Any, tiny_model: Any, tmp_path: Path) -> None:
    """The real `DPOTrainer` on the same token ids: its loss of a batch is the mean of ours."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    folder = tiny_model()
    pairs = pairs_of(dpo, folder)
    trainer = DPOTrainer(
        model=load(folder),
        ref_model=load(tiny_model(seed=1)),
        args=DPOConfig(
            output_dir=str(tmp_path), beta=0.1, max_length=None, report_to=[], use_cpu=True, bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(ROWS).remove_columns("id"),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    batch = trainer.data_collator(
        [
            {"prompt_ids": list(pair.context), "chosen_ids": list(pair.chosen), "rejected_ids": list(pair.rejected)}
            for pair in pairs
        ]
    )
    theirs = float(trainer.compute_loss(trainer.model, batch))
    ours = [
        float(dpo.dpo_loss(dpo.pair_logprobs(load(folder), pair), dpo.pair_logprobs(load(tiny_model(seed=1)), pair)))
        for pair in pairs
    ]
    assert theirs == pytest.approx(sum(ours) / len(ours), rel=1e-5)
