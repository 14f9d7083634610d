"""Two runs of `gdr evaluate` on the same items: is one reward better than the other?

Knows the rows that `--rows` writes; nothing of models or of how a row was scored. Items are matched by their ids, and
have to be the same texts. Paired: each item is compared with itself, so that what makes items hard does not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gdr_plugin.api.errors import DataError, unknown
from gdr_plugin.arithmetic.statistics import Estimate, difference, share, sign_test
from gdr_plugin.data.sources import read_rows
from gdr_plugin.report.tables import Cell, Table, estimate_json, estimate_text

__all__ = ["Comparison", "Paired", "compare_runs"]

_NEEDED = ("id", "subset", "item", "worths", "reduction")
_CERTAIN = 0.05
_MANY = 100_000
"""More items than that are not asked for."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Two runs on some items that both have scored."""

    items: int
    first: Estimate | None
    """The accuracy of the first run; None without items."""
    second: Estimate | None
    gain: Estimate | None
    """The second's accuracy less the first's, with the interval of a paired bootstrap."""
    better: int
    """Items on which the second run is worth more."""
    worse: int
    """Items on which the first one is."""
    p: float
    """The exact two-sided sign test of these two counts; McNemar's where no item is tied."""

    @property
    def differs(self) -> bool:
        """Whether both the test and the interval tell the runs apart."""
        return self.p < _CERTAIN and self.gain is not None and (self.gain.low > 0 or self.gain.high < 0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two runs say of each other."""

    names: tuple[str, str]
    reduction: str
    """The one that is shown first: the first run's own."""
    by_reduction: dict[str, Paired]
    by_subset: dict[str, Paired]
    """By the reduction that is shown first; empty where there is one subset only."""
    left_out: dict[str, int]
    """Items that are not compared, by reason."""

    @property
    def main(self) -> Paired:
        """All items, by the reduction that is shown first."""
        return self.by_reduction[self.reduction]

    def facts(self) -> dict[str, str]:
        """Which runs these are, for people."""
        found = {"first": self.names[0], "second": self.names[1], "items in both": f"{self.main.items:,}"}
        return found | {f"left out: {reason}": f"{count:,} items" for reason, count in self.left_out.items()}

    def tables(self) -> list[Table]:
        """By reduction, and by subset."""
        note = (
            "better and worse: items on which the second run is worth more or less. p: the exact sign test of these "
            "two (McNemar's). The interval of the gain is a paired bootstrap over items."
        )
        found = [_table("the second run against the first", "by", self.by_reduction, note)]
        if self.by_subset:
            many = len(self.by_subset)
            chance = f"Of {many} subsets, {many * _CERTAIN:.2g} have a p under {_CERTAIN} by chance alone."
            found.append(_table(f"by subset, {_spelt(self.reduction)}", "subset", self.by_subset, chance))
        return found

    def verdict(self) -> str:
        """What the numbers allow to say, in one sentence."""
        main, gain = self.main, self.main.gain
        if gain is None:
            return "The two runs have no scored item in common."
        counts = f"{main.better:,} items better, {main.worse:,} worse, p = {main.p:.2g}"
        if main.differs:
            ahead, behind = self.names if gain.value < 0 else self.names[::-1]
            low, high = sorted((abs(gain.low), abs(gain.high)))
            return f"{ahead} is better than {behind} by {low:.3f} to {high:.3f} ({counts})."
        return f"The two are not told apart: {estimate_text(gain, signed=True)} ({counts}){_missing(gain)}."

    def as_json(self) -> dict[str, Any]:
        """Everything for machines."""
        return {
            "version": 1,
            "first": self.names[0],
            "second": self.names[1],
            "reduction": self.reduction,
            "by_reduction": {name: _json(own) for name, own in self.by_reduction.items()},
            "by_subset": {name: _json(own) for name, own in self.by_subset.items()},
            "left_out": self.left_out,
            "verdict": self.verdict(),
        }


def compare_runs(first: str | Path, second: str | Path, *, names: tuple[str, str] | None = None) -> Comparison:
    """Compare two files that `gdr evaluate --rows` wrote.

    Args:
        first: One run's rows.
        second: The other's, of the same data.
        names: What the runs are called; default: the files' names.

    Returns:
        The comparison.

    Raises:
        DataError: A file is no such file, an id has other texts in the other file, or no item is in both.
    """
    runs = (_rows(first), _rows(second))
    shared = [name for name in runs[0] if name in runs[1]]
    if not shared:
        raise DataError(f"{first} and {second} have no id in common: compare runs on the same data")
    for name in shared:
        if runs[0][name]["item"] != runs[1][name]["item"]:
            raise DataError(
                f"the item {name!r} has other texts in {second} than in {first}: these are runs on different data"
            )
    pairs = [(runs[0][name], runs[1][name]) for name in shared]
    own = next(iter(runs[0].values()))
    reduction, ways = str(own["reduction"]), list(own["worths"])
    if reduction not in ways or any(way not in pairs[0][1]["worths"] for way in ways):
        raise DataError(f"{second}: {unknown('reduction', reduction, pairs[0][1]['worths'])}")
    subsets: dict[str, list[tuple[Any, Any]]] = {}
    for pair in pairs:
        subsets.setdefault(str(pair[0]["subset"]), []).append(pair)
    lost = {
        f"only in {first}": len(runs[0]) - len(shared),
        f"only in {second}": len(runs[1]) - len(shared),
        "not scored in both": sum(None in (a["worths"][reduction], b["worths"][reduction]) for a, b in pairs),
    }
    return Comparison(
        names or (str(first), str(second)),
        reduction,
        {way: _paired(pairs, way) for way in (reduction, *(way for way in ways if way != reduction))},
        {name: _paired(some, reduction) for name, some in subsets.items()} if len(subsets) > 1 else {},
        {reason: count for reason, count in lost.items() if count},
    )


def _rows(path: str | Path) -> dict[str, Mapping[str, Any]]:
    """The rows of a file by id."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in read_rows(path):
        missing = [name for name in _NEEDED if name not in row.data]
        if missing or not isinstance(row.data["worths"], Mapping) or not isinstance(row.data["id"], str):
            raise DataError(
                f"{row.where}: there is no {missing[0] if missing else 'worths'!r}: give files that gdr evaluate "
                "--rows has written, of this version"
            )
        if row.data["id"] in found:
            raise DataError(f"{row.where}: the id {row.data['id']!r} comes twice")
        found[row.data["id"]] = row.data
    return found


def _paired(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], reduction: str) -> Paired:
    worths = [(a["worths"].get(reduction), b["worths"].get(reduction)) for a, b in pairs]
    known = [(a, b) for a, b in worths if a is not None and b is not None]
    first, second = [a for a, _ in known], [b for _, b in known]
    better, worse = sum(b > a for a, b in known), sum(b < a for a, b in known)
    gain = difference(second, first)
    return Paired(len(known), share(first), share(second), gain, better, worse, sign_test(better, worse))


def _table(caption: str, head: str, parts: Mapping[str, Paired], note: str) -> Table:
    rows: list[list[Cell]] = [
        [
            _spelt(name),
            f"{own.items:,}",
            own.first,
            own.second,
            estimate_text(own.gain, signed=True),
            f"{own.better:,}",
            f"{own.worse:,}",
            f"{own.p:.2g}",
        ]
        for name, own in parts.items()
    ]
    return Table(caption, (head, "items", "first", "second", "gain", "better", "worse", "p"), rows, note)


def _spelt(name: str) -> str:
    return name.replace("per_byte", "per byte")


def _json(own: Paired) -> dict[str, Any]:
    estimates = {name: estimate_json(getattr(own, name)) for name in ("first", "second", "gain")}
    return {**asdict(own), **estimates}


def _missing(gain: Estimate) -> str:
    """How many more items would tell, if the gain stays as it is, as the end of a sentence."""
    if gain.value == 0:
        return ""
    needed = math.ceil(gain.n * ((gain.high - gain.low) / 2 / abs(gain.value)) ** 2) - gain.n
    return f"; about {needed:,} more items would tell, if it stays as it is" if 0 < needed <= _MANY else ""
