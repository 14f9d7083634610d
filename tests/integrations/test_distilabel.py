"""The step for distilabel in distilabel's released code: the pipeline of its page, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.types import Sample
from gdr_plugin.config.load import parse_config
from gdr_plugin.reward.reward import GuidedDensityRatio

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Path(os.environ.get("GDR_TEST_CLIENTS") or Path(sys.prefix) / "clients") / "distilabel"
CONFIG: dict[str, Any] = {
    "strong": "fake:a",
    "weak": "fake:b",
    "guidance": {"domains": {"chat": "none", "math": "math"}},
    "routing": {"routers": ["field"], "default_domain": "chat"},
    "reward": {"reduction": "mean"},
}
MORE: list[dict[str, Any]] = [
    {"instruction": "How many legs has a spider?", "generation": ["Eight."], "domain": "math"},
    {"instruction": "How many has a fly?", "generation": ["Six.", None], "domain": "chat"},
    {"instruction": "How many legs has a hen?", "generation": ["Two."], "domain": "nowhere"},
]


def test_the_pages_pipeline_scores_generations_and_says_why_it_could_not(
    serving: Callable[..., AbstractContextManager[str]], tmp_path: Path
) -> None:
    if not CLIENT.is_dir():
        pytest.skip("distilabel is not installed: make .venv/.clients")
    ratio = GuidedDensityRatio.from_config(parse_config(CONFIG))
    paths = [ROOT, ROOT / "integrations", CLIENT]
    with serving(ratio) as url:
        run = subprocess.run(
            [sys.executable, Path(__file__).with_name("distilabel_pipeline.py"), url],
            input=json.dumps(MORE),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HOME": str(tmp_path), "GDR_TOKEN": ""},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert run.returncode == 0, run.stderr[-3000:]
    answer = json.loads(run.stdout.splitlines()[-1])

    def expected(row: dict[str, Any]) -> list[float | None]:
        samples = [Sample(row["instruction"], text, fields={"domain": row["domain"]}) for text in row["generation"]]
        return [score.reward for score in ratio.score(samples)]

    spider, hen, of_math, fly, lost = answer["rows"]
    for row in (spider, hen, of_math):
        assert row["gdr_reward"] == pytest.approx(expected(row), abs=1e-6)
        assert row["gdr_reason"] == [None] * len(row["generation"])
    assert spider["gdr_reward"] != pytest.approx(of_math["gdr_reward"], abs=1e-3)
    six, nothing = fly["gdr_reward"]
    assert [six] == pytest.approx(expected({**fly, "generation": ["Six."]}), abs=1e-6)
    assert nothing is None  # never 0
    assert fly["gdr_reason"] == [None, "there is no generation"]
    assert lost["gdr_reward"] == [None]
    assert "nowhere" in lost["gdr_reason"][0]
    assert "/nothing" in answer["lost"]  # a step that cannot be loaded ends distilabel's run
