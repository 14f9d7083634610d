"""Reads YAML files strictly: a repeated key is an error, and every error has its line number.

Knows YAML, nothing of what a file is for.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

import yaml

from gdr_plugin.api.errors import ConfigError, quoted
from gdr_plugin.text import one_line, printable

_MERGE = "tag:yaml.org,2002:merge"
_PROBLEM = 500
"""Most characters of what the parser says: it repeats what it read."""


class TextFile(Protocol):
    """A file to read: a path, or a data file of an installed package."""

    def read_text(self, encoding: str | None = None) -> str:
        """The whole text."""
        ...


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself would silently take the last of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            key = None if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if key is None or not isinstance(key, Hashable):
                continue  # a merge may be repeated; what cannot be a key is refused by the base class
            line = key_node.start_mark.line + 1
            if key in lines:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {quoted(key)} is there twice, first in line {lines[key]}: keep one",
                    problem_mark=key_node.start_mark,
                )
            lines[key] = line
        return super().construct_mapping(node, deep)


def read_yaml(source: TextFile, what: str = "", *, hint: str = "") -> object:
    """Read one YAML document.

    Args:
        source: The file, UTF-8.
        what: What messages call it in front of its path, as in "guidance file".
        hint: What to do when the file is missing; ends that message.

    Returns:
        Mappings, lists and scalars; None for an empty file.

    Raises:
        ConfigError: The file cannot be read, or is not YAML; one line that names file and line.
    """
    origin = f"{what} {source}".strip()
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{origin}: no such file{hint}") from None
    except OSError as error:
        raise ConfigError(f"{origin}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin}: is not UTF-8 text (byte {error.start})") from error
    return parse_yaml(text, origin)


def parse_yaml(text: str, origin: str) -> object:
    """Parse one YAML document.

    Args:
        text: The document.
        origin: What messages call it.

    Returns:
        Mappings, lists and scalars; None for an empty document.

    Raises:
        ConfigError: It is not YAML; one line that names the line.
    """
    try:
        # The strict loader is derived from the safe one: it makes nothing but plain data.
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        problem = printable(str(error.problem or error.context), limit=_PROBLEM)
        raise ConfigError(f"{origin}: {where}{problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: is not YAML: {printable(one_line(error), limit=_PROBLEM)}") from error
    except RecursionError:
        raise ConfigError(f"{origin}: is nested too deeply") from None
