"""`gdr evaluate --ablations` and `gdr controllability` as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

Run: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gdr(tmp_path: Path, gdr: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `gdr` in a folder with a gdr.yaml and data.jsonl: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    Path("gdr.yaml").write_text("strong: fake:a\nweak: fake:b\n")
    rows = [
        {"prompt": f"Solve {n} + 1.", "chosen": f"It is {n + 1}.", "rejected": "I do not know.", "domain": "math"}
        for n in range(12)
    ]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return gdr


def own(*prompts: str) -> str:
    """Prompts with three responses, as a user would write them."""
    kinds = {"concise": "Yes.", "casual": "Sure thing!", "spanish": "Claro que sí."}
    return "".join(
        json.dumps({"prompt": prompt, "responses": {kind: f"{text} {prompt}" for kind, text in kinds.items()}}) + "\n"
        for prompt in prompts
    )


def test_ablations_come_with_the_evaluation_in_every_output(gdr: Run) -> None:
    outputs = ("--html", "out.html", "--plot", "out.png")
    code, out, error = gdr("evaluate", "data.jsonl", "--ablations", *outputs)
    assert (code, error) == (0, "")
    assert "exemplars only" in out
    assert "12 items, 12 with guidance." in out
    # `gdr evaluate` itself scored the configured form: 24 responses under two models; three forms are left.
    assert "Responses: 144 computed" in out
    found = json.loads(gdr("evaluate", "data.jsonl", "--ablations", "--json")[1])["ablations"]
    assert found["lines"][0]["accuracy"]["n"] == 12
    page = Path("out.html").read_text()
    assert page.count("<h1") == 1
    assert "exemplars only" in page
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")


def test_an_evaluation_without_ablations_does_not_mention_them(gdr: Run) -> None:
    assert "exemplars only" not in gdr("evaluate", "data.jsonl")[1]
    assert "ablations" not in json.loads(gdr("evaluate", "data.jsonl", "--json")[1])


def test_controllability_of_own_data_prints_and_writes(gdr: Run) -> None:
    Path("own.jsonl").write_text(own("Is it far?", "Is it late?"))
    code, out, error = gdr("controllability", "own.jsonl", "--html", "out.html")
    assert (code, error) == (0, "")
    for part in (
        "ratio, both guided",
        "strong guided - strong",
        "(all)",
        "(none)",
        "2 prompts, 6 responses, 3 criteria",
    ):
        assert part in out
    found = json.loads(gdr("controllability", "own.jsonl", "--json")[1])
    assert found["data"] == "own.jsonl"
    assert set(found["shares"]) == {"concise", "casual", "spanish", "(all)"}
    page = Path("out.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert page.count("<h1") == 1
    assert Path(".gdr/store.sqlite").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("controllability", "data.jsonl"), "there is no column 'responses' among prompt, chosen"),
        (("evaluate", "data.jsonl", "--plot", "x.png"), "add --ablations"),
        (("evaluate", "data.jsonl", "--ablations", "--plot", "x.bmp"), "png, svg, pdf"),
        (("controllability", "own.jsonl", "--html", "own.jsonl"), "is an input"),
        (("controllability", "--html", "missing/out.html"), "there is no folder missing"),
        (("controllability", "--html", "gdr.yaml"), "--html gdr.yaml is an input"),
        (("evaluate", "data.jsonl", "--rows", "gdr.yaml"), "--rows gdr.yaml is an input"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_scored(
    gdr: Run, arguments: tuple[str, ...], said: str
) -> None:
    Path("own.jsonl").write_text(own("Is it far?"))
    code, out, error = gdr(*arguments)
    assert (code, out) == (2, "")
    assert said in error
    assert len(error.splitlines()) == 1
    assert not Path(".gdr").exists()
