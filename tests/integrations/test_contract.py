"""What every adapter promises, whatever its framework: see `drivers.py` for how each is called.

The order is kept, rewards are the core's, the domain reaches the router, a cut answer does not count as finished, and
what has no reward is an error or the number that the user gave: never 0.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.types import Sample
from gdr_plugin.api.unscored import Unscored
from gdr_plugin.config.load import parse_config
from gdr_plugin.reward.reward import GuidedDensityRatio
from tests.integrations.beside import CLIENTS, ROOT, installed, skip_without

CONFIG: dict[str, Any] = {
    "strong": "fake:a",
    "weak": "fake:b",
    "guidance": {"domains": {"chat": "none", "math": "math", "safety": "safety"}},
    "routing": {"routers": ["field"], "default_domain": "chat"},
    "reward": {"reduction": "mean"},
}
# Adapter -> the folders of the released frameworks that its driver needs, where they can be installed here.
ADAPTERS: dict[str, tuple[str, ...]] = {
    "trl": (),
    "openrlhf": (),
    "slime": (),
    "slime_group": (),
    "slime_remote": (),
    "easyr1": (),
    "areal": (),
    "verl_manager": ("verl",),
    "verl_function": ("verl",),
    "swift": ("ms-swift",),
    "verifiers": ("verifiers",),
    "inspect": ("inspect-ai",),
    "nemo_gym": ("nemo-gym", "verl"),  # Ray, omegaconf and hydra are verl's
    "llamafactory": ("llamafactory",),
    "skyrl": ("skyrl-gym",),
}
CLIENTS_OF_A_SERVER = {"slime_remote", "llamafactory"}
"""The framework asks a `gdr serve` by itself: there are no models in its process."""
WITHOUT_ENDS = {"verl_function", "easyr1", "skyrl"}
"""Adapters that are given a text alone: the end of turn counts for none of their answers."""
DEAD = "http://127.0.0.1:9"
GIVEN = -7.25


def item(response: str, domain: str = "chat", *, cut: bool = False, ask: str = "How many legs?") -> dict[str, Any]:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ask}]
    return {"messages": turns, "response": response, "cut": cut, "domain": domain}


GOOD = [
    item("A spider has eight."),
    item("A spider has eight.", "math"),
    item("A spider has eight.", "safety"),
    item("A spider has eight.", cut=True),
    item("Six: it is an insect, and insects", "math", cut=True),
    item("Two.", ask="How many has a hen?"),
    item("Naïve answer, with ünïcode ✓", "safety"),
]
BAD = [GOOD[0], item("No such domain.", "nowhere"), GOOD[1]]


@pytest.fixture(scope="session")
def ratio() -> GuidedDensityRatio:
    return GuidedDensityRatio.from_config(parse_config(CONFIG))


@pytest.fixture(scope="session")
def policy(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", seed=7)


@pytest.fixture(scope="session")
def servers(policy: Path, serving: Callable[..., AbstractContextManager[str]]) -> Iterator[tuple[str, str]]:
    """A server that refuses what it cannot score, and one that gives it a number."""
    from gdr_plugin.serve import ServeSettings

    def start(unscored: object) -> AbstractContextManager[str]:
        settings = ServeSettings(policy_tokenizer=str(policy), unscored=Unscored.of(unscored), max_wait_ms=1)
        return serving(GuidedDensityRatio.from_config(parse_config(CONFIG)), settings)

    with start("raise") as strict, start(GIVEN) as giving:
        yield strict, giving


@pytest.fixture(scope="session", params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    skip_without(*ADAPTERS[name])
    return name


@pytest.fixture(scope="session")
def answered(
    servers: tuple[str, str], policy: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[tuple[str, ...]], dict[str, dict[str, Any]]]:
    """What all adapters beside the same frameworks answer to each job: they share a process, which is slow to start."""
    strict, giving = servers
    file = tmp_path_factory.mktemp("contract") / "gdr.yaml"
    file.write_text(json.dumps(CONFIG))
    where = {"tokenizer": str(policy), "config": None, "unscored": None}

    def jobs(adapter: str) -> dict[str, Any]:
        made = {
            "good": {**where, "remote": strict, "items": GOOD},
            "bad": {**where, "remote": strict, "unscored": "raise", "items": BAD},
            "given": {**where, "remote": giving, "unscored": GIVEN, "items": BAD},
            "dead": {**where, "remote": DEAD, "items": GOOD[:2]},
        }
        if adapter not in CLIENTS_OF_A_SERVER:
            made["local"] = {**where, "remote": None, "config": str(file), "items": GOOD}
        if adapter == "inspect":
            made["none"] = {**where, "remote": strict, "unscored": "none", "items": BAD}
        return made

    @cache
    def answer(folders: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        asked = {adapter: jobs(adapter) for adapter, needed in ADAPTERS.items() if needed == folders}
        paths = [installed(tmp_path_factory.mktemp("installed")), ROOT, ROOT / "integrations"]
        paths += [CLIENTS / folder for folder in folders]
        others = (
            [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        )  # such as a framework to try by hand
        run = subprocess.run(
            [sys.executable, Path(__file__).with_name("drivers.py")],
            input=json.dumps({adapter: list(made.values()) for adapter, made in asked.items()}),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), *others]), "GDR_TOKEN": ""},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        found = json.loads(run.stdout.splitlines()[-1])
        return {adapter: dict(zip(made, found[adapter], strict=True)) for adapter, made in asked.items()}

    return answer


@pytest.fixture
def answers(adapter: str, answered: Callable[[tuple[str, ...]], dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """What an adapter answers to each job."""
    return answered(ADAPTERS[adapter])[adapter]


def expected(ratio: GuidedDensityRatio, adapter: str, items: list[dict[str, Any]]) -> list[float]:
    ends = adapter not in WITHOUT_ENDS
    samples = [
        Sample(row["messages"], row["response"], finished=ends and not row["cut"], fields={"domain": row["domain"]})
        for row in items
    ]
    rewards = [score.reward for score in ratio.score(samples)]
    assert None not in rewards
    return [reward for reward in rewards if reward is not None]


def test_rewards_are_the_cores_in_order(adapter: str, answers: dict[str, Any], ratio: GuidedDensityRatio) -> None:
    assert answers["good"] == pytest.approx(expected(ratio, adapter, GOOD), abs=1e-6)
    assert all(map(math.isfinite, answers["good"]))


def test_models_in_the_process_give_the_same(adapter: str, answers: dict[str, Any], ratio: GuidedDensityRatio) -> None:
    if adapter in CLIENTS_OF_A_SERVER:
        pytest.skip("a client of the server's has no models")
    assert answers["local"] == pytest.approx(expected(ratio, adapter, GOOD), abs=1e-6)


def test_the_domain_reaches_the_router(answers: dict[str, Any]) -> None:
    chat, math_, safety = answers["good"][:3]
    assert len({round(chat, 6), round(math_, 6), round(safety, 6)}) == 3


def test_a_cut_answer_does_not_count_as_finished(adapter: str, answers: dict[str, Any]) -> None:
    finished, cut = answers["good"][0], answers["good"][3]
    assert (abs(finished - cut) < 1e-9) == (adapter in WITHOUT_ENDS)


def test_a_row_without_a_reward_is_an_error(adapter: str, answers: dict[str, Any]) -> None:
    assert isinstance(answers["bad"], str)
    if adapter == "llamafactory":  # its client looks at no status: it stops where the answer has no scores
        assert answers["bad"] == "KeyError: 'scores'"
        return
    assert "nowhere" in answers["bad"] or "422" in answers["bad"]


def test_or_it_gets_the_number_that_was_given(adapter: str, answers: dict[str, Any], ratio: GuidedDensityRatio) -> None:
    if adapter == "trl":  # a label that gdr.yaml does not know ends a run of TRL's before anything is scored
        assert "nowhere" in answers["given"]
        return
    first, second = expected(ratio, adapter, [BAD[0], BAD[2]])
    assert answers["given"] == pytest.approx([first, GIVEN, second], abs=1e-6)


def test_or_the_mean_leaves_it_out(adapter: str, answers: dict[str, Any], ratio: GuidedDensityRatio) -> None:
    if adapter != "inspect":
        pytest.skip("only inspect_ai leaves out what was not scored (and TRL: see its own tests)")
    first, second = expected(ratio, adapter, [BAD[0], BAD[2]])
    assert answers["none"] == [pytest.approx(first, abs=1e-6), None, pytest.approx(second, abs=1e-6)]


def test_a_dead_server_is_an_error(answers: dict[str, Any]) -> None:
    assert isinstance(answers["dead"], str)
    assert re.search(r"127\.0\.0\.1(:|', port=)9\b", answers["dead"])
