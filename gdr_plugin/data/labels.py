"""What a label says: which of two responses is the better one, that neither is, or nothing.

Knows values and how data sets write them; nothing of prompts or responses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gdr_plugin.api.errors import DataError, quoted
from gdr_plugin.data.columns import lookup
from gdr_plugin.text import is_missing, type_name

__all__ = ["Side", "UndecidedError", "best_of", "decide"]

Side = Literal["a", "b"]
"""The first response or the second one."""


class UndecidedError(DataError):
    """A row prefers no response: its label is a tie, or is not there. Such rows are counted, and not measured."""


def decide(label: Mapping[str, Any], value: Any, data: Mapping[str, Any], *, what: str, loose: bool = False) -> Side:
    """Which response a row prefers.

    Args:
        label: How the format writes it; see the head of `formats.yaml`.
        value: The label; of no use where it is made of `flags` or `votes`.
        data: The row's columns: those of flags and votes, and `model_a` and `model_b`, whose values a label may name.
        what: The label's column, for messages.
        loose: Whether capitals make no difference.

    Returns:
        The better one.

    Raises:
        UndecidedError: It is a tie, or there is no label.
        DataError: The label is none of the format's.
    """
    if "flags" in label:
        return _flags(label["flags"], data)
    if "votes" in label:
        return _votes(label, data)
    if is_missing(value):
        raise UndecidedError("no label")
    if "at" in label:
        return _number(label, value, what)
    found = _value(label, value, data, loose=loose)
    if found is None:
        raise DataError(f"`{what}` must be {_known(label)}, not {quoted(value)}{_HINT if loose else ''}")
    return _untied(found)


_HINT = (
    ": say which value means what with --map label.a=VALUE (the first response is better, or the only one good) and "
    "--map label.b=VALUE"
)


def best_of(numbers: Sequence[Any], *, lowest: bool) -> list[bool]:
    """Which responses of a list are the best: those with the highest score, or the lowest rank.

    Args:
        numbers: A score or rank for each.
        lowest: Whether the lowest is the best.

    Returns:
        Whether each is; some are, and some are not.

    Raises:
        UndecidedError: All are equal, or one has no number.
        DataError: One is no number.
    """
    if any(is_missing(number) for number in numbers):
        raise UndecidedError("a response without a score")
    found = [_as_number(number, "a score") for number in numbers]
    best = (min if lowest else max)(found, default=0.0)
    chosen = [number == best for number in found]
    if all(chosen):
        raise UndecidedError("a tie")
    return chosen


def _value(label: Mapping[str, Any], value: Any, data: Mapping[str, Any], *, loose: bool) -> str | None:
    """`a`, `b` or `tie`; None for a value that means nothing."""
    written = _written(value, loose=loose)
    for side in ("a", "b", "tie"):
        if written in [_written(known, loose=loose) for known in label.get(side, ())]:
            return side
    named = [side for side in ("a", "b") if data.get(f"model_{side}") == value]
    return named[0] if len(named) == 1 else None


def _written(value: Any, *, loose: bool = False) -> str:
    """A value as text: 1, 1.0 and "1" are the same label, true and "true" too."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        number = float(value)
    except (TypeError, ValueError):
        text = str(value).strip().replace(" > ", ">")
        return text.casefold() if loose or text in ("True", "False") else text
    return f"{number:g}"


def _untied(side: str) -> Side:
    if side == "tie":
        raise UndecidedError("a tie")
    return "a" if side == "a" else "b"


def _number(label: Mapping[str, Any], value: Any, what: str) -> Side:
    number = _as_number(value, f"`{what}`")
    if number == label["at"] or number in label.get("tie", ()):
        raise UndecidedError("a tie")
    return _untied(label["below" if number < label["at"] else "above"])


def _as_number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):  # also the text "nan", which tables write for an empty cell
        shown = quoted(value) if isinstance(value, str) else type_name(value)
        raise DataError(f"{what} must be a number, not {shown}")
    return number


def _flags(flags: Mapping[str, str], data: Mapping[str, Any]) -> Side:
    """One column for each side."""
    raised = [side for side, column in flags.items() if _written(lookup(data, column)) in ("1", "true")]
    if not raised:
        raise UndecidedError("no label")
    if len(raised) > 1:
        raise DataError(f"{' and '.join(f'`{flags[side]}`' for side in raised)} are both set: one of them can be")
    return _untied(raised[0])


def _votes(label: Mapping[str, Any], data: Mapping[str, Any]) -> Side:
    """Several labels, of which most decide."""
    votes = Counter[str]()
    for column in label["votes"]:
        value = lookup(data, column)
        if is_missing(value):
            continue
        side = _value(label, value, {}, loose=False)
        if side is None:
            raise DataError(f"`{column}` must be {_known(label)}, not {quoted(value)}")
        votes[side] += 1
    if not votes:
        raise UndecidedError("no label")
    (first, most), *rest = votes.most_common()
    if rest and rest[0][1] == most:
        raise UndecidedError("as many votes for one as for another")
    return _untied(first)


def _known(label: Mapping[str, Any]) -> str:
    values = [str(value) for side in ("a", "b", "tie") for value in label.get(side, ())]
    return " or ".join([", ".join(values[:-1]), values[-1]] if len(values) > 1 else values)
