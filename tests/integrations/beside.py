"""Where a framework's released code runs beside ours: paths, and the snippets of a page in a folder of their own."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.docs.snippets import Folder, Snippet, snippets

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = Path(os.environ.get("GDR_TEST_CLIENTS") or Path(sys.prefix) / "clients")
"""`make .venv/.clients` installs each framework into a folder of its own below it."""
SERVING = "gdr: serving gdr.yaml on http://127.0.0.1:5000 (routes: http://127.0.0.1:5000/docs)"


def skip_without(*clients: str) -> None:
    """Skip where a framework is not installed."""
    if missing := [client for client in clients if not (CLIENTS / client).is_dir()]:
        pytest.skip(f"{' and '.join(missing)} not installed: make .venv/.clients")


def installed(folder: Path) -> Path:
    """A folder in which our integrations and their entry points are found as an installed wheel's are."""
    folder /= "site-packages"  # by this name inspect_ai knows a package from a user's own file
    folder.mkdir()
    for package in (ROOT / "integrations").iterdir():
        (folder / package.name).symlink_to(package)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / "gdr_here-0.dist-info"
    info.mkdir()
    lines = [
        f"[{group}]\n{name} = {value}"
        for group, names in project["entry-points"].items()
        for name, value in names.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gdr-here\nVersion: 0\n")
    return folder


def shown(page: str, language: str, section: str | None = None) -> list[Snippet]:
    """The snippets of a page, or of its section, in one language."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    if section is not None:
        text = next(part for part in text.split("\n## ") if part.split("\n")[0] == section)
    return [snippet for snippet in snippets(text) if snippet.language == language]


@contextmanager
def page_folder(
    path: Path, base: Path, config: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, *clients: str
) -> Iterator[Folder]:
    """A folder with a gdr.yaml, in which commands find the frameworks, and Python their packages and ours."""
    from gdr_plugin.models.local.identity import cache_folder

    folder = Folder.made(path, base)
    (path / "gdr.yaml").write_text(json.dumps(config))
    installed(path)
    paths = [path, *(CLIENTS / client for client in clients)]
    programs = [str(CLIENTS / client / "bin") for client in clients]
    monkeypatch.setenv("GDR_CACHE", str(cache_folder()))  # models that are converted already
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("PATH", os.pathsep.join([*programs, os.environ["PATH"]]))
    try:
        yield folder
    finally:
        folder.close()


def run(folder: Folder, text: str, **more: str) -> str:
    """Run a page's commands: the server that ends with `&` first, the others when it is there.

    Args:
        folder: Where.
        text: The commands. Port 5000 becomes a free one.
        **more: Variables of the environment.

    Returns:
        What the commands printed.
    """
    lines = []
    for line in text.splitlines():
        if not line.endswith(" &"):
            lines.append(line)
            continue
        code, said = folder.background(line.removesuffix(" &"), SERVING)
        assert code == 0, said
    ours = f"export PYTHONPATH='{folder.path / 'site-packages'}':\"$PYTHONPATH\"\n"  # before the repository's own
    before = ours + "".join(f"export {name}='{value}'\n" for name, value in more.items())
    code, output = folder.shell(before + "\n".join(lines))
    assert code == 0, output[-3000:]
    return output
