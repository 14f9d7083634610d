from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.told import TOLD

Gdr = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gdr(gdr: Gdr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gdr:
    """Run `gdr` in a folder with a plugin, a gdr.yaml, pairs and instructions."""
    monkeypatch.chdir(tmp_path)
    Path("told.py").write_text(TOLD)
    Path("gdr.yaml").write_text(
        'strong: "told:strong"\nweak: "told:weak"\nguidance: {domains: {chat: none}}\n'
        "routing: {routers: [field], default_domain: chat}\n"
    )
    rows = [
        {"prompt": f"Question {n}", "better": f"{n}, please", "rejected": f"{n}!", "domain": "manners"}
        for n in range(60)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("own.txt").write_text("Be polite.\nBe short.\n")
    return partial(gdr, "--plugin", "told.py", "tune")


ARGUMENTS = ("pairs.jsonl", "--map", "chosen=better", "--instructions", "own.txt")


def test_tables_show_the_held_out_numbers_and_how_to_register(gdr: Gdr) -> None:
    code, out, err = gdr(*ARGUMENTS)
    assert code == 0
    assert "gdr: 32 candidates, 5 rounds: about" in err
    head, _, tail = out.partition("Held out: 27 prompts that chose nothing (95 % intervals)")
    assert head.startswith("search scores (optimistic")
    assert "best found: instruction 1" in tail
    assert "1.00 [1.00, 1.00]" in tail
    assert "best found says: Be polite.\n" in tail
    assert "gdr.yaml today: no guidance" in tail
    assert "responses computed by the two models" in tail
    assert "Written to guidance.yaml. To use it, gdr.yaml needs:" in tail
    assert "  domains:\n    chat: none\n    manners: manners\n  files:\n  - guidance.yaml\n" in tail
    assert Path("guidance.yaml").read_text().startswith("# Written by gdr tune")


def test_json_holds_everything_and_nothing_else_is_printed(gdr: Gdr) -> None:
    code, out, _ = gdr(*ARGUMENTS, "--json", "-o", "found.yaml")
    report = json.loads(out)
    assert code == 0
    assert report["recommended"] is True
    assert report["file"] == "found.yaml"
    assert report["guidance"]["instruction"] == "Be polite."
    assert report["held_out"]["tuned"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 27}
    assert report["data"]["held_out_prompts"] == 27
    assert [len(one["accuracy"]) for one in report["search_optimistic"]] == [32, 16, 8, 4, 2]


def test_nothing_is_written_without_evidence(gdr: Gdr) -> None:
    Path("own.txt").write_text("Be short.\n")
    Path("pairs.jsonl").write_text(Path("pairs.jsonl").read_text().replace("please", "pleas!"))
    code, out, _ = gdr(*ARGUMENTS)
    assert code == 0
    assert "None is recommended." in out or "none is recommended." in out
    assert "guidance.yaml was not written" in out
    assert not Path("guidance.yaml").exists()


def test_bad_rows_can_be_left_out(gdr: Gdr) -> None:
    with Path("pairs.jsonl").open("a") as file:
        file.write("{broken\n")
    code, out, err = gdr(*ARGUMENTS)
    assert (code, out) == (2, "")
    assert "pairs.jsonl line 61: malformed JSON" in err
    code, _, err = gdr(*ARGUMENTS, "--skip-bad", "--budget", "4")
    assert code == 0
    assert "gdr: bad rows left out: 1 (first: pairs.jsonl line 61" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-",), "reads a file"),
        (("missing.jsonl",), "does not exist"),
        (("pairs.jsonl", "--limit", "0"), "--limit must be 1 or more"),
        (("pairs.jsonl", "--format", "plian"), "unknown format 'plian'"),
        ((*ARGUMENTS, "-o", "gdr.yaml"), "is an input"),
        ((*ARGUMENTS, "-o", "own.txt"), "is an input"),
        ((*ARGUMENTS, "--budget", "2"), "--budget 2 is too small"),
        (("pairs.jsonl", "--map", "chosen=better", "--instructions", "no.txt"), "cannot be read"),
    ],
)
def test_wrong_input_is_one_line(gdr: Gdr, arguments: tuple[str, ...], says: str) -> None:
    code, out, err = gdr(*arguments)
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1]
    assert not Path(".gdr").exists()
