"""Single settings replaced: by `--set` of the commands, and by keywords of adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.config.load import load_config
from gdr_plugin.config.override import override, parse_settings

Gdr = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "own.yaml").write_text("{name: own, description: Own., instruction: Be kind.}\n")
    path = tmp_path / "gdr.yaml"
    path.write_text(
        "strong: fake:a\nweak: fake:b\n"
        "guidance: {domains: {chat: own}, files: [own.yaml]}\nreward: {reduction: sum}\nstore: {path: log.sqlite}\n"
    )
    return path


def test_the_rest_stays_and_values_are_read_as_yaml(file: Path) -> None:
    config = load_config(file)
    given = parse_settings(["reward.reduction=mean", "limits.max_length=64", "strong.model=fake:c", "store=null"])
    changed = override(config, given)
    assert (changed.reward.reduction, changed.limits.max_length, changed.strong.model) == ("mean", 64, "fake:c")
    assert changed.store is None
    assert changed.guidance == config.guidance, "relative paths of the file stay those of its folder"
    assert changed.weak == config.weak
    assert config.reward.reduction == "sum"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward.reducton": "mean"}, r"here: reward\.reducton: unknown key 'reducton'.*did you mean 'reduction'"),
        ({"reward.reduction": "avg"}, r"here: reward\.reduction: unknown value 'avg'"),
        ({"load.order": 1}, r"load is not a section"),
        ({"strong": None}, r"strong: is missing"),
    ],
)
def test_wrong_ones_are_told_by_their_key(file: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(load_config(file), {"load": "together", **settings}, origin="here")


def test_a_text_without_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="write KEY=VALUE"):
        parse_settings(["reward.reduction"])


def test_the_command_line_replaces_a_setting(file: Path, gdr: Gdr, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Question?", "response": "An answer."}\n')
    rewards = []
    for more in ([], ["--set", "reward.reduction=mean"]):
        code, out, err = gdr("score", str(rows), "-c", str(file), *more)
        assert code == 0, err
        rewards.append(json.loads(out)["reward"])
    length = len("An answer.") + 1  # the fake model's tokens are bytes, and the end of turn
    assert rewards[0] == pytest.approx(rewards[1] * length)
    code, _, err = gdr("score", str(rows), "-c", str(file), "--set", "reward.reduction=avg")
    assert code == 2
    assert "with --set: reward.reduction: unknown value 'avg'" in err
