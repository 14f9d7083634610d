"""Figures for print and screen: a heat map, a scatter, points with intervals. Knows drawing; nothing of what is drawn.

Readable in grey and by the colour-blind: shades run from dark to light in one direction, every cell says its number,
groups differ in their markers' shape as well as in colour (Okabe and Ito's palette). Matplotlib is imported when a
figure is made, never through pyplot, so that nothing global is changed and no display is needed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from gdr_plugin.api.errors import MissingDependencyError, OutputError
from gdr_plugin.files import PARTIAL, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gdr_plugin.arithmetic.statistics import Estimate

__all__ = ["FORMATS", "check_plots", "estimates", "heatmap", "image", "save", "scatter"]

FORMATS: Final = ("png", "svg", "pdf")
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P")
_GREY: Final = "#5F6770"
_FONT: Final = 9.0
_CELL: Final = 0.62
"""Inches of a heat map's cell."""


def heatmap(
    values: Sequence[Sequence[float | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    row_label: str = "",
    column_label: str = "",
    value_label: str = "",
    middle: float | None = None,
    marked: tuple[int, int] | None = None,
) -> Figure:
    """A matrix in shades, with each cell's number in it.

    Args:
        values: `(rows, columns)`; None leaves a cell empty.
        rows: Names of the rows, top to bottom.
        columns: Names of the columns, left to right.
        title: Above the matrix.
        row_label: What the rows are.
        column_label: What the columns are.
        value_label: What the numbers are, beside the scale.
        middle: The number whose shade is in the middle, so that lighter is above it and darker below; None: the shades
            go from the smallest number to the largest.
        marked: Row and column of a cell to be framed.

    Returns:
        The figure, one axes and its scale.

    Raises:
        MissingDependencyError: Matplotlib is missing.
    """
    known = [value for row in values for value in row if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if middle is not None:
        reach = max((abs(value - middle) for value in known), default=0.0) or 0.5
        low, high = middle - reach, middle + reach
    size = (2.6 + _CELL * len(columns), 1.7 + _CELL * len(rows))
    figure, axes = _figure(size, "compressed")
    cells = [[math.nan if value is None else value for value in row] for row in values]
    shades = axes.imshow(cells, cmap="cividis", vmin=low, vmax=high if high > low else low + 1e-9, aspect="equal")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is not None:
                dark = high > low and (value - low) / (high - low) < 0.5
                colour = "white" if dark else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=_FONT, color=colour)
    axes.set_xticks(range(len(columns)), list(columns), rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel=column_label, ylabel=row_label)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if marked is not None:
        from matplotlib.patches import Rectangle

        y, x = marked
        # White around black: one of them shows on every shade.
        for width, colour in ((4.0, "white"), (2.0, "black")):
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=width))
    scale = figure.colorbar(shades, ax=axes, fraction=0.05, pad=0.03)
    scale.set_label(value_label)
    scale.outline.set_visible(False)
    return _finished(figure, axes, title)


