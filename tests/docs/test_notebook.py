"""The notebook runs from top to bottom, on the pair without weights, and carries no outputs."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "first_steps.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "data")
    shutil.copy(ROOT / "examples" / "fake-pair.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for cell in cells("code"):
        assert cell["outputs"] == []
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        printed.append(output.getvalue())
    assert len(printed) == 6
    assert len(printed[1].splitlines()) == 3
    assert printed[2].splitlines()[:2] == ["True", "safety by field"]
    assert sum(step.reward for step in names["steps"]) == pytest.approx(names["score"].reward)
    assert re.fullmatch(r"accuracy 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] on 60 pairs\n", printed[5])


def test_the_notebook_links_to_pages() -> None:
    text = "".join("".join(cell["source"]) for cell in cells("markdown"))
    links = re.findall(r"\]\((\.\./[^)]+)\)", text)
    assert len(links) >= 4
    assert all((NOTEBOOK.parent / link).is_file() for link in links)
