"""Calls adapters as their frameworks do: `python drivers.py`, jobs by adapter on standard input, answers on its output.

A process of its own, because frameworks change what they touch (warnings, patches of transformers). Where a
release can be installed here (verl, ms-swift, verifiers, inspect_ai, NeMo-Gym), its own code calls the adapter.

A job is `{"remote", "config", "tokenizer", "unscored", "items": [{"messages", "response", "cut", "domain"}]}`; its
answer is a list of rewards, or the error's text.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Job = dict[str, Any]


def tokenizer_of(job: Job) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(job["tokenizer"])


def rendered(tokenizer: Any, item: Any) -> str:
    return str(tokenizer.apply_chat_template(item["messages"], tokenize=False, add_generation_prompt=True))


def response_ids(tokenizer: Any, item: Any) -> list[int]:
    ids: list[int] = tokenizer.encode(item["response"], add_special_tokens=False)
    return ids if item["cut"] else [*ids, tokenizer.eos_token_id]


def source(job: Job) -> dict[str, Any]:
    """Where the reward is, as keywords."""
    given = {name: job[name] for name in ("remote", "config", "unscored")}
    return {name: value for name, value in given.items() if value is not None}


def trl(job: Job) -> list[float | None]:
    from gdr_trl import GDRReward

    tokenizer = tokenizer_of(job)
    reward = GDRReward(**source(job), policy_tokenizer=tokenizer)
    items = job["items"]
    return reward(
        [item["messages"] for item in items],
        [[{"role": "assistant", "content": item["response"]}] for item in items],
        [response_ids(tokenizer, item) for item in items],
        domain=[item["domain"] for item in items],
    )


def openrlhf(job: Job) -> list[float]:
    from gdr_openrlhf.reward_func import reward_func

    tokenizer = tokenizer_of(job)
    prompts = [rendered(tokenizer, item) for item in job["items"]]
    ends = ["" if item["cut"] else tokenizer.eos_token for item in job["items"]]
    queries = [prompt + item["response"] + end for prompt, item, end in zip(prompts, job["items"], ends, strict=True)]
    labels = [{"domain": item["domain"]} for item in job["items"]]
    rewards: list[float] = reward_func(queries, prompts, labels)["rewards"]
    return rewards


def _verl_batch(tokenizer: Any, items: list[Any], position: int) -> Any:
    """One answer as verl's rollout hands it over: prompt padded on the left, answer on the right."""
    import numpy as np
    import torch
    from verl import DataProto

    item, room = items[position], 512
    prompt = tokenizer.encode(rendered(tokenizer, item), add_special_tokens=False)
    answer = response_ids(tokenizer, item)
    pad = tokenizer.pad_token_id
    left, right = [pad] * (room - len(prompt)), [pad] * (room - len(answer))
    mask = [0] * len(left) + [1] * (len(prompt) + len(answer)) + [0] * len(right)
    columns = {
        "raw_prompt": item["messages"],
        "data_source": "tests",
        "reward_model": {"style": "rule", "ground_truth": ""},
        "extra_info": {"domain": item["domain"], "prompt": item["messages"], "index": position},
    }
    arrays = {}
    for name, value in columns.items():
        arrays[name] = np.empty(1, dtype=object)
        arrays[name][0] = value
    tensors = {"prompts": [left + prompt], "responses": [answer + right], "attention_mask": [mask]}
    return DataProto.from_dict(
        tensors={name: torch.tensor(value) for name, value in tensors.items()}, non_tensors=arrays
    )


def _verl(job: Job, reward: dict[str, Any]) -> list[float]:
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import load_reward_manager

    tokenizer = tokenizer_of(job)
    shown = {"sandbox_fusion": {"url": None}, **reward}
    config = OmegaConf.create({"reward": shown})
    manager = load_reward_manager(config, tokenizer)
    count = len(job["items"])

    async def rewards() -> list[Any]:
        batches = [_verl_batch(tokenizer, job["items"], position) for position in range(count)]
        return await asyncio.gather(*(manager.run_single(batch) for batch in batches))

    return [found["reward_score"] for found in manager.loop.run_until_complete(rewards())]


