"""The wheel: what lands in site-packages, and that it works there, also without torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from gdr_plugin import GuidedDensityRatio, Sample, __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = [Path(folder) for folder in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


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
        if path.is_file() and path.suffix != ".pyc"
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


# An environment in which pip's choice is real: the wheel, what it depends on, and nothing of this environment.

MODELS = {"accelerate", "safetensors", "tokenizers", "torch", "transformers"}
QUESTION, ANSWERS = "How many days has a leap year?", ["A leap year has 366 days.", "So they have: five", ""]
LIST = "from importlib.metadata import distributions; print(*(found.name.lower() for found in distributions()))"


def uv(*arguments: str | Path) -> str:
    """What uv says, on whichever stream."""
    command = [Path(sysconfig.get_path("scripts")) / "uv", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if run.returncode and "client error (Connect)" in run.stderr and not os.environ.get("CI"):
        pytest.skip("no package index can be reached from here")
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


def install(python: Path, requirement: str, *options: str) -> str:
    return uv("pip", "install", "--python", python, "--constraint", ROOT / "constraints.txt", *options, requirement)


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel, without extras."""
    folder = tmp_path_factory.mktemp("light")
    uv("venv", "--python", sys.executable, folder)
    install(folder / "bin" / "python", f"gdr-plugin @ {wheel.as_uri()}")
    return folder / "bin" / "python"


def run_in(python: Path, folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "GDR_CONFIG"}}
    command = [python, *arguments]
    return subprocess.run(
        command, input=stdin, cwd=folder, env=clean, capture_output=True, text=True, timeout=120, check=False
    )


def output(python: Path, folder: Path, *arguments: str, stdin: str = "") -> str:
    run = run_in(python, folder, *arguments, stdin=stdin)
    assert run.returncode == 0, run.stderr
    return run.stdout


COMMANDS = """
import contextlib, io, json, sys
from gdr_plugin.cli import main

for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(json.loads(line))
        except SystemExit as done:
            code = done.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def test_a_plain_install_brings_no_models_and_servers_need_no_torch(light: Path, wheel: Path, tmp_path: Path) -> None:
    plain = {*output(light, tmp_path, "-c", LIST).split()}
    assert {"gdr-plugin", "pydantic", "typer"} <= plain
    assert not plain & {*MODELS, "pyarrow", "fastapi", "datasets"}
    said = install(light, f"gdr-plugin[servers] @ {wheel.as_uri()}", "--dry-run")
    more = {*re.findall(r"^ \+ ([\w.-]+)", said, flags=re.MULTILINE)}
    assert {"httpx2", "pyarrow", "tokenizers", "transformers"} <= more
    assert not more & {"accelerate", "torch"}


CLIENT = """
import json, sys
from gdr_plugin.adapters.backend import open_backend
from gdr_plugin.api.types import Sample
from gdr_plugin.reward.remote import RemoteRatio
from gdr_trl import GDRReward
import gdr_openrlhf.backend, gdr_slime, gdr_verl

url, question, *answers = sys.argv[1:]
samples = [Sample(question, answer) for answer in answers]
found = {
    "remote": [score.reward for score in RemoteRatio(url).score(samples)],
    "trl": GDRReward(remote=url)([question] * len(answers), answers),
    "backend": open_backend(url).rewards(samples),
}
print(json.dumps(found))
"""


def test_the_client_is_given_the_rewards_of_a_server_with_models(
    light: Path,
    tiny_model: Callable[..., Path],
    serving: Callable[..., AbstractContextManager[str]],
    tmp_path: Path,
) -> None:
    ratio = GuidedDensityRatio.from_models(str(tiny_model(seed=0)), str(tiny_model(seed=1)))
    expected = [score.reward for score in ratio.score([Sample(QUESTION, answer) for answer in ANSWERS])]
    with serving(ratio) as url:
        found = json.loads(output(light, tmp_path, "-c", CLIENT, url, QUESTION, *ANSWERS))
    assert len(set(expected)) == len(ANSWERS)
    for way in ("remote", "trl", "backend"):
        assert found[way] == pytest.approx(expected, abs=1e-6), way


def test_commands_work_without_models_and_say_what_is_missing(light: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": QUESTION, "response": ANSWERS[0]}))
    (tmp_path / "rows.parquet").touch()
    (tmp_path / "many.jsonl").write_text(json.dumps({"prompt": QUESTION, "responses": ANSWERS[:2]}))
    (tmp_path / "fake.yaml").write_text("{strong: 'fake:a', weak: 'fake:b'}")
    works = {
        "--help": "annotate",
        "integrations": "ms-swift",
        "path swift reward": "reward.py",
        "init --strong org/strong --weak org/weak": "gdr.yaml",
        "score rows.jsonl -c fake.yaml": '"reward": ',
    }
    lacks = {
        "check gdr.yaml": "local",
        "check gdr.yaml --load": "local",
        "score rows.jsonl": "local",
        "plan gdr.yaml --gpus 8xH100 --prompts 1 --samples 2": "local",
        "score rows.parquet -c fake.yaml": "parquet",
        "annotate many.jsonl -c fake.yaml -o out": "parquet",
        "score hf:org/rows -c fake.yaml": "datasets",
        "serve fake.yaml": "serve",
        "score rows.jsonl -c fake.yaml --set strong=vllm:http://127.0.0.1:9": "servers",
    }
    lines = "\n".join(json.dumps(command.split()) for command in (*works, *lacks))
    results = [json.loads(line) for line in output(light, tmp_path, "-c", COMMANDS, stdin=lines).splitlines()]
    assert len(results) == len(works) + len(lacks)
    for (command, expected), (code, out, _) in zip(works.items(), results, strict=False):
        assert (code, expected in out) == (0, True), command
    for (command, extra), (code, out, err) in zip(lacks.items(), results[len(works) :], strict=True):
        assert (code, out, err.count("\n")) == (2, "", 1), command
        assert err.endswith(f": pip install 'gdr-plugin[{extra}]'\n"), command
    missing = "the package 'torch' is needed for models in this process: pip install 'gdr-plugin[local]'\n"
    assert results[len(works)][2] == f"gdr: {missing}"
    # In TRL, too, it is said before anything is generated.
    made = run_in(light, tmp_path, "-c", "from gdr_trl import GDRReward; GDRReward('gdr.yaml')")
    assert made.stderr.endswith(f"MissingDependencyError: {missing}")
