"""What a chat template writes between turns, learned by rendering probes, and the ways to read a text by it.

Knows one template's text. Knows no tokens, and does not judge a reading: the caller renders it again and compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Final, TypeAlias

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import Conversation, Message
from gdr_plugin.models.text.template import ChatTemplate

ROLES: Final = ("user", "assistant", "system", "tool")
_STEPS: Final = 20_000
"""Turn boundaries tried for one text before it is given up: no real conversation comes near."""
_PROBES: Final = (
    "user",
    "system user",
    "user assistant user",
    "system user assistant user",
    "user assistant user assistant user",
    "system system user",
    "user user",
    "user assistant tool",
    "user assistant tool tool",
    "user assistant tool assistant user",
)
_DATE: Final = re.compile(r"""strftime_now\(\s*["']([^"']+)["']\s*\)""")
_MARKUP: Final = re.compile(r"[<>\[\]|]")
_Move: TypeAlias = "tuple[str, re.Pattern[str]]"
_Step: TypeAlias = "tuple[int, int, str | None]"


class TemplateTurns:
    """The literal texts before, between and after turns.

    A template may write another text at the same place in longer conversations, so every place has a set of them.
    Today's date, where the template writes it, matches any other day's: training goes on past midnight.

    Args:
        template: The template.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._formats = _DATE.findall(template.text)
        starts: set[tuple[str, str]] = set()
        moves: dict[str, set[tuple[str, str]]] = {role: set() for role in ROLES}
        ends: dict[str, set[str]] = {role: set() for role in ROLES}
        for probe in _PROBES:
            roles = probe.split()
            texts = _between(template, roles)
            if texts is None:
                continue
            starts.add((roles[0], texts[0]))
            for role, following, text in zip(roles, roles[1:], texts[1:], strict=False):
                moves[role].add((following, text))
            ends[roles[-1]].add(texts[-1])
        self.starts = [(role, self.pattern(text)) for role, text in sorted(starts, key=_longest_first)]
        """What opens a conversation: first role and text. A longer text comes first: one that holds a default system
        turn before the header of a system turn; of two the same, the user's."""
        self.ends = {role: sorted(texts, key=len, reverse=True) for role, texts in ends.items() if texts}
        """What follows a last turn: its end and the generation prompt."""
        literals = [text for _, text in starts] + [text for found in moves.values() for _, text in found]
        self.marks = frozenset(word for text in literals for word in text.split() if _MARKUP.search(word))
        """Words that the template writes and people hardly do: those with brackets or bars in them."""
        self.headers = frozenset(word for text in literals for word in text.split() if word.endswith(":"))
        """Words that head a turn in plain text, as `User:` does."""
        self._moves: dict[str, list[_Move]] = {}
        self._any: dict[str, re.Pattern[str]] = {}
        for role, found in moves.items():
            ordered = sorted((one for one in found if one[1]), key=_longest_first)
            self._moves[role] = [(following, self.pattern(text)) for following, text in ordered]
            self._any[role] = re.compile("|".join(pattern.pattern for _, pattern in self._moves[role]) or "(?!)")

    def pattern(self, text: str) -> re.Pattern[str]:
        """The literal text as a pattern, in which today's date stands for any day's."""
        escaped = re.escape(text)
        for layout in self._formats:
            escaped = escaped.replace(re.escape(datetime.now().strftime(layout)), r"[^\n<>\[\]]{1,40}")
        return re.compile(escaped)

    def same(self, one: str, other: str) -> bool:
        """Whether two rendered texts are the same but for the date that the template writes."""
        return one == other or (bool(self._formats) and self.pattern(one).fullmatch(other) is not None)

    def fits_end(self, text: str) -> bool:
        """Whether a text ends as a prompt does."""
        return any(text.endswith(end) for ends in self.ends.values() for end in ends)

    def prompt_ends(self, text: str) -> Iterator[int]:
        """The places behind which a response may begin, the last one first."""
        ends = {end for found in self.ends.values() for end in found if end}
        found = {match.end() for end in ends for match in re.finditer(re.escape(end), text)}
        yield from sorted(found, reverse=True)

    def readings(self, text: str) -> Iterator[Conversation]:
        """Ways to read a rendered prompt, the likeliest first: turns end at the earliest place where one can end."""
        for role, pattern in self.starts:
            if (match := pattern.match(text)) is not None:
                yield from self._read(text, role, match.end())

    def tails(self, text: str) -> list[Conversation]:
        """Ways to read a rendered prompt that has lost its beginning, the likeliest first.

        That is the one whose first turn, whatever its role was, ends at the earliest place.
        """
        found = []
        for role in ROLES:
            usual = (turns for turns in self._read(text, role, 0) if len(turns) == 1 or turns[1].role != role)
            if (turns := next(usual, None)) is not None:
                found.append(turns)
        return sorted(found, key=lambda turns: len(turns[0].content))

    def _read(self, text: str, role: str, begin: int) -> Iterator[Conversation]:
        """Depth first, without recursion: a conversation may have more turns than Python has stack."""
        path: list[tuple[str, int, Iterator[_Step]]] = [(role, begin, self._steps(text, role, begin))]
        ends: list[int] = [0]
        for _ in range(_STEPS):
            step = next(path[-1][2], None)
            if step is None:
                path.pop()
                ends.pop()
                if not path:
                    return
                continue
            ends[-1], after, following = step
            if following is None:
                yield tuple(Message(role, text[at:end]) for (role, at, _), end in zip(path, ends, strict=True))
            else:
                path.append((following, after, self._steps(text, following, after)))
                ends.append(0)

    def _steps(self, text: str, role: str, begin: int) -> Iterator[_Step]:
        """Where the turn that begins at `begin` may end: `(its end, the next turn's begin, the next role or None)`."""
        at = begin
        while (found := self._any[role].search(text, at)) is not None:
            for following, pattern in self._moves[role]:
                if (match := pattern.match(text, found.start())) is not None:
                    yield found.start(), match.end(), following
            at = found.start() + 1
        for end in self.ends.get(role, ()):
            if text.endswith(end) and len(text) - len(end) >= begin:
                yield len(text) - len(end), len(text), None


def _between(template: ChatTemplate, roles: list[str]) -> list[str] | None:
    """The texts around the turns of a probe; None where the template refuses it, or moves or drops a turn."""
    marks = [f"qprobe{number}q" for number in range(len(roles))]
    try:
        rest = template.render([Message(role, mark) for role, mark in zip(roles, marks, strict=True)])
    except ChatError:
        return None
    if any(rest.count(mark) != 1 for mark in marks):
        return None
    texts = []
    for mark in marks:
        text, found, rest = rest.partition(mark)
        if not found:
            return None
        texts.append(text)
    return [*texts, rest]


def _longest_first(one: tuple[str, str]) -> tuple[int, int, str]:
    role, text = one
    return -len(text), ROLES.index(role), text
