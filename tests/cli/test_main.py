"""The `gdr` application: exit codes, one line for an error, quiet when the reader goes away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gdr_plugin import __version__
from gdr_plugin.cli.main import COMMANDS

# A plugin file whose hook does what a test needs while `gdr plugins` runs.
PLUGIN = """
import sys, time
from gdr_plugin import Guidance, hookimpl
from gdr_plugin.api.errors import ConfigError

@hookimpl
def gdr_register_guidance():
    {body}
    return []
"""


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own GDR_DEBUG would show tracebacks instead of one line."""
    monkeypatch.delenv("GDR_DEBUG", raising=False)


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gdr_plugin", *map(str, arguments)]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def hooks(folder: Path, body: str) -> Path:
    path = folder / "hooks.py"
    path.write_text(PLUGIN.format(body=body))
    return path


def test_version_and_help(gdr) -> None:
    assert gdr("--version") == (0, f"gdr-plugin {__version__}\n", "")
    code, out, _ = gdr("--help")
    assert code == 0
    positions = [out.index(f"\u2502 {command} ") for command in COMMANDS]  # at the beginning of a row
    assert positions == sorted(positions)


def test_python_m_is_the_same_command() -> None:
    out, _ = start("--version").communicate(timeout=60)
    assert out == f"gdr-plugin {__version__}\n"


@pytest.mark.parametrize("arguments", [("nothing",), ("--nothing",), ("check", "a", "b"), ("check", "--nothing")])
def test_wrong_usage_exits_with_2(gdr, arguments) -> None:
    code, out, err = gdr(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: gdr" in err


def test_an_error_is_one_line_and_exit_code_2(gdr, tmp_path: Path) -> None:
    missing = tmp_path / "gdr.yaml"
    assert gdr("check", missing) == (2, "", f"gdr: {missing}: no such file: `gdr init {missing}` writes one\n")


def test_an_error_of_several_lines_becomes_one(gdr, tmp_path: Path) -> None:
    code, _, err = gdr("--plugin", hooks(tmp_path, "raise ConfigError('one\\ntwo')"), "plugins")
    assert code == 2
    assert err.count("\n") == 1
    assert "one two" in err


def test_debug_shows_the_traceback_and_the_line(gdr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = gdr("--debug", "check", tmp_path / "none.yaml")
    assert code == 2
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1].startswith("gdr: ")
    monkeypatch.setenv("GDR_DEBUG", "1")
    assert "Traceback" in gdr("check", tmp_path / "none.yaml")[2]
    monkeypatch.setenv("GDR_DEBUG", "0")
    assert "Traceback" not in gdr("check", tmp_path / "none.yaml")[2]


def test_a_defect_is_one_line_and_exit_code_1(gdr, monkeypatch: pytest.MonkeyPatch) -> None:
    from gdr_plugin.plugins.registry import Plugins

    def broken(self: Plugins) -> None:
        raise RuntimeError("a defect\nof ours")

    monkeypatch.setattr(Plugins, "owners", broken)
    code, _, err = gdr("plugins")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("gdr: internal error: RuntimeError: a defect of ours (--debug shows where")


def test_plugin_files_are_loaded_and_may_be_repeated(gdr, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(PLUGIN.format(body=f"return [Guidance('{name}', 'x')]"))
    code, out, _ = gdr("--plugin", tmp_path / "one.py", "--plugin", tmp_path / "two.py", "plugins", "--json")
    assert code == 0
    registered = {(entry["name"], entry["plugin"]) for entry in json.loads(out)["registered"]}
    assert {(name, str(tmp_path / f"{name}.py")) for name in ("one", "two")} <= registered
    code, _, err = gdr("--plugin", tmp_path / "three.py", "plugins")
    assert (code, err) == (2, f"gdr: plugin {str(tmp_path / 'three.py')!r} cannot be read: No such file or directory\n")


def test_an_interrupt_exits_with_130_and_one_line(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    body = f"open({str(ready)!r}, 'w').close(); time.sleep(60)"
    # A shell starts background jobs with SIGINT ignored, and children would inherit that from this test run.
    process = start("--plugin", hooks(tmp_path, body), "plugins", preexec_fn=_heed_interrupts)
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, err.strip()) == ("", "gdr: interrupted")


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize("guidances", [0, 5000])
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, guidances: int, form: tuple[str, ...]) -> None:
    """As in `gdr score rows.jsonl | head`: nothing on standard error, whether a print fails or the last flush."""
    plugin = hooks(tmp_path, f"return [Guidance(f'name-{{i}}', 'x') for i in range({guidances})]")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "gdr_plugin", "--plugin", str(plugin), "plugins", *form]
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert run.stderr == ""
    assert run.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line_and_exit_code_2() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        run = subprocess.run(
            [sys.executable, "-m", "gdr_plugin", "plugins"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in run.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_a_closed_standard_error_does_not_send_errors_to_the_output(tmp_path: Path) -> None:
    command = f"{sys.executable} -m gdr_plugin check {tmp_path}/none.yaml 2>&-"
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
