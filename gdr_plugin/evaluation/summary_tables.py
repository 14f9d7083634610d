"""A report as tables of names and numbers, the same for the terminal and the page.

Knows what is worth showing and in which order; nothing of how a table is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gdr_plugin.arithmetic.reduction import UNITS
from gdr_plugin.arithmetic.statistics import Estimate
from gdr_plugin.evaluation.measures.benchmarks import STYLES
from gdr_plugin.evaluation.measures.metrics import Measures, Part
from gdr_plugin.evaluation.summary import Report
from gdr_plugin.report.tables import Cell, Table, estimate_text

NAMES = {"sum": "sum", "mean": "mean", "per_byte": "per byte", "tokens": "tokens"}


def tables(report: Report) -> Iterator[Table]:
    """The report's tables, the most important first."""
    yield _accuracy(report)
    if report.main.styles is not None:
        yield Table(
            "accuracy by style: the chosen response's in rows, the rejected one's in columns",
            ("chosen", *STYLES),
            [(name, *(f"{cell:.3f}" for cell in row)) for name, row in zip(STYLES, report.main.styles, strict=True)],
        )
    yield _baselines(report)
    yield _length(report)
    yield from _calibration(report)


def facts(report: Report) -> dict[str, str]:
    """What the data were and what became of them."""
    found = {
        "items": f"{len(report.scores):,} ({report.format}), {report.main.overall.scored:,} scored",
        "reduction": f"{NAMES[report.reduction]} ({UNITS[report.reduction]})",
        "domains by": ", ".join(f"{name} {count:,}" for name, count in report.routers.items()) or "-",
        "guidance": f"for {report.guided:,} of {len(report.scores):,} prompts",
    }
    if report.truncated:
        found["cut at the start"] = f"{report.truncated:,} prompts"
    return found | {f"not scored: {reason}": f"{count:,}" for reason, count in report.not_scored.items()}


def _accuracy(report: Report) -> Table:
    ways = list(report.ratio.values())
    rows = [_row("all", [way.overall for way in ways])]
    rows += [_row(f"domain {name}", [way.domains[name] for way in ways]) for name in report.main.domains]
    rows += [_row(f"subset {name}", [way.subsets[name] for way in ways]) for name in report.main.subsets]
    for at, section in enumerate(report.main.sections):
        n = f"{section.estimate.n:,}" if section.estimate else "0"
        rows.append([f"{report.format} {section.name}", n, "", *(_section(way, at) for way in ways)])
    missing = [section.name for section in report.main.sections if section.estimate is None]
    return Table(
        "accuracy (95 % interval; a tie counts half)",
        ("", "items", "ties", *(NAMES[name] for name in report.ratio)),
        rows,
        f"Nothing to compute {', '.join(missing)} from: numbers over all parts are not the published ones."
        if missing
        else "",
    )


def _section(way: Measures, at: int) -> Estimate | None:
    return way.sections[at].estimate if way.sections else None


def _baselines(report: Report) -> Table:
    ways = [*report.ratio.values(), *report.baselines]
    return Table(
        "baselines, and r: correlation of the margin with the length difference",
        ("", "by", "accuracy", "r"),
        [
            (
                way.name,
                NAMES[way.reduction],
                way.overall.accuracy,
                None if way.reduction == "tokens" else estimate_text(way.length.correlation, digits=2, signed=True),
            )
            for way in ways
        ],
    )


def _length(report: Report) -> Table:
    sides = {"shorter": "shorter", "equal": "equally long", "longer": "longer"}
    parts = {side: [getattr(way.length, side) for way in report.ratio.values()] for side in sides}
    return Table(
        "accuracy by length, in the strong model's tokens",
        ("chosen is", "items", "ties", *(NAMES[name] for name in report.ratio)),
        [_row(text, parts[side]) for side, text in sides.items()],
    )


def _row(name: str, parts: Sequence[Part]) -> list[Cell]:
    return [name, f"{parts[0].items:,}", f"{parts[0].ties:,}", *(part.accuracy for part in parts)]


def _calibration(report: Report) -> Iterator[Table]:
    main = report.main.calibration
    if main is None:
        return
    yield Table(
        "calibration of sigmoid(margin / T)",
        ("by", "error at T = 1", "best T", "error at best T"),
        [
            (NAMES[name], _number(own.error), _number(own.temperature, ".3g"), _number(own.error_fitted))
            for name, way in report.ratio.items()
            if (own := way.calibration) is not None
        ],
    )
    yield Table(
        f"accuracy by size of margin ({UNITS[report.reduction]})",
        ("|margin|", "items", "claimed", "accuracy"),
        [
            (f"{own.low:.3g} to {own.high:.3g}", f"{own.accuracy.n:,}", f"{own.confidence:.3f}", own.accuracy)
            for own in main.bins
        ],
    )


def _number(value: float | None, form: str = ".3f") -> str | None:
    return None if value is None else f"{value:{form}}"
