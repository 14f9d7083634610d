"""The guidance found, as a file that gdr.yaml can name. Knows YAML and where files may go; nothing of models."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from gdr_plugin.api.errors import OutputError
from gdr_plugin.api.guidance import Guidance
from gdr_plugin.config.schema import Config
from gdr_plugin.files import atomic, check_output

MARK = "# Written by gdr tune"
"""How a file of ours begins; others are never overwritten."""
_WIDTH = 110


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks that people can read and edit."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    lines = text.split("\n")
    block = all(line.isprintable() and line == line.rstrip() for line in lines) and text[0] != " "
    # What is neither one line nor a clean block (other line breaks, control characters) is quoted with escapes, since
    # YAML would fold it: the text that was scored is the text that is written.
    style = None if text.isprintable() else "|" if block else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def check_out(out: Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse an output file that is an input, or that somebody wrote by hand, before anything is computed.

    Raises:
        OutputError: The file cannot be used.
    """
    check_output("-o", out, inputs)
    if out.exists() and not out.read_bytes().startswith(MARK.encode()):
        raise OutputError(f"{out} was not written by gdr tune: name another file with -o, or remove it")


def write_guidance(out: Path, guidance: Guidance, provenance: Iterable[str]) -> None:
    """Write a guidance file; it appears when it is complete.

    Args:
        out: The file.
        guidance: What it holds.
        provenance: Where it comes from, a comment line each; the first follows `MARK`.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic(out) as file:
        file.write(guidance_yaml(guidance, provenance))


def guidance_yaml(guidance: Guidance, provenance: Iterable[str]) -> str:
    """A guidance file's text; reading it back gives an equal guidance."""
    lines = [" ".join("".join(c if c.isprintable() else " " for c in line).split()) for line in provenance]
    comments = [f"{MARK} {lines[0]}", *(f"# {line}" for line in lines[1:])]
    data: dict[str, Any] = {"name": guidance.name}
    data |= {"description": guidance.description} if guidance.description else {}
    data |= {"instruction": guidance.instruction} if guidance.instruction else {}
    exemplars = [
        {
            "id": exemplar.id,
            **({"principle": exemplar.principle} if exemplar.principle else {}),
            **{"prompt": exemplar.prompt, "good": exemplar.good, "bad": exemplar.bad, "why": exemplar.why},
        }
        for exemplar in guidance.exemplars
    ]
    data |= {"exemplars": exemplars} if exemplars else {}
    body = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)
    return "\n".join(comments) + "\n" + body


def registration(config: Config, folder: Path, out: Path, *, domain: str, guidance: Guidance) -> str:
    """The part of gdr.yaml that uses the file, with what is there already.

    Args:
        config: The configuration as it is.
        folder: The folder of gdr.yaml, which relative paths are relative to.
        out: The guidance file.
        domain: The domain that gets the guidance.
        guidance: What the file holds.

    Returns:
        The keys of `guidance:` that change, as YAML.
    """
    section: dict[str, Any] = {}
    if len(guidance.exemplars) > config.guidance.exemplars:
        section["exemplars"] = len(guidance.exemplars)
    section["domains"] = {**config.guidance.domains, domain: guidance.name}
    files = [*map(Path, config.guidance.files), out]
    section["files"] = list(dict.fromkeys(_relative(file, folder) for file in files))
    return yaml.safe_dump({"guidance": section}, sort_keys=False, allow_unicode=True).rstrip()


def _relative(path: Path, folder: Path) -> str:
    """The path from a folder on, where it lies within or beside it."""
    relative = Path(os.path.relpath(path.absolute(), folder.absolute()))
    return str(path.absolute() if relative.parts[:2] == ("..", "..") else relative)
