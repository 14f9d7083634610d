"""Trains as the pages on trainers beside TRL say: `python trainer_page.py NAME`, its job on standard input.

A job is `{"policy": folder, "rows": [...], "remote": address}`. Prints each call of the reward with its answer, and
what the trainer logged.
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

Job = dict[str, Any]
PAGE = Path(__file__).parents[2] / "docs" / "other-trainers.md"


def section(title: str, language: str) -> str:
    """A section's snippet."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    return text.split(f"```{language}\n")[1].split("```")[0]


def unsloth(job: Job) -> Any:
    """The snippet as it stands, with a policy, rows and the address of a server."""
    from datasets import Dataset

    code = section("Unsloth", "python").replace("org/policy", job["policy"])
    shown = {"__name__": "shown", "data": Dataset.from_list(job["rows"])}
    exec(code.replace("http://127.0.0.1:5000", job["remote"]), shown)
    return shown["trainer"]


def axolotl(job: Job) -> Any:
    """The YAML as it stands, by Axolotl's strategy for GRPO: its loader of rewards, its settings, its trainer."""
    import dataclasses
    from types import ModuleType

    import yaml
    from datasets import Dataset
    from transformers import AutoTokenizer

    numba = ModuleType("numba")  # its sampler of packed batches wants it (GRPO packs none), with 170 MB of llvmlite
    numba.njit = lambda function: function  # type: ignore[attr-defined]
    sys.modules.setdefault("numba", numba)
    from axolotl.core.trainers.grpo import GRPOStrategy
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.trl import TRLConfig

    settings = yaml.safe_load(section("Axolotl", "yaml"))
    settings["trl"] = TRLConfig(**settings["trl"]).model_dump()
    config = DictDefault(settings, context_parallel_size=1)
    made = GRPOStrategy.get_training_args_class()
    known = {field.name for field in dataclasses.fields(made)}
    given = {name: value for name, value in GRPOStrategy.set_training_args_kwargs(config).items() if name in known}
    trainer = GRPOStrategy.get_trainer_class()(
        job["policy"],
        *GRPOStrategy.set_trainer_args(config),
        args=made(
            **given,
            output_dir=config.output_dir,
            max_steps=2,
            learning_rate=config.learning_rate,
            per_device_train_batch_size=config.micro_batch_size,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=Dataset.from_list(job["rows"]),
        processing_class=AutoTokenizer.from_pretrained(job["policy"]),
        **GRPOStrategy.set_trainer_kwargs(config),
    )
    trainer.train()
    return trainer


def recorded() -> list[Any]:
    """Write down what trainers ask of the reward, and what it answers."""
    from gdr_trl import GDRReward

    calls: list[Any] = []
    ask = GDRReward.__call__

    def asked(self: Any, prompts: Any, completions: Any, completion_ids: Any = None, **columns: Any) -> Any:
        answer = ask(self, prompts, completions, completion_ids, **columns)
        calls.append([prompts, completions, completion_ids, columns["domain"], answer])
        return answer

    GDRReward.__call__ = asked  # type: ignore[method-assign]
    return calls


def main() -> None:
    """Train, and print what happened."""
    warnings.simplefilter("ignore")
    job = json.load(sys.stdin)
    trainer_of = {"axolotl": axolotl, "unsloth": unsloth}[sys.argv[1]]
    if sys.argv[1] == "unsloth":
        import_module("unsloth")  # it wants to come first
    calls = recorded()
    trainer = trainer_of(job)
    print(json.dumps({"calls": calls, "trainer": type(trainer).__name__, "log": trainer.state.log_history}))


if __name__ == "__main__":
    main()
