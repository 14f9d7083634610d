r"""The form of a file with keyword rules. Knows what each key allows; nothing of how texts are scored.

    threshold: 3            # a domain needs at least this score
    margin: 1               # and at least this much more than the next one
    domains:
      math:
        otherwise: reasoning        # optional: the domain that takes these prompts where `math` is not configured
        rules:                      # a rule counts once, however many of its words and patterns are in the text
          - weight: 3               # negative: speaks against the domain
            words: [integral, square root, trigonomet*]
            patterns: ['\bsolve for [a-z]\b']

`words` are whole words and phrases (`self harm` also matches "self-harm"); a `*` at the end stands for any ending of
the last word. `patterns` are Python regular expressions that are searched in the text. Both see the text in lower case
(casefolded), with plain apostrophes.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from gdr_plugin.config.messages import FileEntry

__all__ = ["WORD", "RulesFile", "fold"]

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+|[+#]+)*")
"""Letters and digits, apostrophes inside, and the signs that end the names of programming languages (c++, c#)."""


def fold(text: str) -> str:
    """A text as words and patterns see it: without the difference of capitals, with plain apostrophes."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", text).casefold().replace("\u2019", "'")


def _check_word(word: str) -> str:
    if not WORD.search(fold(word)):
        raise ValueError(f"{word!r} has no letters or digits; use patterns")
    return word


def _check_pattern(pattern: str) -> str:
    if re.search("[A-Z]", re.sub(r"\\.|\(\?P<\w+>|\(\?P=\w+\)", "", pattern)):
        raise ValueError(f"{pattern!r} has capitals, but is searched in lower-case text")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


def _check_name(name: str) -> str:
    if not name:
        raise ValueError("a domain's name must not be empty")
    return name


_Word: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(_check_word)]
_Pattern: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(_check_pattern)]


class Rule(FileEntry):
    """One rule: what it looks for, and how much it counts."""

    weight: float
    words: list[_Word] = Field(default_factory=list)
    patterns: list[_Pattern] = Field(default_factory=list)

    @model_validator(mode="after")
    def _looks_for_something(self) -> Rule:
        if not self.words and not self.patterns:
            raise ValueError("needs words or patterns")
        return self


class DomainRules(FileEntry):
    """The rules of one domain."""

    otherwise: str = Field(default="", min_length=1)
    rules: list[Rule] = Field(min_length=1)


class RulesFile(FileEntry):
    """A whole file."""

    threshold: float = Field(gt=0)
    margin: float = Field(ge=0)
    domains: dict[Annotated[str, AfterValidator(_check_name)], DomainRules] = Field(min_length=1)
