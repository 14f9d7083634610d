"""Dynamic batching: samples of many requests reach the models together, and none is computed twice.

The event loop owns the requests, the table of samples in flight and the cache; one worker thread owns the models. They
meet in a queue under a lock. This module knows neither HTTP nor how a score is computed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from gdr_plugin.api.errors import RequestError
from gdr_plugin.api.service import ServeSettings
from gdr_plugin.api.types import Sample, Score
from gdr_plugin.serve.entry import Entry, Outcome, characters, content_key, unwrap, without_tokens

if TYPE_CHECKING:
    from gdr_plugin.serve.metrics import Metrics

BATCH_CHARS = 2_000_000
"""Characters beyond which a batch takes no further sample: a few long ones are work enough."""
GRACE_S = 10.0
"""Seconds that a sample which nobody waits for keeps its place: a client that retries finds it again."""
WAITING_PER_SLOT = 8
"""Samples that may wait for room, as a multiple of the queue (or one largest request); more are refused."""

ScoreBatch: TypeAlias = "Callable[[Sequence[Sample], bool], list[Score]]"

log = logging.getLogger("gdr_plugin.serve")


class Batcher:
    """Collects samples of many requests into batches for one worker thread.

    Args:
        score: Scores a batch; called in the worker thread alone.
        settings: Batch size, wait, queue and cache.
        metrics: Where batches, waits and hits are counted.
    """

    def __init__(self, score: ScoreBatch, settings: ServeSettings, metrics: Metrics) -> None:
        self._score = score
        self._settings = settings
        self._metrics = metrics
        self.stopped_reason: str | None = None
        """Why no request is taken any more; None while they are."""
        self.on_death: Callable[[str], None] = lambda reason: None
        """Called in the event loop, with the reason, when the worker dies."""
        self.died = False
        """Whether the worker ended by a defect rather than by `stop`."""
        self.busy_since: float | None = None
        """When the running batch began (`time.monotonic`); None between batches."""
        self.waiting = 0
        """Samples of accepted requests that are not in the queue yet because it is full."""
        self._slots = asyncio.Semaphore(settings.queue)
        self._cache: OrderedDict[bytes, Score] = OrderedDict()
        self._in_flight: dict[bytes, Entry] = {}
        self._unfinished: set[Entry] = set()
        # What follows is shared with the worker, under the condition's lock.
        self._work = threading.Condition()
        self._queue: OrderedDict[Entry, None] = OrderedDict()
        self._live = 0  # queued entries that somebody waits for
        self._stopping = False

    @property
    def queued(self) -> int:
        """Samples in the queue."""
        return len(self._queue)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the worker thread; results are delivered in `loop`."""
        self._loop = loop
        self._ended = asyncio.Event()
        threading.Thread(target=self._run, name="gdr-worker", daemon=True).start()

    async def stop(self, timeout_s: float) -> int:
        """Refuse new requests, finish what is queued and end the worker.

        Args:
            timeout_s: How long that may take, in seconds.

        Returns:
            Samples that were left unscored.
        """
        self.stopped_reason = self.stopped_reason or "the server is stopping"
        with self._work:
            self._stopping = True
            self._work.notify()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        return self.give_up()

    def give_up(self) -> int:
        """Refuse new requests and fail the waiting ones, without waiting for the running batch.

        Returns:
            Samples that somebody waited for.
        """
        self.stopped_reason = self.stopped_reason or "the server is stopping"
        left = self.waiting + sum(not entry.done.done() and entry.waiters > 0 for entry in self._unfinished)
        self._abandon_all()
        return left

    async def score(self, samples: Sequence[Sample], *, tokens: bool = False) -> list[Score]:
        """Score one request's samples; see `ScoringService.score`."""
        self._check_open()
        room = max(self._settings.queue * WAITING_PER_SLOT, self._settings.max_items)
        if self.waiting and self.waiting + len(samples) > room:
            raise RequestError(
                f"the server is overloaded: {self.waiting:,} samples wait for room in the queue; try again later",
                status=503,
            )
        left = len(samples)
        self.waiting += left
        held: list[Score | Entry] = []
        try:
            for number, sample in enumerate(samples):
                if number % 256 == 255:
                    await asyncio.sleep(0)  # hashing thousands of samples must not hold up other requests
                held.append(await self._admit(sample, tokens))
                left -= 1
                self.waiting -= 1
            futures = {answer.done for answer in held if isinstance(answer, Entry) and not answer.done.done()}
            if futures:
                await asyncio.wait(futures)  # unlike gather, does not cancel what others wait for
        finally:
            self.waiting -= left
            for answer in held:
                if isinstance(answer, Entry):
                    self._leave(answer)
        return [answer if isinstance(answer, Score) else unwrap(answer.done.result()) for answer in held]

    async def _admit(self, sample: Sample, tokens: bool) -> Score | Entry:
        """The sample's score if it is known, else its place in the queue; waits until there is room."""
        key = None if tokens else content_key(sample)
        if (known := self._known(key)) is not None:
            return known
        await self._slots.acquire()
        try:
            self._check_open()
            known = self._known(key)  # another request may have asked for it meanwhile
        except BaseException:
            self._slots.release()
            raise
        if known is not None:
            self._slots.release()
            return known
        entry = Entry(sample, tokens, key, self._loop.create_future())
        self._unfinished.add(entry)
        if key is not None:
            self._in_flight[key] = entry
        with self._work:
            self._queue[entry] = None
            self._count_live(1)
        return entry

    def _known(self, key: bytes | None) -> Score | Entry | None:
        if key is None:
            return None
        if (score := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            self._metrics.hits.labels("finished").inc()
            return score
        if (entry := self._in_flight.get(key)) is not None:
            self._metrics.hits.labels("in_flight").inc()
            with self._work:
                entry.waiters += 1
                if entry.waiters == 1 and entry in self._queue:
                    self._count_live(1)
        return entry

    def _leave(self, entry: Entry) -> None:
        """Note that a request no longer waits for the entry: it has its result, or was cancelled."""
        with self._work:
            entry.waiters -= 1
            abandoned = entry.waiters == 0 and entry in self._queue
            if abandoned:
                self._count_live(-1)
        if abandoned:
            self._loop.call_later(GRACE_S, self._forget, entry)

    def _forget(self, entry: Entry) -> None:
        with self._work:
            if entry.waiters or entry not in self._queue:
                return
            del self._queue[entry]
        self._slots.release()
        self._finish(entry, RequestError("nobody waits for this sample", status=503))

    def _count_live(self, change: int) -> None:
        self._live += change
        if change > 0 and (self._live == 1 or self._live >= self._settings.max_batch):
            self._work.notify()

    def _check_open(self) -> None:
        if self.stopped_reason is not None:
            raise RequestError(self.stopped_reason, status=503)

    # The worker thread.

    def _run(self) -> None:
        try:
            while batch := self._collect():
                self._post(self._free, len(batch))
                self.busy_since = time.monotonic()
                outcomes = self._outcomes(batch)
                self._metrics.batch(len(batch), time.monotonic() - self.busy_since)
                self.busy_since = None
                self._post(self._deliver, batch, outcomes)
        except BaseException as error:  # not a failing model: its errors are outcomes
            log.critical("the worker died", exc_info=error)
            self._post(self._die, error)
        self._post(self._ended.set)

    def _collect(self) -> list[Entry]:
        """The next batch, once it is full or its first sample has waited long enough; empty to end the worker."""
        with self._work:
            while self._live or not self._stopping:
                if not self._live:
                    self._work.wait()
                    continue
                oldest = next(entry for entry in self._queue if entry.waiters)
                left = oldest.arrived + self._settings.max_wait_ms / 1000 - time.monotonic()
                if self._live >= self._settings.max_batch or left <= 0 or self._stopping:
                    return self._take()
                self._work.wait(left)
            return []

    def _take(self) -> list[Entry]:
        batch: list[Entry] = []
        chars = 0
        for entry in self._queue:
            if entry.waiters:
                batch.append(entry)
                chars += characters(entry.sample)
                if len(batch) == self._settings.max_batch or chars > BATCH_CHARS:
                    break
        for entry in batch:
            del self._queue[entry]
        self._live -= len(batch)
        return batch

    def _outcomes(self, batch: Sequence[Entry]) -> list[Outcome]:
        """Score a batch; where it fails, each sample gets a second chance alone."""
        now = time.monotonic()
        for entry in batch:
            self._metrics.waited.observe(now - entry.arrived)
        try:
            scores = self._score([entry.sample for entry in batch], any(entry.tokens for entry in batch))
            return [without_tokens(score, entry) for score, entry in zip(scores, batch, strict=True)]
        except Exception as error:
            self._metrics.failed_batches.inc()
            log.warning("a batch of %d failed (%s: %s): one by one now", len(batch), type(error).__name__, error)
        return [self._alone(entry) for entry in batch]

    def _alone(self, entry: Entry) -> Outcome:
        try:
            return self._score([entry.sample], entry.tokens)[0]
        except Exception as error:
            self._metrics.failed_samples.inc()
            log.error("a sample failed", exc_info=error)
            return error

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(call, *arguments)

    # Its results, in the event loop.

    def _free(self, slots: int) -> None:
        for _ in range(slots):
            self._slots.release()

    def _deliver(self, batch: Sequence[Entry], outcomes: Sequence[Outcome]) -> None:
        for entry, outcome in zip(batch, outcomes, strict=True):
            self._finish(entry, outcome)
            if isinstance(outcome, Score):
                self._metrics.computed(outcome)
                if entry.key is not None:
                    self._cache[entry.key] = outcome
        while len(self._cache) > self._settings.cache:
            self._cache.popitem(last=False)

    def _finish(self, entry: Entry, outcome: Outcome) -> None:
        self._unfinished.discard(entry)
        if entry.key is not None:
            self._in_flight.pop(entry.key, None)
        if not entry.done.done():
            entry.done.set_result(outcome)

    def _die(self, error: BaseException) -> None:
        self.stopped_reason = f"the worker died ({type(error).__name__}: {error}): restart the server"
        self.died = True
        self._abandon_all()
        self.on_death(self.stopped_reason)

    def _abandon_all(self) -> None:
        """Fail whatever is unfinished, and wake the requests that wait for room: they find the service closed."""
        with self._work:
            self._queue.clear()
            self._live = 0
        for entry in list(self._unfinished):
            self._finish(entry, RequestError(self.stopped_reason or "the server is stopping", status=503))
        self._free(self.waiting)
