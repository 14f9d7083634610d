"""`gdr score`: prompt/response rows in, rewards out, line by line."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.engine import chosen_engine
from gdr_plugin.cli.main import Settings, app

if TYPE_CHECKING:
    from gdr_plugin.cluster.engine import Engine
    from gdr_plugin.scoring.apart import ScoreOptions

_ENCODER = json.JSONEncoder(allow_nan=False)
"""ASCII only, so that the encoding of standard output does not matter; `json.dumps` would make one for every row."""


@app.command()
def score(
    ctx: typer.Context,
    rows: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="JSONL, JSON, CSV or Parquet file, a folder of them, hf:ORG/NAME:SPLIT, or - for JSON lines on "
            "standard input. Rows: prompt and response (texts or messages), and optionally id, finished, domain.",
        ),
    ] = "-",
    config: options.Config = Path("gdr.yaml"),
    set_: options.Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="JSONL file; it appears under its name once it is complete. Default: standard output."
        ),
    ] = None,
    map_: options.Map = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Also write log-probs, ratios, rewards and character offsets by token.")
    ] = False,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="line|TEXT",
            help=r"Also write rewards by step: by line, or cut after each TEXT, in which \n is a line break. "
            "They add up to the reward.",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Also write the input's own columns.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be scored.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Write bad rows with reward null and the reason instead of stopping.")
    ] = False,
    engine: options.Engine = "local",
    address: options.Address = None,
) -> None:
    """Score given responses: one JSON line for each row, in order. The reward is null where there is a reason."""
    from gdr_plugin.api.errors import DataError
    from gdr_plugin.data.columns import parse_columns
    from gdr_plugin.data.sources import STDIN
    from gdr_plugin.scoring.apart import ScoreOptions
    from gdr_plugin.scoring.rows import score_rows

    if rows == STDIN and sys.stdin.isatty():
        raise DataError("name an input file, or pipe JSON lines into standard input")
    elsewhere, ranks = chosen_engine(engine, address), ctx.obj.ranks
    if elsewhere is not None or ranks is not None:
        told = ScoreOptions(parse_columns(map_), tokens, _delimiter(steps), strict, skip_bad, keep)
        _score_apart(ctx.obj, rows, config, out, told, elsewhere)
        return
    with _writer(out, [rows, config]) as write, ctx.obj.progress("rows") as progress:
        summary = score_rows(
            rows,
            options.configured(config, set_),
            write,
            plugins=ctx.obj.plugins(),
            columns=parse_columns(map_),
            tokens=tokens,
            steps=_delimiter(steps),
            strict=strict,
            skip_bad=skip_bad,
            keep=keep,
            progress=progress,
        )
    ctx.obj.note(str(summary))


def _score_apart(
    settings: Settings, rows: str, config: Path, out: Path | None, told: ScoreOptions, engine: Engine | None
) -> None:
    """Score on a cluster, or as one of several processes."""
    from gdr_plugin.api.errors import OutputError
    from gdr_plugin.files import check_output
    from gdr_plugin.scoring.apart import score_rows_apart

    if out is None or (out.exists() and not out.is_file()):
        raise OutputError("several processes cannot share standard output or a device: name a file with -o")
    check_output("-o", out, [rows, config])
    with settings.progress("rows") as progress:
        summary = score_rows_apart(
            rows,
            config,
            out,
            told,
            plugins=settings.plugins(),
            progress=progress,
            engine=engine,
            ranks=settings.ranks,
        )
    if settings.ranks is None or settings.ranks.first:
        settings.note(str(summary))


def _delimiter(steps: str | None) -> str | None:
    """What --steps means: shells have no easy way to write a line break."""
    from gdr_plugin.api.errors import ConfigError

    if steps == "":
        raise ConfigError("--steps is empty: give line, or the text that ends a step")
    return None if steps is None else steps.replace("\\n", "\n").replace("\\t", "\t")


@contextlib.contextmanager
def _writer(out: Path | None, inputs: list[str | Path]) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Where output rows go: standard output, or a file that appears when the block ends well."""
    from gdr_plugin.files import atomic, check_output, writing

    def write(name: str | Path, file: Any, rows: list[dict[str, Any]]) -> None:
        with writing(name):
            _write(file, rows)

    if out is None:
        yield lambda rows: write("standard output", sys.stdout, rows)
        return
    check_output("-o", out, inputs, devices=True)
    if out.exists() and not out.is_file():  # a device or a named pipe cannot be replaced
        with out.open("w", encoding="utf-8") as file:
            yield lambda rows: write(out, file, rows)
        return
    with atomic(out) as made:
        yield lambda rows: _write(made, rows)


def _write(file: Any, rows: list[dict[str, Any]]) -> None:
    file.write("".join(_ENCODER.encode(row) + "\n" for row in rows))
    file.flush()
