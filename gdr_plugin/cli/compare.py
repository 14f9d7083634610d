"""`gdr compare`: is one reward better than another on the same items?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.main import app

if TYPE_CHECKING:
    from gdr_plugin.evaluation.compare import Comparison


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="The rows of a run: what gdr evaluate --rows wrote.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The rows of another run on the same data.")],
    as_json: options.Json = False,
    html: options.Html = None,
) -> None:
    """Compare two runs of gdr evaluate on the same items: gain with its interval, exact test, by subset."""
    from gdr_plugin.cli.show import print_json
    from gdr_plugin.evaluation.compare import compare_runs
    from gdr_plugin.files import atomic, check_output

    if html is not None:
        check_output("--html", html, [first, second])
    found = compare_runs(first, second)
    if html is not None:
        with atomic(html) as file:
            file.write(_page(found))
    if as_json:
        print_json(found.as_json())
    else:
        _print(found)


def _print(found: Comparison) -> None:
    from gdr_plugin.cli.show import print_facts, print_tables, say

    print_facts("runs", found.facts())
    say()
    print_tables(found.tables(), found.verdict())


def _page(found: Comparison) -> str:
    from gdr_plugin.report.page import Raw, page
    from gdr_plugin.report.tables import Table, section

    facts = Table("runs", ("what", "which"), list(found.facts().items()))
    return page("Two rewards on the same items", Raw(section("Comparison", found.verdict(), [facts, *found.tables()])))
