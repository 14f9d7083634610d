"""Every real template that is here: right, or refused with a reason, but for the known failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conformance import check, families, known
from tests.conformance.check import Verdict

KNOWN = known.load()
KEYS = families.present()


@pytest.mark.parametrize("key", KEYS)
def test_template(key: str) -> None:
    verdicts = check.run(families.load(key))
    new, passed = known.compare(verdicts, KNOWN.get(key, {}))
    shown = "\n".join(f"{one.key}\n  expected {one.expected}\n  got      {one.got}" for one in new[:10])
    assert not new, f"{len(new)} failures that are not listed:\n{shown}"
    assert not passed, f"listed as failures, but they are none (python -m tests.conformance --shorten): {passed}"
    assert len([one for one in verdicts if one.outcome == "unjudged"]) <= 2


def test_enough_families() -> None:
    """TRL's templates that are not variants for training or of one another."""
    names = {key.removeprefix("trl:").split("_v")[0] for key in KEYS if key.startswith("trl:")}
    assert len({name for name in names if not name.endswith("_training")}) >= 25


def test_no_template_is_listed_twice_or_by_mistake() -> None:
    here = {key.partition(":")[0] for key in KEYS}
    assert [key for key in KNOWN if key.partition(":")[0] in here and key not in KEYS] == []


def test_list_is_strict_both_ways(tmp_path: Path) -> None:
    file = tmp_path / "known.json"
    data = {"reasons": {"B": "ends", "C": "turns"}, "failures": {"x:a": {"B": ["one/end"], "C": ["two/shown"]}}}
    file.write_text(known.dump(data), encoding="utf-8")
    assert json.loads(known.dump(data)) == data
    listed = known.load(file)
    assert listed == {"x:a": {"one/end": "B", "two/shown": "C"}}
    verdicts = [
        Verdict("one", "end", "end", "right"),
        Verdict("two", "shown", "tool", "wrong"),
        Verdict("three", "context", "context", "wrong"),
        Verdict("four", "shown", "tool", "refused"),
    ]
    new, passed = known.compare(verdicts, listed["x:a"])
    assert [one.key for one in new] == ["three/context"]
    assert passed == ["one/end"]
    assert known.shorten({"x:a": passed}, file) == 1
    assert json.loads(file.read_text(encoding="utf-8")) == {
        "reasons": {"C": "turns"},
        "failures": {"x:a": {"C": ["two/shown"]}},
    }
    file.write_text(known.dump({"reasons": {}, "failures": {"x:a": {"D": ["one/end"]}}}), encoding="utf-8")
    with pytest.raises(ValueError, match="no reason is given for D"):
        known.load(file)
