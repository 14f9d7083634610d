"""`gdr store`: show what the log-prob store holds, and give its space back."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.main import app
from gdr_plugin.cli.show import say

if TYPE_CHECKING:
    from gdr_plugin.store.store import LogprobStore

store = typer.Typer(name="store", no_args_is_help=True, help="The log-prob store: info, prune and repair.")
app.add_typer(store)

_Where = Annotated[Path, typer.Argument(metavar="PATH", help="The store's file, or a gdr.yaml that names it.")]


@store.command()
def info(
    path: _Where = Path("gdr.yaml"),
    as_json: options.Json = False,
) -> None:
    """Show what the store holds of each model."""
    from gdr_plugin.cli.show import print_json, print_table

    opened = _open(path)
    models = opened.info()
    size = opened.path.stat().st_size
    if as_json:
        print_json(
            {
                "path": str(opened.path),
                "bytes": size,
                "models": [
                    {
                        **dataclasses.asdict(usage),
                        "first_used": usage.first_used.isoformat(),
                        "last_used": usage.last_used.isoformat(),
                    }
                    for usage in models
                ],
            }
        )
        return
    print_table(
        f"{opened.path}: {_size(size)}",
        ("model", "responses", "tokens", "size", "first used", "last used", "identity"),
        [
            (
                usage.name,
                f"{usage.rows:,}",
                f"{usage.tokens:,}",
                _size(usage.bytes),
                usage.first_used.isoformat(),
                usage.last_used.isoformat(),
                usage.identity[:12],
            )
            for usage in models
        ],
    )


@store.command()
def prune(
    path: _Where = Path("gdr.yaml"),
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Delete log-probs that were not used for longer than this: 30d, 8w, 1y."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Delete only the log-probs of this model, by name or identity.")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Delete the longest unused log-probs until the file has this size: 2GB."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete log-probs that are no longer needed: those that fit every condition given."""
    from gdr_plugin.api.errors import ConfigError

    if older_than is None and model is None and max_size is None:
        raise ConfigError("say what to prune: --older-than 30d, --model NAME or --max-size 2GB")
    days, limit = _days(older_than), _bytes(max_size)
    opened = _open(path)
    rows, freed = opened.prune(older_than_days=days, model=model, max_bytes=limit, dry_run=dry_run)
    left = opened.path.stat().st_size
    verb = "would delete" if dry_run else "deleted"
    say(f"{verb} {rows:,} responses, about {_size(freed)}; the file has {_size(left)}")


@store.command()
def repair(path: _Where = Path("gdr.yaml")) -> None:
    """Save the log-probs of a damaged store that are whole; stop what uses the store first."""
    from gdr_plugin.store.repair import repair as run

    path = _file(path)
    done = run(path)
    lost = "; parts of the file could not be read" if done.unreadable else ""
    say(f"{path}: kept {done.kept:,} responses, left out {done.dropped:,} that were damaged{lost}")


def _open(path: Path) -> LogprobStore:
    """The store at `path` or named by the gdr.yaml there; never makes one."""
    from gdr_plugin.store.store import LogprobStore

    return LogprobStore(_file(path))


def _file(path: Path) -> Path:
    """The store's file; it exists."""
    from gdr_plugin.api.errors import ConfigError, StoreError
    from gdr_plugin.config.load import load_config
    from gdr_plugin.store.store import DEFAULT_STORE

    if path.suffix.lower() in (".yaml", ".yml"):
        section = load_config(path).store
        if section is None and not Path(DEFAULT_STORE).is_file():
            raise ConfigError(f"{path} names no store: set store.path, or give the store's file")
        path = Path(
            section.path if section else DEFAULT_STORE
        )  # where `gdr evaluate` keeps one for those that name none
    if not path.is_file():
        raise StoreError(f"there is no store at {path}: the first run that scores makes it")
    return path


def _days(text: str | None) -> int | None:
    from gdr_plugin.api.errors import ConfigError

    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([dwy]?)", text.strip().lower())
    if match is None:
        raise ConfigError(f"--older-than {text!r}: write a number of days (30d), weeks (8w) or years (1y)")
    return int(match[1]) * {"": 1, "d": 1, "w": 7, "y": 365}[match[2]]


def _bytes(text: str | None) -> int | None:
    from gdr_plugin.api.errors import ConfigError

    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt]?)(i?)b?", text.strip().lower())
    if match is None:
        raise ConfigError(f"--max-size {text!r}: write a size such as 500MB or 2GB")
    power = " kmgt".index(match[2] or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)
