"""The documents name modules and things that are there: every import in a code block works."""

from __future__ import annotations

import ast
import re
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(textwrap.dedent(block), id=f"{path.relative_to(ROOT)}-{number}")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
    if "gdr_" in block and ">>>" not in block
]
ROOM = re.compile(r"`(?:gdr_plugin/|integrations/)?([a-z_]+(?:/[a-z_]+)*(?:/|\.py))`")


@pytest.mark.parametrize("block", BLOCKS)
def test_imports_in_code_blocks_work(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("gdr_"):
            module = import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_the_architecture_names_files_and_folders_that_are_there() -> None:
    named = ROOM.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    folders = (ROOT, ROOT / "gdr_plugin", ROOT / "integrations")
    assert [name for name in named if not any((folder / name).exists() for folder in folders)] == []


def test_the_architecture_names_every_package() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in ROOT.glob("gdr_plugin/*/__init__.py")}
    assert sorted(name for name in packages if f"`{name}/" not in text) == []
