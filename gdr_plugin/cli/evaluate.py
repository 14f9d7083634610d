"""`gdr evaluate`: how well a reward agrees with human preferences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.main import app
from gdr_plugin.cli.show import say

if TYPE_CHECKING:
    from gdr_plugin.evaluation.summary import Report


@app.command()
def evaluate(
    ctx: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Preference data: JSONL, JSON, CSV or Parquet file, a folder of them, hf:ORG/NAME:SPLIT, or - for "
            "JSON lines on standard input. Rows: prompt, chosen, rejected, or a benchmark's own columns.",
        ),
    ],
    config: options.Config = Path("gdr.yaml"),
    set_: options.Set = None,
    format: options.Format = "auto",
    map_: options.Map = None,
    limit: options.Limit = None,
    sample: options.Sample = None,
    seed: options.SampleSeed = 0,
    as_json: options.Json = False,
    html: options.Html = None,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", metavar="FILE", help="Also write one JSON line for each item; gdr compare reads it."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write every accuracy as a CSV table.")
    ] = None,
    latex: Annotated[
        Path | None, typer.Option("--latex", metavar="FILE", help="Also write the accuracies as a LaTeX tabular.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option("--scores", metavar="FILE", help="Also write each prompt's scores in RewardBench's JSON form."),
    ] = None,
    report_to: Annotated[
        Literal["none", "wandb", "trackio"],
        typer.Option("--report-to", help="Also log the numbers as a run of that tracker."),
    ] = "none",
    skip_bad: options.SkipBad = False,
    ablations: Annotated[
        bool,
        typer.Option(
            "--ablations",
            help="Also measure variants: guidance (none, instruction, exemplars), placement, router, reduction.",
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw the ablations: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Measure a reward on preference data: accuracy, ties, calibration, length bias, baselines.

    Every text is scored once and kept in the store, so that an interrupted run continues.
    """
    from gdr_plugin.api.errors import ConfigError
    from gdr_plugin.cli.show import print_json
    from gdr_plugin.data.columns import parse_columns
    from gdr_plugin.evaluation import run

    if plot is not None and not ablations:
        raise ConfigError("--plot draws the ablations: add --ablations")
    with ctx.obj.progress("items") as progress:
        report, origin = run.evaluate_data(
            data,
            options.configured(config, set_),
            run.Outputs(html=html, rows=rows, plot=plot, csv=csv, latex=latex, scores=scores, tracker=report_to),
            format=format,
            columns=parse_columns(map_),
            limit=limit,
            sample=sample,
            seed=seed,
            skip_bad=skip_bad,
            ablations=ablations,
            plugins=ctx.obj.plugins(),
            progress=progress,
        )
    if as_json:
        print_json(run.as_json(report, origin))
        return
    _print(report, origin)


def _print(report: Report, origin: dict[str, str]) -> None:
    from gdr_plugin.cli.show import print_facts, print_tables
    from gdr_plugin.evaluation.ablations import report as ablations_report
    from gdr_plugin.evaluation.run import shown
    from gdr_plugin.evaluation.summary_tables import facts, tables
    from gdr_plugin.evaluation.verdict import verdict

    print_tables(tables(report))
    print_facts("data", shown(origin) | facts(report))
    say()
    if report.ablations is not None:
        print_tables(ablations_report.tables(report.ablations), ablations_report.summary(report.ablations))
        say()
    print_tables([], verdict(report))
