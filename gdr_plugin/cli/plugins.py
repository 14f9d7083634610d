"""`gdr plugins`: which plugins are loaded, and who registered what."""

from __future__ import annotations

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.main import app


@app.command()
def plugins(
    ctx: typer.Context,
    as_json: options.Json = False,
) -> None:
    """List the loaded plugins and everything that they register."""
    from gdr_plugin.cli.show import print_json, print_table

    loaded = ctx.obj.plugins()
    sources, owners = loaded.sources(), loaded.owners()
    if as_json:
        print_json(
            {
                "plugins": [
                    {"name": s.name, "kind": s.kind, "package": s.distribution, "version": s.version, "hooks": s.hooks}
                    for s in sources
                ],
                "registered": [{"kind": kind, "name": name, "plugin": plugin} for kind, name, plugin in owners],
            }
        )
        return
    print_table(
        "Plugins",
        ("plugin", "kind", "package", "version", "hooks"),
        [(s.name, s.kind, s.distribution or "", s.version or "", ", ".join(s.hooks)) for s in sources],
    )
    packages = {s.name: f"{s.distribution} {s.version}" if s.distribution else "" for s in sources}
    print_table(
        "Registered",
        ("kind", "name", "plugin", "package"),
        [(kind, name, plugin, packages[plugin]) for kind, name, plugin in owners],
    )
