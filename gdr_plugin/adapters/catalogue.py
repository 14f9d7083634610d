"""Every integration: what `gdr integrations` says of it, and the snippet that its page shows.

Looks at what is installed, without importing any framework.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Final

from gdr_plugin.api.errors import ConfigError, unknown


@dataclass(frozen=True, slots=True)
class Integration:
    """One framework, and how it is connected."""

    title: str
    """The framework's own name."""
    package: str
    """Our package."""
    distribution: str | None
    """The framework's name on the package index; None where it is not there."""
    tested: str
    """What the tests ran it with."""
    unscored: str
    """What becomes of an answer that cannot be scored."""
    snippet: str
    """What a user pastes."""
    entry_point: tuple[str, str] | None = None
    """Group and name by which the framework finds our package."""
    page: str | None = None
    """Its page in docs/, where that has another name than the integration; with the section."""

    @property
    def installed(self) -> str | None:
        """The framework's version here; None where it is not installed."""
        try:
            return version(self.distribution) if self.distribution else None
        except PackageNotFoundError:
            return None

    def found(self) -> EntryPoint | None:
        """Our entry point, where the framework has one and an installed package says it."""
        if self.entry_point is None:
            return None
        group, name = self.entry_point
        return next(iter(entry_points(group=group, name=name)), None)


_SERVE: Final = "gdr serve gdr.yaml --port 5000 &"

