"""A response cut where both models have a boundary: pieces of text with both models' log-probs, exact on each piece.

With one tokenizer on both sides a piece is a token; bytes of one character, and marks on a letter, stay together. With
two tokenizers a piece runs from one common boundary to the next. Knows scores and text; nothing of pages.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gdr_plugin.api.types import Message, Sample, Score

__all__ = ["Cell", "cells", "sample_cells", "written"]

Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of a response."""

    text: str
    """Empty for the end of turn."""
    strong: float
    """The strong model's log-prob of the piece, in nats."""
    weak: float
    """The weak model's log-prob of the piece, in nats."""
    strong_tokens: int
    """How many of the strong model's tokens make up the piece."""
    weak_tokens: int
    """How many of the weak model's tokens make up the piece."""
    total: float
    """The log-ratio of everything up to and with this piece, in nats."""

    @property
    def ratio(self) -> float:
        """The piece's log-ratio, strong less weak, in nats."""
        return self.strong - self.weak


def cells(score: Score, response: str) -> list[Cell]:
    """Cut a scored response into the pieces that both models can be compared on.

    Args:
        score: The response's score, made with `tokens=True`.
        response: Its text.

    Returns:
        The pieces in order. Their texts make up the response; the end of turn, where it was scored, is the last piece
        and has no text. One piece for everything where a model's chat format does not say where tokens are.

    Raises:
        ValueError: The score has no token log-probs.
    """
    strong, weak = score.strong_token_logprobs, score.weak_token_logprobs
    if strong is None or weak is None:
        raise ValueError("the score has no token log-probs: score with tokens=True")
    bounds = [(0, 0, 0)]  # characters, strong tokens, weak tokens
    if score.strong_token_offsets is None or score.weak_token_offsets is None:
        bounds.append((len(response), len(strong), len(weak)))
    else:
        mine = _boundaries(score.strong_token_offsets, len(response))
        theirs = _boundaries(score.weak_token_offsets, len(response))
        places = sorted(place for place in mine.keys() & theirs.keys() if place and not _inside(response, place))
        bounds += [(place, mine[place], theirs[place]) for place in places]
        if bounds[-1][1:] != (len(strong), len(weak)):
            bounds.append((len(response), len(strong), len(weak)))  # the end of turn
    found = []
    total = 0.0
    for (start, s0, w0), (stop, s1, w1) in pairwise(bounds):
        parts = math.fsum(strong[s0:s1]), math.fsum(weak[w0:w1])
        total += parts[0] - parts[1]
        found.append(Cell(response[start:stop], *parts, s1 - s0, w1 - w0, total))
    return found


def written(turn: Message) -> str:
    """All that a turn says, for people: the thought, the answer, and each call on a line of its own."""
    calls = "".join(f"\n{call.name}({call.arguments})" for call in turn.tool_calls)
    return turn.reasoning + turn.content + (calls if turn.reasoning or turn.content else calls[1:])


def sample_cells(score: Score, sample: Sample) -> list[Cell]:
    """Cut a scored sample's `written` text as `cells` does; reasoning that came apart from the answer is one piece."""
    size = len(sample.reasoning)
    if size:
        strong, weak = (
            offsets and _moved(offsets, size) for offsets in (score.strong_token_offsets, score.weak_token_offsets)
        )
        score = replace(score, strong_token_offsets=strong, weak_token_offsets=weak)
    return cells(score, written(sample.turn))


def _moved(offsets: Offsets, size: int) -> tuple[tuple[int, int], ...]:
    """Places in an answer as places behind a thought, to which the ids before the answer belong."""
    inside = next((at for at, (_, stop) in enumerate(offsets) if stop), len(offsets))
    return ((0, size),) * inside + tuple((start + size, stop + size) for start, stop in offsets[inside:])


def _boundaries(offsets: Offsets, size: int) -> dict[int, int]:
    """The places in the text between two tokens -> how many tokens are before them."""
    count = len(offsets)
    while count and offsets[count - 1] == (size, size):
        count -= 1  # the end of turn
    found: dict[int, int] = {0: 0}
    reach = 0
    for at in range(count):
        reach = max(reach, offsets[at][1])
        if at + 1 == count or offsets[at + 1][0] >= reach:
            found.setdefault(reach, at + 1)
    # What a tokenizer drops at the end belongs to its last token; an id without text there stays with the text.
    found[size] = count
    return found


def _inside(text: str, place: int) -> bool:
    """Whether a cut here would tear apart what a reader sees as one character."""
    if place >= len(text):
        return False
    before, after = text[place - 1], text[place]
    if "\U0001f1e6" <= after <= "\U0001f1ff":  # flags are pairs of these
        run = place
        while run and "\U0001f1e6" <= text[run - 1] <= "\U0001f1ff":
            run -= 1
        return (place - run) % 2 == 1
    return (
        unicodedata.category(after).startswith("M")
        or after == "\u200d"
        or before == "\u200d"
        or "\U0001f3fb" <= after <= "\U0001f3ff"
        or "\U000e0020" <= after <= "\U000e007f"
        or (before == "\r" and after == "\n")
    )
