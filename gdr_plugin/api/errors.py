"""Every exception that this package raises on purpose, in one tree.

    GDRError
    ├── ConfigError          gdr.yaml or an argument is wrong
    │   └── UnknownSchemeError   no backend knows the scheme of a model's name
    ├── PluginError          a plugin cannot be loaded, or two register the same name
    ├── DataError            an input row, file or data set is wrong
    │   └── DomainError      a router or a row names a domain that is not configured
    ├── ModelError           a model or adapter cannot be opened, or computed something unusable
    │   ├── ChatError        a conversation cannot be rendered or does not fit into the model
    │   └── PartlyScoredError    a backend failed when it had scored a part; it brings what is done
    ├── StoreError           the log-prob store cannot be used
    ├── OutputError          an output folder or file cannot be written, or belongs to another run
    ├── RequestError         the server refuses a request: too large, or it cannot take it now
    └── MissingDependencyError   an optional package is needed; the message names the extra

and two warnings (`UserWarning`s): EngineWarning, for results that are right but slower, or less certain, than wanted;
DataWarning, for an input that says more than is used.

Each message is one line that says what is wrong and what to do next. The command line prints it and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from gdr_plugin.text import line_of


class GDRError(Exception):
    """Base of all errors that this package raises on purpose.

    Its text is one line, whatever the values that a message repeats: nobody can forge a line of a log with them.
    """

    def __str__(self) -> str:
        return line_of(super().__str__())


class ConfigError(GDRError):
    """A configuration file or argument is wrong."""


class UnknownSchemeError(ConfigError):
    """No backend knows the scheme of a model's name."""


class PluginError(GDRError):
    """A plugin cannot be loaded, or two plugins register the same name."""


class DataError(GDRError):
    """An input row, file or data set is wrong."""


class DomainError(DataError):
    """A router or a row names a domain that is not configured."""


class ModelError(GDRError):
    """A model or adapter cannot be opened, or computed something unusable."""


class ChatError(ModelError):
    """A conversation cannot be rendered with a model's template, or does not fit into the model."""


class PartlyScoredError(ModelError):
    """A backend failed after it had scored some of the spans it was given.

    Args:
        message: One line: what failed and what to do.
        scored: Place of a span -> its log-probs, which a store keeps before the error goes on.
    """

    def __init__(self, message: str, scored: Mapping[int, Any]) -> None:
        super().__init__(message)
        self.scored = scored


class StoreError(GDRError):
    """The log-prob store cannot be read or written."""


class OutputError(GDRError):
    """An output folder or file cannot be written, or belongs to another run."""


class RequestError(GDRError):
    """The server refuses a request.

    Args:
        message: One line: what is wrong and what to do.
        status: The HTTP status: 413 too large, 503 cannot take it now.
    """

    def __init__(self, message: str, *, status: int = 413) -> None:
        super().__init__(message)
        self.status = status


class MissingDependencyError(GDRError):
    """An optional package is needed.

    Args:
        package: The package that could not be imported.
        extra: The extra of `gdr-plugin` that brings it.
        purpose: What it is needed for, as in "to read Hugging Face data sets".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"the package {package!r} is needed {purpose}: pip install 'gdr-plugin[{extra}]'")


_QUOTED = 100
"""Most characters of a value that a message repeats."""


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be, or None when none is close."""
    if len(str(name)) > _QUOTED:  # a name that nobody meant; looking for its like would take minutes
        return None
    near = difflib.get_close_matches(str(name), sorted(known), n=1)
    return near[0] if near else None


def quoted(value: object) -> str:
    """What the user wrote as a message shows it: its repr, of which the end is left out where it is long."""
    if isinstance(value, str) and len(value) > _QUOTED:
        value = value[:_QUOTED] + "..."
    text = repr(value)
    return text if len(text) <= 2 * _QUOTED else text[:_QUOTED] + "..."


class _OneLineWarning(UserWarning):
    """A warning whose text is one line, as that of `GDRError` is."""

    def __str__(self) -> str:
        return line_of(super().__str__())


class EngineWarning(_OneLineWarning):
    """The local engine computes in a slower or less certain way than it could; the message says which and why."""


class DataWarning(_OneLineWarning):
    """An input has columns that may belong to the prompt and that nothing reads; the message names them."""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Say that `name` is not a known `kind`, what is, and which is nearest.

    Args:
        kind: What is named, as in "router".
        name: What the user wrote.
        known: All valid names.

    Returns:
        One line without a final full stop, as in "unknown router 'keywrd': known are field, keyword (did you mean
        'keyword'?)".
    """
    names = sorted(known)
    near = nearest(name, names)
    hint = f" (did you mean {near!r}?)" if near else ""
    return f"unknown {kind} {quoted(name)}: known are {', '.join(names) or 'none'}{hint}"
