"""A report as tables of names and numbers, the same for the terminal and the page.

Knows what is worth showing and in which order; nothing of how a table is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gdr_plugin.arithmetic.reduction import UNITS
from gdr_plugin.arithmetic.statistics import Estimate
from gdr_plugin.evaluation.measures.benchmarks import STYLES
from gdr_plugin.evaluation.measures.metrics import Measures, Part
from gdr_plugin.evaluation.summary import Report
from gdr_plugin.report.tables import Cell, Table, estimate_text

NAMES = {"sum": "sum", "mean": "mean", "per_byte": "per byte", "tokens": "tokens"}


def tables(report: Report) -> Iterator[Table]:
    """The report's tables, the most important first; of a part of a benchmark, each says that it is one."""
    partial = report.main.overall.partial
    first, *others = _tables(report)
    yield first  # says it in every row
    for table in others:
        yield table if partial is None else replace(table, caption=f"{table.caption} ({partial})")


def _tables(report: Report) -> Iterator[Table]:
    yield _accuracy(report)
    if report.main.styles is not None:
        yield Table(
            "accuracy by style: the chosen response's in rows, the rejected one's in columns",
            ("chosen", *STYLES),
            [(name, *(f"{cell:.3f}" for cell in row)) for name, row in zip(STYLES, report.main.styles, strict=True)],
        )
    yield _baselines(report)
    if report.routed:
        yield _routed(report)
    yield _length(report)
    yield from _calibration(report)


def facts(report: Report) -> dict[str, str]:
    """What the data were and what became of them."""
    partial = report.main.overall.partial
    found = {
        "items": f"{len(report.scores):,} ({report.format}), {report.main.overall.scored:,} scored"
        + (f"; {partial}" if partial else ""),
        "reduction": f"{NAMES[report.reduction]} ({UNITS[report.reduction]})",
        "domains by": ", ".join(f"{name} {count:,}" for name, count in report.routers.items()) or "-",
        "guidance": f"for {report.guided:,} of {len(report.scores):,} prompts",
    }
    if report.truncated:
        found["cut at the start"] = f"{report.truncated:,} prompts"
    return found | {f"not scored: {reason}": f"{count:,}" for reason, count in report.not_scored.items()}


def _accuracy(report: Report) -> Table:
    ways = list(report.ratio.values())
    rows = [_row(_named("all", report.main.overall.partial), [way.overall for way in ways])]
    rows += [_row(f"domain {name}", [way.domains[name] for way in ways]) for name in report.main.domains]
    rows += [
        _row(_named(f"subset {name}", part.partial), [way.subsets[name] for way in ways])
        for name, part in report.main.subsets.items()
    ]
    for at, section in enumerate(report.main.sections):
        name = _named(f"{report.format} {section.name}", section.partial)
        rows.append([name, f"{section.items:,}", "", *(_section(way, at) for way in ways)])
    lost = report.format == "rm-bench"
    return Table(
        f"accuracy (95 % interval; a tie {'is lost, as in the code of RM-Bench' if lost else 'counts half'})",
        ("", "items", "ties", *(NAMES[name] for name in report.ratio)),
        rows,
        _missing(report),
    )


def _named(name: str, partial: str | None) -> str:
    return name if partial is None else f"{name} ({partial})"


def _missing(report: Report) -> str:
    """What to say of published numbers that are not there, or not over all items."""
    sections = report.main.sections
    missing = [section.name for section in sections if section.estimate is None]
    if missing:
        return f"No number for {', '.join(missing)}: it needs items of every part of the benchmark."
    if any(section.partial for section in sections):
        return "A partial number is not the published one: it rests on other items."
    return ""


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


def _routed(report: Report) -> Table:
    """How many of a benchmark's domains the routers found."""
    rows = []
    for label, went in report.routed.items():
        items, right = sum(went.values()), went.get(label, 0)
        others = ", ".join(f"{name} {count:,}" for name, count in went.items() if name != label) or "-"
        rows.append((label, f"{items:,}", f"{right:,}", f"{right / items:.0%}", others))
    guidance = (
        "--ablations says what the accuracy would be with the benchmark's domains." if not report.ablations else ""
    )
    return Table(
        "domains: the benchmark's, and those that routers found",
        ("", "items", "found", "", "taken for"),
        rows,
        guidance,
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
