"""The floors of the house: a package imports only from floors below its own, and nothing imports in a circle.

Every import counts: those inside functions and those for type checkers too, since they tie the same knots.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = (
    {"gdr_plugin.version", "gdr_plugin.progress", "gdr_plugin.text"},
    {"gdr_plugin.logs", "gdr_plugin.api"},
    {"gdr_plugin.files", "gdr_plugin.config", "gdr_plugin.arithmetic", "gdr_plugin.store"},
    {"gdr_plugin.cluster", "gdr_plugin.data", "gdr_plugin.guidance", "gdr_plugin.plugins", "gdr_plugin.report"},
    {"gdr_plugin.models", "gdr_plugin.models.text", "gdr_plugin.routing"},
    {"gdr_plugin.models.local", "gdr_plugin.models.servers", "gdr_plugin.evaluation.measures"},
    {"gdr_plugin.sampling", "gdr_plugin.reward"},
    {"gdr_plugin", "gdr_plugin.scoring", "gdr_plugin.serve"},
    {
        "gdr_plugin.adapters",
        "gdr_plugin.annotation",
        "gdr_plugin.evaluation.ablations",
        "gdr_plugin.evaluation.controllability",
        "gdr_plugin.evaluation.pairs",
        "gdr_plugin.explain",
        "gdr_plugin.planning",
        "gdr_vllm",
    },
    {
        "gdr_plugin.builtin",
        "gdr_plugin.evaluation",
        "gdr_plugin.tuning",
        "gdr_areal",
        "gdr_distilabel",
        "gdr_inspect",
        "gdr_llamafactory",
        "gdr_nemo_gym",
        "gdr_openrlhf",
        "gdr_slime",
        "gdr_swift",
        "gdr_trl",
        "gdr_verifiers",
        "gdr_verl",
    },
    {"gdr_plugin.cli"},
)
"""The packages by floor, the lowest first. Those of one floor do not import each other."""


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for folder in (ROOT, ROOT / "integrations"):
        for path in sorted([*folder.glob("gdr_*/**/*.py")]):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of ours that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide where they lead"
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                if target in known:
                    yield target
                elif node.module in known:
                    yield str(node.module)


def package_of(module: str, known: Mapping[str, Path]) -> str:
    """The package that a module belongs to; a module of the top level stands for itself."""
    if module == "gdr_plugin.__main__":
        return "gdr_plugin.cli"
    if known[module].name == "__init__.py" or (module.count(".") == 1 and module.startswith("gdr_plugin.")):
        return module
    return module.rpartition(".")[0]


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imports(name, path, known)) - {name} for name, path in known.items()}


def climbing(edges: Mapping[str, set[str]], known: Mapping[str, Path]) -> list[str]:
    """The imports that do not lead down, as text."""
    floor = {package: number for number, floors in enumerate(FLOORS) for package in floors}
    return [
        f"{module} (floor {floor[mine]}) imports {target} (floor {floor[theirs]})"
        for module, targets in edges.items()
        for target in sorted(targets)
        if (mine := package_of(module, known)) != (theirs := package_of(target, known)) and floor[mine] <= floor[theirs]
    ]


def test_every_package_has_its_floor() -> None:
    known = modules()
    assert {package_of(name, known) for name in known} == {package for floor in FLOORS for package in floor}


def test_the_architecture_draws_the_same_floors() -> None:
    drawn: dict[str, int] = {}
    floor = -1
    for row in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## The floors")[2].splitlines():
        if match := re.match(r"\| (\d*) ?\| (`.*?) \|", row):
            floor = int(match[1] or floor)
            rooms = re.findall(r"`([\w/]+?)(?:/|\.py)`", match[2].partition(" (")[0])
            drawn |= {room.replace("/", "."): floor for room in rooms}
    expected = {package: number for number, floors in enumerate(FLOORS) for package in floors}
    del expected["gdr_plugin"]  # the public names, below the table
    assert drawn == {package.removeprefix("gdr_plugin."): number for package, number in expected.items()}


def test_imports_lead_down() -> None:
    assert climbing(graph(), modules()) == []


def test_no_module_is_imported_in_a_circle() -> None:
    try:
        list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("gdr_plugin.api.types", "gdr_plugin.config.schema"),
        ("gdr_plugin.data.read", "gdr_plugin.routing.field"),
        ("gdr_plugin.reward.reward", "gdr_plugin.builtin"),
        ("gdr_trl.source", "gdr_openrlhf.dialect"),
    ],
)
def test_an_import_that_climbs_is_found(module: str, target: str) -> None:
    edges = graph()
    edges[module].add(target)
    assert any(found.startswith(module) and target in found for found in climbing(edges, modules()))
