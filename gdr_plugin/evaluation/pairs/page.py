"""A comparison of model pairs as figures and as a page. Knows what to draw; `report.plots` knows how."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gdr_plugin.api.errors import MissingDependencyError
from gdr_plugin.evaluation.pairs.correlation import Correlation
from gdr_plugin.evaluation.pairs.matrix import ModelPairStudy
from gdr_plugin.evaluation.pairs.report import ModelPairsReport, gap_words, spread
from gdr_plugin.files import writing
from gdr_plugin.report.tables import section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures", "save_plots", "to_html"]

PACKAGE: Final = "gdr_plugin.evaluation.pairs"
"""Where the page's template is."""


def figures(report: ModelPairsReport, *, titled: bool = True) -> dict[str, Figure]:
    """The heat map and, with three models or more, the scatter, by file name.

    Args:
        report: What to draw.
        titled: Whether they have titles; under the headings of a page they need none.

    Raises:
        MissingDependencyError: Matplotlib is missing.
    """
    from gdr_plugin.report.plots import heatmap, scatter

    study, names = report.study, report.study.names
    value = {(result.strong, result.weak): result.accuracy.value for result in study.model_pairs}
    best = report.choice
    figures = {
        "accuracy": heatmap(
            [[value.get((strong, weak)) for weak in names] for strong in names],
            rows=names,
            columns=names,
            row_label="strong",
            column_label="weak",
            value_label="accuracy",
            title="Accuracy by pair" if titled else "",
            middle=study.chance,
            marked=(names.index(best.strong), names.index(best.weak)) if best else None,
        )
    }
    if len(names) > 2:
        figures["gap"] = scatter(
            {"pairs": [(result.gap, result.accuracy.value) for result in study.model_pairs if result.gap > 0]},
            xlabel=f"gap: {gap_words(study)}, strong less weak",
            ylabel="accuracy of the pair",
            title="Gap in quality and accuracy" if titled else "",
            note="\n".join(_correlation_line(name, correlation) for name, correlation in _named_correlations(study)),
            level=study.chance,
            level_label="chance",
        )
    return figures


def save_plots(report: ModelPairsReport, folder: Path) -> list[Path]:
    """Write each figure as PNG, PDF and SVG.

    Raises:
        OutputError: The folder cannot be written.
        MissingDependencyError: Matplotlib is missing.
    """
    from gdr_plugin.report.plots import save

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = {
        folder / f"{name}.{end}": figure for name, figure in figures(report).items() for end in ("png", "pdf", "svg")
    }
    return [save(figure, path) for path, figure in files.items()]


def to_html(report: ModelPairsReport) -> str:
    """A page with everything; figures are in it where matplotlib is installed."""
    from gdr_plugin.report.page import page, render, table

    matrix, ranking, models, correlations = report.tables()
    pictures: dict[str, str] = {}
    without_figures = ""
    try:
        pictures = {name: _picture(figure) for name, figure in figures(report, titled=False).items()}
    except MissingDependencyError as error:
        without_figures = str(error)
    parts = [
        {"title": title, "section": section(title, "", [shown]), "picture": pictures.get(picture, "")}
        for title, shown, picture in (
            ("Accuracy by pair", matrix, "accuracy"),
            ("Gap and accuracy", correlations, "gap"),
            ("Models", models, ""),
            ("All pairs", ranking, ""),
        )
    ]
    body = render(
        "model_pairs.html",
        package=PACKAGE,
        advice=report.advice,
        facts=table(("what", "how"), list((report.facts | report.made_with).items()), caption="How it was measured"),
        without_figures=without_figures,
        parts=parts,
    )
    return page(f"Model pairs on {Path(report.data).name}", body)


def _named_correlations(study: ModelPairStudy) -> Sequence[tuple[str, Correlation]]:
    both = (("Pearson", study.pearson), ("Spearman", study.spearman))
    return [(name, correlation) for name, correlation in both if correlation is not None]


def _correlation_line(name: str, correlation: Correlation) -> str:
    models, items = spread(correlation.by_models), spread(correlation.by_items)
    return f"{name} {correlation.value:+.2f} (95 %: {models} other models, {items} other items)"


def _picture(figure: Figure) -> str:
    from gdr_plugin.report.plots import image

    return base64.b64encode(image(figure, "svg")).decode()
