"""What benchmarks call their parts, how many items each has as published, and which domain it belongs to.

Knows `benchmarks.yaml`, the data file beside it; nothing of scores. How a benchmark is scored is
`evaluation.measures.benchmarks`'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

__all__ = ["Benchmark", "Subset", "benchmarks"]


@dataclass(frozen=True, slots=True)
class Subset:
    """A part of a benchmark."""

    name: str
    section: str
    """The section that it is reported in."""
    domain: str
    """The domain that the benchmark puts it in."""
    items: int | Mapping[str, int]
    """Its items as published; by edition where those differ."""
    counts: int | None = None
    """What it weighs in its section; None: its items."""

    @property
    def weight(self) -> int:
        """What it weighs in its section."""
        if self.counts is not None:
            return self.counts
        return self.items if isinstance(self.items, int) else max(self.items.values())

    def expected(self, editions: Iterable[str]) -> int | None:
        """How many items it has as published.

        Args:
            editions: Those that the data are of; none where the benchmark has none.

        Returns:
            The number; None where an edition is not known.
        """
        if isinstance(self.items, int):
            return self.items
        found = [self.items.get(edition) for edition in editions]
        known = [number for number in found if number is not None]
        return sum(known) if known and len(known) == len(found) else None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark's parts."""

    title: str
    source: str
    """Where its numbers come from."""
    subsets: tuple[Subset, ...]
    """In the order in which they are reported."""
    prefixes: bool = False
    """Whether the data's subsets have names that only begin with those of `subsets`."""
    edition: str | None = None
    """The column that says which edition a row is of."""

    def subset(self, name: str) -> Subset | None:
        """The part that the data call `name`; None where there is none."""
        fits = str.startswith if self.prefixes else str.__eq__
        return next((part for part in self.subsets if fits(name, part.name)), None)

    @property
    def sections(self) -> dict[str, list[Subset]]:
        """The parts by section."""
        found: dict[str, list[Subset]] = {}
        for part in self.subsets:
            found.setdefault(part.section, []).append(part)
        return found


@cache
def benchmarks() -> dict[str, Benchmark]:
    """The benchmarks by the name of their format."""
    text = files("gdr_plugin.data").joinpath("benchmarks.yaml").read_text(encoding="utf-8")
    return {name: _benchmark(entry) for name, entry in yaml.safe_load(text).items()}


def _benchmark(entry: Mapping[str, Any]) -> Benchmark:
    subsets = tuple(
        Subset(name, section, **part) for section, parts in entry["sections"].items() for name, part in parts.items()
    )
    return Benchmark(entry["title"], entry["source"], subsets, bool(entry.get("prefixes")), entry.get("edition"))
