"""Published scores against numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from gdr_plugin.data.benchmarks import REWARDBENCH, REWARDBENCH_DOMAINS
from gdr_plugin.evaluation.measures.benchmarks import (
    Judged,
    Section,
    judgebench,
    rewardbench,
    rewardbench2,
    rm_bench,
    style_matrix,
    ties_score,
)
from gdr_plugin.evaluation.measures.item_rules import Comparison, Rule, compare, rule_of


def judged(
    subset: str, chosen: Sequence[float], rejected: Sequence[float], id: str = "x", rule: Rule = "best"
) -> Judged:
    values = (list(chosen), list(rejected))
    return Judged(id, subset, values, compare(values, rule))


def pairs(subset: str, right: int, wrong: int) -> list[Judged]:
    return [judged(subset, [1.0], [0.0])] * right + [judged(subset, [0.0], [1.0])] * wrong


def by_name(sections: Sequence[Section]) -> dict[str, float | None]:
    return {one.name: one.estimate.value if one.estimate else None for one in sections}


@pytest.mark.parametrize(
    ("chosen", "rejected", "rule", "expected"),
    [
        ([2.0], [1.0], "best", Comparison(1.0, 1.0, False)),
        ([1.0], [2.0], "best", Comparison(0.0, -1.0, False)),
        ([1.0], [1.0], "best", Comparison(0.5, 0.0, True)),
        # Best of four: the best one must be the chosen; three that share the first place are worth a third.
        ([3.0], [1.0, 2.0, 0.0], "best", Comparison(1.0, 1.0, False)),
        ([2.0], [2.0, 2.0, 0.0], "best", Comparison(1 / 3, 0.0, True)),
        # Several chosen: it is enough that one of them is the best.
        ([0.0, 3.0], [2.0], "best", Comparison(1.0, 1.0, False)),
        ([3.0, 3.0], [3.0], "best", Comparison(2 / 3, 0.0, True)),
        # All chosen above all rejected.
        ([0.0, 3.0], [2.0], "all", Comparison(0.0, -2.0, False)),
        ([2.5, 3.0], [2.0, -1.0], "all", Comparison(1.0, 0.5, False)),
        ([2.0, 3.0], [2.0], "all", Comparison(0.5, 0.0, True)),
        # Nine comparisons: 1 beats 0 only, 2 beats 0 and 1, 3 ties with 3.
        ([1.0, 2.0, 3.0], [0.0, 1.0, 3.0], "matrix", Comparison((1.5 + 2 + 2.5) / 9, 2 - 4 / 3, True)),
    ],
)
def test_what_makes_an_item_right(chosen: list[float], rejected: list[float], rule: Rule, expected: Comparison) -> None:
    found = compare((chosen, rejected), rule)
    assert found.worth == pytest.approx(expected.worth)
    assert found.margin == pytest.approx(expected.margin)
    assert found.tie is expected.tie


def test_the_rule_follows_from_format_and_subset() -> None:
    assert rule_of("rm-bench", "chat") == "matrix"
    assert rule_of("rewardbench2", "Ties") == "all"
    assert rule_of("rewardbench2", "Math") == "best"
    assert rule_of("plain", "ties") == "best"


def test_rewardbench_counts() -> None:
    sizes = {section: sum(counts.values()) for section, counts in REWARDBENCH.items()}
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 984 + 984}
    assert sum(sizes.values()) - 984 + 447 == 2985  # the published number of pairs
    assert REWARDBENCH_DOMAINS["math-prm"] == "math"
    assert REWARDBENCH_DOMAINS["hep-go"] == "code"


def test_rewardbench_weights() -> None:
    items = [
        *pairs("math-prm", 1, 3),  # 0.25, counts 984 however many items there are
        *pairs("hep-cpp", 1, 1),  # 0.5, counts 164
        *pairs("hep-go", 2, 0),  # 1.0, counts 164
        *pairs("xstest-should-refuse", 1, 0),  # 154
        *pairs("xstest-should-respond", 0, 1),  # 250
        *pairs("alpacaeval-easy", 3, 1),
        *pairs("other", 0, 9),
    ]
    found = by_name(rewardbench(items))
    reasoning, safety = (984 * 0.25 + 164 * 0.5 + 164) / (984 + 328), 154 / 404
    assert found == {
        "Chat": 0.75,
        "Chat Hard": None,
        "Safety": pytest.approx(safety),
        "Reasoning": pytest.approx(reasoning),
        "average of the sections": pytest.approx((0.75 + safety + reasoning) / 3),
    }


def test_math_prm_counts_as_much_as_all_code() -> None:
    code = [item for subset in REWARDBENCH["Reasoning"] if subset != "math-prm" for item in pairs(subset, 1, 0)]
    assert by_name(rewardbench([*code, *pairs("math-prm", 0, 5)]))["Reasoning"] == pytest.approx(0.5)


def test_ties_by_hand() -> None:
    items = [
        # Question 1: tied gap 2 - 1 = 1, spread 0.5; ref gap 3: everything right; tanh(1 / 0.5 - 1).
        judged("Ties", [2.0, 2.5], [1.0, 0.0], "tied:1", "all"),
        judged("Ties", [4.0], [1.0], "ref:1", "all"),
        # Question 2: tied gap 1, spread 4: right, but correct answers are further apart than right and wrong.
        judged("Ties", [2.0, 6.0], [1.0], "tied:2", "all"),
        judged("Ties", [0.0], [1.0], "ref:2", "all"),
        # Question 3: only tied, and wrong.
        judged("Ties", [0.0, 1.0], [0.5], "tied:3", "all"),
    ]
    found = ties_score(items)
    assert found is not None
    close = (math.tanh(1 / 0.5 - 1) + math.tanh(-1 / 4 - 1)) / 2
    assert found.value == pytest.approx(0.3 * 2 / 3 + 0.3 * 1 / 2 + 0.2 * 1 / 2 + 0.2 * 1 / 2 + 0.01 * close)
    assert found.estimate.low < found.value < found.estimate.high


def test_ties_without_a_spread() -> None:
    items = [judged("Ties", [1.0, 1.0], [0.0], "tied:1", "all"), judged("Ties", [1.0], [0.0], "ref:1", "all")]
    found = ties_score(items)
    assert found is not None
    assert found.value == pytest.approx(1.01)  # the last term goes beyond 1: it is the benchmark's own
    level = [judged("Ties", [1.0, 1.0], [1.0], "tied:1", "all"), judged("Ties", [1.0], [0.0], "ref:1", "all")]
    found = ties_score(level)
    assert found is not None
    assert found.value == pytest.approx(0.3)
    assert ties_score(items[:1]) is None


def test_rewardbench2_averages_its_subsets() -> None:
    items = [
        judged("Math", [3.0], [1.0, 2.0, 0.0]),
        judged("Math", [0.0], [1.0, 2.0, 0.0]),
        judged("Focus", [1.0], [0.0, 0.5, 0.1]),
        judged("Ties", [2.0, 2.5], [1.0], "tied:1", "all"),
        judged("Ties", [4.0], [1.0], "ref:1", "all"),
    ]
    ties = 1 + 0.01 * math.tanh(1.0)
    assert by_name(rewardbench2(items)) == {
        "Math": 0.5,
        "Focus": 1.0,
        "Ties": pytest.approx(ties),
        "average of the subsets": pytest.approx((0.5 + 1 + ties) / 3),
    }


def test_rm_bench_by_hand() -> None:
    chat = judged("chat", [1.0, 2.0, 3.0], [0.5, 2.5, 2.7], "a", "matrix")
    refuse = judged("safety-refuse", [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], "b", "matrix")
    respond = judged("safety-response", [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], "c", "matrix")
    found = by_name(rm_bench([chat, refuse, respond]))
    # Chat: easy (2 > 0.5, 3 > 0.5, 3 > 2.5) 3/3; normal (1 > 0.5, 2 < 2.5, 3 > 2.7) 2/3; hard none. Safety: half.
    assert found == {
        "chat": pytest.approx(5 / 9),
        "safety": 0.5,
        "easy": pytest.approx((1 + 0.5) / 2),
        "normal": pytest.approx((2 / 3 + 0.5) / 2),
        "hard": pytest.approx((0 + 0.5) / 2),
        "average": pytest.approx((5 / 9 + 0.5) / 2),
    }
    assert style_matrix([chat]) == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert style_matrix([]) is None


def test_judgebench_categories() -> None:
    items = [*pairs("mmlu-pro-law", 1, 1), *pairs("livebench-math", 1, 0), *pairs("livecodebench", 0, 1)]
    assert by_name(judgebench(items)) == {"Knowledge": 0.5, "Reasoning": None, "Math": 1.0, "Coding": 0.0}


def test_intervals_of_a_section_resample_within_subsets() -> None:
    # Each subset is all right or all wrong: no resample within subsets changes the section.
    items = [*pairs("refusals-dangerous", 20, 0), *pairs("refusals-offensive", 0, 20)]
    safety = next(one.estimate for one in rewardbench(items) if one.name == "Safety")
    assert safety is not None
    assert (safety.value, safety.low, safety.high, safety.n) == (0.5, 0.5, 0.5, 40)
