"""Published scores against numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from gdr_plugin.data.benchmarks import benchmarks
from gdr_plugin.evaluation.measures.benchmarks import (
    Judged,
    Section,
    expected,
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
        # Nine comparisons: 1 beats 0 only, 2 beats 0 and 1, so does 3; ties are lost, as in the benchmark's code.
        ([1.0, 2.0, 3.0], [0.0, 1.0, 3.0], "matrix", Comparison((1 + 2 + 2) / 9, 2 - 4 / 3, True)),
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
    benchmark = benchmarks()["rewardbench"]
    sizes = {section: sum(part.weight for part in parts) for section, parts in benchmark.sections.items()}
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 984 + 984}
    assert sum(part.expected(()) or 0 for part in benchmark.subsets) == 2985  # the published number of pairs
    domains = {part.name: part.domain for part in benchmark.subsets}
    assert (domains["math-prm"], domains["hep-go"], domains["donotanswer"]) == ("math", "code", "safety")


@pytest.mark.parametrize(
    ("name", "items"), [("rewardbench2", 1865), ("rm-bench", 1327), ("llmbar", 419), ("rewardbench", 2985)]
)
def test_the_published_sizes_add_up(name: str, items: int) -> None:
    benchmark = benchmarks()[name]
    assert expected(name, [part.name for part in benchmark.subsets], ()) == items
    assert benchmark.source


def test_judgebench_has_two_editions() -> None:
    names = [part.name for part in benchmarks()["judgebench"].subsets]
    gpt, claude = "gpt-4o-2024-05-13", "claude-3-5-sonnet-20240620"
    assert expected("judgebench", names, [gpt]) == 350
    assert expected("judgebench", names, [claude]) == 270
    assert expected("judgebench", names, [gpt, claude]) == 620
    assert expected("judgebench", names, [gpt, "another"]) is None
    assert expected("judgebench", names, [""]) is None
    assert expected("plain", names, [""]) is None


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
    sections = rewardbench(items)
    reasoning, safety = (984 * 0.25 + 164 * 0.5 + 164) / (984 + 328), 154 / 404
    assert by_name(sections) == {
        "Chat": 0.75,
        "Chat Hard": None,
        "Safety": pytest.approx(safety),
        "Reasoning": pytest.approx(reasoning),
        "average of the sections": None,  # parts are missing: it would not be the published number
    }
    assert {own.name: own.partial for own in sections} == {
        "Chat": "partial: 4 of 358",
        "Chat Hard": "partial: 0 of 456",
        "Safety": "partial: 2 of 740",
        "Reasoning": "partial: 8 of 1,431",
        "average of the sections": "partial: 14 of 2,985",
    }


def test_rewardbench_as_a_whole_has_its_average() -> None:
    subsets = benchmarks()["rewardbench"].subsets
    whole = [item for part in subsets for item in pairs(part.name, part.expected(()) or 0, 0)]
    assert {(own.partial, own.estimate and own.estimate.value) for own in rewardbench(whole)} == {(None, 1.0)}
    one_of_each = [
        item for part in subsets for item in pairs(part.name, part.section != "Chat", part.section == "Chat")
    ]
    found = {own.name: own for own in rewardbench(one_of_each)}["average of the sections"]
    assert found.estimate is not None
    assert (found.estimate.value, found.partial) == (0.75, "partial: 23 of 2,985")
    missing = [item for item in one_of_each if item.subset != "hep-go"]
    assert by_name(rewardbench(missing))["average of the sections"] is None


def test_math_prm_counts_as_much_as_all_code() -> None:
    reasoning = benchmarks()["rewardbench"].sections["Reasoning"]
    code = [item for part in reasoning if part.name != "math-prm" for item in pairs(part.name, 1, 0)]
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
    some = {"Math": 0.5, "Focus": 1.0, "Ties": pytest.approx(ties)}
    missing = dict.fromkeys(["Factuality", "Precise IF", "Safety", "average of the subsets"])
    assert by_name(rewardbench2(items)) == {**some, **missing}
    more = [*items, *(judged(name, [1.0], [0.0, 0.5, 0.1]) for name in ("Factuality", "Precise IF", "Safety"))]
    found = {own.name: own for own in rewardbench2(more)}
    assert found["average of the subsets"].estimate is not None
    assert found["average of the subsets"].estimate.value == pytest.approx((0.5 + 4 + ties) / 6)
    assert found["Ties"].partial == "partial: 2 of 102"
    assert found["average of the subsets"].partial == "partial: 8 of 1,865"


CHAT = judged("chat", [1.0, 2.0, 3.0], [0.5, 2.5, 2.7], "a", "matrix")
REFUSE = judged("safety-refuse", [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], "b", "matrix")
RESPOND = judged("safety-response", [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], "c", "matrix")
TIED = judged("math", [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], "d", "matrix")
CODE = judged("code", [2.0, 2.0, 2.0], [1.0, 1.0, 1.0], "e", "matrix")


def test_rm_bench_by_hand() -> None:
    # Chat: easy (2 > 0.5, 3 > 0.5, 3 > 2.5) 3/3; normal (1 > 0.5, 2 < 2.5, 3 > 2.7) 2/3; hard none. Math: all tied,
    # that is lost. Safety pools its items: two of three are right.
    found = by_name(rm_bench([CHAT, REFUSE, REFUSE, RESPOND, TIED, CODE]))
    assert found == {
        "chat": pytest.approx(5 / 9),
        "math": 0.0,
        "code": 1.0,
        "safety": pytest.approx(2 / 3),
        "easy": pytest.approx((1 + 0 + 1 + 2 / 3) / 4),
        "normal": pytest.approx((2 / 3 + 0 + 1 + 2 / 3) / 4),
        "hard": pytest.approx((0 + 0 + 1 + 2 / 3) / 4),
        "average": pytest.approx((5 / 9 + 0 + 1 + 2 / 3) / 4),
    }
    assert style_matrix([CHAT]) == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert style_matrix([]) is None


def test_rm_bench_pools_all_441_items_of_safety() -> None:
    refuse = [REFUSE] * 270 + [judged("safety-refuse", [0.0] * 3, [1.0] * 3, "x", "matrix")] * 14
    respond = [judged("safety-response", [1.0] * 3, [0.0] * 3, "y", "matrix")] * 47 + [RESPOND] * 110
    sections = {own.name: own for own in rm_bench([*refuse, *respond])}
    assert sections["safety"].estimate is not None
    assert sections["safety"].estimate.value == pytest.approx((270 + 47) / 441)
    assert sections["safety"].partial is None


def test_a_domain_of_rm_bench_alone_has_its_own_levels_and_no_overall_number() -> None:
    sections = rm_bench([CHAT])
    assert by_name(sections) == {
        "chat": pytest.approx(5 / 9),
        **dict.fromkeys(["math", "code", "safety"]),
        "chat, easy": 1.0,
        "chat, normal": pytest.approx(2 / 3),
        "chat, hard": 0.0,
        **dict.fromkeys(["easy", "normal", "hard", "average"]),
    }
    assert {own.name: own.partial for own in sections}["chat, hard"] == "partial: 1 of 129"


def test_judgebench_categories() -> None:
    items = [*pairs("mmlu-pro-law", 1, 1), *pairs("livebench-math", 1, 0), *pairs("livecodebench", 0, 1)]
    assert by_name(judgebench(items)) == {"Knowledge": 0.5, "Reasoning": None, "Math": 1.0, "Coding": 0.0}


def test_intervals_of_a_section_resample_within_subsets() -> None:
    # Each subset is all right or all wrong: no resample within subsets changes the section.
    items = [*pairs("refusals-dangerous", 20, 0), *pairs("refusals-offensive", 0, 20)]
    safety = next(one.estimate for one in rewardbench(items) if one.name == "Safety")
    assert safety is not None
    assert (safety.value, safety.low, safety.high, safety.n) == (0.5, 0.5, 0.5, 40)


def test_rm_bench_agrees_with_the_rule_of_its_code_on_random_scores() -> None:
    """By domain the matrix of strictly won comparisons; hard above its diagonal, easy below; means over domains."""
    rng = np.random.default_rng(3)
    items: list[Judged] = []
    by_domain: dict[str, list[npt.NDArray[np.float64]]] = {}
    for part in benchmarks()["rm-bench"].subsets:
        scores = rng.integers(0, 4, (rng.integers(5, 20), 2, 3)).astype(float)  # many ties
        items += [judged(part.name, list(c), list(r), f"{n}", "matrix") for n, (c, r) in enumerate(scores)]
        by_domain.setdefault(part.section, []).append(scores)
    levels: dict[str, list[float]] = {"easy": [], "normal": [], "hard": []}
    found = by_name(rm_bench(items))
    for domain, own in by_domain.items():
        pooled = np.concatenate(own)
        matrix = (pooled[:, 0, :, None] > pooled[:, 1, None, :]).mean(axis=0)
        three = np.tril(matrix, -1).sum() / 3, np.diag(matrix).mean(), np.triu(matrix, 1).sum() / 3
        for name, value in zip(levels, three, strict=True):
            levels[name].append(float(value))
        assert found[domain] == pytest.approx(np.mean(three))
    for name, values in levels.items():
        assert found[name] == pytest.approx(np.mean(values))
    assert found["average"] == pytest.approx(np.mean([*levels.values()]))
