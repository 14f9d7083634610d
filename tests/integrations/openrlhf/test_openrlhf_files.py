"""The files that OpenRLHF loads: reward function and agent, in process and against a server; and their paths."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from gdr_plugin.api.errors import ConfigError, DataError, GDRError, ModelError
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.serve import squash

Client = Callable[..., ModuleType]
USER = "What is 17 + 25?"
PARAMETERS = SimpleNamespace(max_tokens=64, logprobs=None)
VARIABLES = ("REMOTE", "CONFIG", "POLICY_TOKENIZER", "SCALE", "CLIP", "TEMPERATURE", "UNSCORED", "PLAIN", "TOKEN")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Set the variables that say which reward; what was opened for others is forgotten."""
    from gdr_openrlhf import backend
    from gdr_plugin.adapters.backend import _opened

    def clear() -> None:
        backend._backend.cache_clear()
        backend._dialect.cache_clear()
        _opened.cache_clear()

    def use(**variables: object) -> None:
        clear()
        for name in VARIABLES:
            monkeypatch.delenv(f"GDR_{name}", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(f"GDR_{name}", str(value))

    yield use
    clear()


@pytest.fixture
def tokenizer(policy: Path) -> Any:
    return AutoTokenizer.from_pretrained(policy)


def prompt_of(tokenizer: Any, user: str = USER) -> str:
    return str(
        tokenizer.apply_chat_template([{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True)
    )


@cache
def gdr_path(file: str) -> str:
    command = [sys.executable, "-m", "gdr_plugin", "path", "openrlhf", file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def load(path: str) -> ModuleType:
    """Load a file as OpenRLHF does: by its path, not by its package."""
    spec = importlib.util.spec_from_file_location("reward_func", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def core_reward(config: Path, response: str, *, finished: bool = True, **fields: Any) -> float:
    ratio = GuidedDensityRatio.from_config(config)
    (score,) = ratio.score([Sample((Message("user", USER),), response, finished=finished, fields=fields)])
    assert score.reward is not None
    return score.reward


def engine(tokenizer: Any, text: str, finish_reason: str = "stop") -> Any:
    ids = tokenizer(text=text, add_special_tokens=False)["input_ids"]
    ids += [tokenizer.eos_token_id] * (finish_reason == "stop")

    async def generate(prompt: list[int], parameters: Any, multi_modal_data: Any = None) -> Any:
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=ids, finish_reason=finish_reason, logprobs=None, text="")]
        )

    return SimpleNamespace(generate=generate)


@pytest.mark.parametrize("where", ["in process", "remote"])
def test_the_reward_function_in_the_real_executor(
    client: Client,
    environment: Callable[..., None],
    server: Any,
    config: Path,
    policy: Path,
    tokenizer: Any,
    where: str,
) -> None:
    way = {"CONFIG": config} if where == "in process" else {"REMOTE": server.url}
    environment(**way, POLICY_TOKENIZER=policy, SCALE="2", TEMPERATURE="5")
    executor = client("0.11.2", "openrlhf.utils.agent").SingleTurnAgentExecutor(gdr_path("reward_func"))
    label = {"domain": "math"}
    output = asyncio.run(
        executor.execute(prompt_of(tokenizer), label, PARAMETERS, 512, tokenizer, engine(tokenizer, "It is 42."))
    )
    reward = core_reward(config, "It is 42.", domain="math")
    assert output["reward"] == [pytest.approx(2 * reward, abs=1e-4)]
    assert output["scores"] == [pytest.approx(squash(reward, 5), abs=1e-4)]


def test_the_reward_function_from_many_threads(
    environment: Callable[..., None], config: Path, policy: Path, tokenizer: Any
) -> None:
    """OpenRLHF calls it from threads, one query each: they share batches and get their own rewards."""
    environment(CONFIG=config, POLICY_TOKENIZER=policy)
    reward_func = load(gdr_path("reward_func")).reward_func
    prompt = prompt_of(tokenizer)
    texts = [f"It is {number}." for number in range(40)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda text: reward_func([f"{prompt}{text}<|im_end|>"], [prompt], [""]), texts))
    together = reward_func([f"{prompt}{text}<|im_end|>" for text in texts], [prompt] * 40, [""] * 40)
    assert [answer["rewards"][0] for answer in answers] == [
        pytest.approx(reward, abs=1e-4) for reward in together["rewards"]
    ]
    assert len(set(together["rewards"])) == 40
    assert reward_func([], [], []) == {
        "rewards": [],
        "scores": [],
        "extra_logs": {k: [] for k in together["extra_logs"]},
    }


# What OpenRLHF does in each of Ray's workers, in a process and a folder of its own; a thread for each sample.
WORKER = """
import importlib.util, json, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
path, prompt = sys.argv[1:]
os.chdir("/")
spec = importlib.util.spec_from_file_location("reward_func", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
together = threading.Barrier(16)
def ask(number):
    together.wait()
    return module.reward_func([f"{prompt}It is {number}.<|im_end|>"], [prompt], [""])["rewards"][0]
with ThreadPoolExecutor(16) as pool:
    rewards = list(pool.map(ask, range(16)))
workers = [thread.name for thread in threading.enumerate() if thread.name == "gdr-worker"]
print(json.dumps([len(workers), len(set(rewards))]))
"""


def test_threads_that_come_at_once_open_the_reward_once(policy: Path, tokenizer: Any, tmp_path: Path) -> None:
    config = tmp_path / "gdr.yaml"
    config.write_text("strong: fake:strong\nweak: fake:weak\n")
    done = subprocess.run(
        [sys.executable, "-c", WORKER, gdr_path("reward_func"), prompt_of(tokenizer)],
        env={**os.environ, "GDR_CONFIG": str(config), "GDR_POLICY_TOKENIZER": str(policy)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == [1, 16]


def test_the_reward_function_can_be_sent_by_value() -> None:
    """Releases before 0.9.1 make it a Ray task: nothing of its file may be missing elsewhere."""
    function = load(gdr_path("reward_func")).reward_func
    names = inspect.getclosurevars(function)
    assert (dict(names.globals), dict(names.nonlocals)) == ({}, {})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "set GDR_REMOTE to the address of a `gdr serve`, or GDR_CONFIG"),
        ({"REMOTE": "http://127.0.0.1:1", "CONFIG": "gdr.yaml"}, "not both"),
        ({"REMOTE": "http://127.0.0.1:1", "SCALE": "much"}, "GDR_SCALE must be a number, not 'much'"),
        ({"REMOTE": "http://127.0.0.1:1", "SCALE": "0"}, "scale must be above 0"),
        ({"REMOTE": "http://127.0.0.1:1", "PLAIN": "yes"}, "GDR_PLAIN must be 0 or 1"),
        ({"CONFIG": "elsewhere/gdr.yaml"}, "GDR_CONFIG: there is no file 'elsewhere/gdr.yaml' in /"),
        ({"REMOTE": "127.0.0.1:1"}, "is not a server's address"),
    ],
)
def test_a_wrong_environment_is_said(environment: Callable[..., None], variables: dict[str, str], message: str) -> None:
    from gdr_openrlhf.backend import from_environment

    environment(**variables)
    with pytest.raises(ConfigError, match=message):
        from_environment()


