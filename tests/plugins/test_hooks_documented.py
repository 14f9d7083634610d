"""Every hook says when it is called, is in the documentation, and is implemented somewhere that tests run."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from gdr_plugin import builtin
from gdr_plugin.api import hooks as hookspecs

ROOT = Path(__file__).resolve().parents[2]


def test_hooks_are_those_with_a_specification() -> None:
    specified = {name for name, value in vars(hookspecs).items() if hasattr(value, "gdr_plugin_spec")}
    assert set(hookspecs.HOOKS) == specified
    assert len(specified) >= 4


@pytest.mark.parametrize("name", hookspecs.HOOKS)
def test_a_hook_says_when_it_is_called_and_what_its_result_means(name: str) -> None:
    hook = getattr(hookspecs, name)
    text = inspect.getdoc(hook) or ""
    assert "Called " in text, f"{name}: say when it is called"
    assert any(word in text for word in ("Return", "return", "result", "collected")), f"{name}: say what a result means"
    assert len(text.splitlines()[0]) <= 110
    assert inspect.signature(hook).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", hookspecs.HOOKS)
def test_a_hook_is_in_the_documentation(name: str) -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "plugins.md"]
    assert any(name in path.read_text(encoding="utf-8") for path in documents), f"{name} is in none of {documents}"


@pytest.mark.parametrize("name", hookspecs.HOOKS)
def test_a_hook_is_implemented_by_the_built_in_plugin(name: str) -> None:
    implementation = getattr(builtin, name)
    assert hasattr(implementation, "gdr_plugin_impl")
    assert implementation.__doc__


def test_the_built_in_backends_come_last() -> None:
    assert builtin.gdr_open_model.gdr_plugin_impl["trylast"] is True  # type: ignore[attr-defined]
