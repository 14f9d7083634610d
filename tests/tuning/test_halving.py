from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from gdr_plugin.tuning.halving import PromptResult, PromptResults, accuracy, evaluations, halve, plan


@pytest.mark.parametrize(
    ("candidates", "prompts", "rounds"),
    [
        (1, 100, []),
        (2, 100, [(2, 100)]),
        (8, 100, [(8, 25), (4, 50), (2, 100)]),
        (32, 100, [(32, 16), (16, 32), (8, 64), (4, 100), (2, 100)]),
        (5, 10, [(5, 10), (3, 10), (2, 10)]),
    ],
)
def test_slices_double_while_candidates_halve(candidates: int, prompts: int, rounds: list[tuple[int, int]]) -> None:
    assert plan(candidates, prompts) == rounds


def test_nested_slices_cost_only_what_is_new() -> None:
    assert evaluations(plan(8, 100)) == 8 * 25 + 4 * 25 + 2 * 50
    assert evaluations(plan(32, 100)) == 32 * 16 + 16 * 16 + 8 * 32 + 4 * 36
    assert evaluations([]) == 0


class Table:
    """Candidates that are right on the first so many of every ten prompts; notes what is asked."""

    def __init__(self, tenths: Mapping[str, int], margins: Mapping[str, float] | None = None) -> None:
        self.tenths, self.margins, self.asked = tenths, margins or {}, list[tuple[str, int]]()

    def __call__(self, names: Sequence[str], start: int, stop: int) -> dict[str, PromptResults]:
        self.asked += [(name, n) for name in names for n in range(start, stop)]
        return {name: [self.result(name, n) for n in range(start, stop)] for name in names}

    def result(self, name: str, n: int) -> PromptResult | None:
        right = n % 10 < self.tenths[name]
        return PromptResult(float(right), self.margins.get(name, 1.0) * (1 if right else -1) + 0.1 * (n % 3))


def test_the_best_is_found_and_nobody_is_asked_twice() -> None:
    table = Table({"a": 3, "b": 5, "c": 9, "d": 6, "e": 4, "f": 5, "g": 2, "h": 7})
    rounds = halve(list("abcdefgh"), 80, table)
    assert [one.prompts for one in rounds] == [20, 40, 80]
    assert [name for name, _ in rounds[-1].ranking] == ["c", "h"]
    assert dict(rounds[-1].ranking) == pytest.approx({"c": 0.9, "h": 0.7})
    assert [len(one.ranking) for one in rounds] == [8, 4, 2]
    assert len(table.asked) == len(set(table.asked)) == evaluations(plan(8, 80))


def test_ties_go_to_the_larger_margin_then_to_the_earlier() -> None:
    table = Table({"a": 5, "b": 5, "c": 5})
    assert halve(list("abc"), 20, table)[-1].ranking[0][0] == "a"
    steady = Table({"a": 5, "b": 5})
    steady.result = lambda name, n: PromptResult(0.5, 1.0 + (n % 2) * (3.0 if name == "a" else 1.0))  # type: ignore[method-assign]
    assert halve(["a", "b"], 20, steady)[-1].ranking[0][0] == "b"


def test_what_cannot_be_scored_is_lost() -> None:
    assert accuracy([PromptResult(1.0, 1.0), None, PromptResult(0.5, 0.0), None]) == 0.375

    def ask(names: Sequence[str], start: int, stop: int) -> dict[str, PromptResults]:
        half: list[PromptResult | None] = [PromptResult(1.0, 1.0), None] * ((stop - start) // 2)
        return {"gaps": half, "steady": [PromptResult(0.6, 1.0)] * (stop - start), "silent": [None] * (stop - start)}

    rounds = halve(["silent", "gaps", "steady"], 20, ask)
    assert [name for name, _ in rounds[0].ranking] == ["steady", "gaps", "silent"]
    assert rounds[-1].ranking[0][0] == "steady"
    assert rounds[-1].ranking[0][1] == pytest.approx(0.6)
