"""`gdr plan`: what a run will take, before anything is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.main import app
from gdr_plugin.cli.show import say


@app.command()
def plan(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(help="The gdr.yaml that describes the reward.")] = Path("gdr.yaml"),
    gpus: Annotated[
        str, typer.Option(metavar="NxGPU", help="What it will run on: 8xH100, A100-40GB, 2xL40S, 16xCPU-core ...")
    ] = "1xH100",
    prompts: Annotated[int | None, typer.Option(help="Number of prompts; default: the rows of --input.")] = None,
    samples: Annotated[
        int | None, typer.Option(help="Number of responses to each prompt; default: as --input has.")
    ] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="FILE", help="Measure lengths on these rows, and count them.")
    ] = None,
    prompt_tokens: Annotated[
        float | None, typer.Option(help="Mean length of a prompt in tokens; default: measured, else 150.")
    ] = None,
    response_tokens: Annotated[
        float | None, typer.Option(help="Mean length of a response in tokens; default: measured, else 300.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Also plan drawing the responses from this model.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(help="Share of the GPU's matrix-multiply speed that is of use; default: 0.4, CPU 0.6."),
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of one GPU for an hour: adds the cost.")] = None,
    map_: options.Map = None,
    as_json: options.Json = False,
) -> None:
    """Say what a run will take: memory, operations, hours and GPU-hours, from the models' configurations alone."""
    from gdr_plugin.cli.show import print_json, print_tables
    from gdr_plugin.data.columns import parse_columns
    from gdr_plugin.planning.report import plan_json, plan_tables
    from gdr_plugin.planning.run import PlanOptions, plan_run

    made = plan_run(
        config,
        PlanOptions(
            gpus=gpus,
            prompts=prompts,
            samples=samples,
            input=input_,
            columns=parse_columns(map_),
            prompt_tokens=prompt_tokens,
            response_tokens=response_tokens,
            policy=policy,
            mfu=mfu,
        ),
        plugins=ctx.obj.plugins(),
    )
    if as_json:
        print_json(plan_json(made, price))
        return
    print_tables(plan_tables(made, price))
    say("assumed")
    for note in made.assumptions:
        say(f"  - {note}")
    say("", made.recommendation)
