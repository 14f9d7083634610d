"""ARCHITECTURE.md names what is there; `test_layers.py` compares its table of floors with the imports."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`([a-z_]+(?:/[a-z_]+)*(?:/|\.py))`")


def test_files_and_folders_that_it_names_are_there() -> None:
    names = NAMED.findall(TEXT)
    assert len(names) > 30
    folders = (ROOT, ROOT / "gdr_plugin", ROOT / "integrations")
    assert [name for name in names if not any((folder / name).exists() for folder in folders)] == []
