"""Options that several commands share, so that they have one name and one meaning everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from gdr_plugin.config import schema

Config = Annotated[Path, typer.Option("-c", "--config", help="The gdr.yaml that describes the reward.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting of gdr.yaml: --set reward.reduction=mean."),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="Format of the preference data, as listed in docs/evaluate.md (rewardbench, rm-bench, arena, plain, ...). "
        "Default: recognised by the columns.",
        show_default=False,
    ),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="NEW=OLD",
        help="Rename a column, or what is inside one: --map prompt=info.post.",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", help="Read only this many rows.")]
Sample = Annotated[
    int | None, typer.Option("--sample", metavar="N", help="Only so many items, drawn from each subset by its size.")
]
SampleSeed = Annotated[int, typer.Option("--seed", help="Seed of --sample.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave bad rows out instead of stopping before anything is scored.")
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="Where the models run: in this process, or in pools of actors on a Ray cluster."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="The Ray cluster. Default: RAY_ADDRESS, the cluster of this machine, or one started for this run.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write an HTML page.")]


def configured(path: Path, settings: list[str] | None) -> Path | schema.Config:
    """The file that `--config` names or, with `--set`, its content with these settings replaced.

    Raises:
        ConfigError: The file or a setting is wrong.
    """
    if not settings:
        return path
    from gdr_plugin.config.load import load_config
    from gdr_plugin.config.override import override, parse_settings

    return override(load_config(path), parse_settings(settings), origin=f"{path} with --set")
