"""The threads of our own programs: fewer where a quota says so, asleep while they wait, and nobody else's settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gdr_plugin.cli.threads import cpu_quota, settle_threads


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        (
            {
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
                "proc/self/cgroup": "4:memory:/other\n2:cpu,cpuacct:/a\n",
            },
            3.0,
        ),
        (
            {  # the smallest of the group's own quota and those above it
                "proc/self/cgroup": "0::/pods/mine\n",
                "sys/fs/cgroup/pods/cpu.max": "400000 100000",
                "sys/fs/cgroup/pods/mine/cpu.max": "800000 100000",
            },
            4.0,
        ),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, None),
    ],
)
def test_quotas(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(tree(tmp_path, files)) == quota


@pytest.fixture
def four_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of four cores with two threads each, before torch is loaded."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    names = {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}\n" for n in range(8)}
    return tree(tmp_path, names)


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("max 100000", None), ("150000 100000", "2"), ("10000 100000", "1"), ("400000 100000", None), ("600000 1", None)],
)
def test_a_quota_below_the_cores_decides(four_cores: Path, quota: str, threads: str | None) -> None:
    tree(four_cores, {"sys/fs/cgroup/cpu.max": quota})
    environment: dict[str, str] = {}
    settle_threads(environment, four_cores)
    waiting = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "1"}
    assert environment == {**waiting, **({"OMP_NUM_THREADS": threads} if threads else {})}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_has_set_stays(four_cores: Path, name: str) -> None:
    tree(four_cores, {"sys/fs/cgroup/cpu.max": "100000 100000"})
    environment = {"OMP_NUM_THREADS": "3", name: "x"}
    settle_threads(environment, four_cores)
    assert environment == {"OMP_NUM_THREADS": "3", name: "x"}


def test_a_host_program_is_left_alone(four_cores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    environment: dict[str, str] = {}
    settle_threads(environment, four_cores)
    assert environment == {}


def test_the_command_settles_before_torch_and_an_import_does_not() -> None:
    """What a process's environment is after `gdr --version`, and after the library's import."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP", "KMP"))}
    shown = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    command = f"import gdr_plugin.cli as c\ntry: c.main(['plugins'])\nexcept SystemExit: {shown}"
    library = f"from gdr_plugin import GuidedDensityRatio as G; G.from_models('fake:a', 'fake:b'); {shown}"
    for code, last in ((command, "20000"), (library, "None")):
        done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == last
