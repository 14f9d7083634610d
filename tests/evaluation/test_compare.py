"""`gdr compare`: two runs on the same items, paired."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from gdr_plugin.api.errors import DataError
from gdr_plugin.arithmetic.statistics import sign_test
from gdr_plugin.evaluation.compare import compare_runs

Run: TypeAlias = Callable[..., tuple[int, str, str]]


def rows(path: Path, worths: list[float | None], more: dict[str, Any] | None = None) -> Path:
    """What `--rows` writes, with two subsets."""
    written = [
        {"id": f"r{n}", "subset": "ab"[n % 2], "item": f"digest{n}", "reduction": "sum"}
        | {"worths": {"sum": worth, "mean": 1.0}, **(more or {})}
        for n, worth in enumerate(worths)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    return path


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 5, 1.0), (6, 0, 2 / 64), (9, 1, 2 * 11 / 1024), (1, 9, 2 * 11 / 1024)],
)
def test_the_sign_test_is_exact(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p, rel=1e-12)


def test_the_sign_test_of_many_items_agrees_with_the_normal_approximation() -> None:
    # z = (5150 - 5050 - 1) / sqrt(10200) = 0.980, two-sided 0.327
    assert sign_test(5150, 5050) == pytest.approx(0.327, abs=0.001)


def test_a_gain_on_the_same_items(tmp_path: Path) -> None:
    a = rows(tmp_path / "a.jsonl", [1.0] * 40 + [0.0] * 60)
    b = rows(tmp_path / "b.jsonl", [1.0] * 39 + [0.0] + [1.0] * 20 + [0.0] * 40)
    found = compare_runs(a, b)
    main = found.main
    assert (main.items, main.better, main.worse) == (100, 20, 1)
    assert main.p == pytest.approx(2 * 22 / 2**21)
    assert main.gain is not None
    assert main.gain.value == pytest.approx(0.19)
    # Paired: the gain's variance is (21/100 - 0.19^2) / 100, its interval 1.96 times the root to each side.
    assert (main.gain.low, main.gain.high) == pytest.approx((0.19 - 0.082, 0.19 + 0.082), abs=0.012)
    assert set(found.by_subset) == {"a", "b"}
    assert sum(own.items for own in found.by_subset.values()) == 100
    assert found.by_reduction["mean"].p == 1.0
    assert found.verdict().startswith(f"{b} is better than {a} by 0.1")
    back = compare_runs(b, a)
    assert back.main.gain is not None
    assert back.main.gain.value == pytest.approx(-0.19)
    assert back.verdict().startswith(f"{b} is better than {a} by 0.1")


def test_what_is_not_in_both_is_left_out_and_counted(tmp_path: Path) -> None:
    a = rows(tmp_path / "a.jsonl", [1.0, 0.0, None, 1.0])
    b = rows(tmp_path / "b.jsonl", [1.0, 1.0, 1.0, 0.5, 1.0, 0.0])
    found = compare_runs(a, b)
    assert (found.main.items, found.main.better, found.main.worse) == (3, 1, 1)
    assert found.left_out == {f"only in {b}": 2, "not scored in both": 1}
    assert "not told apart" in found.verdict()


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"item": "else"}, "the item 'r0' has other texts in"),
        ({"id": "x", "item": "else"}, "have no id in common"),
        ({"id": "r0"}, "the id 'r0' comes twice"),
        ({"worths": None}, "there is no 'worths': give files that gdr evaluate --rows has written"),
        ({"worths": {"per_byte": 1.0}}, "unknown reduction 'sum'"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: dict[str, Any], problem: str, tmp_path: Path) -> None:
    a = rows(tmp_path / "a.jsonl", [1.0, 0.0])
    b = rows(tmp_path / "b.jsonl", [1.0] * (1 if other == {"id": "x", "item": "else"} else 2), other)
    with pytest.raises(DataError, match=problem):
        compare_runs(a, b)


def test_runs_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gdr: Run) -> None:
    monkeypatch.chdir(tmp_path)
    data = [
        {"prompt": f"Question {n}?", "chosen": "Yes." + "!" * n, "rejected": "No. " * n, "subset": "ab"[n % 2]}
        for n in range(1, 31)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    for name in ("b", "c"):
        (tmp_path / f"{name}.yaml").write_text(f"strong: fake:a\nweak: fake:{name}\n")
        assert gdr("evaluate", "data.jsonl", "-c", f"{name}.yaml", "--rows", f"{name}.jsonl")[0] == 0
    compare = partial(gdr, "compare")
    code, out, _ = compare("b.jsonl", "c.jsonl", "--html", "out.html")
    assert code == 0
    for part in ("the second run against the first", "items in both  30", "by subset, sum", "p = "):
        assert part in out
    found = json.loads(compare("b.jsonl", "c.jsonl", "--json")[1])
    own = [[json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in "bc"]
    better = sum(c["correct"] > b["correct"] for b, c in zip(*own, strict=True))
    assert (found["by_reduction"]["sum"]["better"], found["by_reduction"]["sum"]["items"]) == (better, 30)
    assert found["verdict"] in out.replace("\n", " ")
    assert "<table" in (tmp_path / "out.html").read_text()
    assert compare("b.jsonl", "data.jsonl")[0] == 2
    assert compare("b.jsonl", "c.jsonl", "--html", "b.jsonl")[0] == 2
