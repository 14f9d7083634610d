"""`gdr controllability`: whether a reward prefers what its guidance asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.main import app


@app.command()
def controllability(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="Rows with prompt and responses (criterion: text), as JSONL, JSON, CSV or Parquet. Default: 52 "
            "prompts and 324 responses of ours.",
            show_default=False,
        ),
    ] = None,
    config: options.Config = Path("gdr.yaml"),
    set_: options.Set = None,
    sample: Annotated[
        int | None, typer.Option("--sample", metavar="N", help="Only so many prompts: the time shrinks with them.")
    ] = None,
    seed: options.SampleSeed = 0,
    as_json: options.Json = False,
    html: options.Html = None,
) -> None:
    """Measure whether a reward prefers what its guidance asks for.

    Each response was written to one criterion: does it win when the models are given that criterion as guidance? Every
    text is scored once and kept in the store, so that an interrupted run continues.
    """
    from gdr_plugin.cli.show import print_json, print_tables
    from gdr_plugin.evaluation.controllability.report import run_controllability, write
    from gdr_plugin.evaluation.run import Outputs

    Outputs(html=html).check(data, config)
    with ctx.obj.progress("prompts") as progress:
        report = run_controllability(
            options.configured(config, set_),
            data,
            plugins=ctx.obj.plugins(),
            sample=sample,
            seed=seed,
            progress=progress,
        )
    write(report, html_file=html)
    if as_json:
        print_json(report.json())
        return
    print_tables(report.tables(), report.summary)
