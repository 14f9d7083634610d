"""The `gdr` application: global options, and errors turned into one line and exit code 2."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from gdr_plugin.errors import GDRError
from gdr_plugin.plugins import Plugins

app = typer.Typer(name="gdr", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Settings:
    """What the global options say; every command gets it as `ctx.obj`."""

    plugin_files: list[Path] = field(default_factory=list)

    def plugins(self) -> Plugins:
        """Load the plugins: built-in, installed, and those given with `--plugin`."""
        return Plugins(*self.plugin_files)


@app.callback()
def _global(
    ctx: typer.Context,
    plugin: Annotated[list[Path] | None, typer.Option(help="A Python file with gdr hooks; may be repeated.")] = None,
) -> None:
    """Rewards for language models from the guided density ratio of two models."""
    ctx.obj = Settings(plugin or [])


def main() -> None:
    """Run the command line; a `GDRError` becomes one line on standard error and exit code 2."""
    # Commands register themselves on import; each imports what is heavy only when it runs.
    from gdr_plugin.cli import annotate, check, init, plugins, score, store  # noqa: F401

    try:
        app()
    except GDRError as error:
        print(f"gdr: {error}", file=sys.stderr)
        sys.exit(2)
