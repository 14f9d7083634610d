"""Tables as data: one description that the terminal and a page both show.

Knows headers, cells and how a number with its interval is written; nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from gdr_plugin.arithmetic.statistics import Estimate

if TYPE_CHECKING:
    from gdr_plugin.report.page import Raw

__all__ = ["Cell", "Table", "estimate_json", "estimate_text", "section"]

Cell: TypeAlias = "str | Estimate | None"
"""Text, a number with its interval, or nothing to show."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table to show."""

    caption: str
    """What it shows, in a few words."""
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    """How to read it; one or two sentences, may be empty."""

    def texts(self) -> list[list[str]]:
        """The rows as text."""
        return [[cell if isinstance(cell, str) else estimate_text(cell) for cell in row] for row in self.rows]


def estimate_text(estimate: Estimate | None, *, digits: int = 3, signed: bool = False) -> str:
    """An estimate as `0.646 [0.597, 0.694]`, a difference (`signed`) as `+0.021 [-0.010, +0.052]`; a dash for none."""
    if estimate is None:
        return "-"
    form = f"{'+' if signed else ''}.{digits}f"
    # Rounded first and added to 0: never "-0.000".
    numbers = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{round(number, digits) + 0.0:{form}}" for number in numbers)
    return f"{value} [{low}, {high}]"


def estimate_json(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate for machines: `value`, `low`, `high`, `n`."""
    return None if estimate is None else asdict(estimate)


def section(title: str, text: str, tables: Sequence[Table]) -> Raw:
    """The tables as a part of an HTML page: heading, a paragraph, then each table with its note.

    Args:
        title: The heading, plain text.
        text: What was measured, plain text; may be empty.
        tables: In order.

    Returns:
        `Raw` HTML for `gdr_plugin.report.page.page`.
    """
    from gdr_plugin.report.page import render, table

    drawn = [
        (
            # A table that is called as its section shows its name once.
            table(
                shown.headers,
                shown.texts(),
                caption=shown.caption,
                hidden=shown.caption.casefold() == title.casefold(),
            ),
            shown.note,
        )
        for shown in tables
    ]
    return render("section.html", title=title, text=text, tables=drawn)
