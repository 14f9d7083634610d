"""The reward where there is more than one process: two ranks, the command line, a child that it is sent to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gdr_plugin.config.load import parse_config

pytestmark = pytest.mark.slow

TinyModel = Callable[..., Path]

TWO_RANKS = """
import json, os, sys
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from gdr_trl import GDRReward

config, policy, out = sys.argv[1:]
asked = [[{"role": "user", "content": text}] for text in ("One", "Two", "Three", "Four")]
data = Dataset.from_dict({"prompt": asked, "domain": ["chat", "safety", "chat", "safety"]})
args = GRPOConfig(
    output_dir=out, max_steps=2, per_device_train_batch_size=2, num_generations=2, max_completion_length=6,
    learning_rate=1e-2, logging_steps=1, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
    gradient_checkpointing=False, dataloader_pin_memory=False, disable_tqdm=True, log_completions=True,
    num_completions_to_print=0,
)
trainer = GRPOTrainer(model=policy, reward_funcs=GDRReward(config), args=args, train_dataset=data)
trainer.train()
total = trainer.accelerator.gather(next(trainer.model.parameters()).detach().float().sum().reshape(1)).tolist()
if trainer.accelerator.is_main_process:
    facts = {"ranks": trainer.accelerator.num_processes, "log": trainer.state.log_history, "weights": total}
    with open(os.path.join(out, "facts.json"), "w") as file:
        json.dump(facts, file)
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
sys.stdout.flush()
os._exit(0)  # a rank's communication threads may be gone before the other's: nothing of that is tested here
"""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GDR_", "ACCELERATE_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1", **more}


@pytest.fixture
def config(tiny_model: TinyModel, tmp_path: Path) -> Path:
    made = parse_config(
        {
            "strong": str(tiny_model(seed=1)),
            "weak": str(tiny_model(seed=2)),
            "guidance": {"domains": {"chat": "none", "safety": "safety"}},
            "routing": {"routers": ["field"]},
            "reward": {"reduction": "mean"},
        }
    )
    path = tmp_path / "gdr.yaml"
    path.write_text(made.to_yaml(), encoding="utf-8")
    return path


def run(command: list[str], cwd: Path, **more: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def test_two_ranks_log_the_same_keys_and_share_one_gradient(
    config: Path, tiny_model: TinyModel, tmp_path: Path
) -> None:
    import pandas as pd

    script, out = tmp_path / "train.py", tmp_path / "out"
    script.write_text(TWO_RANKS, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    run([*launch, str(config), str(tiny_model(seed=3)), str(out)], tmp_path, ACCELERATE_USE_CPU="true")
    facts = json.loads((out / "facts.json").read_text())
    assert facts["ranks"] == 2
    assert facts["weights"][0] == facts["weights"][1]
    steps = [entry for entry in facts["log"] if "gdr/ratio" in entry]
    assert len(steps) == 2
    for entry in steps:
        assert entry["gdr/chat/share"] + entry["gdr/safety/share"] == pytest.approx(1)
        assert entry["gdr/ratio"] == pytest.approx(entry["rewards/gdr/mean"], rel=1e-5)
        assert entry["grad_norm"] > 0
    table = pd.concat(pd.read_parquet(file) for file in (out / "completions").glob("*.parquet"))
    assert len(table) == 8
    assert list(table["gdr"]) == pytest.approx(list(table["gdr_reward"]), rel=1e-5)
    names = {"One": "chat", "Two": "safety", "Three": "chat", "Four": "safety"}
    assert [names[prompt[0]["content"]] for prompt in table["prompt"]] == list(table["gdr_domain"])


def test_the_command_line_takes_the_dotted_path(config: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"prompt": text, "domain": "chat"} for text in ("One", "Two", "Three", "Four")]
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("trl")), "grpo", "--reward_funcs", "gdr_trl.reward"]
    options = {
        "model_name_or_path": str(tiny_model(seed=3)),
        "dataset_name": str(data),
        "output_dir": str(tmp_path / "out"),
        "max_steps": "2",
        "per_device_train_batch_size": "2",
        "num_generations": "2",
        "max_completion_length": "6",
        "logging_steps": "1",
        "use_cpu": "true",
        "bf16": "false",
        "report_to": "none",
        "gradient_checkpointing": "false",
    }
    for name, value in options.items():
        command += [f"--{name}", value]
    output = run(command, tmp_path, GDR_CONFIG=str(config), HF_HOME=str(tmp_path / "home"))
    assert "rewards/gdr/mean" in output
    assert "gdr/strong_per_token" in output
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_command_line_says_at_once_that_the_variable_is_missing(tmp_path: Path) -> None:
    code = "import gdr_trl\ntry: gdr_trl.reward\nexcept gdr_trl.ConfigError as error: print(error)"
    assert "set it to the path of a gdr.yaml" in run([sys.executable, "-c", code], tmp_path)


def test_a_spawned_child_opens_the_models_again(tmp_path: Path) -> None:
    """As AsyncGRPO does: pickled into a process that sees no GPU, after it was used here."""
    config = tmp_path / "gdr.yaml"
    config.write_text("strong: fake:a\nweak: fake:b\nreward: {reduction: mean}\n", encoding="utf-8")
    script = tmp_path / "spawn.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from gdr_trl import GDRReward\n"
        "def work(reward, queue):\n"
        "    import os\n"
        "    os.environ['CUDA_VISIBLE_DEVICES'] = ''\n"
        "    queue.put((reward(['Hi'], ['Hello there']), reward.__name__))\n"
        "if __name__ == '__main__':\n"
        "    reward = GDRReward(sys.argv[1], name='mine')\n"
        "    here = reward(['Hi'], ['Hello there'])\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    queue = context.Queue()\n"
        "    child = context.Process(target=work, args=(reward, queue))\n"
        "    child.start()\n"
        "    there, name = queue.get(timeout=120)\n"
        "    child.join()\n"
        "    print(here == there and name == 'mine' and child.exitcode == 0)\n",
        encoding="utf-8",
    )
    assert "True\n" in run([sys.executable, str(script), str(config)], tmp_path)


def test_importing_it_loads_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, gdr_trl; print({'torch', 'transformers', 'trl', 'datasets', 'numpy'} & sys.modules.keys())"
    assert run([sys.executable, "-c", code], tmp_path) == "set()\n"
