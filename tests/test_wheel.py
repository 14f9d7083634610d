"""The wheel: what lands in site-packages, and that it works there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from gdr_plugin import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = [Path(folder) for folder in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
DATA = {".py", ".yaml", ".jsonl", ".html", ".css", ".js", ".typed"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, timeout=180, stdout=subprocess.DEVNULL)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Site-packages of a fresh environment with the wheel and nothing else."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True, timeout=180)
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def test_nothing_but_our_packages_lands_in_site_packages(site: Path) -> None:
    expected = {*(package.name for package in PACKAGES), f"gdr_plugin-{__version__}.dist-info"}
    assert {path.name for path in site.iterdir()} == expected


def test_every_module_and_data_file_is_in_the_wheel_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(ROOT / package.parent))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in DATA
    }
    assert inside == expected
    assert "gdr_plugin/py.typed" in inside
    assert {f"gdr_plugin/guidance/library/{name}.yaml" for name in ("chat", "safety", "math", "code")} <= inside


def test_the_metadata_names_licence_scripts_and_readme(site: Path) -> None:
    (info,) = site.glob("*.dist-info")
    assert "gdr = gdr_plugin.cli:main" in (info / "entry_points.txt").read_text()
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    assert "License-Expression: Apache-2.0" in metadata
    assert (info / "licenses" / "LICENSE").exists()
    assert (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[0] in metadata


def test_the_installed_command_runs_away_from_the_repository(site: Path, tmp_path: Path) -> None:
    """Dependencies come from this environment; the package itself from the fresh one."""
    script = site.parents[2] / "bin" / "gdr"
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}

    def gdr(*arguments: str) -> str:
        run = subprocess.run(
            [script, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert (run.returncode, run.stderr) == (0, "")
        return run.stdout

    assert gdr("--version") == f"gdr-plugin {__version__}\n"
    assert "instruction-following" in gdr("plugins")
    gdr("init", "--strong", "fake:a", "--weak", "fake:b")
    assert gdr("check", "--load").endswith("gdr.yaml is fine\n")
    where = [script.parent / "python", "-c", "import gdr_plugin; print(gdr_plugin.__file__)"]
    found = subprocess.run(where, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(site / "gdr_plugin" / "__init__.py")
