"""`gdr guidance`, and the commands that explain what they show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gdr_plugin.reward.reward import GuidedDensityRatio

Gdr = Callable[..., tuple[int, str, str]]
CONFIG = """
strong: "fake:a"
weak: "fake:b"
guidance: {domains: {chat: none, risky: safety, own: brief}, files: [brief.yaml], exemplars: 2}
"""
OWN = "name: brief\ndescription: Short answers\ninstruction: A good answer is one short sentence.\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("gdr.yaml").write_text(CONFIG)
    Path("brief.yaml").write_text(OWN)
    return tmp_path


def test_the_text_is_what_the_models_are_shown(gdr: Gdr) -> None:
    """By the guidance's name or by a domain of the gdr.yaml."""
    shown = GuidedDensityRatio.from_config("gdr.yaml").rendered
    for name, domain in (("risky", "risky"), ("safety", "risky"), ("brief", "own"), ("own", "own")):
        code, out, _ = gdr("guidance", name, "-c", "gdr.yaml")
        assert code == 0
        assert out.endswith(f"\n\n{shown[domain].text}\n")
        found = json.loads(gdr("guidance", name, "-c", "gdr.yaml", "--json")[1])
        assert found["text"] == shown[domain].text
        assert (found["id"], found["placement"]) == (shown[domain].id, "both")
    assert len(json.loads(gdr("guidance", "safety", "--json")[1])["exemplars"]) == 1  # as without a gdr.yaml


def test_all_guidances_are_listed(gdr: Gdr) -> None:
    names = [row["name"] for row in json.loads(gdr("guidance", "--json")[1])]
    assert {"chat", "safety", "math"} <= set(names)
    assert "brief" not in names
    assert "Short answers" in gdr("guidance", "-c", "gdr.yaml")[1]
    code, _, err = gdr("guidance", "safty")
    assert (code, "did you mean 'safety'?" in err) == (2, True)


def test_a_probe_is_explained(gdr: Gdr, tiny_model: Callable[..., Path]) -> None:
    probe = json.loads(gdr("check", "--load", "--json")[1])["probe"]["answers"]
    better = all(probe[0][f"{side}_logprob"] > probe[1][f"{side}_logprob"] for side in ("strong", "weak"))
    assert not better  # the fake models know no English
    assert "at least as likely as an answer" in " ".join(gdr("check", "--load")[1].split())


def test_the_store_that_an_evaluation_made_is_found(gdr: Gdr) -> None:
    code, _, err = gdr("store", "info")
    assert (code, "gdr.yaml names no store" in err) == (2, True)
    Path("pairs.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "good", "rejected": "bad"}) + "\n")
    assert gdr("evaluate", "pairs.jsonl")[0] == 0
    found = json.loads(gdr("store", "info", "--json")[1])
    assert [model["rows"] for model in found["models"]] == [2, 2]


def test_cut_responses_are_pointed_out(gdr: Gdr) -> None:
    rows = [{"prompt": "p", "responses": [{"text": text, "finished": False} for text in ("one", "two")]}]
    Path("in.jsonl").write_text(json.dumps(rows[0]) + "\n")
    said = "every response was cut at the length limit"
    assert said in gdr("annotate", "in.jsonl", "-o", "out")[1]
    rows[0]["responses"][0] = {"text": "one"}
    Path("in.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert said not in gdr("annotate", "in.jsonl", "-o", "other")[1]
