r"""When a pattern can be skipped: the first letters of the words at which it can match.

Python's `re` tries a pattern that begins with `\b` at every character. Most keyword patterns begin with one of a few
words, so a set of word beginnings tells, for nearly all texts, that a search would be in vain. This module reads just
enough of a pattern's text to find them, and gives up on whatever it does not understand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

__all__ = ["anchored", "beginnings", "gate"]

_LETTERS = re.compile("[a-z]+")
_A_DIGIT = re.compile(r"\d")
_DIGIT = "\\d"
"""Stands for "somewhere in the text is a digit"."""
_OPENING = re.compile(r"\(\?:|\((?!\?)")


def beginnings(text: str, words: Sequence[str]) -> set[str]:
    """What `gate` looks for in a text.

    Args:
        text: In lower case.
        words: Its words: runs of letters and digits, with inner apostrophes.

    Returns:
        The first two and the first three characters of all words, also of those after an apostrophe; and a mark when
        the text has a digit.
    """
    found: set[str] = {_DIGIT} if _A_DIGIT.search(text) else set()
    for word in words:
        found.add(word[:2])
        found.add(word[:3])
        if "'" in word:
            for part in word.split("'"):
                found.add(part[:2])
                found.add(part[:3])
    return found


def gate(pattern: str) -> frozenset[str] | None:
    """Word beginnings without which a pattern cannot match.

    Args:
        pattern: A valid regular expression over lower-case text.

    Returns:
        The pattern matches only texts whose `beginnings` have one of these. None when nothing can be said; the pattern
        must then be searched.
    """
    found: set[str] = set()
    for branch in _branches(pattern):
        if not branch.startswith((r"\b", _DIGIT)):
            return None
        heads = _heads(branch.removeprefix(r"\b"))
        if heads is None:
            return None
        found |= heads
    return frozenset(found)


def anchored(pattern: str) -> bool:
    """Whether a pattern can match at the text's beginning only."""
    return all(branch.startswith("^") for branch in _branches(pattern))


def _heads(branch: str) -> set[str] | None:
    opening = _OPENING.match(branch)
    if opening:
        end = _closing(branch)
        if end is None or branch[end + 1 : end + 2] in {"?", "*", "{"}:
            return None
        inner = [_heads(one) for one in _branches(branch[opening.end() : end])]
        return None if None in inner else {head for heads in inner if heads for head in heads}
    if branch.startswith(_DIGIT):
        return None if branch[2:3] in {"?", "*", "{"} else {_DIGIT}
    if branch[:1].isdecimal():
        return None if branch[1:2] in {"?", "*", "{"} else {_DIGIT}
    letters = _LETTERS.match(branch)
    text = letters[0] if letters else ""
    if branch[len(text) : len(text) + 1] in {"?", "*", "{"}:
        text = text[:-1]  # the last letter may be missing
    return {text[:3]} if len(text) >= 2 else None


def _branches(pattern: str) -> Iterator[str]:
    """The alternatives at the pattern's top level."""
    start = 0
    for index, character, depth in _walk(pattern):
        if character == "|" and depth == 0:
            yield pattern[start:index]
            start = index + 1
    yield pattern[start:]


def _closing(pattern: str) -> int | None:
    """Where the group that opens at the first character ends."""
    return next((index for index, character, depth in _walk(pattern) if character == ")" and depth == 0), None)


def _walk(pattern: str) -> Iterator[tuple[int, str, int]]:
    """The characters outside classes and escapes, with the depth of groups after each."""
    depth = index = 0
    while index < len(pattern):
        character = pattern[index]
        if character == "\\":
            index += 2
            continue
        if character == "[":
            # A `]` right after the opening (or after `^`) is a member of the class.
            index += 3 if pattern[index + 1 : index + 2] == "^" else 2
            while index < len(pattern) and pattern[index] != "]":
                index += 2 if pattern[index] == "\\" else 1
            index += 1
            continue
        depth += {"(": 1, ")": -1}.get(character, 0)
        yield index, character, depth
        index += 1
