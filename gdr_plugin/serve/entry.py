"""A question on its way to the models: its kind of work, its key, the requests that wait for it, and its outcome."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from gdr_plugin.api.errors import GDRError, ModelError
from gdr_plugin.api.types import Sample, Score

if TYPE_CHECKING:
    from gdr_plugin.reward.teacher import RawIds, TokenValues

TOKEN_FIELDS: Final = (
    "strong_token_logprobs",
    "weak_token_logprobs",
    "token_ratios",
    "token_rewards",
    "strong_token_offsets",
    "weak_token_offsets",
    "reduction",
)
"""The fields of a score that are about tokens; they are set on request only."""

_CHARACTERS: Final = 4
"""How many characters a token stands for, more or less."""
Key: TypeAlias = tuple[str, bytes]
"""A kind of work, and a digest of all that a question's answer depends on."""
Outcome: TypeAlias = Any
"""An answer, or the exception that a question failed with: a value here, which every waiting request raises for
itself."""

Question = TypeVar("Question", contravariant=True)
Answer = TypeVar("Answer")


class Work(Protocol[Question, Answer]):
    """One kind of questions to the models. Its methods are cheap but for `run`, which the worker thread alone calls."""

    @property
    def name(self) -> str:
        """What tells its keys from those of other work."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether finished answers are kept in memory for the same question asked again."""
        ...

    def key(self, question: Question) -> bytes | None:
        """A digest of all that the answer depends on; None for a question that shares its answer with no other."""
        ...

    def size(self, question: Question) -> int:
        """How much work it is, in characters or so."""
        ...

    def run(self, questions: Sequence[Question]) -> Sequence[Answer | Exception]:
        """Answer questions together: one outcome each, in order.

        Raises:
            Exception: They failed together; each is asked again alone.
        """
        ...

    def computed(self, answer: Answer) -> None:
        """Count an answer that the models computed."""
        ...


@dataclass(eq=False, slots=True)
class Entry:
    """A question on its way to the models, shared by every request that asks it."""

    work: Work[Any, Any]
    question: Any
    key: Key | None
    done: asyncio.Future[Outcome]
    turn: int
    """When it is taken, beside those of other requests: of each request, so many have the same turn (`SHARE`)."""
    arrived: float = field(default_factory=time.monotonic)
    waiters: int = 1


class ScoreQuestion(NamedTuple):
    """A sample to score."""

    sample: Sample
    tokens: bool = False
    """Whether the score carries token log-probs; it is then neither shared nor kept."""


class ScoreWork:
    """Samples that get scores: a `Work`.

    Args:
        score: Scores samples, with token log-probs where the second argument says so.
        count: Called with every score that the models computed.
    """

    name: Final = "score"
    keeps: Final = True

    def __init__(
        self, score: Callable[[Sequence[Sample], bool], Sequence[Score]], count: Callable[[Score], None]
    ) -> None:
        self._score = score
        self.computed = count

    def key(self, question: ScoreQuestion) -> bytes | None:
        """See `Work.key`."""
        return None if question.tokens else content_key(question.sample)

    def size(self, question: ScoreQuestion) -> int:
        """See `Work.size`."""
        return characters(question.sample)

    def run(self, questions: Sequence[ScoreQuestion]) -> list[Score | Exception]:
        """See `Work.run`."""
        scores = self._score([question.sample for question in questions], any(asked.tokens for asked in questions))
        return [
            score if asked.tokens else without_tokens(score) for score, asked in zip(scores, questions, strict=True)
        ]


class TeachWork:
    """Ids that get virtual log-probs: a `Work`. Rollouts do not come again, so that their answers are not kept.

    Args:
        score: Scores ids.
        parts: The models that each id passes.
        count: Called with the models' parts and the number of ids that they scored.
    """

    name: Final = "teach"
    keeps: Final = False

    def __init__(
        self,
        score: Callable[[Sequence[RawIds]], Sequence[TokenValues | Exception]],
        parts: Sequence[str],
        count: Callable[[Sequence[str], int], None],
    ) -> None:
        self._score = score
        self._parts = parts
        self._count = count

    def key(self, question: RawIds) -> bytes | None:
        """See `Work.key`: a client that asks again finds its question in the queue."""
        text = f"{question.domain!r} {question.start} {question.ids}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def size(self, question: RawIds) -> int:
        """See `Work.size`."""
        return _CHARACTERS * len(question.ids)

    def run(self, questions: Sequence[RawIds]) -> Sequence[TokenValues | Exception]:
        """See `Work.run`."""
        return self._score(questions)

    def computed(self, answer: TokenValues) -> None:
        """See `Work.computed`."""
        self._count(self._parts, len(answer.values))


def content_key(sample: Sample) -> bytes | None:
    """A hash of everything that the sample's score depends on; None when its fields have no JSON form."""
    turns = [
        [turn.role, turn.content, turn.reasoning, list(map(astuple, turn.tool_calls)), turn.tool_call_id, turn.name]
        for turn in (*sample.prompt, sample.turn)
    ]
    try:
        text = json.dumps([turns, sample.finished, dict(sample.fields)], sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return None
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def characters(sample: Sample) -> int:
    """How long the texts of a sample are together, reasoning and tool calls included."""
    return sum(len(turn.text) for turn in (*sample.prompt, sample.turn))


def without_tokens(score: Score) -> Score:
    """The score without token log-probs."""
    if score.strong_token_logprobs is None:
        return score
    nothing: dict[str, Any] = dict.fromkeys(TOKEN_FIELDS)
    return replace(score, **nothing)


def unwrap(outcome: Outcome) -> Any:
    """The answer.

    Raises:
        GDRError: What the question failed with; any other exception as a ModelError.
    """
    if isinstance(outcome, GDRError):
        raise outcome
    if isinstance(outcome, Exception):
        raise ModelError(f"the model failed on a sample: {type(outcome).__name__}: {outcome}") from outcome
    return outcome
