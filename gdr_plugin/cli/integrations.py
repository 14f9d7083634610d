"""`gdr integrations`: which trainers there are adapters for, whether they are installed here, and what to paste."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gdr_plugin.cli.main import app
from gdr_plugin.cli.show import say

if TYPE_CHECKING:
    from gdr_plugin.adapters.catalogue import Integration


@app.command()
def integrations(
    name: Annotated[
        str | None, typer.Argument(help="One of them: what to paste, and whether the framework finds our package.")
    ] = None,
) -> None:
    """List the adapters for trainers, or show how one is connected."""
    from gdr_plugin.adapters.catalogue import INTEGRATIONS, integration
    from gdr_plugin.cli.show import print_facts, print_table

    if name is None:
        rows = [
            (key, found.title, found.installed or "-", _registered(found), found.tested)
            for key, found in INTEGRATIONS.items()
        ]
        print_table("Integrations", ("name", "framework", "installed", "entry point", "tested with"), rows)
        return
    shown = integration(name)
    facts = {
        "our package": shown.package,
        "installed here": shown.installed or "no",
        "tested with": shown.tested,
        "not scored": shown.unscored,
        "documentation": f"docs/{shown.page or f'{name}.md'}",
    }
    print_facts(shown.title, {**facts, **({"entry point": _registered(shown)} if shown.entry_point else {})})
    say("", *shown.snippet.split("\n"))


def _registered(integration: Integration) -> str:
    if integration.entry_point is None:
        return "none needed"
    group, name = integration.entry_point
    return f"{group}: {name}" if integration.found() else f"{group}: {name} is missing: install gdr-plugin again"