def test_without_the_policys_tokenizer_nothing_is_guessed(
    environment: Callable[..., None], config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from gdr_openrlhf.reward_func import reward_func

    environment(CONFIG=config)
    with pytest.raises(DataError, match="does not know the policy's tokenizer"):
        reward_func(["Hi there"], ["Hi"], [""])
    assert [(record.levelname, record.message[:9]) for record in caplog.records] == [("ERROR", "no reward")]
    assert reward_func([], [], [])["rewards"] == []


class TestAgent:
    """The agent, loaded as OpenRLHF loads it, in the real base class."""

    @pytest.fixture
    def agent(self, client: Client) -> Callable[[], Any]:
        base = client("0.11.2", "openrlhf.utils.agent").AgentExecutorBase

        def make() -> Any:
            executor = load(gdr_path("agent")).AgentExecutor
            assert issubclass(executor, base)
            return executor()

        return make

    @pytest.mark.parametrize("where", ["in process", "remote"])
    def test_rewards_from_token_ids(
        self, agent: Any, environment: Callable[..., None], server: Any, config: Path, tokenizer: Any, where: str
    ) -> None:
        environment(**({"CONFIG": config} if where == "in process" else {"REMOTE": server.url}), CLIP="100")
        executor = agent()
        prompt = prompt_of(tokenizer)

        def run(text: str, finish_reason: str = "stop", label: Any = "") -> dict[str, Any]:
            generating = engine(tokenizer, text, finish_reason)
            output: dict[str, Any] = asyncio.run(
                executor.execute(prompt, label, PARAMETERS, 512, tokenizer, generating)
            )
            return output

        ended, cut = run("It is 42."), run("It is 42.", "length")
        assert ended["reward"] == pytest.approx(core_reward(config, "It is 42."), abs=1e-4)
        assert cut["reward"] == pytest.approx(core_reward(config, "It is 42.", finished=False), abs=1e-4)
        assert 0 < ended["scores"] < 1
        assert (ended["extra_logs"]["gdr_finished"], cut["extra_logs"]["gdr_finished"]) == (1.0, 0.0)
        begin, end = ended["action_ranges"][0]
        assert tokenizer.decode(ended["observation_tokens"][begin:end]) == "It is 42.<|im_end|>"
        guided = run("It is 42.", label={"domain": "math"})
        assert guided["reward"] == pytest.approx(core_reward(config, "It is 42.", domain="math"), abs=1e-4)

    def test_an_older_release(
        self, client: Client, environment: Callable[..., None], config: Path, tokenizer: Any
    ) -> None:
        """0.9.1 knows neither images nor what was cut; the end's token still tells."""
        client("0.9.1.post1", "openrlhf.utils.agent")
        environment(CONFIG=config)
        executor = load(gdr_path("agent")).AgentExecutor()
        for reason, finished in (("stop", True), ("length", False)):
            output = asyncio.run(
                executor.execute(prompt_of(tokenizer), "", PARAMETERS, 512, tokenizer, engine(tokenizer, "42", reason))
            )
            assert output["reward"] == pytest.approx(core_reward(config, "42", finished=finished), abs=1e-4)

    def test_its_output_suits_the_samples_generator(
        self, agent: Any, client: Client, environment: Callable[..., None], config: Path, tokenizer: Any
    ) -> None:
        environment(CONFIG=config)
        output = asyncio.run(
            agent().execute(prompt_of(tokenizer), "", PARAMETERS, 512, tokenizer, engine(tokenizer, "It is 42."))
        )
        generator = client("0.11.2", "openrlhf.trainer.ppo_utils.samples_generator").SamplesGenerator
        experience = generator._process_response_into_experience(None, output, max_len=512)
        assert experience.rewards.tolist() == [pytest.approx(output["reward"])]
        assert experience.info["gdr_unscored"].tolist() == [0.0]

    def test_an_error_ends_the_training(
        self, agent: Any, environment: Callable[..., None], config: Path, tokenizer: Any
    ) -> None:
        environment(CONFIG=config)
        executor = agent()
        run = executor.execute(
            prompt_of(tokenizer), {"domain": "cooking"}, PARAMETERS, 512, tokenizer, engine(tokenizer, "Eggs.")
        )
        with pytest.raises(DataError, match="unknown domain 'cooking'"):
            asyncio.run(run)
        with pytest.raises(ValueError, match="has images"):
            asyncio.run(executor.execute("x", "", PARAMETERS, 512, tokenizer, None, images=["a.png"]))

    def test_a_policy_stops_at_what_its_generation_config_lists(
        self, agent: Any, environment: Callable[..., None], config: Path, policy: Path, tmp_path: Path
    ) -> None:
        """The stop token ends the response although the tokenizer does not name it and a padding token follows."""
        shutil.copytree(policy, tmp_path / "policy")
        GenerationConfig(eos_token_id=[2, 1]).save_pretrained(tmp_path / "policy")
        own = AutoTokenizer.from_pretrained(tmp_path / "policy")
        own.add_special_tokens({"pad_token": "<|pad|>"})
        environment(CONFIG=config)
        for stop in ("<|im_start|>", "<|im_start|><|pad|>", "<|im_start|>user"):
            run = agent().execute(prompt_of(own), "", PARAMETERS, 512, own, engine(own, f"It is 42.{stop}", "length"))
            output = asyncio.run(run)
            assert output["reward"] == pytest.approx(core_reward(config, "It is 42."), abs=1e-4)
            assert output["extra_logs"]["gdr_finished"] == 1.0

    def test_a_server_that_is_gone_ends_the_training(
        self, agent: Any, environment: Callable[..., None], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gdr_plugin.reward.remote.time.sleep", lambda seconds: None)
        environment(REMOTE="http://127.0.0.1:9")
        run = agent().execute(prompt_of(tokenizer), "", PARAMETERS, 512, tokenizer, engine(tokenizer, "42"))
        with pytest.raises(ModelError, match="the connection failed"):
            asyncio.run(run)


def test_plain_scores_text_as_it_is(
    serve: Callable[..., Any],
    environment: Callable[..., None],
    config: Path,
    policy: Path,
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    """Text that no template has written goes to both models as it is."""
    from gdr_openrlhf.reward_func import reward_func

    unguided = tmp_path / "gdr.yaml"
    unguided.write_text(config.read_text().replace("guidance:\n", "guidance:\n  placement: none\n"))
    environment(CONFIG=unguided, POLICY_TOKENIZER=policy, PLAIN=1)
    rendered = prompt_of(tokenizer)
    answer = reward_func(
        [rendered + "It is 42.<|im_end|>", "17 + 25 = 42<|im_end|>"], [rendered, "17 + 25 ="], ["", ""]
    )
    # The models' own template is the policy's here, so that rendered text is what they would have been shown.
    assert answer["rewards"][0] == pytest.approx(core_reward(unguided, "It is 42."), abs=1e-4)
    assert (
        answer["extra_logs"]["gdr_tokens"][1] == len(tokenizer(text=" 42", add_special_tokens=False)["input_ids"]) + 1
    )
    environment(CONFIG=config, POLICY_TOKENIZER=policy, PLAIN=1)
    with pytest.raises(GDRError, match="no place for guidance"):
        reward_func([rendered + "42"], [rendered], [{"domain": "math"}])


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    file = tmp_path / "fake.yaml"
    file.write_text("strong: fake:a\nweak: fake:b\nguidance: {domains: {chat: none, math: math}}\n")
    return file


def test_plain_needs_a_reward_without_guidance(fake: Path, policy: Path) -> None:
    command = [sys.executable, "-m", "gdr_plugin", "serve", str(fake), "--port", "0", "--plain"]
    run = subprocess.run(
        [*command, "--policy-tokenizer", str(policy)], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 2
    assert "--plain scores text as it is, without guidance, but math has some" in run.stderr


def test_a_wrong_policy_tokenizer_stops_the_server_at_its_start(fake: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gdr_plugin", "serve", str(fake), "--port", "0"]
    run = subprocess.run(
        [*command, "--policy-tokenizer", str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 2
    assert "the policy tokenizer" in run.stderr


def test_paths_for_launch_scripts() -> None:
    def gdr(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gdr_plugin", "path", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    both = dict(line.split("\t") for line in gdr("openrlhf").stdout.splitlines())
    assert set(both) == {"reward_func", "agent"}
    assert all(Path(file).is_file() for file in both.values())
    assert gdr("openrlhf", "agent").stdout == both["agent"] + "\n"
    assert "unknown integration 'openrl'" in gdr("openrl").stderr
    assert "unknown file of openrlhf 'agnt'" in gdr("openrlhf", "agnt").stderr
