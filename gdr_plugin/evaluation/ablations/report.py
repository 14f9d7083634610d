"""Ablations as tables, a section of a page, JSON and a figure. Knows how they are shown, not how they are measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gdr_plugin.arithmetic.reduction import REDUCTIONS
from gdr_plugin.arithmetic.statistics import Estimate
from gdr_plugin.evaluation.ablations.ablate import Ablations
from gdr_plugin.evaluation.ablations.variants import FORM_NAMES
from gdr_plugin.report.tables import Table, estimate_json, estimate_text, section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_figure", "as_html", "as_json", "summary", "tables"]


def summary(result: Ablations) -> str:
    """What the lines rest on, in a sentence or two."""
    parts = [f"{result.items:,} items, {result.guided:,} with guidance."]
    if not result.guided:
        parts.append("No prompt's domain has guidance, so that guidance, placement and router change nothing.")
    if result.agreement is not None:
        parts.append(
            f"Without being told, the routers find the data's domain for {estimate_text(result.agreement)} of the "
            f"{result.agreement.n:,} items that name one."
        )
    parts.append(f"Responses: {result.misses:,} computed, {result.hits:,} from the store.")
    return " ".join(parts)


def tables(result: Ablations, *, repeat: bool = False) -> list[Table]:
    """The table of one change at a time, and the grid of guidance, placement and reduction.

    Args:
        result: What to show.
        repeat: Whether every line names what it changes, as a page's screen readers need; default: the first of a
            group does.
    """
    rows, previous = [], ""
    base = next(line.accuracy for line in result.lines if line.configured)
    for line in result.lines:
        gap = "(configured)" if line.configured else estimate_text(line.difference, signed=True)
        accuracy = estimate_text(line.accuracy)
        if line.accuracy and base and line.accuracy.n != base.n:  # as where a row's domain is not configured
            accuracy += f", n = {line.accuracy.n:,}"
        question = "" if line.question == previous and not repeat else line.question
        rows.append((question, line.name, accuracy, gap))
        previous = line.question
    note = (
        "Each line changes one thing of the configured reward. Differences are paired over the same items: from the "
        "configured reward, and for a log-prob alone from the ratio with the same guidance and reduction: what leaving "
        "the weak model out changes. An interval that holds 0 says that these items do not tell the two apart."
    )
    headers = ("what", "setting", "accuracy (95 %)", "difference (95 %)")
    return [Table("The configured reward with one thing changed", headers, tuple(rows), note), _grid(result)]


def as_html(result: Ablations) -> Any:
    """The tables as a section of a page (`Raw`)."""
    return section("Ablations", summary(result), tables(result, repeat=True))


def as_json(result: Ablations) -> dict[str, Any]:
    """Everything for machines: accuracies between 0 and 1."""
    return {
        "items": result.items,
        "chance": result.chance,
        "guided": result.guided,
        "named": result.named,
        "router_agreement": estimate_json(result.agreement),
        "store": {"hits": result.hits, "misses": result.misses},
        "lines": [
            {
                "what": line.question,
                "setting": line.name,
                "configured": line.configured,
                "accuracy": estimate_json(line.accuracy),
                "difference": estimate_json(line.difference),
            }
            for line in result.lines
        ],
        "grid": [
            {"guidance": form, "placement": placement, "reduction": reduction, "accuracy": estimate_json(accuracy)}
            for form, cells in result.grid.items()
            for (placement, reduction), accuracy in cells.items()
        ],
    }


def as_figure(result: Ablations) -> Figure:
    """The differences that the table has, as points with intervals, by question: what each change of one thing does.

    Differences are paired, so an interval that crosses the line at 0 does not tell the two apart; intervals of the
    accuracies would overlap long before that.

    Raises:
        MissingDependencyError: Matplotlib is missing.
    """
    from gdr_plugin.report.plots import estimates

    points = {f"{line.question}: {line.name}": line.difference for line in result.lines if not line.configured}
    base = next((line.accuracy for line in result.lines if line.configured), None)
    title = "Ablations" if base is None else f"Ablations of a reward with accuracy {base.value:.3f}"
    xlabel = "paired difference in accuracy, 95 % interval"
    return estimates(points, xlabel=xlabel, title=title, level=0.0)


def _grid(result: Ablations) -> Table:
    """Form of guidance by placement and reduction."""
    present = {key for cells in result.grid.values() for key in cells}
    columns = [
        (place, reduction) for place in ("both", "strong") for reduction in REDUCTIONS if (place, reduction) in present
    ]
    rows = tuple(
        (name, *(_plain(result.grid[form].get(column)) for column in columns))
        for form, name in FORM_NAMES.items()
        if form in result.grid
    )
    return Table(
        "Do the answers depend on each other? Accuracy by guidance, who sees it, and reduction",
        ("guidance", *(f"{'both' if place == 'both' else 'strong'}, {reduction}" for place, reduction in columns)),
        rows,
        "Intervals are about as wide as above; the JSON has them.",
    )


def _plain(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.3f}"