def verl_manager(job: Job) -> list[float]:
    manager = {"source": "register", "name": "gdr"}
    function = {"path": None, "name": "compute_score", "reward_kwargs": source(job)}
    return _verl(job, {"reward_manager": manager, "custom_reward_function": function})


def verl_function(job: Job) -> list[float]:
    manager = {"source": "register", "name": "naive"}
    function = {"path": "pkg://gdr_verl", "name": "compute_score", "reward_kwargs": source(job)}
    return _verl(job, {"reward_manager": manager, "custom_reward_function": function})


def swift(job: Job) -> list[float]:
    import torch
    from swift.rewards import orms
    from swift.rl_core.data import GRPOSample
    from swift.rl_core.grpo_algorithm import score_completions
    from swift.utils import import_external_file

    import_external_file(str(Path(__file__).parents[2] / "integrations" / "gdr_swift" / "reward.py"))
    samples = [
        GRPOSample(
            messages=[*item["messages"], {"role": "assistant", "content": item["response"]}],
            finish_reason="length" if item["cut"] else "stop",
            extra={"domain": item["domain"]},
        )
        for item in job["items"]
    ]
    found = score_completions(samples, [orms["gdr"]()], [None], False, torch.device("cpu"))
    rewards: list[float] = found[:, 0].tolist()
    return rewards


def _slime_samples(job: Job, *, messages: bool) -> list[Any]:
    tokenizer = tokenizer_of(job)
    samples = []
    for item in job["items"]:
        prompt, answer = rendered(tokenizer, item), response_ids(tokenizer, item)
        samples.append(
            SimpleNamespace(
                prompt=item["messages"] if messages else prompt,
                tokens=[*tokenizer.encode(prompt, add_special_tokens=False), *answer],
                response=tokenizer.decode(answer),
                response_length=len(answer),
                label=None,
                metadata={"domain": item["domain"]},
                status=SimpleNamespace(value="truncated" if item["cut"] else "completed"),
            )
        )
    return samples


def slime(job: Job) -> list[float]:
    """One sample a call, the prompt as text."""
    from gdr_slime import reward

    args = SimpleNamespace(hf_checkpoint=job["tokenizer"])

    async def rewards() -> list[float]:
        return list(await asyncio.gather(*(reward(args, sample) for sample in _slime_samples(job, messages=False))))

    return asyncio.run(rewards())


def slime_group(job: Job) -> list[float]:
    """`--group-rm`: a list of samples, the prompts as messages."""
    from gdr_slime import reward

    args = SimpleNamespace(hf_checkpoint=job["tokenizer"])
    rewards: list[float] = asyncio.run(reward(args, _slime_samples(job, messages=True)))
    return rewards


def slime_remote(job: Job) -> list[float]:
    """`--rm-type remote_rm`: what slime's client posts, and how it reads the answer."""
    import aiohttp

    async def rewards() -> list[float]:
        found = []
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
            for sample in _slime_samples(job, messages=False):
                body = {"prompt": sample.prompt, "response": sample.response, "label": sample.metadata}
                async with session.post(f"{job['remote']}/slime", json=body) as answer:
                    answer.raise_for_status()
                    found.append(await answer.json())
        return found

    return asyncio.run(rewards())


