"""The example plugin, built, installed into a folder of its own, and used from another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gdr_plugin

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "plugin-finance"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin as pip installs it: no network, nothing of this environment changed."""
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*command, "--no-build-isolation", "--target", target, EXAMPLE], check=True, timeout=120)
    return target


def python(installed: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python where the plugin is installed, away from the repository."""
    package = Path(gdr_plugin.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(package)])}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=installed, capture_output=True, text=True, timeout=120, check=False
    )


def test_nothing_but_the_package_and_its_metadata_is_installed(installed: Path) -> None:
    assert sorted(path.name for path in installed.iterdir()) == [
        "gdr_plugin_finance",
        "gdr_plugin_finance-0.1.0.dist-info",
    ]
    assert {path.name for path in (installed / "gdr_plugin_finance").iterdir()} >= {"guidance.yaml", "terms.yaml"}


def test_gdr_plugins_lists_it_with_its_package(installed: Path) -> None:
    run = python(installed, "-m", "gdr_plugin", "plugins", "--json")
    assert run.stderr == ""
    listed = json.loads(run.stdout)
    assert {
        "name": "finance",
        "kind": "installed",
        "package": "gdr-plugin-finance",
        "version": "0.1.0",
        "hooks": ["gdr_register_guidance", "gdr_register_routers"],
    } in listed["plugins"]
    mine = [(entry["kind"], entry["name"]) for entry in listed["registered"] if entry["plugin"] == "finance"]
    assert mine == [("guidance", "finance-advice"), ("guidance", "finance-analysis"), ("router", "finance")]
    table = python(installed, "-m", "gdr_plugin", "plugins").stdout
    assert "gdr-plugin-finance" in table


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The example's gdr.yaml with fake models."""
    path = tmp_path / "gdr.yaml"
    text = (EXAMPLE / "gdr.yaml").read_text()
    for line in ("strong: hf:NousResearch/Nous-Hermes-2-Mistral-7B-DPO", "weak: hf:teknium/OpenHermes-2.5-Mistral-7B"):
        assert line in text
        text = text.replace(line, line.split()[0] + " fake:" + line.split(":")[0])
    path.write_text(text)
    return path


def test_its_configuration_is_fine(installed: Path, config: Path) -> None:
    run = python(installed, "-m", "gdr_plugin", "check", "--json", config)
    assert run.stderr == ""
    facts = json.loads(run.stdout)
    assert facts["routing"]["routers"] == ["field", "finance", "keyword"]
    assert len(facts["guidance"]["domains"]["finance-advice"]["exemplars"]) == 2


def test_a_configuration_without_its_domains_is_refused(installed: Path, config: Path) -> None:
    config.write_text(config.read_text().replace("    finance-analysis: finance-analysis\n", ""))
    run = python(installed, "-m", "gdr_plugin", "check", config)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        "gdr: the router 'finance': unknown domain 'finance-analysis': known are chat, finance-advice, safety "
        "(did you mean 'finance-advice'?)\n"
    )


ROUTE = """
import json, sys
from gdr_plugin import Message, Plugins, Sample
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.routing import RouterChain, RoutingContext
routers = Plugins().routers()
chain = RouterChain([routers["field"], routers["finance"]], "chat")
domains = {"chat": "", "finance-advice": "", "finance-analysis": ""}
samples = [Sample((Message("user", text),), "", fields=fields) for text, fields in json.loads(sys.argv[1])]
routed = chain.route(samples, RoutingContext(domains, FakeModel("a")))
print(json.dumps([[answer.domain, answer.router] for answer in routed]))
"""

PROMPTS = [
    ("Should I put my savings into bonds or an index fund?", "finance-advice"),
    ("Is it wise to refinance my mortgage while rates fall?", "finance-advice"),
    ("We owe $8,000 on two credit cards. Which debt first?", "finance-advice"),
    ("Explain the difference between EBITDA and EBIT.", "finance-analysis"),
    ("What is the NPV of -100, 60 and 60 at 10 %?", "finance-analysis"),
    ("How do share buybacks change earnings per share?", "finance-analysis"),
    ("How long does chicken stock keep?", None),
    ("What is a covalent bond?", None),
    ("Write a poem about the river bank.", None),
    ("My house is too warm in summer. What can I do?", None),
    ("Share your favourite opening in chess.", None),
]


def test_its_router_decides_finance_and_nothing_else(installed: Path) -> None:
    rows = [(prompt, {}) for prompt, _ in PROMPTS] + [(PROMPTS[0][0], {"domain": "chat"})]
    run = python(installed, "-c", ROUTE, json.dumps(rows))
    assert run.stderr == ""
    expected = [[domain, "finance"] if domain else ["chat", "default"] for _, domain in PROMPTS]
    assert json.loads(run.stdout) == [*expected, ["chat", "field"]]


def test_its_options_are_checked(installed: Path) -> None:
    code = (
        "from gdr_plugin import Plugins\n"
        "router = Plugins().routers()['finance']\n"
        "assert router.with_options(advice='money').advice == 'money'\n"
        "try: router.with_options(colour='red')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    run = python(installed, "-c", code)
    assert run.stderr == ""
    assert run.stdout.strip() == (
        "ConfigError routing.routers: the router 'finance' has no option colour; it has advice, analysis"
    )
