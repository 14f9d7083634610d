"""What travels through an annotation: a prompt with its responses, then with their scores, and both in a shard file.

Knows the lines of shards, which a later version must be able to read; nothing of how responses are drawn or scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import starmap
from typing import Any

from pydantic import TypeAdapter

from gdr_plugin.api.types import Conversation, Message, Score
from gdr_plugin.data.read import BadRow
from gdr_plugin.data.rows import PromptRow, Response
from gdr_plugin.scoring.run_folder import RunFolder

__all__ = [
    "BAD_ROW",
    "NOT_SAMPLED",
    "PromptRecord",
    "ScoredCandidate",
    "ScoredRecord",
    "Seconds",
    "read_responses",
    "read_scored",
    "write_responses",
    "write_scored",
]

BAD_ROW = "bad row"
NOT_SAMPLED = "not sampled"

RESPONSES = "responses"
"""Shards with drawn responses."""
CANDIDATES = "candidates"
"""Shards with scored responses."""


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A prompt with the responses that are to be scored, or why there are none."""

    row: int
    """The row's running number in the input, from 1."""
    id: str
    prompt: Conversation
    """Empty for a bad row."""
    responses: tuple[Response, ...]
    """Those that the row brings, or that were drawn."""
    reason: str | None
    """Why there are no responses, as it is counted; else None."""
    detail: str | None
    """The same in full."""
    where: str
    """The row's place in the input, for messages."""
    fields: Mapping[str, Any]
    """The row's other columns. Routers may read them."""

    @classmethod
    def of(cls, row: PromptRow | BadRow, *, sampled: bool) -> PromptRecord:
        """The record of an input row.

        Args:
            row: As checked.
            sampled: Whether the responses are still to be drawn; those of the row are then not used.
        """
        if isinstance(row, BadRow):
            return cls(row.number, row.id, (), (), BAD_ROW, row.reason, row.where, {})
        responses = () if sampled else row.responses or ()
        return cls(row.number, row.id, row.prompt, responses, None, None, row.where, row.fields)

    def answered(self, responses: tuple[Response, ...], not_sampled: str | None) -> PromptRecord:
        """The record with drawn responses, or with why none could be drawn."""
        reason = None if not_sampled is None else NOT_SAMPLED
        return replace(self, responses=responses, reason=reason, detail=not_sampled)


@dataclass(frozen=True, slots=True)
class ScoredCandidate:
    """A response with what differs between the scores of one prompt's responses; see `Score`."""

    response: str
    finished: bool
    reward: float | None
    reason: str | None
    strong_logprob: float | None
    weak_logprob: float | None
    strong_tokens: int
    weak_tokens: int
    truncated: bool

    @classmethod
    def of(cls, response: Response, score: Score) -> ScoredCandidate:
        """The candidate that a response and its score make."""
        return cls(
            response.text,
            response.finished,
            score.reward,
            score.reason,
            score.strong_logprob,
            score.weak_logprob,
            score.strong_tokens,
            score.weak_tokens,
            score.truncated,
        )


@dataclass(frozen=True, slots=True)
class ScoredRecord:
    """A prompt with its scored responses."""

    row: int
    id: str
    prompt: Conversation
    reason: str | None
    """Why there are no candidates; as in `PromptRecord`."""
    detail: str | None
    domain: str | None
    """Where the prompt was routed; None, as the next three, where there are no candidates."""
    router: str | None
    guidance: str | None
    exemplars: tuple[str, ...]
    candidates: tuple[ScoredCandidate, ...]
    """In the input's order."""

    @classmethod
    def of(cls, record: PromptRecord, scores: Sequence[Score]) -> ScoredRecord:
        """The record that a prompt and the scores of its responses make."""
        first = scores[0] if scores else None
        return cls(
            row=record.row,
            id=record.id,
            prompt=record.prompt,
            reason=record.reason,
            detail=record.detail,
            domain=first.domain if first else None,
            router=first.router if first else None,
            guidance=first.guidance if first else None,
            exemplars=first.exemplars if first else (),
            candidates=tuple(map(ScoredCandidate.of, record.responses, scores)),
        )

    def margin(self, pair: tuple[int, int]) -> float:
        """By how much the reward of a pair's chosen candidate exceeds that of the rejected one.

        Args:
            pair: `(chosen, rejected)` places of scored candidates.
        """
        chosen, rejected = (self.candidates[place].reward for place in pair)
        assert chosen is not None
        assert rejected is not None
        return chosen - rejected


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long the two parts of a window, or of a whole run, took."""

    sampling: float = 0.0
    scoring: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.sampling + other.sampling, self.scoring + other.scoring)


def write_responses(folder: RunFolder, window: int, records: Iterable[PromptRecord], seconds: float) -> None:
    """Keep the drawn responses of a window.

    Args:
        folder: The run's folder.
        window: The window's number.
        records: Its prompts with their responses.
        seconds: How long drawing took.
    """
    folder.write(RESPONSES, window, {"seconds": seconds}, map(_response_line, records))


def read_responses(folder: RunFolder, window: int, records: Sequence[PromptRecord]) -> tuple[list[PromptRecord], float]:
    """The prompts of a window with the responses that were kept, and how long drawing them took.

    Args:
        folder: The run's folder.
        window: The window's number.
        records: Its prompts as the input has them.

    Raises:
        OutputError: The shard is damaged.
    """
    with folder.reading(RESPONSES, window) as (header, lines):
        answered = [
            replace(
                record,
                responses=tuple(starmap(Response, line["responses"])),
                reason=line["reason"],
                detail=line["detail"],
            )
            for record, line in zip(records, lines, strict=True)
        ]
        return answered, header["seconds"]


def write_scored(folder: RunFolder, window: int, records: Iterable[ScoredRecord], seconds: Seconds) -> None:
    """Keep the scored prompts of a window, which finishes it.

    Args:
        folder: The run's folder.
        window: The window's number.
        records: Its prompts.
        seconds: How long they took.
    """
    folder.write(CANDIDATES, window, {"seconds": asdict(seconds)}, map(_line, records))


def read_scored(folder: RunFolder, window: int) -> tuple[list[ScoredRecord], Seconds]:
    """The scored prompts of a finished window, and how long they took.

    Args:
        folder: The run's folder.
        window: The window's number.

    Raises:
        OutputError: The shard is damaged.
    """
    with folder.reading(CANDIDATES, window) as (header, lines):
        return [_scored_line().validate_python(line) for line in lines], Seconds(**header["seconds"])


def _response_line(record: PromptRecord) -> dict[str, Any]:
    """What a shard keeps of a prompt with drawn responses: not what the input says anyway."""
    line = _line(replace(record, fields={}))  # the input's own values may be anything, and are not copied
    return {name: value for name, value in line.items() if name not in ("where", "fields")}


def _line(record: PromptRecord | ScoredRecord) -> dict[str, Any]:
    """A record's fields; of its turns, only those that say something."""
    line = {**_fields(record), "prompt": list(map(_turn, record.prompt))}
    if isinstance(record, ScoredRecord):
        line["candidates"] = list(map(_fields, record.candidates))
    return line


def _turn(turn: Message) -> dict[str, Any]:
    said = {name: value for name, value in _fields(turn).items() if value or name in ("role", "content")}
    return {**said, "tool_calls": list(map(_fields, turn.tool_calls))} if turn.tool_calls else said


def _fields(value: Any) -> dict[str, Any]:
    """A dataclass's own fields. `asdict` copies every text and list below it, too: a fifth of a run with short rows."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


@cache
def _scored_line() -> TypeAdapter[ScoredRecord]:
    return TypeAdapter(ScoredRecord)
