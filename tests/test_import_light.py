"""What must not be imported before it is needed, and how long `gdr --help` takes."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from gdr_plugin.cli.main import COMMANDS

HEAVY = ("torch", "transformers", "numpy", "pyarrow", "datasets", "peft", "accelerate", "fastapi", "uvicorn")


def loaded_after(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after running `code`."""
    report = f"import sys\ntry:\n    {code}\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
    report += f"print('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "code",
    [
        "import gdr_plugin",
        "import gdr_plugin.plugins.registry; gdr_plugin.plugins.registry.Plugins(entry_points=False)",
        "import gdr_plugin; gdr_plugin.Config; gdr_plugin.Guidance; gdr_plugin.load_config",
        "import gdr_plugin.reward.remote, gdr_openrlhf.backend, gdr_slime, gdr_swift, gdr_trl, gdr_verl",
        "import gdr_plugin.models.local.source, gdr_plugin.models.local.device",
        "from gdr_plugin.cli import main; main(['--help'])",
        "from gdr_plugin.cli import main; main(['--version'])",
        "from gdr_plugin.cli import main; main(['path', 'openrlhf'])",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert loaded_after(code) == set()


@pytest.mark.parametrize(
    "code",
    [
        "import gdr_plugin; gdr_plugin.GuidedDensityRatio",
        "from gdr_plugin.cli import main; main(['plugins'])",
        "from gdr_plugin import Plugins; from gdr_plugin.config.schema import *; "
        "Plugins(entry_points=False).open_model(ModelSpec(model='fake:a'), Limits())",
    ],
)
def test_torch_and_transformers_come_with_the_first_real_model(code: str) -> None:
    assert loaded_after(code) <= {"numpy"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    assert loaded_after(f"from gdr_plugin.cli import main; main([{command!r}, '--help'])") == set()


def test_help_takes_well_under_a_second() -> None:
    """Seconds of a core, which other work on the machine hardly changes; the best of three, about 0.35."""
    times = []
    for _ in range(3):
        start = _children_seconds()
        subprocess.run([sys.executable, "-m", "gdr_plugin", "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(_children_seconds() - start)
    assert min(times) < 1.0


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
