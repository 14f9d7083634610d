"""The running sum of a response's log-ratio as an inline SVG. Knows numbers and lines; nothing of tokens' texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gdr_plugin.explain.cells import Cell
from gdr_plugin.report.page import Raw, render

__all__ = ["Curve", "curve", "frame"]

_WIDTH: Final = 1000
_HEIGHT: Final = 100


@dataclass(frozen=True, slots=True)
class Curve:
    """The axes that all curves of one row share, so that they can be compared by eye."""

    low: float
    """The lowest running sum, in nats; at most 0."""
    high: float
    """The highest; at least 0."""
    count: int
    """Pieces of the longest response."""

    def y(self, value: float) -> float:
        """How far below the top a value is, as a share of the height."""
        span = self.high - self.low
        return (self.high - value) / span if span else 0.5


def frame(responses: Sequence[Sequence[Cell]]) -> Curve:
    """The axes for a row's responses."""
    totals = [cell.total for response in responses for cell in response]
    return Curve(min([0.0, *totals]), max([0.0, *totals]), max([1, *map(len, responses)]))


def curve(response: Sequence[Cell], axes: Curve, name: str) -> Raw | None:
    """Draw one response's running sum.

    Args:
        response: Its pieces.
        axes: As `frame` gives for the whole row.
        name: What the response is called, for those who do not see the picture.

    Returns:
        The picture with its labels; None for a response without pieces.
    """
    if not response:
        return None
    points = [(0.0, axes.y(0) * _HEIGHT)]
    points += [(at / axes.count * _WIDTH, axes.y(cell.total) * _HEIGHT) for at, cell in enumerate(response, start=1)]
    line = " ".join(f"{x:.1f},{y:.2f}" for x, y in points)
    zero = axes.y(0)
    labels = [
        (axes.y(value), f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")) for value in (axes.high, axes.low) if value
    ]
    labels = [(place, text) for place, text in labels if abs(place - zero) > 0.2]
    highest = max(range(len(response)), key=lambda at: response[at].total)
    lowest = min(range(len(response)), key=lambda at: response[at].total)
    said = (
        f"{name}: running sum of the log-ratio over {len(response)} pieces. It ends at {response[-1].total:+.2f} nats; "
        f"highest {response[highest].total:+.2f} after piece {highest + 1}, lowest {response[lowest].total:+.2f} after "
        f"piece {lowest + 1}."
    )
    return render(
        "curve.html",
        package="gdr_plugin.explain",
        line=line,
        area=f"0,{zero * _HEIGHT:.2f} {line} {points[-1][0]:.1f},{zero * _HEIGHT:.2f}",
        zero=f"{zero * 100:.2f}",
        labels=[(f"{place * 100:.2f}", text) for place, text in (*labels, (zero, "0"))],
        marks=[f"{x / _WIDTH * 100:.2f}:{y / _HEIGHT * 100:.2f}" for x, y in points[1:]],
        said=said,
        width=_WIDTH,
        height=_HEIGHT,
    )
