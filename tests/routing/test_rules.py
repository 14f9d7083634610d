"""Keyword rules: how they score, what they refuse, and that skipping patterns never changes an answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.routing.gate import anchored, beginnings, gate
from gdr_plugin.routing.keyword import KeywordRouter
from gdr_plugin.routing.rules import _WORD, KeywordRules, load_rules

PATTERNS = [(search.__self__, needed) for search, needed, _ in KeywordRouter().rules._patterns]  # type: ignore[attr-defined]


def rules(*entries: dict[str, Any], **settings: Any) -> KeywordRules:
    domains = {"a": {"rules": list(entries)}, "b": {"rules": [{"weight": 2, "words": ["rival"]}]}}
    return KeywordRules({"threshold": 2, "margin": 1, "domains": domains} | settings, "test")


@pytest.mark.parametrize(
    ("words", "text", "matches"),
    [
        (["cat"], "The CAT sat.", True),
        (["cat"], "concatenate, cats", False),
        (["self harm"], "about self-harm", True),
        (["self harm"], "harm to the self", False),
        (["self-harm"], "self harm", True),
        (["trigonomet*"], "Trigonometry", True),
        (["trigonomet*"], "what is trigonome", False),
        (["equation*"], "equation", True),
        (["differential equation*"], "two differential equations", True),
        (["differential equation*"], "differential", False),
        (["c++"], "in C++, please", True),
        (["c"], "in C++", False),
        (["don't want"], "I don\u2019t want", True),
        (["straße"], "STRASSE", True),
        (["über"], "U\u0308ber", True),
        (["go"], "it's_go", True),
        (["quoted"], "'quoted'", True),
    ],
)
def test_words(words: list[str], text: str, matches: bool) -> None:
    assert rules({"weight": 3, "words": words}).scores(text) == ({"a": 3.0} if matches else {})


def test_a_rule_counts_once_and_rules_add_up() -> None:
    compiled = rules({"weight": 2, "words": ["x", "y"], "patterns": ["z+"]}, {"weight": -5, "words": ["no"]})
    assert compiled.scores("x y z") == {"a": 2.0}
    assert compiled.scores("x no") == {"a": -3.0}


def test_threshold_and_margin() -> None:
    compiled = rules({"weight": 2, "words": ["x"]}, {"weight": 0.5, "words": ["y"]}, {"weight": 1, "words": ["z"]})
    both = {"a": "", "b": ""}
    assert compiled.decide("x", both) == "a"
    assert compiled.decide("z", both) is None  # below the threshold
    assert compiled.decide("x rival", both) is None  # a tie
    assert compiled.decide("x y rival", both) is None  # within the margin
    assert compiled.decide("x z rival", both) == "a"
    assert compiled.decide("x rival", {"b": ""}) == "b"  # what is not configured is no rival
    tied = rules({"weight": 2, "words": ["x"]}, margin=0)
    assert tied.decide("x rival", both) is None


def test_otherwise() -> None:
    domains = {
        "math": {"otherwise": "reasoning", "rules": [{"weight": 3, "words": ["sum"]}]},
        "code": {"otherwise": "reasoning", "rules": [{"weight": 3, "words": ["loop"]}]},
    }
    compiled = KeywordRules({"threshold": 3, "margin": 1, "domains": domains}, "test")
    assert compiled.decide("sum in a loop", {"math": "", "code": ""}) is None
    assert compiled.decide("sum in a loop", {"reasoning": ""}) == "reasoning"
    assert compiled.decide("sum", {"math": "", "reasoning": ""}) == "math"
    assert compiled.decide("sum", {"chat": ""}) is None


GOOD: dict[str, Any] = {"weight": 1, "words": ["x"]}


def one(rule: Any) -> dict[str, Any]:
    return {"threshold": 1, "margin": 0, "domains": {"a": {"rules": [rule]}}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "test: must be a mapping with threshold, margin, domains, not list"),
        ({"treshold": 1}, "unknown key 'treshold': known are domains, margin, threshold (did you mean 'threshold'?)"),
        ({"threshold": "1"}, "threshold: must be a number, not '1'"),
        ({"threshold": 0, "margin": 0}, "threshold must be above 0"),
        ({"threshold": 1, "margin": 0, "domains": {}}, "domains: must be a mapping with at least one domain"),
        ({"threshold": 1, "margin": 0, "domains": {"a": []}}, "domains.a: must be a mapping with otherwise, rules"),
        ({"threshold": 1, "margin": 0, "domains": {"a": {"rules": []}}}, "domains.a: rules: must be a list"),
        ({"threshold": 1, "margin": 0, "domains": {1: {"rules": [GOOD]}}}, "a domain's name must be text"),
        (
            {"threshold": 1, "margin": 0, "domains": {"a": {"otherwise": 1, "rules": [GOOD]}}},
            "otherwise: must be a domain's name, not 1",
        ),
        (one({"weight": 1}), "domains.a.rules[0]: needs words or patterns"),
        (one({"words": ["x"]}), "domains.a.rules[0]: weight: must be a number, not None"),
        (one({"weight": True, "words": ["x"]}), "weight: must be a number, not True"),
        (one({"weight": 1, "words": "x"}), "words: must be a list, not 'x'"),
        (one({"weight": 1, "words": [3]}), "words: 3 must be text; put it in quotes"),
        (one({"weight": 1, "words": ["*"]}), "words: '*' has no letters or digits; use patterns"),
        (one({"weight": 1, "patterns": ["(x"]}), "patterns: '(x' is not a regular expression"),
        (one({"weight": 1, "patterns": [r"\SQL"]}), "has capitals, but is searched in lower-case text"),
    ],
)
def test_errors(data: object, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        KeywordRules(data, "test")
    assert message in str(raised.value)
    assert str(raised.value).startswith("test")
    assert "\n" not in str(raised.value)


def test_a_rules_file_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("threshold: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"rules file {re.escape(str(path))}: margin: must be a number, not None"):
        load_rules(path)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"\bkill(?:s|ed)? it", {"kil"}),
        (r"\b(?:make|an?|set off) x", None),  # `a` is too short to tell
        (r"\b(?:make|my|set off) x", {"mak", "my", "set"}),
        (r"\bcolou?r|\bs[ae]t", None),
        (r"\bcolou?r|\bsat", {"col", "sat"}),
        (r"\bab?c", None),
        (r"\babc*d", {"ab"}),
        (r"\b(?:big )?cat", None),
        (r"cat", None),
        (r"\d+ cats|\b3 cats", {r"\d"}),
        (r"\d? cats", None),
        (r"\b(?:(?:see|saw)n?|[)|]look)", None),
        (r"\b(?:(?:see|saw)n|look)[|)]", {"see", "saw", "loo"}),
    ],
)
def test_gate(pattern: str, expected: set[str] | None) -> None:
    re.compile(pattern)
    assert gate(pattern) == expected


def test_anchored() -> None:
    assert anchored("^a|^(?:b|c)")
    assert not anchored("^a|b")


def test_most_packaged_patterns_can_be_skipped() -> None:
    assert sum(needed is not None or pattern.pattern.startswith("^") for pattern, needed in PATTERNS) > 0.85 * len(
        PATTERNS
    )


VOCABULARY = sorted({word for pattern, _ in PATTERNS for word in re.findall("[a-z]+", pattern.pattern)})
pieces = st.one_of(st.sampled_from(VOCABULARY), st.sampled_from(["3", "17", "'", "_", "+", "-", "x'", "?", "\n", "é"]))
texts = st.lists(st.tuples(pieces, st.sampled_from([" ", "", "'", "_"])), max_size=12).map(
    lambda parts: "".join(piece + gap for piece, gap in parts)
)


@given(texts)
def test_skipping_never_changes_an_answer(text: str) -> None:
    starts = beginnings(text, _WORD.findall(text))
    for pattern, needed in PATTERNS:
        if needed is not None and needed.isdisjoint(starts):
            assert pattern.search(text) is None, pattern.pattern
        if anchored(pattern.pattern):
            assert (pattern.search(text) is None) == (pattern.match(text) is None)
