"""The table of outcomes: a row for each template, a column for each kind of check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tests.conformance.check import COLUMNS, Verdict


def table(results: Mapping[str, Sequence[Verdict]]) -> str:
    """Show counts as `wrong/checks`, with refusals that are right behind a plus sign; `.` where nothing is wrong.

    Args:
        results: Each template's verdicts.
    """
    width = max(map(len, results))
    head = f"{'':{width}}  " + "  ".join(f"{column:>11}" for column in COLUMNS)
    lines = [head]
    total: dict[str, Counter[str]] = {column: Counter() for column in COLUMNS}
    for key, verdicts in results.items():
        counts = {column: Counter(one.outcome for one in verdicts if one.column == column) for column in COLUMNS}
        for column in COLUMNS:
            total[column].update(counts[column])
        lines.append(f"{key:{width}}  " + "  ".join(f"{_cell(counts[column]):>11}" for column in COLUMNS))
    lines.append(f"{'all':{width}}  " + "  ".join(f"{_cell(total[column]):>11}" for column in COLUMNS))
    outcomes = Counter(one.outcome for verdicts in results.values() for one in verdicts)
    bad = sum(any(one.outcome == "wrong" for one in verdicts) for verdicts in results.values())
    lines.append(f"{bad} of {len(results)} templates have a failure.")
    lines.append(
        f"Of {outcomes.total()} checks {outcomes['right']} are right, {outcomes['refused']} rightly refused, "
        f"{outcomes['wrong']} wrong, {outcomes['unjudged']} not judged."
    )
    lines.append("A cell: wrong/all checks, +refused with a reason; `.`: nothing wrong.")
    return "\n".join(lines)


def _cell(counts: Counter[str]) -> str:
    if not counts.total():
        return ""
    wrong = f"{counts['wrong']}/{counts.total()}" if counts["wrong"] else "."
    return wrong + (f"+{counts['refused']}" if counts["refused"] else "")
