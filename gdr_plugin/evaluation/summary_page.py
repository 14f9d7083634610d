"""A report as an HTML page: the same tables as in the terminal, with a bar for each interval.

Knows how intervals are drawn; the page's frame is `report.page`'s, its content `summary_tables`'.
"""

from __future__ import annotations

from collections.abc import Sequence

from gdr_plugin.arithmetic.statistics import Estimate
from gdr_plugin.evaluation.measures.item_rules import chance
from gdr_plugin.evaluation.summary import Report
from gdr_plugin.evaluation.summary_tables import facts, tables
from gdr_plugin.evaluation.verdict import verdict
from gdr_plugin.report.page import Raw, page, render, table
from gdr_plugin.report.tables import Cell, estimate_text

PACKAGE = "gdr_plugin.evaluation"
"""Where the page's templates are."""
_WIDTH = 144


def report_page(report: Report, title: str, origin: dict[str, str], more: str = "") -> str:
    """The whole document.

    Args:
        report: What to show.
        title: Its name.
        origin: Further facts shown at the top: the data, the configuration, the models.
        more: A further section (`Raw`), as for ablations.

    Returns:
        HTML that opens from a file.
    """
    level = chance([scores.item for scores in report.scores], report.format)
    shown = [
        (table(part.headers, [_cells(row, level) for row in part.rows], caption=part.caption), part.note)
        for part in tables(report)
    ]
    said = {"facts": origin | facts(report), "tables": shown, "more": more, "verdict": verdict(report)}
    said["chance"] = f"{level:.2g}"
    body = render("summary.html", package=PACKAGE, **said)
    return page(title, body, style=render("summary.css", package=PACKAGE))


def _cells(row: Sequence[Cell], chance: float) -> list[str | Raw | None]:
    """A row's cells; the first interval of a row is also drawn, more would not fit beside each other."""
    first = next((at for at, cell in enumerate(row) if isinstance(cell, Estimate)), None)
    return [
        cell if not isinstance(cell, Estimate) else _bar(cell, chance) if at == first else estimate_text(cell)
        for at, cell in enumerate(row)
    ]


def _bar(estimate: Estimate, chance: float) -> Raw:
    """An interval on a scale from 0 to 1 with its numbers as text; the drawing is hidden from screen readers."""
    numbers = {"low": estimate.low, "high": estimate.high, "value": estimate.value, "chance": chance}
    places = {name: round(4 + (_WIDTH - 8) * number, 1) for name, number in numbers.items()}
    return render("bar.html", package=PACKAGE, width=_WIDTH, text=estimate_text(estimate), **places)
