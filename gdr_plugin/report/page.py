"""The frame of every HTML page that we write: one file, no network, light and dark, print, keyboard, screen readers.

Knows HTML and escaping. What a page says is its caller's: text is escaped wherever it goes in, and only `Raw` is not.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

from markupsafe import Markup as Raw

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Raw", "page", "render", "table"]

_NUMBER: Final = re.compile(r"[-+\N{MINUS SIGN}]?[\d.,]+[^A-Za-z]*")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole HTML document that opens from a file and asks no network for anything.

    The body starts at heading level 2: the title is the page's only `h1`. Style and script are inlined; a
    content-security policy lets no other script run and nothing be loaded, whatever slipped into the body.

    Args:
        title: The page's name, plain text.
        body: `Raw` HTML (from `render`, `table` or `Raw(...)`); any other string is escaped and shown as text.
        style: Further CSS, trusted.
        script: JavaScript, trusted; it runs after the body was read.

    Returns:
        The document.
    """
    for name, text in (("style", style), ("script", script)):
        if f"</{name}" in text.lower():
            raise ValueError(f"the page's {name} closes its own element")
    # What a browser hashes is the element's whole text, without the template's line breaks around it.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"'sha256-{digest}'" if script else "'none'"
    document = _environment("gdr_plugin.report").get_template("page.html")
    text = document.render(title=title, body=body, style=Raw(style), script=Raw(script), allowed=Raw(allowed))
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)  # half a character cannot be written to a file


def render(template: str, *, package: str = "gdr_plugin.report", **values: object) -> Raw:
    """Fill a template; every value is escaped unless it is `Raw`.

    Args:
        template: The file's name, as in `explain.html`.
        package: The package whose folder `templates` holds it.
        values: What the template names.

    Returns:
        Trusted HTML.
    """
    return Raw(_environment(package).get_template(template).render(**values))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str, hidden: bool = False) -> Raw:
    """An accessible table: a caption, column headers, the first cell of each row as its header.

    Args:
        headers: One a column.
        rows: As many cells each; None is shown as a dash, numbers (and text that reads as one) are aligned right.
            Numbers are shown as Python prints them: format them first.
        caption: What the table shows, in a few words.
        hidden: Whether only screen readers get the caption, because a heading says the same.

    Returns:
        Trusted HTML; wide tables scroll by themselves.
    """
    cells = [["\N{EN DASH}" if cell is None else cell for cell in row] for row in rows]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"a row of the table {caption!r} has {len(row)} cells, its header {len(headers)}")
    # A column is aligned as its cells are; its header follows.
    numeric = [all(_is_number(row[at]) for row in cells) and bool(cells) for at in range(len(headers))]
    return render("table.html", headers=headers, rows=cells, numeric=numeric, caption=caption, hidden=hidden)


def _is_number(cell: object) -> bool:
    return cell == "\N{EN DASH}" or bool(_NUMBER.fullmatch(cell.striptags() if isinstance(cell, Raw) else str(cell)))


@cache
def _environment(package: str) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