def verifiers(job: Job) -> list[float]:
    """A task with the judge, then one with the function: they have to agree, also on what is an error."""
    from verifiers.v1 import (
        AgentConfig,
        AgentInfo,
        AssistantMessage,
        MessageNode,
        ModelCall,
        State,
        SystemMessage,
        Task,
        TaskConfig,
        TaskData,
        Trace,
        TraceTask,
        UserMessage,
    )

    class Row(TaskData):  # type: ignore[misc]
        domain: str

    shapes = {"system": SystemMessage, "user": UserMessage}

    async def score(item: Any, plugged: dict[str, Any]) -> float:
        turns = item["messages"]
        data = Row(system_prompt=turns[0]["content"], prompt=turns[1]["content"], domain=item["domain"])
        nodes = [
            MessageNode(parent=at - 1 if at else None, message=shapes[turn["role"]](content=turn["content"]))
            for at, turn in enumerate(turns)
        ]
        answer = AssistantMessage(content=item["response"])
        nodes.append(MessageNode(parent=len(nodes) - 1, sampled=True, message=answer))
        call = ModelCall(node=len(nodes) - 1, finish_reason="length" if item["cut"] else "stop")
        trace = Trace(
            task=TraceTask(type="Task", data=data), agent=AgentInfo(config=AgentConfig()), nodes=nodes, calls=[call]
        )
        await Task[Row, State, TaskConfig](data, TaskConfig(**plugged)).score(trace)
        assert trace.reward == trace.rewards["gdr"].value
        return float(trace.reward)

    async def rewards(plugged: dict[str, Any]) -> list[float] | str:
        try:
            return list(await asyncio.gather(*(score(item, plugged) for item in job["items"])))
        except Exception as error:
            return str(error)

    judged = asyncio.run(rewards({"judges": [{"id": "gdr-verifiers", **source(job)}]}))
    called = asyncio.run(rewards({"rewards": {"gdr": {"fn": "gdr_verifiers:reward"}}}))
    assert judged == called, (judged, called)
    if isinstance(called, str):
        raise RuntimeError(called)
    return called


def inspect(job: Job) -> list[float | None]:
    """An eval with its mock model; the scorer is found by its entry point, as `inspect score --scorer` finds it."""
    from tempfile import TemporaryDirectory

    from inspect_ai import Task, eval
    from inspect_ai._eval.loader import scorer_from_spec
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelOutput, ModelUsage, get_model
    from inspect_ai.scorer._scorer import ScorerSpec

    samples = [
        Sample(
            input=[
                ChatMessageSystem(content=item["messages"][0]["content"]),
                ChatMessageUser(content=item["messages"][1]["content"]),
            ],
            id=number,
            metadata={"domain": item["domain"]},
        )
        for number, item in enumerate(job["items"])
    ]
    outputs = [
        ModelOutput.from_content("mockllm", item["response"], "max_tokens" if item["cut"] else "stop")
        for item in job["items"]
    ]
    for output in outputs:  # where it is not known, the mock counts with a tokenizer from the network
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    scorer = scorer_from_spec(ScorerSpec("gdr_inspect/gdr"), None, **source(job))
    with TemporaryDirectory() as folder:
        (log,) = eval(
            Task(samples, scorer=scorer),
            model=get_model("mockllm/model", custom_outputs=outputs),
            display="none",
            log_dir=folder,
            max_samples=1,  # the mock's answers come in their order
        )
        if log.status != "success":
            raise RuntimeError(log.error.message)
        found = [sample.scores["gdr"].value for sample in sorted(log.samples, key=lambda sample: sample.id)]
    scored = [value for value in found if value == value]
    assert abs(log.results.scores[0].metrics["mean"].value - sum(scored) / len(scored)) < 1e-9
    return [value if value == value else None for value in found]


