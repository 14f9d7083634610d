"""Prints tables, names with values, and JSON on standard output. Knows how they look, not what they mean."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from gdr_plugin.files import writing
from gdr_plugin.text import line_of, printable

if TYPE_CHECKING:
    from gdr_plugin.report import tables

_TEXT_WIDTH = 120
"""Width of a paragraph, in characters."""
_PIPED_WIDTH = 200
"""Width where there is no terminal, in characters: file names and digests stay on one line."""


def say(*lines: str) -> None:
    """Print lines; a line break within one, what could command a terminal and half a character are escaped."""
    _out("\n".join(map(line_of, lines)))


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table and an empty line; texts are shown as they are, without markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(line_of(title), style="bold"), title_justify="left", show_edge=False, pad_edge=False)
    for name in header:
        table.add_column(Text(line_of(name)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(line_of(cell)) for cell in row))
    _print(table, "")


def print_tables(shown: Iterable[tables.Table], closing: str = "") -> None:
    """Print tables with their notes, of a table without rows the note only, and a closing paragraph."""
    for table in shown:
        if table.rows:
            print_table(table.caption, table.headers, table.texts())
        if table.note:
            say(*_paragraph(table.note if table.rows else f"{table.caption}: {table.note}"), "")
    if closing:
        say(*_paragraph(closing))


def _paragraph(text: str) -> list[str]:
    """The text in lines; names with hyphens stay whole."""
    return wrap(text, _TEXT_WIDTH, break_on_hyphens=False, break_long_words=False) or [""]


def print_facts(title: str, facts: Mapping[str, object]) -> None:
    """Print names and values under a title, one a line; texts are shown as they are."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(f"  {line_of(name)}"), Text(line_of(str(value))))
    _print(Text(title, style="bold"), table)


def _print(*parts: Any) -> None:
    """Render and print: rich by itself ends the process when the reader of its output has gone away."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    with writing("standard output"):  # which rich flushes
        with console.capture() as rendered:
            for part in parts:
                console.print(part)
        print("\n".join(line.rstrip() for line in rendered.get().splitlines()))


def print_json(value: Any) -> None:
    """Print a value as JSON that ends with a newline; what a terminal might obey is written as JSON's escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    _out("".join(map(_escaped, text)) if not text.replace("\n", "").isprintable() else text)


def _out(text: str) -> None:
    with writing("standard output"):
        print(text)


def _escaped(char: str) -> str:
    """A character of a JSON text; all that is not printable stands in its strings, where it can be spelt otherwise."""
    return char if char == "\n" or printable(char) == char else json.dumps(char)[1:-1]
