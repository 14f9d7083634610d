"""A report as an HTML page: the same tables as in the terminal, with a bar for each interval.

Knows how intervals are drawn; the page's frame is `report.page`'s, its content `summary_tables`'.
"""

from __future__ import annotations

from collections.abc import Sequence

from gdr_plugin.arithmetic.statistics import Estimate
from gdr_plugin.evaluation.summary import Report
from gdr_plugin.evaluation.summary_tables import facts, tables
from gdr_plugin.report.page import Raw, page, table
from gdr_plugin.report.tables import Cell, Sheet, estimate_text

_STYLE = """
.bar { width: 9rem; height: 1rem; vertical-align: middle; margin-right: .6rem; }
.bar .scale { stroke: var(--line); stroke-width: 1; }
.bar .chance { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 2; }
.bar .interval { stroke: var(--blue); stroke-width: 3; }
.bar .value { fill: var(--ink); }
tbody th { white-space: nowrap; }
td:has(.bar) { white-space: nowrap; font-variant-numeric: tabular-nums; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 1rem 0; }
dl.facts dd { margin: 0; }
dl.facts dt { color: var(--muted); }
"""
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
    lines = Raw("").join(
        Raw("<dt>{}</dt><dd>{}</dd>").format(name, value) for name, value in (origin | facts(report)).items()
    )
    shown = [_shown(one) for one in tables(report)]
    note = Raw(
        "<p>A bar runs from 0 to 1: the thick line is the 95&nbsp;% interval, the dot the value; the dashes at 0.5 are "
        "chance for a pair.</p>"
    )
    body = Raw("<h2>Data</h2><dl class='facts'>{}</dl><h2>Results</h2>{}{}{}").format(
        lines, note, Raw("").join(shown), more
    )
    return page(title, body, style=_STYLE)


def _shown(one: Sheet) -> Raw:
    drawn = table(one.headers, [_cells(row) for row in one.rows], caption=one.caption)
    return drawn + Raw("<p>{}</p>").format(one.note) if one.note else drawn


def _cells(row: Sequence[Cell]) -> list[str | Raw | None]:
    """A row's cells; the first interval of a row is also drawn, more would not fit beside each other."""
    first = next((at for at, cell in enumerate(row) if isinstance(cell, Estimate)), None)
    return [
        cell if not isinstance(cell, Estimate) else _bar(cell) if at == first else estimate_text(cell)
        for at, cell in enumerate(row)
    ]


def _bar(one: Estimate) -> Raw:
    """An interval on a scale from 0 to 1, and the numbers it stands for (the drawing is hidden from screen readers)."""
    low, high, value = (round(4 + (_WIDTH - 8) * number, 1) for number in (one.low, one.high, one.value))
    return Raw(
        '<svg class="bar" viewBox="0 0 {width} 16" aria-hidden="true">'
        '<line class="scale" x1="4" y1="8" x2="{end}" y2="8"/>'
        '<line class="chance" x1="{half}" y1="1" x2="{half}" y2="15"/>'
        '<line class="interval" x1="{low}" y1="8" x2="{high}" y2="8"/>'
        '<circle class="value" cx="{value}" cy="8" r="3.5"/>'
        "</svg>{text}"
    ).format(width=_WIDTH, end=_WIDTH - 4, half=_WIDTH / 2, low=low, high=high, value=value, text=estimate_text(one))
