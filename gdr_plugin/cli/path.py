"""`gdr path`: where the files are that a framework is given as paths."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from gdr_plugin.api.errors import ConfigError, unknown
from gdr_plugin.cli.main import app

FILES: Final = {"openrlhf": ("reward_func", "agent"), "swift": ("reward",), "verl": ("easyr1",), "nemo-gym": ()}
"""Integration -> its modules that a framework loads as files; none where it wants the whole folder."""


@app.command()
def path(
    integration: Annotated[str, typer.Argument(help="Name of the integration: openrlhf, swift, verl or nemo-gym.")],
    file: Annotated[
        str | None,
        typer.Argument(
            help="reward_func or agent of openrlhf, reward of swift, easyr1 of verl. Default: all files with their "
            "names; of nemo-gym the folder."
        ),
    ] = None,
) -> None:
    """Print the paths of an integration's files, for use in a launch script."""
    if integration not in FILES:
        raise ConfigError(unknown("integration", integration, FILES))
    names = FILES[integration]
    if file is not None and file not in names:
        raise ConfigError(unknown(f"file of {integration}", file, names))
    package = f"gdr_{integration.replace('-', '_')}"
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {package} is not installed: install gdr-plugin again")
    folder = Path(spec.submodule_search_locations[0])
    if not names:
        print(folder)
    for name in names if file is None else [file]:
        where = folder / f"{name}.py"
        print(where if file is not None else f"{name}\t{where}")
