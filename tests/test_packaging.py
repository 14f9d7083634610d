"""What pyproject.toml promises: the version, the dependencies and their lower bounds."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from gdr_plugin import __version__
from gdr_plugin.models.local.packages import EXTRA, LOWEST

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CODE = [ROOT / folder for folder in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]

# The extras that users install. `dev`, `test`, `demo` and `docs` are for this repository.
EXTRAS = sorted(set(PROJECT["project"]["optional-dependencies"]) - {"dev", "test", "demo", "docs"})

# Frameworks that load these files of ours themselves, so that they are always there already.
HOSTS = {"areal", "distilabel", "inspect_ai", "nemo_gym", "openrlhf", "swift", "verifiers", "verl"}


def published() -> dict[str, Requirement]:
    """Every third-party requirement of the core and of the users' extras, by canonical name."""
    project = PROJECT["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name == project["name"]:
            continue  # one extra that includes another
        assert found.setdefault(name, requirement).specifier == requirement.specifier, f"two bounds for {name}"
    return found


def imported(file: Path) -> set[str]:
    """The top-level names that a module imports anywhere: at its top, in functions, for type checkers."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_the_version_is_written_once() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    literal = re.compile(rf"""["']{re.escape(__version__)}["']""")
    files = [ROOT / "pyproject.toml", *(file for folder in CODE for file in folder.rglob("*.py"))]
    found = [str(file.relative_to(ROOT)) for file in files if literal.search(file.read_text(encoding="utf-8"))]
    assert found == [PROJECT["tool"]["hatch"]["version"]["path"]]


def test_the_build_reads_that_version() -> None:
    command = [sys.executable, "-m", "hatchling", "version"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == __version__


@pytest.mark.parametrize("folder", CODE, ids=lambda folder: folder.name)
def test_every_imported_package_is_a_declared_dependency(folder: Path) -> None:
    ours = {package.name for package in CODE}
    third_party = set().union(*map(imported, folder.rglob("*.py"))) - ours - HOSTS - sys.stdlib_module_names
    # vLLM's plugin runs in vLLM's environment, which need not have our dependencies.
    assert not third_party if folder.name == "gdr_vllm" else third_party or folder.name != "gdr_plugin"
    distributions = importlib.metadata.packages_distributions()
    declared = published()
    undeclared = {
        name
        for name in third_party  # where torch is not installed (`make test-python`), the name itself has to be declared
        if not {canonicalize_name(package) for package in distributions.get(name, [name])} & declared.keys()
    }
    assert undeclared == set()


def test_models_look_for_the_versions_that_their_extra_asks_for() -> None:
    """Nothing else would in an environment that has them without the extra, such as a trainer's."""
    asked = map(Requirement, PROJECT["project"]["optional-dependencies"][EXTRA])
    bounds = {requirement.name: str(requirement.specifier).removeprefix(">=") for requirement in asked}
    assert {**LOWEST, "gdr-plugin": "", "packaging": bounds["packaging"]} == bounds
    core = {canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"]}
    assert not core & {*LOWEST, "pyarrow"}


def test_the_lowest_versions_that_are_tested_are_the_published_bounds() -> None:
    """constraints-lowest.txt pins every published package at exactly its bound.

    But for torch (see the Makefile), and for Ray, which is tested in an environment of its own.
    """
    text = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")
    pins = {
        canonicalize_name(name): Version(version)
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE)
    }
    bounds = {}
    for name, requirement in published().items():
        (specifier,) = requirement.specifier
        assert specifier.operator == ">=", f"{name} has no lower bound"
        bounds[name] = Version(specifier.version)
    del bounds["torch"]
    assert f"ray[data]=={bounds.pop('ray')}.0" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {name: pins.get(name) for name in bounds} == bounds


def test_one_python_version_is_promised_everywhere() -> None:
    lowest = Version(PROJECT["project"]["requires-python"].removeprefix(">="))
    text = f"{lowest.major}.{lowest.minor}"
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{lowest.major}{lowest.minor}"
    assert PROJECT["tool"]["mypy"]["python_version"] == text
    assert f"Python {text} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert promised[0] == text
    plugin = tomllib.loads((ROOT / "examples/plugin-finance/pyproject.toml").read_text(encoding="utf-8"))
    assert plugin["project"]["requires-python"] == PROJECT["project"]["requires-python"]
