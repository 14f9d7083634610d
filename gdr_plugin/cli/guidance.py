"""`gdr guidance`: the guidances that there are, and the very text that the models are shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.main import app
from gdr_plugin.cli.show import say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gdr_plugin.api.guidance import Guidance
    from gdr_plugin.config.schema import GuidanceSection


@app.command()
def guidance(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A guidance, or a domain of the gdr.yaml. Default: list them.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", help="A gdr.yaml: its own guidance files, and how many exemplars are shown."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the guidances, or show the text that NAME puts in front of every prompt."""
    from gdr_plugin.api.errors import ConfigError, unknown
    from gdr_plugin.cli.show import print_facts, print_json, print_table
    from gdr_plugin.config.schema import GuidanceSection
    from gdr_plugin.guidance import render

    known, domains, section = _known(ctx, config) if config else (ctx.obj.plugins().guidances(), {}, GuidanceSection())
    if name is None:
        rows = [(found.name, len(found.exemplars), found.description) for found in known.values()]
        if as_json:
            print_json([dict(zip(("name", "exemplars", "description"), row, strict=True)) for row in rows])
        else:
            print_table(
                "", ("guidance", "exemplars", "what it is for"), [(n, f"{count}", said) for n, count, said in rows]
            )
        return
    chosen = known.get(domains.get(name, name))
    if chosen is None:
        raise ConfigError(unknown("guidance", name, [*known, *domains]))
    shown = render(chosen, instruction=section.instruction, exemplars=section.exemplars, seed=section.seed)
    facts: dict[str, Any] = {"id": shown.id, "exemplars": list(shown.exemplars)}
    if config:
        facts["placement"] = section.placement
    if as_json:
        print_json({**facts, "text": shown.text})
        return
    print_facts(chosen.name, {**facts, "exemplars": ", ".join(shown.exemplars) or "none"})
    say("", *shown.text.split("\n"))


def _known(ctx: typer.Context, config: Path) -> tuple[Mapping[str, Guidance], Mapping[str, str], GuidanceSection]:
    """The guidances of a configuration by name, the guidance's name of each of its domains, and its switches."""
    from gdr_plugin.config.load import load_config
    from gdr_plugin.reward.resolve import resolve_names

    checked = load_config(config)
    plugins = ctx.obj.plugins()
    resolved = resolve_names(checked, plugins, origin=str(config))
    own = {found.name: found for found in resolved.guidances.values() if found is not None}
    return {**plugins.guidances(), **own}, checked.guidance.domains, checked.guidance
