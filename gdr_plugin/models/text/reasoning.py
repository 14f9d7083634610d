"""Marks of reasoning in responses and templates: `<think>`, `[THINK]`, `<seed:think>`, `<|START_THINKING|>` ...

Knows spellings only; what a template does with them is learned in `layout`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["USUAL", "Marks", "is_mark", "marks_in", "opens"]

_MARK: Final = re.compile(r"<[|\uff5c]?/?[\w:]*think[\w:]*[|\uff5c]?>|\[/?think\]", re.IGNORECASE)
_CLOSING: Final = re.compile(r"[<\[][|\uff5c]?(/|end)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Marks:
    """The spellings around reasoning."""

    opening: str
    closing: str


USUAL: Final = Marks("<think>", "</think>")
"""The marks of most models: how reasoning is written for a template that says nothing of its own."""


def is_mark(text: str) -> bool:
    """Whether a token's spelling is a mark of reasoning."""
    return _MARK.fullmatch(text) is not None


def marks_in(text: str) -> list[Marks]:
    """The pairs of marks in a text, in order of their opening; a closing mark alone has the opening it belongs to."""
    found = list(dict.fromkeys(match[0] for match in _MARK.finditer(text)))
    openings = [mark for mark in found if not _CLOSING.match(mark)]
    openings += [_opening_of(mark) for mark in found if _CLOSING.match(mark)]
    return [Marks(mark, _closing_of(mark)) for mark in dict.fromkeys(openings)]


def opens(text: str) -> re.Match[str] | None:
    """The mark that is still open at the end of a text, None where there is none or it was closed."""
    found = list(_MARK.finditer(text))
    return found[-1] if found and not _CLOSING.match(found[-1][0]) else None


def _closing_of(opening: str) -> str:
    if "START" in opening:
        return opening.replace("START", "END")
    lead = 2 if opening[1] in "|\uff5c" else 1
    return f"{opening[:lead]}/{opening[lead:]}"


def _opening_of(closing: str) -> str:
    return closing.replace("END", "START") if "END" in closing else closing.replace("/", "", 1)