def nemo_gym(job: Job) -> list[float]:
    """What its agents post to `/verify`, answered by its base server."""
    from unittest.mock import MagicMock

    from nemo_gym.server_utils import ServerClient
    from starlette.testclient import TestClient

    from gdr_nemo_gym.app import GDRResourcesServer, GDRServerConfig

    given = {name: value for name, value in source(job).items() if name != "config"}
    config = GDRServerConfig(host="127.0.0.1", port=1, entrypoint="app.py", name="gdr", domain="rlhf", **given)
    server = GDRResourcesServer(config=config, server_client=MagicMock(spec=ServerClient))
    app = server.setup_webserver()
    server.setup_exception_middleware(app)
    found = []
    with TestClient(app) as client:
        for item in job["items"]:
            text = {"type": "output_text", "text": item["response"], "annotations": []}
            response = {
                "id": "resp_1",
                "created_at": 1.0,
                "model": "policy",
                "object": "response",
                "output": [{"id": "msg_1", "type": "message", "role": "assistant", "content": [text]}],
                "parallel_tool_calls": True,
                "tool_choice": "auto",
                "tools": [],
                "incomplete_details": {"reason": "max_output_tokens"} if item["cut"] else None,
            }
            body = {"responses_create_params": {"input": item["messages"]}, "response": response}
            answer = client.post("/verify", json={**body, "domain": item["domain"]})
            if answer.status_code != 200:
                raise RuntimeError(answer.text)
            assert answer.json()["domain"] == item["domain"]
            found.append(answer.json()["reward"])
    return found


@cache
def _llamafactorys_client() -> Any:
    """The function of its PPO trainer that asks a server."""
    import importlib.util
    from types import ModuleType

    found = importlib.util.find_spec("llamafactory")
    assert found is not None
    folders = found.submodule_search_locations or []
    for name, below in {
        "llamafactory": "",
        "llamafactory.train": "train",
        "llamafactory.train.ppo": "train/ppo",
    }.items():
        package = ModuleType(name)  # its own __init__ imports all that it trains with
        package.__path__ = [str(Path(folder) / below) for folder in folders]
        sys.modules[name] = package
    from llamafactory.train.ppo.ppo_utils import get_rewards_from_server

    return get_rewards_from_server


def llamafactory(job: Job) -> list[float]:
    """`reward_model_type: api`, one request a domain."""
    ask, tokenizer = _llamafactorys_client(), tokenizer_of(job)
    rewards: dict[int, float] = {}
    for domain in dict.fromkeys(item["domain"] for item in job["items"]):
        places = [at for at, item in enumerate(job["items"]) if item["domain"] == domain]
        texts = []
        for at in places:
            item = job["items"][at]
            prompt = tokenizer.encode(rendered(tokenizer, item), add_special_tokens=False)
            texts.append(tokenizer.decode([*prompt, *response_ids(tokenizer, item)], skip_special_tokens=False))
        answers = ask(f"{job['remote']}/llamafactory?domain={domain}", texts)
        rewards.update(zip(places, answers.tolist(), strict=True))
    return [rewards[at] for at in range(len(rewards))]


