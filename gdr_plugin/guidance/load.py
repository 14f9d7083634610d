"""Guidance files: YAML to `Guidance`. Knows the file's shape, nothing of how a guidance is rendered or chosen.

A file holds one guidance, or several under `guidances:`

    name: contracts                 # letters, digits, `.`, `_`, `-`; not `none`
    description: Questions about contracts and their clauses.      # optional, one line; the likelihood router reads it
    instruction: |                  # optional when there are exemplars
      A good answer names the clause that it rests on. ...
    exemplars:                      # optional when there is an instruction
      - id: notice-period           # unique in its guidance
        principle: Quote before you interpret.       # optional
        prompt: Can I leave at the end of the month?
        good: Clause 7 asks for four weeks' notice, so ...
        bad: Sure, just tell them.
        why: The good answer rests on the clause; the bad one guesses.

White space around texts does not count.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from gdr_plugin.api.errors import ConfigError, unknown
from gdr_plugin.api.guidance import Exemplar, Guidance
from gdr_plugin.config.yamlfile import parse_yaml, read_yaml

__all__ = ["library", "load_guidance_file"]

_GUIDANCE_KEYS = ("name", "description", "instruction", "exemplars")
_EXEMPLAR_KEYS = ("id", "principle", "prompt", "good", "bad", "why")
_NAME = re.compile(r"[\w][\w.-]*")


def load_guidance_file(path: str | Path) -> list[Guidance]:
    """Read the guidances of a file.

    Args:
        path: A YAML file; the module's docstring describes its form.

    Returns:
        Its guidances, in the file's order; at least one.

    Raises:
        ConfigError: The file cannot be read, or an entry is wrong; one line that names the file, the key and what is
            allowed.
    """
    source = Path(path)
    return _parse(read_yaml(source, hint="; guidance files are named under guidance.files"), f"guidance file {source}")


def library() -> list[Guidance]:
    """The guidances that come with the package, by name.

    Returns:
        chat, code, factuality, instruction-following, math, reasoning, safety.
    """
    return list(_library())


@functools.cache
def _library() -> tuple[Guidance, ...]:
    folder = files("gdr_plugin.guidance").joinpath("library")
    texts = sorted((e.name, e.read_text(encoding="utf-8")) for e in folder.iterdir() if e.name.endswith(".yaml"))
    return tuple(guidance for name, text in texts for guidance in _parse(parse_yaml(text, origin=name), name))


def _parse(data: object, origin: str) -> list[Guidance]:
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{origin}: must hold a mapping with {', '.join(_GUIDANCE_KEYS)}, or a list under 'guidances'"
        )
    if "guidances" not in data:
        return [_guidance(data, origin)]
    _known_keys(data, ("guidances",), origin)
    entries = data["guidances"]
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{origin}: guidances: must be a list of at least one guidance")
    guidances = [_guidance(entry, f"{origin}: guidances[{index}]") for index, entry in enumerate(entries)]
    _unique([guidance.name for guidance in guidances], "name", f"{origin}: guidances")
    return guidances


def _guidance(entry: object, where: str) -> Guidance:
    mapping = _known_keys(entry, _GUIDANCE_KEYS, where)
    name = _text(mapping, "name", where)
    if name == "none" or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: name: {name!r} cannot be used; take letters, digits, '.', '_' or '-', but not 'none'"
        )
    description = _text(mapping, "description", where, required=False)
    if "\n" in description:
        raise ConfigError(f"{where}: description: must be one line")
    instruction = _text(mapping, "instruction", where, required=False)
    entries = mapping.get("exemplars")
    if entries is not None and not isinstance(entries, list):
        raise ConfigError(f"{where}: exemplars: must be a list of mappings with {', '.join(_EXEMPLAR_KEYS)}")
    exemplars = tuple(_exemplar(entry, f"{where}: exemplars[{index}]") for index, entry in enumerate(entries or ()))
    _unique([exemplar.id for exemplar in exemplars], "id", f"{where}: exemplars")
    if not instruction and not exemplars:
        raise ConfigError(f"{where}: needs an instruction or exemplars")
    return Guidance(name=name, instruction=instruction, exemplars=exemplars, description=description)


def _exemplar(entry: object, where: str) -> Exemplar:
    mapping = _known_keys(entry, _EXEMPLAR_KEYS, where)
    return Exemplar(
        id=_text(mapping, "id", where),
        prompt=_text(mapping, "prompt", where),
        good=_text(mapping, "good", where),
        bad=_text(mapping, "bad", where),
        why=_text(mapping, "why", where),
        principle=_text(mapping, "principle", where, required=False),
    )


def _known_keys(entry: object, allowed: Sequence[str], where: str) -> Mapping[Any, Any]:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: must be a mapping with {', '.join(allowed)}, not {type(entry).__name__}")
    for key in entry:
        if key not in allowed:
            raise ConfigError(f"{where}: {unknown('key', key, allowed)}")
    return entry


def _text(mapping: Mapping[Any, Any], key: str, where: str, *, required: bool = True) -> str:
    value = mapping.get(key)
    if value is None and not required:
        return ""
    if value is None:
        raise ConfigError(f"{where}: {key}: is missing; it must be text")
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {key}: must be text, not {value!r} ({type(value).__name__}); put it in quotes")
    # A leading blank is kept: it may be the indentation of code.
    text = value.strip("\r\n").rstrip()
    if not text.strip() and required:
        raise ConfigError(f"{where}: {key}: is empty; it must be text")
    return text


def _unique(names: Sequence[str], key: str, where: str) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(f"{where}: the {key} {name!r} is used twice")
