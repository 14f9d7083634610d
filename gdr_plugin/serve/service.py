"""The scoring service behind every HTTP dialect: it checks sizes, owns the batcher and says whether it is ready.

Knows nothing of HTTP but the status of a refused request. A route author needs `score`, `settings` and `squash`;
`DataError` (422), `RequestError` and every other `GDRError` (500) raised in a route become JSON answers.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from gdr_plugin.api.errors import ConfigError, ModelError, RequestError
from gdr_plugin.api.service import ServeSettings
from gdr_plugin.api.types import Message, Sample, Score
from gdr_plugin.logs import logger
from gdr_plugin.serve.batcher import Batcher
from gdr_plugin.serve.entry import ScoreQuestion, ScoreWork, TeachWork, characters
from gdr_plugin.text import one_line

if TYPE_CHECKING:
    from gdr_plugin.reward.reward import GuidedDensityRatio
    from gdr_plugin.reward.teacher import RawIds, Teacher, TokenValues
    from gdr_plugin.serve.metrics import Metrics

log = logger("gdr_plugin.serve")
T = TypeVar("T")

BODY_BYTES: ContextVar[int] = ContextVar("gdr_body_bytes", default=0)
"""The size of the body of the request that this task answers."""
LARGE_BODY: Final = 32_768
"""Bytes from which on a body is read in a thread."""
MAX_FIELDS: Final = 262_144
"""Characters and values in the fields of one sample: domain, label, and what else routers may read."""
PROBE = Sample((Message("user", "How many days are there in a leap year?"),), "A leap year has 366 days.")
"""The sample that both models score before the service is ready."""


class BatchingService:
    """Scores samples for many requests at once; use it as an async context manager, or `start` and `stop` it.

    Args:
        ratio: The reward. From `start` on only the service's worker thread uses it.
        settings: Batching, limits, and what dialects read.
        teacher: What scores ids of trainers that distil, with the same models; None: nothing does.
    """

    def __init__(
        self, ratio: GuidedDensityRatio, settings: ServeSettings | None = None, *, teacher: Teacher | None = None
    ) -> None:
        from gdr_plugin.serve.metrics import Metrics

        self.ratio = ratio
        self.teacher = teacher
        self.settings = settings or ServeSettings()
        self.metrics: Metrics = Metrics(
            queued=lambda: self.batcher.queued,
            waiting=lambda: self.batcher.waiting,
            ready=lambda: self.ready,
            marked=lambda: ratio.spelt_marks,
            store_failures=lambda: getattr(ratio.store, "failures", 0),
            models=teacher.models if teacher else {"strong": ratio.strong, "weak": ratio.weak},
        )
        self.batcher = Batcher(self.settings, self.metrics)
        self._scoring = ScoreWork(self._score_batch, self.metrics.computed)
        self._teaching = TeachWork(teacher.score, tuple(teacher.models), self.metrics.taught) if teacher else None
        self.batcher.on_death = self._fail
        # Threads that read large bodies take turns with the event loop: more of them would hold it up for longer.
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="gdr-reader")
        self.failure: str | None = None
        """Why the service will not become ready (again); None while it may."""
        self.on_ready: Callable[[], None] = lambda: None
        """Called in the event loop when the service becomes ready."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called in the event loop when `failure` is set."""
        self._unready: str | None = "the models are not loaded yet"

    @property
    def ready(self) -> bool:
        """Whether both models have scored a probe and the worker lives."""
        return self.unready_reason is None

    @property
    def unready_reason(self) -> str | None:
        """Why the service is not ready; None when it is."""
        return self.failure or self.batcher.stopped_reason or self._unready

    async def start(self) -> None:
        """Start the worker thread in the running event loop; requests are taken (and wait) from now on."""
        self.batcher.start(asyncio.get_running_loop())

    async def probe(self) -> Score:
        """Load the models by scoring a probe; the service is ready afterwards.

        Returns:
            The probe's score.

        Raises:
            ModelError: A model cannot be loaded, or cannot score the probe.
        """
        score = (await self.batcher.ask(self._scoring, [ScoreQuestion(PROBE)]))[0]
        if score.reward is None:
            raise ModelError(f"the probe could not be scored: {score.reason}")
        if self.teacher is not None and self._teaching is not None:
            await self.batcher.ask(self._teaching, [self.teacher.probe(PROBE.prompt, PROBE.response)])
        self._unready = None
        self.on_ready()
        return score

    async def load(self) -> None:
        """Do what `probe` does, but keep an error as the service's `failure`."""
        try:
            await self.probe()
        except Exception as error:
            if self.failure is None:
                log.debug("the models could not be loaded", exc_info=error)
                self._fail(one_line(error))

    async def stop(self, timeout_s: float = 60.0) -> int:
        """Finish what is queued, then end the worker.

        Args:
            timeout_s: How long that may take, in seconds.

        Returns:
            Samples that were left unscored.
        """
        left = await self.batcher.stop(timeout_s)
        self._readers.shutdown(wait=False)
        return left

    def give_up(self) -> int:
        """Answer every waiting request with 503 and take no more; the running batch is not waited for.

        Returns:
            Samples that were left unscored.
        """
        return self.batcher.give_up()

    async def __aenter__(self) -> Self:
        await self.start()
        await self.probe()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def read(self, make: Callable[[], T], *, items: int) -> T:
        """Make a request's samples out of its body; see `ScoringService.read`."""
        self._check_count(items)
        if BODY_BYTES.get() < LARGE_BODY:  # microseconds: a thread would take longer
            return make()
        return await asyncio.get_running_loop().run_in_executor(self._readers, make)

    async def score(self, samples: Sequence[Sample], *, tokens: bool = False) -> list[Score]:
        """Score one request's samples, batched with those of other requests.

        A sample that is being scored, or was scored lately, for another request is not scored again. Cancelling the
        call is safe.

        Args:
            samples: What to score; may be empty.
            tokens: Whether the scores carry token log-probs (these are not kept in memory).

        Returns:
            One score a sample, in order; `reward` is None with a reason where a sample cannot be scored.

        Raises:
            RequestError: The request is too large (413), or the service is overloaded, stopping or broken (503).
            ModelError: A model failed on one of these samples, twice.
        """
        limit = self.settings
        self._check_count(len(samples))
        for number, sample in enumerate(samples):
            size = characters(sample)
            if size > limit.max_chars:
                raise RequestError(f"item {number} has {size:,} characters: send at most {limit.max_chars:,}")
        if BODY_BYTES.get() >= LARGE_BODY:
            await asyncio.get_running_loop().run_in_executor(self._readers, _check_fields, samples)
        scores = await self.batcher.ask(self._scoring, [ScoreQuestion(sample, tokens) for sample in samples])
        self.metrics.answered(scores)
        return scores

    async def teach(self, questions: Sequence[RawIds]) -> list[TokenValues]:
        """Score one request's ids, batched with those of other requests and with samples; see `Teacher`.

        Args:
            questions: What to score; may be empty. Cancelling the call is safe.

        Returns:
            One result a question, in order.

        Raises:
            ConfigError: The service has no teacher.
            DataError: Ids cannot be scored; the message says why.
            RequestError: The request is too large (413), or the service is overloaded, stopping or broken (503).
            ModelError: A model failed on some of these ids, or its log-probs are not finite.
        """
        if self.teacher is None or self._teaching is None:
            raise ConfigError("this service has no teacher: start `gdr serve` with --teacher")
        self._check_count(len(questions))
        for asked in questions:
            self.teacher.check(asked)
        return await self.batcher.ask(self._teaching, questions)

    def squash(self, reward: float) -> float:
        """The reward in 0..1, by the settings' temperature."""
        return squash(reward, self.settings.temperature)

    def _check_count(self, items: int) -> None:
        if items > self.settings.max_items:
            raise RequestError(f"{items:,} items in one request: send at most {self.settings.max_items:,}")

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self.on_failure()

    def _score_batch(self, samples: Sequence[Sample], tokens: bool) -> list[Score]:
        return self.ratio.score(samples, tokens=tokens)


def _check_fields(samples: Sequence[Sample]) -> None:
    """Refuse fields that would take long to compare and to keep.

    Raises:
        RequestError: A sample's are too large.
    """
    for number, sample in enumerate(samples):
        size, waiting = 0, [sample.fields]
        while waiting:
            value: Any = waiting.pop()
            size += 1 + (len(value) if isinstance(value, str) else 0)
            if isinstance(value, Mapping):
                size += sum(len(str(key)) for key in value)
                waiting += value.values()
            elif isinstance(value, list):
                if size + len(value) <= MAX_FIELDS:
                    waiting += value
                size += len(value)
            if size > MAX_FIELDS:
                raise RequestError(f"the fields of item {number} are too large: send at most {MAX_FIELDS:,} characters")


def squash(reward: float, temperature: float = 1.0) -> float:
    """The logistic function of `reward / temperature`: 0.5 where both models agree; never overflows.

    Args:
        reward: Any finite number.
        temperature: Above 0; the larger, the nearer to 0.5.

    Returns:
        A number in 0..1.
    """
    return 0.5 * (1.0 + math.tanh(0.5 * reward / temperature))