def easyr1(job: Job) -> list[float]:
    """Loads the function's file and calls it as EasyR1's reward manager does."""
    import importlib.util
    from functools import partial

    tokenizer = tokenizer_of(job)
    file = Path(__file__).parents[2] / "integrations" / "gdr_verl" / "easyr1.py"
    spec = importlib.util.spec_from_file_location("custom_reward_fn", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_reward_fn"] = module
    spec.loader.exec_module(module)
    assert module.REWARD_TYPE == "batch"
    inputs = []
    for at, item in enumerate(job["items"]):
        packed = {"prompt": item["messages"], "domain": item["domain"], "year": None}
        ids = response_ids(tokenizer, item)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        inputs.append(
            {"response": text, "response_length": len(ids), "ground_truth": json.dumps(packed) if at % 2 else packed}
        )
    return [score["overall"] for score in partial(module.compute_score, **source(job))(inputs)]


def skyrl(job: Job) -> list[float]:
    """The environment on the page, made and stepped by skyrl-gym."""
    import skyrl_gym

    page = (Path(__file__).parents[2] / "docs" / "other-trainers.md").read_text(encoding="utf-8")
    shown: dict[str, Any] = {"__name__": "shown"}
    exec(page.split("## SkyRL")[1].split("```python\n")[1].split("```")[0], shown)
    skyrl_gym.envs.registration.registry.pop("gdr", None)
    shown["register"]()
    rewards = []
    for item in job["items"]:
        extras = {"domain": item["domain"], "reward_spec": {"ground_truth": ""}, "max_turns": 1}
        environment = skyrl_gym.make("gdr", env_config={}, extras=extras)
        asked, _ = environment.init(item["messages"])
        assert asked == item["messages"]
        step = environment.step(item["response"])
        assert step["done"]
        rewards.append(step["reward"])
        environment.close()
    return rewards


def _areals_workflow() -> Any:
    """AReaL's own class where it is installed, else what our workflow uses of it."""
    try:
        from areal.workflow import rlvr
    except ImportError:
        from types import ModuleType

        class RLVRWorkflow:
            def __init__(
                self, reward_fn: Any, gconfig: Any, tokenizer: Any, enable_thinking: bool = False, **_: Any
            ) -> None:
                self.reward_fn, self.tokenizer, self.enable_thinking = reward_fn, tokenizer, enable_thinking
                self.gconfig = gconfig.new_with_stop_and_pad_token_ids(tokenizer)

        for name in ("areal", "areal.workflow", "areal.workflow.rlvr"):
            sys.modules[name] = ModuleType(name)
        rlvr = sys.modules["areal.workflow.rlvr"]
        rlvr.RLVRWorkflow = RLVRWorkflow
    from gdr_areal.workflow import GDRWorkflow

    assert issubclass(GDRWorkflow, rlvr.RLVRWorkflow)
    return GDRWorkflow


def areal(job: Job) -> list[float]:
    """One answer a call, as AReaL's workflow asks for the reward of one."""
    tokenizer = tokenizer_of(job)
    config = SimpleNamespace(new_with_stop_and_pad_token_ids=lambda _: None)
    workflow = _areals_workflow()(gconfig=config, tokenizer=tokenizer)

    async def rewards() -> list[float]:
        calls = []
        for item in job["items"]:
            prompt = rendered(tokenizer, item)
            answer = SimpleNamespace(
                input_tokens=tokenizer.encode(prompt, add_special_tokens=False),
                output_tokens=response_ids(tokenizer, item),
            )
            row = {"messages": item["messages"], "domain": item["domain"]}
            calls.append(workflow._compute_rewards(answer, prompt, row))
        return list(await asyncio.gather(*calls))

    return asyncio.run(rewards())


DRIVERS: dict[str, Callable[[Job], Any]] = {
    driver.__name__: driver
    for driver in (
        trl,
        openrlhf,
        verl_manager,
        verl_function,
        swift,
        slime,
        slime_group,
        slime_remote,
        verifiers,
        inspect,
        nemo_gym,
        llamafactory,
        easyr1,
        skyrl,
        areal,
    )
}


def main() -> None:
    from gdr_plugin.reward.remote import RemoteRatio

    RemoteRatio.__init__.__kwdefaults__["tries"] = 1  # type: ignore[index]  # a dead server is dead at once
    warnings.simplefilter("ignore")
    asked: dict[str, list[Job]] = json.load(sys.stdin)
    print(json.dumps({adapter: [answer(adapter, job) for job in jobs] for adapter, jobs in asked.items()}))


def answer(adapter: str, job: Job) -> Any:
    """What an adapter makes of a job; an error as its text."""
    from gdr_plugin.adapters import backend

    backend._opened.cache_clear()
    if "gdr_openrlhf.backend" in sys.modules:
        from gdr_openrlhf.backend import _backend, _dialect

        _backend.cache_clear()
        _dialect.cache_clear()
    values = {"GDR_REMOTE": job["remote"], "GDR_CONFIG": job["config"], "GDR_UNSCORED": job["unscored"]}
    for name, value in {**values, "GDR_POLICY_TOKENIZER": job["tokenizer"]}.items():
        os.environ[name] = "" if value is None else str(value)
    try:
        return DRIVERS[adapter](job)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