INTEGRATIONS: Final = {
    "trl": Integration(
        title="TRL",
        package="gdr_trl",
        distribution="trl",
        tested="TRL 1.14 and 1.16: its trainers",
        unscored="left out (None); `unscored=` takes raise or a number",
        snippet="""from gdr_trl import GDRReward
from trl import GRPOConfig, GRPOTrainer

trainer = GRPOTrainer(
    "org/policy", reward_funcs=GDRReward("gdr.yaml"), args=GRPOConfig(output_dir="out"), train_dataset=data
)
trainer.train()""",
    ),
    "openrlhf": Integration(
        title="OpenRLHF",
        package="gdr_openrlhf",
        distribution="openrlhf",
        tested="OpenRLHF 0.9.0, 0.9.1 and 0.11.2: their clients",
        unscored="an error; GDR_UNSCORED or --unscored takes a number",
        snippet=(
            "gdr serve gdr.yaml --port 5000 --policy-tokenizer Qwen/Qwen2.5-7B-Instruct\n"
            "python -m openrlhf.cli.train_ppo_ray --reward.remote_url http://127.0.0.1:5000/get_reward "
            "--data.apply_chat_template ..."
        ),
    ),
    "verl": Integration(
        title="verl",
        package="gdr_verl",
        distribution="verl",
        tested="verl 0.9.1: its reward managers and its function loader",
        unscored="an error; GDR_UNSCORED takes a number",
        snippet=f"""{_SERVE}
export GDR_REMOTE=http://127.0.0.1:5000
python -m verl.trainer.main_ppo reward.reward_manager.name=gdr data.return_raw_chat=True ...""",
        entry_point=("verl.plugins", "gdr"),
    ),
    "swift": Integration(
        title="ms-swift",
        package="gdr_swift",
        distribution="ms-swift",
        tested="ms-swift 4.6.0: its plugin loader and its scoring of completions",
        unscored="an error; GDR_UNSCORED takes a number",
        snippet=f"""{_SERVE}
export GDR_REMOTE=http://127.0.0.1:5000
swift rlhf --rlhf_type grpo --external_plugins $(gdr path swift reward) --reward_funcs gdr ...""",
    ),
    "slime": Integration(
        title="slime",
        package="gdr_slime",
        distribution=None,
        tested="its contract, read off slime's source of August 2026; by hand its and miles' rm_hub",
        unscored="an error; GDR_UNSCORED or --unscored takes a number",
        snippet=f"""{_SERVE}
export GDR_REMOTE=http://127.0.0.1:5000
python train.py --custom-rm-path gdr_slime.reward ...""",
    ),
    "verifiers": Integration(
        title="verifiers",
        package="gdr_verifiers",
        distribution="verifiers",
        tested="verifiers 0.4.0: `vf-eval` with the judge and with the function; not prime-rl",
        unscored="an error; GDR_UNSCORED takes a number",
        snippet=f"""{_SERVE}
export GDR_REMOTE=http://127.0.0.1:5000
echo 'env.taskset.task.rewards.gdr.fn = "gdr_verifiers:reward"' > gdr.toml
vf-eval my-taskset @ gdr.toml ...""",
    ),
    "nemo-gym": Integration(
        title="NeMo-Gym",
        package="gdr_nemo_gym",
        distribution="nemo-gym",
        tested="NeMo-Gym 0.4.0: rollouts with its servers and its simple agent; not `gym env start`",
        unscored="an error; GDR_UNSCORED takes a number",
        snippet=f"""{_SERVE}
export GDR_REMOTE=http://127.0.0.1:5000
mkdir -p resources_servers && cp -r "$(gdr path nemo-gym)" resources_servers/gdr
gym env start --resources-server gdr --model-type openai_model --model NAME --model-url http://127.0.0.1:8000/v1 \\
  --model-api-key KEY""",
    ),
    "inspect": Integration(
        title="inspect_ai",
        package="gdr_inspect",
        distribution="inspect-ai",
        tested="inspect_ai 0.3.285: evals and `inspect score`",
        unscored="an error; `unscored` or GDR_UNSCORED takes a number, or none: the mean leaves it out",
        snippet=f"""{_SERVE}
inspect score logs/NAME.eval --scorer gdr_inspect/gdr -S remote=http://127.0.0.1:5000 --action append --overwrite""",
        entry_point=("inspect_ai", "gdr_inspect"),
    ),
    "easyr1": Integration(
        title="EasyR1",
        package="gdr_verl",
        distribution=None,
        tested="its contract, read off its source of July 2026; by hand its own reward manager",
        unscored="an error; GDR_UNSCORED takes a number",
        snippet=f"""{_SERVE}
export GDR_REMOTE=http://127.0.0.1:5000
python -m verl.trainer.main data.answer_key=gdr \\
  worker.reward.reward_function=$(gdr path verl easyr1):compute_score ...""",
        page="verl.md#easyr1",
    ),
    "llamafactory": Integration(
        title="LLaMA-Factory",
        package="gdr_llamafactory",
        distribution="llamafactory",
        tested="LLaMA-Factory 0.9.5: the function of its PPO that asks a server",
        unscored="an error; --unscored takes a number",
        snippet="""gdr serve gdr.yaml --port 5000 --policy-tokenizer Qwen/Qwen2.5-7B-Instruct
llamafactory-cli train ppo.yaml stage=ppo reward_model_type=api reward_model=http://127.0.0.1:5000/llamafactory""",
        page="other-trainers.md#llama-factory",
    ),
    "axolotl": Integration(
        title="Axolotl",
        package="gdr_trl",
        distribution="axolotl",
        tested="Axolotl 0.19.0 on a CPU: its loader of rewards and its GRPO trainer; by hand `axolotl train`",
        unscored="left out (None); set GDR_UNSCORED to raise or a number",
        snippet=f"""{_SERVE}
export GDR_CONFIG=http://127.0.0.1:5000
axolotl train grpo.yaml  # with rl: grpo, and trl: {{reward_funcs: [gdr_trl.reward]}}""",
        page="other-trainers.md#axolotl",
    ),
    "unsloth": Integration(
        title="Unsloth",
        package="gdr_trl",
        distribution="unsloth",
        tested="Unsloth 2026.10.9 on a CPU, where it trains with TRL's trainer; not its trainers for GPUs",
        unscored="left out (None); `unscored=` takes raise or a number",
        snippet="""from unsloth import FastLanguageModel

from gdr_trl import GDRReward
from trl import GRPOConfig, GRPOTrainer

model, tokenizer = FastLanguageModel.from_pretrained("org/policy")
trainer = GRPOTrainer(
    model, reward_funcs=GDRReward(remote="http://127.0.0.1:5000"), args=GRPOConfig(output_dir="out"), train_dataset=data
)
trainer.train()""",
        page="other-trainers.md#unsloth",
    ),
    "skyrl": Integration(
        title="SkyRL",
        package="gdr_plugin",
        distribution="skyrl-gym",
        tested="skyrl-gym 0.4.0: makes and steps the environment",
        unscored="an error; GDR_UNSCORED takes a number",
        snippet="""import skyrl_gym
from gdr_plugin import Sample
from gdr_plugin.adapters.backend import open_backend
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput


class GDREnv(BaseTextEnv):
    def __init__(self, env_config=None, extras=None):
        super().__init__()
        self.fields = {"domain": extras["domain"]} if extras and "domain" in extras else {}

    def init(self, prompt):
        self.prompt = prompt
        return prompt, {}

    def step(self, action):
        sample = Sample(self.prompt, action, finished=False, fields=self.fields)
        (reward,) = open_backend().rewards([sample])  # GDR_REMOTE or GDR_CONFIG; an error where there is none
        return BaseTextEnvStepOutput(observations=[], reward=reward, done=True, metadata={})


def register():
    skyrl_gym.register(id="gdr", entry_point=GDREnv)""",
        page="other-trainers.md#skyrl",
    ),
    "areal": Integration(
        title="AReaL",
        package="gdr_areal",
        distribution="areal",
        tested="its contract, read off AReaL 1.0.4; by hand its own RLVRWorkflow",
        unscored="an error; GDR_UNSCORED takes a number",
        snippet="""import os

from areal import PPOTrainer

os.environ["GDR_REMOTE"] = "http://127.0.0.1:5000"  # set it where the rollout workers see it
with PPOTrainer(config, train_dataset=train_dataset) as trainer:
    trainer.train(
        workflow="gdr_areal.workflow.GDRWorkflow",
        workflow_kwargs={"gconfig": config.gconfig, "tokenizer": config.tokenizer_path},
    )""",
        page="other-trainers.md#areal",
    ),
    "distilabel": Integration(
        title="distilabel",
        package="gdr_distilabel",
        distribution="distilabel",
        tested="distilabel 1.5.3: a pipeline",
        unscored="None in `gdr_reward`, and why in `gdr_reason`",
        snippet="""from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from gdr_distilabel import GDRScore

rows = [
    {"instruction": "How many legs has a spider?", "generation": ["Eight."], "domain": "chat"},
    {"instruction": "How many legs has a hen?", "generation": ["Two.", "Four, as a cow."], "domain": "chat"},
]
with Pipeline("scored") as pipeline:
    LoadDataFromDicts(data=rows) >> GDRScore(remote="http://127.0.0.1:5000")

if __name__ == "__main__":
    scored = pipeline.run(use_cache=False)["default"]["train"]""",
        page="other-trainers.md#distilabel",
    ),
}
"""The integrations by the name that commands take."""


def integration(name: str) -> Integration:
    """An integration by its name.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in INTEGRATIONS:
        raise ConfigError(unknown("integration", name, INTEGRATIONS))
    return INTEGRATIONS[name]
