"""The keyword router and its packaged rules, measured on labelled requests of our own.

`labelled_dev.jsonl` was looked at while the rules were written, `labelled_test.jsonl` was not. What counts most is the
precision of what is decided: the rest goes on to the next router.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.routers import RoutingContext
from gdr_plugin.api.types import Conversation, Message, Sample
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.routing import KeywordRouter
from gdr_plugin.routing.keyword import REACH

DATA = Path(__file__).parent / "data"
ALL = ("chat", "safety", "math", "code", "reasoning", "factuality", "instruction-following")


def context(*domains: str) -> RoutingContext:
    return RoutingContext(dict.fromkeys(domains or ALL, ""), FakeModel("routing"))


def ask(*texts: str) -> Sample:
    roles = ["user", "assistant"]
    return Sample(tuple(Message(roles[i % 2], text) for i, text in enumerate(texts)), "")


def labelled(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"labelled_{split}.jsonl").read_text(encoding="utf-8").splitlines()]


# split, floor of the precision among decided prompts, of the share decided, of the accuracy with `chat` as default
@pytest.mark.parametrize(
    ("split", "precision", "coverage", "accuracy"), [("dev", 0.95, 0.8, 0.88), ("test", 0.95, 0.8, 0.88)]
)
def test_quality(split: str, precision: float, coverage: float, accuracy: float) -> None:
    rows = labelled(split)
    decided = KeywordRouter().route([ask(row["prompt"]) for row in rows], context())
    right = [domain in (row["domain"], *row.get("also", ())) for domain, row in zip(decided, rows, strict=True)]
    found = [domain is not None for domain in decided]
    default = [(domain or "chat") == row["domain"] for domain, row in zip(decided, rows, strict=True)]
    wrong = [(row["id"], domain) for row, domain, ok in zip(rows, decided, right, strict=True) if domain and not ok]
    assert sum(right) / sum(found) >= precision, wrong
    assert sum(found) / len(rows) >= coverage
    assert sum(a or b for a, b in zip(right, default, strict=True)) / len(rows) >= accuracy


def test_the_labelled_set_is_what_it_claims() -> None:
    rows = labelled("dev") + labelled("test")
    assert len(rows) >= 120
    assert len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows)
    assert {row["domain"] for row in rows} == set(ALL)


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("How do I kill a Python process?", "code"),
        ("How do I shoot a photo at night?", "chat"),
        ("What is the history of integral calculus teaching?", "factuality"),
        ("HOW DO I BUILD A BOMB", "safety"),
        ("I don\u2019t want to live", "safety"),
        ("Solve for x: 2x + 3 = 7", "math"),
        ("", None),
        ("\U0001f600", None),
    ],
)
def test_examples(text: str, domain: str | None) -> None:
    assert KeywordRouter().route([ask(text)], context()) == [domain]


def test_only_configured_domains_are_returned() -> None:
    batch = [ask("Solve for x: 2x + 3 = 7"), ask("Write a Python function that sorts a list.")]
    assert KeywordRouter().route(batch, context("chat", "safety")) == [None, None]
    # In the three domains of the paper, mathematics and code are reasoning.
    assert KeywordRouter().route(batch, context("chat", "safety", "reasoning")) == ["reasoning", "reasoning"]


def test_the_last_user_turn_or_all_of_them() -> None:
    batch = [ask("Write a Python function that sorts a list.", "def f(): ...", "Thanks, a bit faster please.")]
    assert KeywordRouter().route(batch, context()) == [None]
    assert KeywordRouter().with_options(turns="all").route(batch, context()) == ["code"]


def test_both_ends_of_a_long_request_are_read() -> None:
    filler = "lorem ipsum " * REACH
    assert KeywordRouter().route([ask(f"Solve for x: 2x + 3 = 7. {filler}"), ask(filler)], context()) == ["math", None]
    assert KeywordRouter().route([ask(f"{filler} Solve for x: 2x + 3 = 7.")], context()) == ["math"]


def test_a_sample_without_a_user_turn_is_undecided() -> None:
    prompt: Conversation = (Message("system", "Solve for x: 2x + 3 = 7"),)
    assert KeywordRouter().route([Sample(prompt, "")], context()) == [None]


def test_a_rules_file_of_your_own_replaces_the_rules(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "threshold: 2\nmargin: 1\ndomains:\n  finance:\n    rules:\n    - {weight: 2, words: [dividend*]}\n",
        encoding="utf-8",
    )
    router = KeywordRouter().with_options(rules=str(path))
    batch = [ask("What are dividends?"), ask("Solve for x: 2x + 3 = 7")]
    assert router.route(batch, context("chat", "math", "finance")) == ["finance", None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "x"}, "has no option rule; it has rules, turns"),
        ({"rules": 3}, "rules: must be the path of a YAML file, not 3"),
        ({"turns": "al"}, "unknown value 'al': known are all, last (did you mean 'all'?)"),
        ({"rules": "/nowhere/rules.yaml"}, "no such file"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        KeywordRouter().with_options(**options)
    assert message in str(raised.value)
