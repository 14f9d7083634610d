"""The failures that are known today, each with its reason: a list that only gets shorter.

`known_failures.json` holds reasons by a short name, and for each template the checks that fail, under their reason. A
check that fails and is not listed, and one that is listed and does not fail, both fail the test.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.conformance.check import Verdict

FILE: Final = Path(__file__).with_name("known_failures.json")


def load(file: Path = FILE) -> dict[str, dict[str, str]]:
    """The known failures: template's key, then check's key, then the reason's name."""
    data = json.loads(file.read_text(encoding="utf-8"))
    unknown = {name for kinds in data["failures"].values() for name in kinds} - data["reasons"].keys()
    if unknown:
        raise ValueError(f"{file.name}: no reason is given for {', '.join(sorted(unknown))}")
    return {
        template: {check: name for name, checks in kinds.items() for check in checks}
        for template, kinds in data["failures"].items()
    }


def compare(verdicts: Iterable[Verdict], known: Mapping[str, str]) -> tuple[list[Verdict], list[str]]:
    """Failures that are not listed, and listed ones that are none.

    Args:
        verdicts: Of one template.
        known: Its known failures.
    """
    failed = {one.key: one for one in verdicts if one.outcome == "wrong"}
    return [one for key, one in failed.items() if key not in known], sorted(key for key in known if key not in failed)


def shorten(passed: Mapping[str, Iterable[str]], file: Path = FILE) -> int:
    """Take checks that do not fail any more off the list.

    Args:
        passed: By template, checks that are listed and right.
        file: The list.

    Returns:
        How many went.
    """
    data = json.loads(file.read_text(encoding="utf-8"))
    gone = {(template, check) for template, checks in passed.items() for check in checks}
    failures: dict[str, Any] = {}
    for template, kinds in data["failures"].items():
        left = {name: [one for one in checks if (template, one) not in gone] for name, checks in kinds.items()}
        failures[template] = {name: checks for name, checks in left.items() if checks}
    data["failures"] = {template: kinds for template, kinds in failures.items() if kinds}
    used = {name for kinds in data["failures"].values() for name in kinds}
    data["reasons"] = {name: text for name, text in data["reasons"].items() if name in used}
    file.write_text(dump(data), encoding="utf-8")
    return len(gone)


def dump(data: Mapping[str, Any]) -> str:
    """The list as JSON, a line for each reason of a template."""
    lines = ["{", ' "reasons": {']
    reasons = [
        f"  {json.dumps(name)}: {json.dumps(text, ensure_ascii=False)}" for name, text in data["reasons"].items()
    ]
    lines += [",\n".join(reasons), " },", ' "failures": {']
    blocks = []
    for template, kinds in data["failures"].items():
        rows = [f"   {json.dumps(name)}: {json.dumps(checks)}" for name, checks in kinds.items()]
        blocks.append(f"  {json.dumps(template)}: {{\n" + ",\n".join(rows) + "\n  }")
    return "\n".join([*lines, ",\n".join(blocks), " }", "}", ""])
