"""Every module path, import and command of ours that a Markdown file shows exists.

Imports nothing that a reader would not import, too; whether the shown code does what the text says is tested elsewhere.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
DOTTED = re.compile(r"(?<![\w.])gdr_(?:plugin|trl|openrlhf)(?:\.\w+)+")
HOSTS = {"distilabel", "inspect_ai"}
"""Frameworks that are not in the tests' environment, and without which the module of ours cannot be imported."""
COMMAND = re.compile(r"python -m (benchmarks[\w.]*)")
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def missing(name: str) -> str | None:
    """Why a dotted name cannot be imported; None when it can."""
    module = name
    rest: list[str] = []
    while True:
        try:
            found: object = importlib.import_module(module)
            break
        except ModuleNotFoundError as error:
            if error.name in HOSTS:
                package, _, last = name.rpartition(".")
                spec = importlib.util.find_spec(package)
                assert spec is not None
                source = Path(str(spec.origin)).read_text(encoding="utf-8")
                here = re.search(rf"^(?:class|def|async def) {last}\b", source, re.MULTILINE)
                return None if here else f"{name}: {package} has no {last}"
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module exists and lacks something else
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
            if not module:
                return f"there is no module {error.name}"
    for attribute in rest:
        if not hasattr(found, attribute):
            return f"{name}: {module} has no {attribute}"
        found = getattr(found, attribute)
    return None


def imported(text: str) -> Iterator[str]:
    """The dotted names that the Python blocks of a text import from our packages."""
    for kind, code in BLOCK.findall(text):
        if kind == "pycon":
            code = "".join(example.source for example in doctest.DocTestParser().get_examples(code))
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("gdr_"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name.startswith("gdr_"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `gdr_trl.reward` is made from, and the folder in which `python -m benchmarks` is run."""
    import gdr_trl

    monkeypatch.setenv("GDR_CONFIG", "http://127.0.0.1:1")
    monkeypatch.syspath_prepend(ROOT)
    yield
    vars(gdr_trl).pop("reward", None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_names_can_be_imported(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    names = {*DOTTED.findall(text), *imported(text)}
    assert [reason for name in sorted(names) if (reason := missing(name))] == []
    assert [name for name in COMMAND.findall(text) if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_holds_marks_of_a_merge(path: Path) -> None:
    assert not re.search(r"^(<{7} |>{7} |={7}$)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_names_of_a_module_that_needs_its_framework_are_read_from_its_text() -> None:
    assert missing("gdr_distilabel.GDRScore") is None
    assert missing("gdr_distilabel.Nothing") == "gdr_distilabel.Nothing: gdr_distilabel has no Nothing"


def test_paths_and_imports_are_found_and_wrong_ones_told() -> None:
    text = (
        "See `gdr_plugin.api.types.Sample`.\n```python\nfrom gdr_plugin import Nothing, Sample\n```\n"
        "```pycon\n>>> from gdr_plugin.nowhere import Sample\n>>> import numpy\n```\n"
    )
    assert DOTTED.findall(text) == ["gdr_plugin.api.types.Sample", "gdr_plugin.nowhere"]
    names = [*DOTTED.findall(text), *imported(text)]
    assert names[2:] == ["gdr_plugin.Nothing", "gdr_plugin.Sample", "gdr_plugin.nowhere.Sample"]
    assert [missing(name) for name in names] == [
        None,
        "gdr_plugin.nowhere: gdr_plugin has no nowhere",
        "gdr_plugin.Nothing: gdr_plugin has no Nothing",
        None,
        "gdr_plugin.nowhere.Sample: gdr_plugin has no nowhere",
    ]


def test_the_pages_name_some() -> None:
    """Else the patterns above have stopped matching."""
    found = {name for path in FILES for name in imported(path.read_text(encoding="utf-8"))}
    assert {"gdr_plugin.GuidedDensityRatio", "gdr_plugin.hookimpl", "gdr_trl.GDRReward"} <= found
