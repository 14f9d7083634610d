"""`gdr explain`: a page that shows, token by token, where a reward comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.main import app
from gdr_plugin.cli.show import say


@app.command()
def explain(
    ctx: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="JSONL, JSON, CSV or Parquet file, a folder of them, or hf:ORG/NAME:SPLIT. Rows: prompt and response, "
            "or preference data as gdr evaluate reads them.",
        ),
    ],
    config: options.Config = Path("gdr.yaml"),
    set_: options.Set = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path("explain.html"),
    limit: Annotated[
        int | None, typer.Option(help="Read only this many rows. Default: 20, or all that --id names.")
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="Show only the row with this id; may be repeated.")
    ] = None,
    format: options.Format = "auto",
    map_: options.Map = None,
) -> None:
    """Show where rewards come from: a page with each response's tokens coloured by log p_strong - log p_weak."""
    from gdr_plugin.data.columns import parse_columns
    from gdr_plugin.explain.explain import explain as run

    with ctx.obj.progress("rows") as progress:
        shown = run(
            data,
            options.configured(config, set_),
            out,
            ids=ids or (),
            limit=limit,
            format=format,
            columns=parse_columns(map_),
            plugins=ctx.obj.plugins(),
            progress=progress,
        )
    responses = sum(len(row.guided) for row in shown)
    rows = "1 row" if len(shown) == 1 else f"{len(shown):,} rows"
    say(f"{out}: {rows}, {responses:,} {'response' if responses == 1 else 'responses'}; open it in a browser")
