"""The launch script and the documentation: every flag in them is one that the released OpenRLHF takes."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gdr_plugin.config.load import load_config
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.resolve import resolve_names

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "openrlhf"
WAIT = '#!/bin/sh\nuntil [ -s "$SHIMS/gdr.args" ]; do sleep 0.01; done\n'  # as curl does until the server is ready
SHIM = '#!/bin/sh\nprintf "%s\\n" "$@" > "$SHIMS/$(basename "$0").args"\n'


class _ParsedError(Exception):
    """Carries the arguments out of OpenRLHF's main program, after its own checks of them."""


@pytest.fixture
def parse(client: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Any]:
    """OpenRLHF's own command line: its parser, then its checks of what was parsed."""
    utils = client("0.11.2", "openrlhf.utils.config")
    folder = Path(utils.__file__ or "").parents[1]

    def stop(args: Any) -> None:
        raise _ParsedError(args)

    modules = {
        "ray": {"is_initialized": lambda: True, "remote": lambda inner: inner},
        "ray.util": {},
        "ray.util.placement_group": {"placement_group": None},
        "openrlhf.trainer.ray": {"create_vllm_engines": None},
        "openrlhf.trainer.ray.launcher": dict.fromkeys(("RayActorGroup", "ReferenceModelActor", "RewardModelActor")),
        "openrlhf.trainer.ray.ppo_actor": {"PolicyModelActor": None},
        "openrlhf.trainer.ray.ppo_critic": {"CriticModelActor": None},
        "openrlhf.utils": {"get_strategy": stop},
    }
    for name, members in modules.items():
        module = sys.modules.get(name) or ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        for key, value in members.items():
            monkeypatch.setattr(module, key, value, raising=False)

    def run(arguments: list[str]) -> Any:
        monkeypatch.setattr(sys, "argv", ["train_ppo_ray", *arguments])
        with pytest.raises(_ParsedError) as caught:
            runpy.run_path(str(folder / "cli" / "train_ppo_ray.py"), run_name="__main__")
        return caught.value.args[0]

    return run


@pytest.mark.parametrize("estimator", ["group_norm", "reinforce_baseline"])
def test_the_launch_script_starts_what_it_should(
    parse: Callable[[list[str]], Any], tmp_path: Path, estimator: str
) -> None:
    for name in ("gdr", "curl", "python"):
        (tmp_path / name).write_text(SHIM if name != "curl" else WAIT)
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SHIMS": str(tmp_path)}
    script = EXAMPLE / "train.sh"
    subprocess.run(
        ["bash", script], env={**environment, "PROMPTS": "p.jsonl", "ESTIMATOR": estimator}, check=False, timeout=60
    )
    module, *flags = (tmp_path / "python.args").read_text().split("\n")[1:-1]
    assert module == "openrlhf.cli.train_ppo_ray"
    args = parse(flags)
    assert args.reward.remote_url == ["http://127.0.0.1:5000/get_reward"]
    assert args.algo.advantage.estimator == estimator
    assert args.reward.clip_range == [-5.0, 5.0]
    assert args.data.apply_chat_template
    served = (tmp_path / "gdr.args").read_text().split("\n")
    assert served[0] == "serve"
    assert served[served.index("--policy-tokenizer") + 1] == args.actor.model_name_or_path
    known = subprocess.run(
        [sys.executable, "-m", "gdr_plugin", "serve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(flag in known for flag in served if flag.startswith("--"))


def test_the_examples_reward_is_valid() -> None:
    config = load_config(EXAMPLE / "gdr.yaml")
    resolve_names(config, Plugins(entry_points=False))
    assert config.reward.reduction == "mean"


def test_every_flag_in_the_documentation_exists(
    parse: Callable[[list[str]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: set[str] = set()
    real = argparse.ArgumentParser.parse_args

    def spy(self: argparse.ArgumentParser, *arguments: Any) -> Any:
        options.update(self._option_string_actions)
        return real(self, *arguments)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", spy)
    parse(["--reward.remote_url", "x", "--actor.model_name_or_path", "x", "--vllm.num_engines", "1"])
    text = (ROOT / "docs" / "openrlhf.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--[a-z]+\.[a-z_.]*[a-z_]", text))
    assert named
    assert named <= options


def test_every_variable_in_the_documentation_is_read() -> None:
    text = (ROOT / "docs" / "openrlhf.md").read_text(encoding="utf-8")
    source = (ROOT / "gdr_plugin" / "adapters" / "backend.py").read_text(encoding="utf-8")
    named = set(re.findall(r"GDR_[A-Z_]+", text)) - {"GDR_TOKEN"}
    assert named
    assert named <= set(re.findall(r"GDR_[A-Z_]+", source))
