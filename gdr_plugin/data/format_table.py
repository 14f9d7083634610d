"""The table of formats: `formats.yaml`, read and asked which format a row has.

Knows columns by name and shape; how a row becomes an item is `preference_formats`'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from gdr_plugin.api.errors import DataError, unknown
from gdr_plugin.data.benchmarks import Benchmark, benchmarks
from gdr_plugin.data.columns import LABELS, has, lookup

__all__ = ["FORMATS", "Format", "Kind", "format_named"]

_TRANSCRIPT = re.compile(r"\s*(Human|Assistant):")

Kind = Literal["sides", "two", "list", "single"]
Path = str | Sequence[str] | None
"""Where a role's value is: a column or path, the first of several, or nowhere."""


@dataclass(frozen=True, slots=True)
class Format:
    """One format of preference data; the head of `formats.yaml` says what its fields mean."""

    name: str
    sets: str
    has: Sequence[str]
    columns: str = ""
    any: Sequence[str] = ()
    without: Sequence[str] = ()
    lists: Sequence[str] = ()
    transcripts: Sequence[str] = ()
    each: int | None = None
    counted: Mapping[str, str] = field(default_factory=dict)
    known: str | None = None
    roles: Mapping[str, Path] = field(default_factory=dict)
    label: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    part: Mapping[str, str] = field(default_factory=dict)
    domains: str | None = None
    benchmark: str | None = None
    template: Sequence[str] = ()
    marks: Mapping[str, str] = field(default_factory=dict)
    turns: str | None = None
    interleave: bool = False
    contexts: str = "shared"
    join: str | None = None
    loose: bool = False
    kind: Kind = "sides"
    """How its rows state a preference: chosen and rejected (`sides`), `two` responses and a label, a `list` with scores
    or ranks, a `single` response that is good or bad."""

    @property
    def parts(self) -> Benchmark | None:
        """The benchmark whose parts its data have; None where there is none."""
        return benchmarks().get(self.benchmark or self.name)

    def at(self, role: str) -> tuple[str, ...]:
        """The columns or paths where a role's value may be, in order; none where the format has no such role."""
        path = self.roles.get(role, role)
        return () if path is None else (path,) if isinstance(path, str) else tuple(path)

    def matches(self, data: Mapping[str, Any], stem: str = "") -> bool:
        """Whether a row's columns are this format's.

        Args:
            data: The columns.
            stem: The name of the row's file.
        """
        return (
            all(has(data, path) for path in self.has)
            and (not self.any or any(has(data, path) for path in self.any))
            and not any(has(data, path) for path in self.without)
            and all(_is_list(lookup(data, path), self.each) for path in self.lists)
            and all(_is_transcript(lookup(data, path)) for path in self.transcripts)
            and (self.known is None or self._knows(data.get(self.known), stem))
        )

    def _knows(self, value: object, stem: str) -> bool:
        if value is None:
            return stem in self.part
        return isinstance(value, str) and self.parts is not None and self.parts.subset(value) is not None

    def with_map(self, columns: Mapping[str, str] | None) -> Format:
        """The format for rows whose columns were renamed: what was named counts before the format's own names.

        Args:
            columns: As for `load_items`, with the values of the label under `label.a`, `label.b` and `label.tie`.
        """
        if not columns:
            return self
        # A label stated with --map is one value, whatever the format's own label is made of.
        stated = {name.partition(".")[2]: [columns[name]] for name in LABELS if name in columns}
        own = {name: value for name, value in self.label.items() if name not in ("flags", "votes")}
        label = stated or (own if "label" in columns else self.label)
        roles = {**self.roles, **{name: name for name in columns if name not in LABELS}}
        return replace(self, roles=roles, label=label)


def _is_list(value: object, each: int | None) -> bool:
    return (
        isinstance(value, list | tuple)
        and all(isinstance(text, str) for text in value)
        and (each is None or len(value) == each)
    )


def _is_transcript(value: object) -> bool:
    return isinstance(value, str) and _TRANSCRIPT.match(value) is not None


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        DataError: There is none.
    """
    if name not in FORMATS:
        raise DataError(unknown("format", name, ["auto", *FORMATS]))
    return FORMATS[name]


@cache
def _formats() -> dict[str, Format]:
    text = files("gdr_plugin.data").joinpath("formats.yaml").read_text(encoding="utf-8")
    found = {name: Format(name=name, **entry) for name, entry in yaml.safe_load(text).items()}
    return {
        name: replace(own, kind=_kind(own), columns=own.columns or ", ".join(own.has)) for name, own in found.items()
    }


def _kind(format: Format) -> Kind:
    named = {*format.roles, *format.has, *format.any}
    ways: dict[str, Kind] = {"response_a": "two", "responses": "list", "response": "single"}
    return next((kind for role, kind in ways.items() if role in named), "sides")


FORMATS: dict[str, Format] = _formats()
"""The formats by name, the narrowest first: the first that matches a row is its format."""
