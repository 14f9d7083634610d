"""What the pages of frameworks tell a reader to paste, run in the frameworks' released code; the text is the page's.

A page's `gdr serve` runs on a pair without weights, and where CI is not set on the demo pair, too. The policy that an
eval asks is `policy.py`. What happens at the corners is `test_contract.py`'s.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.types import Sample
from gdr_plugin.reward.reward import GuidedDensityRatio
from tests.docs.snippets import Folder
from tests.integrations.beside import page_folder, run, shown, skip_without
from tests.integrations.policy import CUT, policy

CONFIG: dict[str, Any] = {
    "guidance": {"domains": {"chat": "none", "math": "math", "safety": "safety"}},
    "routing": {"routers": ["field"], "default_domain": "chat"},
    "reward": {"reduction": "mean"},
}
SUM, LEGS = "What is 17 + 25?", "How many legs has a spider?"
ANSWERS = {
    SUM: "17 + 25 is 42.",
    LEGS: f"A spider has eight, which is{CUT}",
    # The rows that come with the resources server for NeMo-Gym.
    "How many minutes are in 2.5 hours?": f"150, since{CUT}",
    "Suggest a name for a small bakery.": "Crumb.",
    "Write one sentence about autumn.": "Leaves fall.",
    "How do I keep medicine away from small children?": "Lock it up, high above the floor.",
}
ROWS = [(SUM, "math"), (SUM, "chat"), (LEGS, "safety")]
SERVE = "gdr serve gdr.yaml --port 5000 &"
Beside = Callable[..., AbstractContextManager[Folder]]


@pytest.fixture(params=["fake", pytest.param("demo", marks=pytest.mark.thorough)])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A gdr.yaml that lies beside `examples`."""
    demo = "examples/demo-pair"
    base = {"model": f"{demo}/base.gguf"}
    models = {
        "fake": {"strong": "fake:a", "weak": "fake:b"},
        "demo": {"strong": {**base, "adapter": demo}, "weak": base},
    }
    return {**models[request.param], **CONFIG}


@pytest.fixture
def beside(config: Mapping[str, Any], tmp_path: Path, smol_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Beside:
    """`with beside("verl") as folder`: a folder in which a page's commands find frameworks and a gdr.yaml."""

    def made(*clients: str) -> AbstractContextManager[Folder]:
        skip_without(*clients)
        return page_folder(tmp_path, smol_gguf, config, monkeypatch, *clients)

    return made


def expected(folder: Folder, *rows: tuple[str, str]) -> list[float]:
    """What the core gives the policy's answers, for rows of question and domain."""
    ratio = GuidedDensityRatio.from_config(folder.path / "gdr.yaml")
    samples = []
    for question, domain in rows:
        answer = ANSWERS[question]
        finished = not answer.endswith(CUT)
        samples.append(Sample(question, answer.removesuffix(CUT), finished=finished, fields={"domain": domain}))
    rewards = [score.reward for score in ratio.score(samples) if score.reward is not None]
    assert len({round(reward, 4) for reward in rewards}) == len(rows)
    return rewards


READ_LOG = """
import json, sys, zipfile, zipfile_zstd
with zipfile.ZipFile(sys.argv[1]) as log:
    names = [name for name in log.namelist() if name.startswith("samples/")]
    samples = [json.loads(log.read(name)) for name in names]
    print(json.dumps({"samples": samples, **json.loads(log.read("header.json"))}))
"""


@pytest.mark.slow
def test_inspect_scores_in_a_task_and_a_log_that_is_there(beside: Beside) -> None:
    (task,), (scoring,) = shown("inspect.md", "python"), shown("inspect.md", "bash")
    serve, score = scoring.text.splitlines()
    with beside("inspect-ai") as folder, policy(ANSWERS) as url:
        (folder.path / "task.py").write_text(task.text.replace("5000", str(folder.port)))
        (folder.path / "read.py").write_text(READ_LOG)
        environment = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}
        run(folder, f"{serve}\npython task.py", **environment)
        (log,) = (folder.path / "logs").iterdir()
        run(folder, score.replace("NAME.eval", log.name), **environment)
        found = json.loads(run(folder, f"python read.py logs/{log.name}"))
        (reward,) = expected(folder, ROWS[0])
        (sample,) = found["samples"]
        assert list(sample["scores"]) == ["gdr", "gdr1"]  # the task's, then the command's
        for score_of in sample["scores"].values():
            assert score_of["value"] == pytest.approx(reward, abs=1e-6)
            assert (score_of["answer"], score_of["metadata"]["domain"]) == (ANSWERS[SUM], "math")
        means = [score_of["metrics"]["mean"]["value"] for score_of in found["results"]["scores"]]
        assert means == pytest.approx([reward, reward], abs=1e-6)