def scatter(
    groups: Mapping[str, Sequence[tuple[float, float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    note: str = "",
    level: float | None = None,
    level_label: str = "",
) -> Figure:
    """Points by group, each group with a marker and a colour of its own.

    Args:
        groups: Name -> points `(x, y)`; up to six groups. One group has no legend.
        xlabel: What x is, with its unit.
        ylabel: What y is, with its unit.
        title: Above the points.
        note: Small text under the title, as for a correlation.
        level: Height of a dashed line, as for chance.
        level_label: What the line is.

    Returns:
        The figure, one axes.

    Raises:
        MissingDependencyError: Matplotlib is missing.
        ValueError: More than six groups.
    """
    if len(groups) > len(_MARKERS):
        raise ValueError(f"{len(groups)} groups cannot be told apart: at most {len(_MARKERS)}")
    figure, axes = _figure((6.2, 4.4))
    if level is not None:
        axes.axhline(level, color=_GREY, linestyle="--", linewidth=1, zorder=1)
        if level_label:
            place = ((1, level), "right", "bottom")
            axes.annotate(
                level_label, place[0], xycoords=("axes fraction", "data"), xytext=(-4, 2), textcoords="offset points",
                ha=place[1], va=place[2], color=_GREY, fontsize=_FONT - 1,
            )  # fmt: skip
    for (name, points), colour, marker in zip(groups.items(), _COLOURS, _MARKERS, strict=False):
        axes.scatter(
            [x for x, _ in points], [y for _, y in points], label=name, color=colour, marker=marker, s=34,
            edgecolors="white", linewidths=0.6, zorder=3,
        )  # fmt: skip
    if len(groups) > 1:
        figure.legend(fontsize=_FONT - 1, frameon=False, loc="outside lower center", ncols=3)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _open(axes)
    return _finished(figure, axes, title, note)


def estimates(
    points: Mapping[str, Estimate | None],
    *,
    xlabel: str,
    title: str = "",
    level: float | None = None,
) -> Figure:
    """Numbers with their intervals, one a line, as for ablations.

    Args:
        points: Name -> number with interval, top to bottom; None leaves a line empty.
        xlabel: What the numbers are, with their unit.
        title: Above the points.
        level: Place of a dashed line, as for chance.

    Returns:
        The figure, one axes.

    Raises:
        MissingDependencyError: Matplotlib is missing.
    """
    figure, axes = _figure((6.2, 1.2 + 0.3 * max(len(points), 1)))
    if level is not None:
        axes.axvline(level, color=_GREY, linestyle="--", linewidth=1, zorder=1)
    known = {y: estimate for y, estimate in enumerate(points.values()) if estimate is not None}
    values = [estimate.value for estimate in known.values()]
    reach = [
        [estimate.value - estimate.low for estimate in known.values()],
        [estimate.high - estimate.value for estimate in known.values()],
    ]
    axes.errorbar(
        values, list(known), xerr=reach, fmt=_MARKERS[0], color=_COLOURS[0], markersize=5.5, capsize=3,
        linewidth=1.4, zorder=3,
    )  # fmt: skip
    axes.set_yticks(range(len(points)), list(points))
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    _open(axes)
    axes.tick_params(axis="y", length=0)
    return _finished(figure, axes, title)


def image(figure: Figure, format: str) -> bytes:
    """A figure as the content of a file: the same figure gives the same bytes; text stays text in SVG.

    Args:
        figure: From this module.
        format: One of `FORMATS`.
    """
    import matplotlib

    dates: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "gdr", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(content, format=format, dpi=150, metadata=dates[format])
    return content.getvalue()


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a file, which appears when it is complete.

    Args:
        figure: From this module.
        path: Ends in `.png`, `.svg` or `.pdf`; its folder exists.

    Returns:
        The path.

    Raises:
        OutputError: Another ending, or the file cannot be written.
    """
    path = Path(path)
    format = _format(path)
    partial = path.with_name(path.name + PARTIAL)
    drawn = image(figure, format)
    try:
        with writing(path):
            partial.write_bytes(drawn)
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return path


def check_plots(path: Path | None = None) -> None:
    """Say now, before hours of scoring, that a figure could not be drawn or written.

    Args:
        path: The figure's file; None where endings are ours to choose.

    Raises:
        OutputError: The file's ending is not one of `FORMATS`.
        MissingDependencyError: Matplotlib is missing.
    """
    if path is not None:
        _format(path)
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "plots", "to draw figures")


def _format(path: Path) -> str:
    format = path.suffix.removeprefix(".").lower()
    if format not in FORMATS:
        raise OutputError(f"{path}: figures are written as {', '.join(FORMATS)}: name a file with that ending")
    return format


def _figure(
    size: tuple[float, float], layout: Literal["constrained", "compressed"] = "constrained"
) -> tuple[Figure, Axes]:
    """A figure of its own, outside of pyplot."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "plots", "to draw figures") from error
    figure = Figure(figsize=size, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _open(axes: Axes) -> None:
    """Two spines are enough; a light grid helps to read values."""
    for name in ("top", "right"):
        axes.spines[name].set_visible(False)
    axes.grid(color="#E3E6EA", linewidth=0.6)
    axes.set_axisbelow(True)


def _finished(figure: Figure, axes: Axes, title: str, note: str = "") -> Figure:
    """Title, and one size of type everywhere."""
    from matplotlib.text import Text

    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=_FONT + 1.5, fontweight="bold")
    if note:
        axes.set_title(note, loc="left", fontsize=_FONT - 0.5, color=_GREY)
    for text in figure.findobj(Text):  # a name with `$` in it is no formula
        text.set_parse_math(False)
    for part in figure.axes:  # the scale is one, too
        part.tick_params(labelsize=_FONT)
        part.xaxis.label.set_fontsize(_FONT)
        part.yaxis.label.set_fontsize(_FONT)
    return figure
