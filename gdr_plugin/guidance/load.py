"""Reads guidance files: YAML to `Guidance`. Knows the file's form; nothing of how a guidance is rendered or chosen.

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

White space at the end of a text, and line breaks at its beginning, are dropped.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field, field_validator, model_validator

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.guidance import Exemplar, Guidance
from gdr_plugin.config.messages import FileEntry, validated
from gdr_plugin.config.yamlfile import parse_yaml, read_yaml

__all__ = ["library", "load_guidance_file"]

_NAME = re.compile(r"[\w][\w.-]*")


def _trimmed(text: str) -> str:
    # A leading blank is kept: it may be the indentation of code.
    return text.strip("\r\n").rstrip()


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; it must be text")
    return text


_OptionalText: TypeAlias = Annotated[str, AfterValidator(_trimmed)]
_Text: TypeAlias = Annotated[_OptionalText, AfterValidator(_filled)]


class _Exemplar(FileEntry):
    """One entry under `exemplars`."""

    id: _Text
    principle: _OptionalText = ""
    prompt: _Text
    good: _Text
    bad: _Text
    why: _Text


class _Guidance(FileEntry):
    """One guidance."""

    name: _Text
    description: _OptionalText = ""
    instruction: _OptionalText = ""
    exemplars: list[_Exemplar] = Field(default_factory=list)

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str) -> str:
        if name == "none" or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be used; take letters, digits, '.', '_' or '-', but not 'none'")
        return name

    @field_validator("description")
    @classmethod
    def _one_line(cls, description: str) -> str:
        if "\n" in description:
            raise ValueError("must be one line")
        return description

    @field_validator("exemplars")
    @classmethod
    def _distinct(cls, exemplars: list[_Exemplar]) -> list[_Exemplar]:
        _check_distinct("id", [exemplar.id for exemplar in exemplars])
        return exemplars

    @model_validator(mode="after")
    def _says_something(self) -> _Guidance:
        if not self.instruction and not self.exemplars:
            raise ValueError("needs an instruction or exemplars")
        return self

    def guidance(self) -> Guidance:
        """The guidance that the entry describes."""
        exemplars = tuple(Exemplar(**exemplar.model_dump()) for exemplar in self.exemplars)
        return Guidance(name=self.name, instruction=self.instruction, exemplars=exemplars, description=self.description)


class _Guidances(FileEntry):
    """A file with several guidances."""

    guidances: list[_Guidance] = Field(min_length=1)

    @field_validator("guidances")
    @classmethod
    def _distinct(cls, guidances: list[_Guidance]) -> list[_Guidance]:
        _check_distinct("name", [guidance.name for guidance in guidances])
        return guidances


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
            f"{origin}: must hold a mapping with {', '.join(_Guidance.model_fields)}, or a list under 'guidances'"
        )
    if "guidances" in data:
        return [entry.guidance() for entry in validated(_Guidances, data, origin).guidances]
    return [validated(_Guidance, data, origin).guidance()]


def _check_distinct(key: str, names: list[str]) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"the {key} {twice!r} is used twice")
