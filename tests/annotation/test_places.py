"""The same data set from wherever it is made: stages with pickles between them, begun here and ended there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin import hookimpl
from gdr_plugin.annotation.annotate import annotate
from gdr_plugin.annotation.options import AnnotateOptions
from gdr_plugin.api.errors import ConfigError, DataError, ModelError
from gdr_plugin.cluster.engine import InProcess, Stage
from gdr_plugin.config.load import parse_config
from gdr_plugin.config.schema import Config
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.sampling.sample import Sampling
from gdr_plugin.scoring.ranks import Ranks

MakePrompts = Callable[..., Path]
MakeConfig = Callable[..., Config]
DATA = [f"{name}.{kind}" for name in ("preferences", "kto", "candidates") for kind in ("parquet", "jsonl")]


class Recording(InProcess):
    """Notes which windows it is given, and stops after some, as a driver that is killed does."""

    def __init__(self, stop: int | None = None) -> None:
        self.asked: list[int] = []
        self.pools: list[str] = []
        self._stop = stop

    def run(
        self, stages: Sequence[Stage], source: Callable[[int], Any], numbers: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        self.asked, self.pools = list(numbers), [stage.pool.name for stage in stages]
        backwards = list(reversed(numbers))  # a cluster gives windows back in any order
        for done, result in enumerate(super().run(stages, source, backwards)):
            if done == self._stop:
                raise KeyboardInterrupt
            yield result


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def same(one: Path, other: Path) -> None:
    for name in [*DATA, "rejects.jsonl"]:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    figures = [json.loads((out / "summary.json").read_text()) for out in (one, other)]
    for figure in figures:
        del figure["seconds"], figure["run"]["config"]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(("pools", "names"), [("separate", ["strong", "weak"]), ("shared", ["both"])])
def test_a_cluster_makes_the_same_files(
    tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig, pools: str, names: list[str]
) -> None:
    source, options = prompts(rows=100), AnnotateOptions(skip_bad=True)
    with source.open("a") as file:
        file.write('{"prompt": "no responses", "responses": 3}\n')
    engine = Recording()
    config = fake_config(ray={"pools": pools})
    result = annotate(source, config, tmp_path / "there", options, engine=engine)
    annotate(source, fake_config(), tmp_path / "here", options)
    same(tmp_path / "here", tmp_path / "there")
    assert (engine.asked, engine.pools) == ([0, 1, 2, 3], names)
    assert result.summary["rejects"] == {"bad row": 1}
    assert not (tmp_path / "there" / "work").exists()


def test_a_killed_driver_repeats_no_finished_window_wherever_it_goes_on(
    tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig
) -> None:
    source = prompts(rows=150)
    with pytest.raises(KeyboardInterrupt):
        annotate(source, fake_config(), tmp_path / "cut", engine=Recording(stop=2))
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "work").glob("candidates-*")}
    assert sorted(kept) == ["candidates-000003.jsonl", "candidates-000004.jsonl"]
    again = Recording()
    annotate(source, fake_config(ray={"actors": {"weak": 3}}), tmp_path / "cut", engine=again)
    assert again.asked == [0, 1, 2]
    annotate(source, fake_config(), tmp_path / "whole")
    same(tmp_path / "cut", tmp_path / "whole")


def test_a_policy_is_a_stage_and_responses_that_are_there_are_not_drawn_again(
    tmp_path: Path, prompts: MakePrompts, tiny_model: Callable[..., Path]
) -> None:
    source, policy = prompts(rows=40, responses=None), tiny_model()
    config = parse_config({"strong": str(policy), "weak": str(tiny_model(seed=3)), "routing": {"routers": []}})
    options = AnnotateOptions(policy="strong", sampling=Sampling(samples=8, max_new_tokens=2))
    engine = Recording()
    annotate(source, config, tmp_path / "there", options, engine=engine)
    assert engine.pools == ["policy", "strong", "weak"]
    annotate(source, config, tmp_path / "here", options)
    here, there = (lines(tmp_path / out / "candidates.jsonl") for out in ("here", "there"))
    assert [(row["gdr_id"], row["response"]) for row in here] == [(row["gdr_id"], row["response"]) for row in there]
    # Rounding depends on what a model has kept from the window before, and windows come in another order there.
    assert [row["gdr_reward"] for row in here] == pytest.approx([row["gdr_reward"] for row in there], abs=1e-4)

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "scoring (strong)":
            raise KeyboardInterrupt

    sequential = config.model_copy(update={"load": "sequential"})
    with pytest.raises(KeyboardInterrupt):
        annotate(source, sequential, tmp_path / "moved", options, progress=stop)
    shards = sorted((tmp_path / "moved" / "work").glob("responses-*"))
    assert len(shards) == 2
    drawn = json.dumps(here[0]["response"], ensure_ascii=False)
    shards[0].write_text(shards[0].read_text("utf-8").replace(drawn, '"drawn before"', 1), "utf-8")
    annotate(source, config, tmp_path / "moved", options, engine=Recording())
    assert lines(tmp_path / "moved" / "candidates.jsonl")[0]["response"] == "drawn before"


def test_strict_stops_at_an_unscored_response(tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig) -> None:
    source = prompts(rows=3, prompt="long " * 300)
    config = fake_config(limits={"max_length": 64})
    with pytest.raises(DataError, match="was not scored"):
        annotate(source, config, tmp_path / "out", AnnotateOptions(strict=True), engine=InProcess())


def test_a_machine_with_another_model_is_found_out(
    tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import itertools\n"
        "from gdr_plugin import hookimpl\n"
        "from gdr_plugin.models.fake import FakeModel\n"
        "NUMBERS = itertools.count()\n"
        "@hookimpl\n"
        "def gdr_open_model(spec, limits):\n"
        "    if spec.model == 'fake:strong':\n"
        "        return FakeModel(f'strong {next(NUMBERS)}', limits)\n"
    )
    with pytest.raises(ModelError, match="strong model fake:strong 2: is another one on this machine"):
        annotate(prompts(), fake_config(), tmp_path / "out", plugins=Plugins(plugin), engine=InProcess())


def test_what_cannot_be_sent_is_refused(tmp_path: Path, prompts: MakePrompts, fake_config: MakeConfig) -> None:
    class Plugin:
        @hookimpl
        def gdr_register_selectors(self) -> list[Any]:
            return []

    with pytest.raises(ConfigError, match="plugins as files"):
        annotate(prompts(), fake_config(), tmp_path / "out", plugins=Plugins(Plugin()), engine=InProcess())
    with pytest.raises(ConfigError, match="--engine ray has its own processes"):
        annotate(prompts(), fake_config(), tmp_path / "out", engine=InProcess(), ranks=Ranks(0, 2))
