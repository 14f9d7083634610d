"""What a run that stopped goes on with, and what it refuses: inputs that changed, and clocks that went back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gdr_plugin.annotation import annotate
from gdr_plugin.cli.progress import Lines

Gdr = Callable[..., tuple[int, str, str]]
RUN = ("annotate", "prompts.jsonl", "-o", "out")


@pytest.fixture
def half(gdr: Gdr, here: Path) -> Path:
    """A run that stopped after two of four windows, and the same run in one go, in `whole`."""
    assert gdr("annotate", "prompts.jsonl", "-o", "whole")[0] == 0
    with pytest.MonkeyPatch.context() as patched:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(annotate, "write_outputs", stop)
        assert gdr(*RUN)[0] == 130
    work = here / "out" / "work"
    for number in (1, 3):
        (work / f"candidates-{number:06d}.jsonl").unlink()
    return work


def rows() -> list[dict[str, object]]:
    return [json.loads(line) for line in Path("prompts.jsonl").read_text().splitlines()]


def write(changed: list[dict[str, object]]) -> None:
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))


def same() -> bool:
    names = sorted(path.name for path in Path("whole").iterdir() if path.suffix in (".parquet", ".jsonl"))
    return len(names) == 7 and all(Path("out", name).read_bytes() == Path("whole", name).read_bytes() for name in names)


def edited() -> list[dict[str, object]]:
    found = rows()
    found[70]["prompt"] = "another"
    return found


CHANGES = {
    "edited": (edited, "input.content was"),
    "added": (lambda: [*rows(), {"prompt": "new?", "responses": ["a", "b"]}], "input.rows was 100, is 101"),
    "removed": (lambda: rows()[:-1], "input.rows was 100, is 99"),
    "reordered": (lambda: list(reversed(rows())), "input.content was"),
    "a column more": (lambda: [{**row, "domain": "safety"} for row in rows()], "input.content was"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_input_that_changed_is_refused_and_nothing_is_lost(name: str, gdr: Gdr, half: Path) -> None:
    make, said = CHANGES[name]
    before, content = rows(), {path: path.read_bytes() for path in half.parent.rglob("*") if path.is_file()}
    write(make())
    code, _, err = gdr(*RUN)
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("gdr: out: belongs to another run (")
    assert said in err
    assert err.endswith("choose another -o, or delete the folder to start over\n")
    assert {path: path.read_bytes() for path in half.parent.rglob("*") if path.is_file()} == content
    write(before)
    assert gdr(*RUN)[0] == 0
    assert same()


def test_what_says_the_same_goes_on(gdr: Gdr, half: Path) -> None:
    """Another name, another format, another spelling of the same rows, another time of change."""
    Path("other.json").write_text(json.dumps([dict(reversed(row.items())) for row in rows()], indent=1))
    os.utime("other.json", (0, 2**33))
    assert gdr("annotate", "other.json", "-o", "out")[0] == 0
    assert same()


def test_an_input_that_changes_while_it_is_scored(gdr: Gdr, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read once: what is scored is what was checked."""
    from gdr_plugin.reward.reward import GuidedDensityRatio

    assert gdr("annotate", "prompts.jsonl", "-o", "whole")[0] == 0
    score, before = GuidedDensityRatio.score, rows()

    def changing(self: GuidedDensityRatio, samples: list[object], **options: object) -> object:
        write([{"prompt": "gone", "responses": ["x", "y"]}])
        return score(self, samples, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(GuidedDensityRatio, "score", changing)
    assert gdr(*RUN)[0] == 0
    assert same()
    assert len(before) == 100


@pytest.mark.parametrize("cut", [0, 10, 200, -2])
def test_a_window_whose_file_is_damaged_is_named(cut: int, gdr: Gdr, half: Path) -> None:
    path = half / "candidates-000002.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    code, _, err = gdr(*RUN)
    assert code == 2
    assert "gdr: out/work/candidates-000002.jsonl: cannot be read back" in err
    assert "delete that file and run again" in err
    path.unlink()
    assert gdr(*RUN)[0] == 0
    assert same()


class BackwardClock:
    """The time of day, which somebody sets back by a day at each look."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        self.now -= 86_400
        return self.now


def test_a_clock_that_goes_back(gdr: Gdr, half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("gdr.yaml").open("a") as file:
        file.write("store: {path: store.sqlite}\n")
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", BackwardClock())
        assert gdr(*RUN)[0] == 0
        assert same()
        summary = json.loads(Path("out", "summary.json").read_text())
        assert all(seconds >= 0 for seconds in summary["seconds"].values())
        code, out, _ = gdr("store", "info", "store.sqlite", "--json")
        assert code == 0
        (first, second) = json.loads(out)["models"]
        assert first["responses" if "responses" in first else "rows"] == second["rows"] > 0
        for _ in range(2):  # what was written on a later day than today is used, and is no reason for a write
            code, _, err = gdr("score", "rows.jsonl", "-o", "out.jsonl")
            assert code == 0
            assert "-" not in err.split("tokens in ")[1].split(" s (")[0]
    assert gdr("store", "prune", "store.sqlite", "--older-than", "0d")[0] == 0


def test_progress_does_not_look_at_the_time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", BackwardClock())
    lines = Lines("rows")
    lines.show("scoring", 0, 100)
    time.sleep(0.01)
    lines.show("scoring", 50, 100)
    told = lines.line()
    assert told.startswith("gdr: scoring: 50/100 rows (50%)")
    assert "-" not in told
