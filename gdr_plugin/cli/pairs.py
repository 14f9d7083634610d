"""`gdr pairs`: models and preference data in; out comes which two of the models make the best reward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gdr_plugin.api.types import Reduction
from gdr_plugin.cli import options
from gdr_plugin.cli.main import app

if TYPE_CHECKING:
    from gdr_plugin.evaluation.pairs.report import ModelPairsReport


@app.command()
def pairs(
    ctx: typer.Context,
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL]... DATA",
            help="Two or more models, each as [NAME=]MODEL[+ADAPTER]: a hub id, folder or .gguf, with a PEFT adapter "
            "on it if wanted, and what tables call it. Then preference data as for gdr evaluate: a file, a folder, or "
            "hf:ORG/NAME:SPLIT.",
        ),
    ],
    models_file: Annotated[
        Path | None,
        typer.Option(
            "--models",
            metavar="FILE",
            help="More models: YAML that maps names to the keys that gdr.yaml has for a model.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "-c",
            "--config",
            help="A gdr.yaml for guidance, routing, limits and store; its models are ignored. Default: no guidance.",
        ),
    ] = None,
    reduction: Annotated[
        Reduction | None, typer.Option(help="How token log-probs become one number. Default: as gdr.yaml says, or sum.")
    ] = None,
    gap_scores: Annotated[
        Path | None,
        typer.Option(
            "--gap-scores",
            metavar="FILE",
            help="CSV with the columns model and score: how good each model is, as from an arena. Default: each "
            "model's own log-prob accuracy on DATA.",
        ),
    ] = None,
    format: options.Format = "auto",
    map_: options.Map = None,
    limit: options.Limit = None,
    sample: options.Sample = None,
    skip_bad: options.SkipBad = False,
    seed: Annotated[
        int, typer.Option(help="Seed: decides which half of the prompts chooses the model pair, and all resampling.")
    ] = 0,
    as_json: options.Json = False,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write the heat map and the scatter there, as PNG, PDF and SVG."),
    ] = None,
    html: options.Html = None,
) -> None:
    """Judge every ordered model pair as a reward; each model scores each text once."""
    from gdr_plugin.cli.show import print_json
    from gdr_plugin.data.columns import parse_columns
    from gdr_plugin.evaluation.pairs.page import save_plots, to_html
    from gdr_plugin.evaluation.pairs.run import ModelPairsOptions, compare_model_pairs
    from gdr_plugin.files import atomic

    *models, data = arguments
    chosen = ModelPairsOptions(
        models_file=models_file,
        config=config,
        reduction=reduction,
        gap_scores=gap_scores,
        format=format,
        columns=parse_columns(map_),
        limit=limit,
        sample=sample,
        skip_bad=skip_bad,
        seed=seed,
    )
    _check_outputs(html, plots, [data, models_file, config, gap_scores])
    with ctx.obj.progress("items") as progress:
        report = compare_model_pairs(models, data, chosen, plugins=ctx.obj.plugins(), progress=progress)
    if plots is not None:
        for path in save_plots(report, plots):
            ctx.obj.note(str(path))
    if html is not None:
        with atomic(html) as file:
            file.write(to_html(report))
        ctx.obj.note(str(html))
    if as_json:
        print_json(report.to_json())
    else:
        _print(report)


def _check_outputs(html: Path | None, plots: Path | None, inputs: list[str | Path | None]) -> None:
    """Refuse, before hours of scoring, outputs that cannot be written or would replace an input."""
    from gdr_plugin.files import check_output, check_output_folder
    from gdr_plugin.report.plots import check_plots

    if plots is not None:
        check_output_folder("--plots", plots)
        check_plots()
    if html is not None:
        check_output("--html", html, inputs)


def _print(report: ModelPairsReport) -> None:
    from gdr_plugin.cli.show import print_facts, print_tables, say
    from gdr_plugin.evaluation.pairs.report import SHOWN

    print_facts("pairs of models", report.facts)
    say()
    print_tables(report.tables(shown=SHOWN), report.advice)
