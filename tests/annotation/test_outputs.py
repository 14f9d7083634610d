"""What a finished run leaves behind: the card, the tables without rows, the command's output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from gdr_plugin.annotation.annotate import annotate
from gdr_plugin.annotation.filters import Filters
from gdr_plugin.annotation.options import AnnotateOptions, open_policy
from gdr_plugin.annotation.statistics import spread
from gdr_plugin.annotation.windows import window_size
from gdr_plugin.config.load import parse_config
from gdr_plugin.config.schema import Config
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.sampling.sample import Sampling

MakePrompts = Callable[..., Path]
MakeConfig = Callable[..., Config]


def test_the_card_says_how_the_data_came_about(tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig) -> None:
    config = fake_config()
    summary = annotate(prompts(rows=30), config, tmp_path / "out", AnnotateOptions(select="top-k:2")).summary
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    _, head, body = card.split("---\n", 2)
    names = [one["config_name"] for one in yaml.safe_load(head)["configs"]]
    assert names == ["preferences", "kto", "candidates"]
    written = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    options = written.pop("options")
    assert options["select"] == "top-k:2"
    assert parse_config(written) == config
    ratio = GuidedDensityRatio.from_config(config)
    assert ratio.rendered["safety"].text in card
    for fact in (ratio.rendered["safety"].id, ratio.strong.identity, ratio.weak.identity):
        assert fact in card
    assert f"| pairs | {summary['pairs']} |" in card
    assert summary["run"]["config_content"]
    assert str(tmp_path) not in body.split("## Models and input")[1]


def test_a_run_without_pairs_says_so(tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig) -> None:
    options = AnnotateOptions(filters=Filters(min_margin=1e9))
    summary = annotate(prompts(rows=3), fake_config(), tmp_path / "out", options).summary
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "| without a pair: margin below the minimum | 3 |" in card
    assert "margin, all" not in card
    assert (summary["margin"], summary["chosen_longer"]) == (None, None)


def test_statistics_are_those_of_the_rows(tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig) -> None:
    summary = annotate(prompts(rows=50), fake_config(), tmp_path / "out").summary
    pairs = [json.loads(line) for line in (tmp_path / "out" / "preferences.jsonl").read_text().splitlines()]
    margins = [pair["gdr_margin"] for pair in pairs]
    assert summary["margin"] == spread(margins)
    assert summary["margin"]["median"] == sorted(margins)[24] / 2 + sorted(margins)[25] / 2
    longer = sum(pair["gdr_chosen_tokens"] > pair["gdr_rejected_tokens"] for pair in pairs)
    assert summary["chosen_longer"] == longer / 50
    for domain, figures in summary["domains"].items():
        mine = [pair for pair in pairs if pair["gdr_domain"] == domain]
        assert (figures["prompts"], figures["pairs"]) == (len(mine), len(mine))
    assert summary["routers"] == {"default": 33, "field": 17}
    assert spread([]) is None


def test_the_command_reports_and_repeats(tmp_path: Path, prompts: MakePrompts) -> None:
    (tmp_path / "gdr.yaml").write_text("strong: fake:strong\nweak: fake:weak\n")
    arguments = ["annotate", str(prompts(rows=20)), "-c", str(tmp_path / "gdr.yaml"), "-o", str(tmp_path / "out")]

    def gdr(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gdr_plugin", *arguments, *more]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    first, again, other = gdr(), gdr(), gdr("--seed", "1")
    assert (first.returncode, again.returncode, other.returncode) == (0, 0, 2)
    assert first.stderr == again.stderr == ""
    assert again.stdout == f"already complete: {tmp_path / 'out'}\n" + first.stdout
    assert f'datasets.load_dataset("{tmp_path / "out"}", split="train")' in first.stdout
    assert other.stdout == ""
    assert other.stderr.startswith("gdr: ")
    assert other.stderr.count("\n") == 1


def test_windows_hold_as_many_prompts_as_their_responses_allow() -> None:
    assert [window_size(samples) for samples in (None, 1, 8, 16, 32, 1000)] == [32, 32, 32, 16, 8, 1]


def test_a_policy_that_is_a_base_is_opened_as_that_base(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model()
    (tmp_path / "link").symlink_to(folder)
    weak: dict[str, Any] = {"model": str(folder), "dtype": "bfloat16"}
    strong = {**weak, "model": str(tiny_model(seed=1))}
    config = parse_config({"strong": strong, "weak": weak, "guidance": {"domains": {"chat": "none"}}})
    sampling = Sampling(samples=1, max_new_tokens=1)
    for name in ("weak", str(folder), str(tmp_path / "link")):
        policy = open_policy(config, AnnotateOptions(policy=name, sampling=sampling))
        assert policy is not None
        ratio = GuidedDensityRatio.from_config(config)
        with policy._model.running() as sampled, ratio.weak.running() as scored:  # type: ignore[attr-defined]
            assert sampled is scored
    assert open_policy(config, AnnotateOptions()) is None
