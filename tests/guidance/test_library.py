"""The packaged guidances: complete, short enough, and right. Code is run, mathematics is recomputed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.guidance import Exemplar
from gdr_plugin.guidance import library, render

LIBRARY = {guidance.name: guidance for guidance in library()}
EXEMPLARS = {exemplar.id: exemplar for guidance in library() for exemplar in guidance.exemplars}


def block(text: str) -> str:
    """The only fenced block of a text."""
    (found,) = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    return str(found)


def function(text: str, name: str) -> Callable[..., Any]:
    scope: dict[str, Any] = {}
    exec(block(text), scope)
    found: Callable[..., Any] = scope[name]
    return found


def test_names() -> None:
    assert list(LIBRARY) == [
        "chat", "code", "factuality", "instruction-following", "math", "reasoning", "safety",
    ]  # fmt: skip
    assert len(EXEMPLARS) == sum(len(guidance.exemplars) for guidance in LIBRARY.values())


@pytest.mark.parametrize("name", list(LIBRARY))
def test_sizes(name: str) -> None:
    guidance = LIBRARY[name]
    assert 60 <= len(guidance.instruction.split()) <= 150
    assert 3 <= len(guidance.exemplars) <= 5
    assert guidance.description
    assert "\n" not in guidance.description
    for exemplar in guidance.exemplars:
        assert exemplar.principle
        # Roughly 200 tokens at four characters each, with room for code.
        assert len(exemplar.prompt + exemplar.good + exemplar.bad + exemplar.why) < 950, exemplar.id
    # One system turn of a default run stays well under what a small context can spare.
    assert len(render(guidance).text) < 2200


def test_prose_is_not_wrapped() -> None:
    """Line breaks of the file must not reach the model: it would learn to break lines from the exemplars."""
    for guidance in LIBRARY.values():
        assert "\n" not in guidance.instruction
        for exemplar in guidance.exemplars:
            assert "\n" not in exemplar.why
            for text in (exemplar.good, exemplar.bad, exemplar.prompt):
                assert not re.search(r"[a-z,]\n[a-z]", re.sub(r"```.*?```", "", text, flags=re.DOTALL)) or (
                    exemplar.id in {"growing-default", "translate-the-order"}
                ), exemplar.id


def test_median_runs() -> None:
    exemplar = EXEMPLARS["median"]
    good, bad = function(exemplar.good, "median"), function(exemplar.bad, "median")
    values = [4, 1, 3, 2]
    assert good(values) == 2.5
    assert values == [4, 1, 3, 2]
    assert good([5, 1, 3]) == 3
    assert good([7]) == 7
    assert bad(values) == 3
    assert values == [1, 2, 3, 4]


def test_growing_default_runs() -> None:
    exemplar = EXEMPLARS["growing-default"]
    scope: dict[str, Any] = {}
    exec(exemplar.prompt[exemplar.prompt.index("def ") :], scope)
    scope["add"]("a")
    assert scope["add"]("b") == ["a", "b"]
    good, bad = function(exemplar.good, "add"), function(exemplar.bad, "add")
    assert (good("a"), good("b"), good("b", ["x"])) == (["a"], ["b"], ["x", "b"])
    assert bad("b", ["x"]) == ["b"]


def test_sql_runs() -> None:
    exemplar = EXEMPLARS["never-ordered"]
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(
            "create table customers(id integer, name text); create table orders(id integer, customer_id integer);"
            "insert into customers values (1, 'Ada'), (2, 'Bo'); insert into orders values (1, 1), (2, null);"
        )
        assert database.execute(block(exemplar.good)).fetchall() == [("Bo",)]
        assert database.execute(block(exemplar.bad)).fetchall() == []


def test_shell_runs(tmp_path: Path) -> None:
    old = tmp_path / "sub" / "an old.log"
    keep = [tmp_path / "new.log", tmp_path / "old.logbook"]
    old.parent.mkdir()
    for path in (old, *keep):
        path.touch()
    month_ago = time.time() - 40 * 86400
    for path in (old, keep[1]):
        os.utime(path, (month_ago, month_ago))
    command = block(EXEMPLARS["old-logs"].good).strip()
    subprocess.run(["sh", "-c", command.replace("/tmp/app", str(tmp_path))], check=True)
    assert not old.exists()
    assert all(path.exists() for path in keep)


def last_number(text: str) -> Fraction:
    return Fraction(re.findall(r"\d+(?:/\d+)?", text)[-1])


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("price-before-discount", Fraction(40) / Fraction(80, 100)),
        (
            "two-dice",
            Fraction(1, sum(6 in roll for roll in itertools.product(range(1, 7), repeat=2))),
        ),
    ],
)
def test_mathematics_is_right(name: str, answer: Fraction) -> None:
    assert last_number(EXEMPLARS[name].good) == answer
    assert last_number(EXEMPLARS[name].bad) != answer


def test_average_speed_and_roots() -> None:
    assert Fraction(120) / (Fraction(60, 30) + Fraction(60, 60)) == 40
    assert "which is 40 km/h" in EXEMPLARS["average-speed"].good
    assert [x for x in range(-50, 51) if x * x == 5 * x] == [0, 5]
    assert EXEMPLARS["lost-root"].good.endswith("x = 0 and x = 5.")


def test_second_oldest() -> None:
    orders = [
        order
        for order in itertools.permutations(["Ana", "Ben", "Cara", "Dan"])  # oldest first
        if order.index("Ana") < order.index("Ben") < order.index("Cara") and order.index("Dan") < order.index("Ana")
    ]
    assert {order[1] for order in orders} == {"Ana"}
    assert EXEMPLARS["second-oldest"].good.endswith("is Ana.")


def test_three_meetings() -> None:
    plans = [
        (a, b, c)
        for a, b, c in itertools.product(range(9, 15), repeat=3)
        if a + 2 <= b and b + 1 <= 12 and not (a - 1 < c < a + 2) and c != b
    ]
    assert plans
    assert not [plan for plan in plans if plan[2] < plan[0]]
    assert EXEMPLARS["three-meetings"].good.startswith("No.")


def test_demands_on_form_are_met() -> None:
    bullets = EXEMPLARS["three-bullets"]
    assert len(bullets.good.splitlines()) == 3
    assert all(len(line[2:].split()) <= 6 for line in bullets.good.splitlines())
    assert len(bullets.bad.splitlines()[1][2:].split()) == 10
    assert json.loads(EXEMPLARS["json-only"].good) == {"name": "Mina", "age": 34}
    assert not _is_json(EXEMPLARS["json-only"])
    sea = EXEMPLARS["sea-without-e"]
    assert "e" not in sea.good.lower()
    assert "e" in sea.bad


def _is_json(exemplar: Exemplar) -> bool:
    try:
        json.loads(exemplar.bad)
    except ValueError:
        return False
    return True
