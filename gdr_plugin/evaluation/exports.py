"""A report in the forms that papers, tables and other tools read: CSV, LaTeX, RewardBench's scores of each prompt.

Knows a report's numbers and those forms; nothing of how they were computed.

Source of the last one: `scores_dict` in scripts/run_rm.py of github.com/allenai/reward-bench.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from gdr_plugin.api.types import Conversation
from gdr_plugin.arithmetic.statistics import Estimate
from gdr_plugin.evaluation.measures.metrics import Measures
from gdr_plugin.evaluation.summary import Report

__all__ = ["as_csv", "as_latex", "rewardbench_scores"]

_COLUMNS = ("part", "name", "by", "items", "ties", "accuracy", "low", "high", "scored", "published_items")
_ESCAPED = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def as_csv(report: Report, origin: Mapping[str, str]) -> str:
    """Every accuracy with its interval, one row each; empty cells where there is none.

    Args:
        report: The numbers.
        origin: Where they come from: columns of their own at the end of every row, so that tables can be put together.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_COLUMNS, *origin])
    for row in _rows(report):
        writer.writerow([_cell(value) for value in (*row, *origin.values())])
    return out.getvalue()


def _cell(value: object) -> object:
    """A value as a cell; a text that a spreadsheet would run as a formula gets the apostrophe that makes it text."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return "" if value is None else value


def _rows(report: Report) -> Iterator[tuple[Any, ...]]:
    for measures in (*report.ratio.values(), *report.baselines):
        name, by = measures.name, measures.reduction
        parts = [
            ("all", measures.overall),
            *((f"subset {part}", own) for part, own in measures.subsets.items()),
            *((f"domain {part}", own) for part, own in measures.domains.items()),
        ]
        for part, own in parts:
            yield part, name, by, own.items, own.ties, *_numbers(own.accuracy), own.scored, own.expected
        for section in measures.sections:
            numbers = _numbers(section.estimate)
            yield f"section {section.name}", name, by, section.items, None, *numbers, section.items, section.expected


def _numbers(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)


def as_latex(report: Report, origin: Mapping[str, str]) -> str:
    """The accuracies as a `tabular` with booktabs' rules: parts in rows, reductions in columns, percent.

    Args:
        report: The numbers.
        origin: Where they come from: comments above the table.
    """
    ways = list(report.ratio.values())
    lines = [f"% {name}: {' '.join(value.split())}" for name, value in origin.items()]
    lines += [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{lr{'r' * len(ways)}}}",
        r"\toprule",
        " & ".join(["", "items", *(_tex(way.reduction.replace("_", " ")) for way in ways)]) + r" \\",
        r"\midrule",
        *_latex_rows(ways),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_rows(ways: list[Measures]) -> Iterator[str]:
    first = ways[0]
    yield _latex_row("all", first.overall.partial, first.overall.items, [way.overall.accuracy for way in ways])
    for name, part in first.subsets.items():
        yield _latex_row(name, part.partial, part.items, [way.subsets[name].accuracy for way in ways])
    for at, section in enumerate(first.sections):
        if not at:
            yield r"\midrule"
        estimates = [way.sections[at].estimate if way.sections else None for way in ways]
        yield _latex_row(section.name, section.partial, section.items, estimates)


def _latex_row(name: str, partial: str | None, items: int, estimates: list[Estimate | None]) -> str:
    cells = [_tex(name if partial is None else f"{name} ({partial})"), f"{items:,}"]
    cells += [
        "--"
        if estimate is None
        else f"{100 * estimate.value:.1f} {{\\scriptsize [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]}}"
        for estimate in estimates
    ]
    return " & ".join(cells) + r" \\"


def _tex(text: str) -> str:
    return "".join(_ESCAPED.get(char, char) for char in text)


def rewardbench_scores(report: Report, origin: Mapping[str, str]) -> dict[str, Any]:
    """The scores of each item as RewardBench's `eval-set-scores` files have them: columns, each a list.

    `results` is 1 where every chosen response scores higher than every rejected one, and a tie is 0, as there. An item
    with several responses has a list of scores. Items that were not scored are left out: the form has no null.

    Args:
        report: The numbers.
        origin: Where they come from; `strong` and `weak` name the model.
    """
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("text_chosen", "text_rejected", "results", "subset", "id", "scores_chosen", "scores_rejected")
    }
    for scores, row in zip(report.scores, report.rows(), strict=True):
        chosen, rejected = row["rewards"]["chosen"], row["rewards"]["rejected"]
        if row["correct"] is None:
            continue
        item = scores.item
        texts = [
            f"{_transcript(asked)}\n\nassistant: {turn.text}"
            for asked, turn in zip(item.asked, (*item.chosen, *item.rejected), strict=True)
        ]
        values = {
            "text_chosen": _single(texts[: len(item.chosen)]),
            "text_rejected": _single(texts[len(item.chosen) :]),
            "results": int(min(chosen) > max(rejected)),
            "subset": item.subset,
            "id": item.id.removeprefix(f"{item.subset}/"),
            "scores_chosen": _single(chosen),
            "scores_rejected": _single(rejected),
        }
        for name, value in values.items():
            columns[name].append(value)
    model = f"{origin.get('strong', 'strong')} - {origin.get('weak', 'weak')}"
    told = {"model": model, "model_type": "guided density ratio", "chat_template": "tokenizer"}
    return {**columns, **told, "made_with": dict(origin)}


def _single(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _transcript(turns: Conversation) -> str:
    return "\n\n".join(f"{turn.role}: {turn.text}" for turn in turns)
