"""Writes the table of formats in docs/evaluate.md from `gdr_plugin/data/formats.yaml`.

    python docs/tools/formats.py

A test compares the page with what this makes.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(DOCS.parent))

from gdr_plugin.data.format_table import FORMATS  # noqa: E402

PAGE = DOCS / "evaluate.md"
_START, _END = "<!-- formats: made by docs/tools/formats.py -->\n", "<!-- end of formats -->\n"


def table() -> str:
    """The table, in the order in which formats are tried."""
    rows = [f"| `{name}` | {format.sets} | {format.columns} |" for name, format in FORMATS.items()]
    return "\n".join(["| format | data sets | columns |", "|---|---|---|", *rows, ""])


def page() -> str:
    """The page with the table as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, start, rest = text.partition(_START)
    _, end, after = rest.partition(_END)
    if not (start and end):
        raise SystemExit(f"{PAGE} has no {_START.strip()} and {_END.strip()}")
    return f"{before}{_START}{table()}{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(DOCS.parent)}")
