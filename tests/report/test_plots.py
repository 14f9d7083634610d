"""What figures say: their texts, shades and points, not their pixels."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gdr_plugin.api.errors import MissingDependencyError, OutputError
from gdr_plugin.arithmetic.statistics import Estimate
from gdr_plugin.report import plots
from gdr_plugin.report.plots import estimates, heatmap, image, save, scatter

NAMES = ["base", "tuned", "other"]
VALUES = [[None, 0.4, 0.55], [0.6, None, 0.7], [0.45, 0.3, None]]


def matrix() -> Figure:
    return heatmap(
        VALUES, rows=NAMES, columns=NAMES, title="Accuracy", row_label="strong", column_label="weak",
        value_label="accuracy", marked=(1, 2),
    )  # fmt: skip


def luminance(colour: object) -> float:
    r, g, b = to_rgb(colour)  # type: ignore[arg-type]
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_the_heat_map_names_rows_columns_and_every_number() -> None:
    axes, scale = matrix().axes
    assert [text.get_text() for text in axes.get_yticklabels()] == NAMES
    assert [text.get_text() for text in axes.get_xticklabels()] == NAMES
    assert (axes.get_ylabel(), axes.get_xlabel(), scale.get_ylabel()) == ("strong", "weak", "accuracy")
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    expected = {(i, j): f"{v:.2f}" for i, row in enumerate(VALUES) for j, v in enumerate(row) if v is not None}
    assert shown == expected
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert {(frame.get_x(), frame.get_y()) for frame in frames} == {(1.5, 0.5)}
    assert {frame.get_edgecolor()[:3] for frame in frames} == {(0, 0, 0), (1, 1, 1)}  # seen on every shade


def test_the_heat_map_reads_in_grey_and_its_numbers_stand_out() -> None:
    axes = matrix().axes[0]
    shades = axes.images[0]
    ramp = [luminance(shades.to_rgba(value)[:3]) for value in np.linspace(0.3, 0.7, 41)]
    assert all(later > earlier for earlier, later in pairwise(ramp))  # one direction, dark to light
    for text in axes.texts:
        x, y = text.get_position()
        cell = luminance(shades.to_rgba(VALUES[int(y)][int(x)])[:3])  # type: ignore[arg-type]
        assert abs(luminance(text.get_color()) - cell) > 0.4, text.get_text()


def test_the_middle_shade_is_where_it_is_asked_for() -> None:
    shades = heatmap([[0.5, 0.8], [0.45, None]], rows=["a", "b"], columns=["c", "d"], middle=0.5).axes[0].images[0]
    assert shades.get_clim() == pytest.approx((0.2, 0.8))
    assert shades.norm(0.5) == pytest.approx(0.5)
    assert heatmap([[0.5]], rows=["a"], columns=["b"], middle=0.5).axes[0].images[0].norm(0.5) == pytest.approx(0.5)


def test_equal_or_missing_numbers_draw_too() -> None:
    assert heatmap([[0.5, 0.5]], rows=["a"], columns=["b", "c"]).axes[0].texts[0].get_text() == "0.50"
    assert len(heatmap([[None]], rows=["a"], columns=["b"]).axes[0].texts) == 0


def test_scatter_groups_differ_in_shape_and_shade() -> None:
    groups = {f"g{n}": [(n, 0.5 + n / 10), (n + 0.5, 0.6)] for n in range(6)}
    figure = scatter(groups, xlabel="gap", ylabel="accuracy", title="T", note="r +0.9", level=0.5, level_label="chance")
    axes = figure.axes[0]
    drawn = {one.get_label(): one for one in axes.collections}
    assert {name: [tuple(point) for point in one.get_offsets()] for name, one in drawn.items()} == groups
    assert len({one.get_paths()[0].vertices.tobytes() for one in drawn.values()}) == 6
    assert len({tuple(one.get_facecolor()[0]) for one in drawn.values()}) == 6
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("gap", "accuracy")
    assert axes.get_title(loc="left") == "r +0.9"
    assert list(axes.lines[0].get_ydata()) == [0.5, 0.5]
    assert [text.get_text() for text in axes.texts] == ["chance"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(groups)
    with pytest.raises(ValueError, match="at most 6"):
        scatter({f"g{n}": [] for n in range(7)}, xlabel="", ylabel="")


def test_one_group_has_no_legend() -> None:
    assert scatter({"pairs": [(1.0, 2.0)]}, xlabel="x", ylabel="y").legends == []


def test_estimates_show_value_and_interval_in_the_order_given() -> None:
    points = {"none": Estimate(0.5, 0.4, 0.6, 10), "gone": None, "both": Estimate(0.7, 0.65, 0.8, 10)}
    figure = estimates(points, xlabel="accuracy", level=0.5)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(points)
    low, high = axes.get_ylim()
    assert low > high  # the first one is on top
    (bars,) = axes.containers
    ends = [segment.tolist() for segment in bars.lines[2][0].get_segments()]  # type: ignore[attr-defined]
    assert ends == [[[0.4, 0.0], [0.6, 0.0]], [[0.65, 2.0], [0.8, 2.0]]]


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_files_appear_whole_and_the_same_each_time(tmp_path: Path, ending: str, start: bytes) -> None:
    path = save(matrix(), tmp_path / f"figure.{ending}")
    content = path.read_bytes()
    assert content.startswith(start)
    assert image(matrix(), ending) == content
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_text_stays_text_in_svg() -> None:
    assert b">tuned<" in image(matrix(), "svg")


def test_another_ending_or_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="png, svg, pdf"):
        save(matrix(), tmp_path / "figure.jpg")
    with pytest.raises(OutputError, match="cannot be written"):
        save(matrix(), tmp_path / "gone" / "figure.png")


def test_matplotlib_is_left_as_it_was() -> None:
    before, backend = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    image(matrix(), "svg")
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == backend


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"gdr-plugin\[plots\]"):
        plots.estimates({}, xlabel="x")
