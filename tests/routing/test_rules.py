"""Keyword rules: how they score, and what they refuse."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.routing.rules import KeywordRules, load_rules


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


def file(domains: Any) -> dict[str, Any]:
    return {"threshold": 1, "margin": 0, "domains": domains}


def one_rule(rule: Any) -> dict[str, Any]:
    return file({"a": {"rules": [rule]}})


def test_keys_without_a_value_count_as_left_out() -> None:
    rule = {"weight": 1, "words": ["x"], "patterns": None}
    assert KeywordRules(file({"a": {"otherwise": None, "rules": [rule]}}), "test").scores("x") == {"a": 1.0}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "test: must be a mapping with threshold, margin, domains, not a list"),
        ({"treshold": 1}, "unknown key 'treshold': known are domains, margin, threshold (did you mean 'threshold'?)"),
        ({"threshold": "1"}, "threshold: must be a number, not '1'"),
        ({"threshold": 0, "margin": -1, "domains": {"a": {"rules": [GOOD]}}}, "threshold: must be above 0, not 0"),
        ({"threshold": 0, "margin": -1, "domains": {"a": {"rules": [GOOD]}}}, "margin: must be 0 or more, not -1"),
        (file({}), "domains: must not be empty"),
        (file({"a": []}), "domains.a: must be a mapping with otherwise, rules, not a list"),
        (file({"a": {"rules": []}}), "domains.a.rules: must not be empty"),
        (file({"a": {"rules": GOOD}}), "domains.a.rules: must be a list, not {'weight': 1, 'words': ['x']}"),
        (file({1: {"rules": [GOOD]}}), "domains: the key 1 must be text: put it in quotes"),
        (file({"": {"rules": [GOOD]}}), "domains: a domain's name must not be empty"),
        (file({"a": {"otherwise": 1, "rules": [GOOD]}}), "domains.a.otherwise: must be text, not 1: put it in quotes"),
        (file({"a": {"otherwise": "", "rules": [GOOD]}}), "domains.a.otherwise: must not be empty"),
        (one_rule({"weight": 1}), "domains.a.rules[0]: needs words or patterns"),
        (one_rule({"weight": 1, "words": [], "patterns": None}), "domains.a.rules[0]: needs words or patterns"),
        (one_rule({"words": ["x"]}), "domains.a.rules[0].weight: is missing"),
        (one_rule({"weight": True, "words": ["x"]}), "weight: must be a number, not True"),
        (one_rule({"weight": math.inf, "words": ["x"]}), "weight: must be a finite number, not inf"),
        (one_rule({"weight": 1, "words": "x"}), "words: must be a list, not 'x'"),
        (one_rule({"weight": 1, "words": "", "patterns": ["x"]}), "words: must be a list, not ''"),
        (one_rule({"weight": 1, "words": 0, "patterns": ["x"]}), "words: must be a list, not 0"),
        (one_rule({"weight": 1, "words": ["x"], "patterns": False}), "patterns: must be a list, not False"),
        (one_rule({"weight": 1, "words": [3]}), "words[0]: must be text, not 3: put it in quotes"),
        (one_rule({"weight": 1, "words": ["x", ""]}), "words[1]: must not be empty"),
        (one_rule({"weight": 1, "words": ["*"]}), "words[0]: '*' has no letters or digits; use patterns"),
        (one_rule({"weight": 1, "patterns": ["(x"]}), "patterns[0]: '(x' is not a regular expression"),
        (one_rule({"weight": 1, "patterns": [r"\SQL"]}), "has capitals, but is searched in lower-case text"),
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
    with pytest.raises(ConfigError, match=f"rules file {re.escape(str(path))}: margin: is missing"):
        load_rules(path)
