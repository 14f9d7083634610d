"""`gdr integrations`, and that the pages show what it prints."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from gdr_plugin.adapters.catalogue import INTEGRATIONS
from gdr_plugin.adapters.fit import concerns
from gdr_plugin.config.load import parse_config

ROOT = Path(__file__).resolve().parents[2]
Gdr = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_the_page_has_the_snippet_that_the_command_prints(name: str, gdr: Gdr) -> None:
    shown = INTEGRATIONS[name]
    page, _, section = (shown.page or f"{name}.md").partition("#")
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    own = text
    if section:
        own = next(part for part in text.split("\n## ") if part.split("\n")[0].lower() == section)
    assert shown.snippet in own
    code, out, err = gdr("integrations", name)
    assert (code, err) == (0, "")
    assert out.endswith(f"\n{shown.snippet}\n")
    assert shown.tested in out


def test_every_package_of_ours_is_listed_and_no_other() -> None:
    packages = {shown.package for shown in INTEGRATIONS.values()} | {"gdr_vllm"}  # a server's plugin, not a trainer's
    packages.remove("gdr_plugin")  # SkyRL's environment is a snippet around the core
    assert packages == {path.parent.name for path in (ROOT / "integrations").glob("gdr_*/__init__.py")}
    assert all(find_spec(package) for package in packages)


def test_entry_points_are_those_of_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {(group, name) for group, names in project["entry-points"].items() for name in names}
    declared.remove(("vllm.general_plugins", "gdr"))
    assert declared == {shown.entry_point for shown in INTEGRATIONS.values() if shown.entry_point}


def test_the_list_says_what_is_installed(gdr: Gdr, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = {line.split()[0]: line for line in gdr("integrations")[1].splitlines()[2:] if line}
    assert list(rows) == ["name", *INTEGRATIONS] or list(rows)[-len(INTEGRATIONS) :] == list(INTEGRATIONS)
    for name, metadata in {"verl": "Name: verl\nVersion: 9.8.7", "gdr": "Name: gdr-here\nVersion: 0"}.items():
        info = tmp_path / f"{name}-9.8.7.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{metadata}\n")
    (tmp_path / "gdr-9.8.7.dist-info" / "entry_points.txt").write_text("[verl.plugins]\ngdr = gdr_verl.manager\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    row = next(line for line in gdr("integrations")[1].splitlines() if line.startswith("verl"))
    assert "9.8.7" in row
    assert "verl.plugins: gdr" in row
    assert "missing" not in row


def test_a_misspelt_name_is_said(gdr: Gdr) -> None:
    code, _, err = gdr("integrations", "verll")
    assert code != 0
    assert "verl" in err


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_check_says_what_would_go_wrong_there(name: str, gdr: Gdr, tmp_path: Path) -> None:
    file = tmp_path / "gdr.yaml"
    file.write_text(
        "strong: fake:a\nweak: fake:b\nreward: {reduction: sum}\n"
        "guidance: {domains: {chat: none, math: math}}\nrouting: {routers: [keyword], default_domain: chat}\n"
    )
    code, out, _ = gdr("check", file, "--for", name, "--json")
    assert code == 0
    (said,) = json.loads(out)["for"].values()
    assert {"reward.reduction: sum", "routing.routers", "not scored"} == set(said)
    file.write_text(file.read_text().replace("sum", "mean").replace("keyword", "field"))
    assert f"in {INTEGRATIONS[name].title}" in gdr("check", file, "--for", name)[1]
    assert set(json.loads(gdr("check", file, "--for", name, "--json")[1])["for"][INTEGRATIONS[name].title]) == {
        "not scored"
    }


def test_local_models_in_eight_workers_are_warned_of() -> None:
    config = parse_config({"strong": "org/strong", "weak": "org/weak"})
    assert "each of its eight reward workers" in concerns("verl", config)["models"]


def test_check_for_a_trainer_that_is_not_known(gdr: Gdr, tmp_path: Path) -> None:
    code, _, err = gdr("check", tmp_path / "gdr.yaml", "--for", "verll")
    assert code != 0
    assert "did you mean" in err