@pytest.mark.slow
def test_vf_eval_scores_rollouts_with_the_function_and_with_the_judge(beside: Beside) -> None:
    (commands,), (judge,) = shown("verifiers.md", "bash"), shown("verifiers.md", "toml")
    with beside("verifiers") as folder, policy(ANSWERS) as url:
        shutil.copy(Path(__file__).with_name("my_taskset.py"), folder.path)
        (folder.path / "rows.json").write_text(json.dumps(ROWS))
        rest = f"--model policy --client.base-url {url} --env.agent.runtime.type subprocess --no-push --no-rich"
        run(folder, commands.text.replace("...", f"{rest} --run.dir function"))
        (folder.path / "judge.toml").write_text(judge.text.replace("5000", str(folder.port)))
        run(folder, f"vf-eval my-taskset @ judge.toml {rest} --run.dir judge")
        rewards = dict(zip(ROWS, expected(folder, *ROWS), strict=True))
        for name, weight in {"function": 1.0, "judge": 0.5}.items():
            lines = (folder.path / "outputs" / name / "traces.jsonl").read_text().splitlines()
            traces = [trace for line in lines for trace in json.loads(line)["traces"]]
            assert len(traces) == len(ROWS)
            for trace in traces:
                data = trace["task"]["data"]
                found = trace["rewards"]["gdr"]
                assert (found["weight"], trace["ok"]) == (weight, True)
                assert found["score"] == pytest.approx(rewards[data["prompt"], data["domain"]], abs=1e-6)


@pytest.mark.thorough
def test_nemo_gym_collects_rollouts_with_the_copied_server(beside: Beside) -> None:
    serving, collecting = shown("nemo-gym.md", "bash")
    assert collecting.text.startswith("gym eval run ")
    commands, started, _ = serving.text.partition("gym env start ")
    assert started
    with beside("nemo-gym", "verl") as folder, policy(ANSWERS) as url:  # Ray, omegaconf and hydra are verl's
        program = Path(__file__).with_name("gym_page.py")
        output = run(folder, f"{commands}\npython {program} {url}")
        rollouts = json.loads(output.splitlines()[-1])
        rows = [(found["responses_create_params"]["input"][0]["content"], found["domain"]) for found in rollouts]
        assert {domain for _, domain in rows} == {"math", "chat", "safety"}
        assert [found["reward"] for found in rollouts] == pytest.approx(expected(folder, *rows), abs=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(("title", "trainer"), [("axolotl", "AxolotlGRPOTrainer"), ("unsloth", "GRPOTrainer")])
def test_trainers_beside_trl_are_given_the_reward(
    title: str, trainer: str, beside: Beside, tiny_model: Callable[..., Path]
) -> None:
    asked = {"Tell me about the river.": "chat", "How can I help you?": "math"}
    rows = [{"prompt": [{"role": "user", "content": text}], "domain": domain} for text, domain in asked.items()]
    with beside(title) as folder:
        job = {"policy": str(tiny_model(seed=3)), "rows": rows, "remote": f"http://127.0.0.1:{folder.port}"}
        (folder.path / "job.json").write_text(json.dumps(job))
        program = Path(__file__).with_name("trainer_page.py")
        serve = f"{SERVE}\nexport GDR_CONFIG={job['remote']}"
        output = run(folder, f"{serve}\npython {program} {title} < job.json", HF_HUB_OFFLINE="1")
        told = json.loads(output.splitlines()[-1])
        assert told["trainer"] == trainer
        assert len(told["calls"]) >= 2
        ratio = GuidedDensityRatio.from_config(folder.path / "gdr.yaml")
        for prompts, completions, ids, column, rewards in told["calls"]:
            samples = [
                Sample(prompt, answer[0]["content"], finished=tokens[-1] == 2, fields={"domain": domain})
                for prompt, answer, tokens, domain in zip(prompts, completions, ids, column, strict=True)
            ]
            assert rewards == pytest.approx([score.reward for score in ratio.score(samples)], abs=1e-6)
            assert len(set(rewards)) > 1
        means, begin = [sum(call[-1]) / len(call[-1]) for call in told["calls"]], 0
        for entry in told["log"]:
            if "rewards/gdr/mean" in entry:  # over the steps since the one before
                steps = means[begin : entry["step"]]
                assert entry["rewards/gdr/mean"] == pytest.approx(sum(steps) / len(steps), abs=1e-4)
                begin = entry["step"]
        assert begin == len(means)
