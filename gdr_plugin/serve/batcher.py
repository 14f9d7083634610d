"""Dynamic batching: questions of many requests reach the models together, and none is computed twice.

The event loop owns the requests, the table of questions in flight and the cache; one worker thread owns the models.
They meet in a queue under a lock. What a question is and how it is answered says its `Work`: samples get scores, a
teacher's ids get log-probs. This module knows neither HTTP nor models.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from gdr_plugin.api.errors import RequestError
from gdr_plugin.api.service import ServeSettings
from gdr_plugin.logs import logger
from gdr_plugin.serve.entry import Entry, Key, Outcome, Work, unwrap

if TYPE_CHECKING:
    from gdr_plugin.serve.metrics import Metrics

BATCH_CHARS = 2_000_000
"""Characters beyond which a batch takes no further sample: a few long ones are work enough."""
SHARE = 16
"""Samples that a request has in a batch before others have theirs: those of one prompt mostly stand together."""
GRACE_S = 10.0
"""Seconds that a sample which nobody waits for keeps its place: a client that retries finds it again."""
WAITING_PER_SLOT = 8
"""Samples that may wait for room, as a multiple of the queue (or one largest request); more are refused."""

Question = TypeVar("Question")
Answer = TypeVar("Answer")

log = logger("gdr_plugin.serve")


class Batcher:
    """Collects questions of many requests into batches for one worker thread.

    Questions of several kinds share the queue, its limits and the thread; each kind's part of a batch is answered in
    one call.

    Args:
        settings: Batch size, wait, queue and cache.
        metrics: Where batches, waits and hits are counted.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
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
        self._cache: OrderedDict[Key, Any] = OrderedDict()
        self._in_flight: dict[Key, Entry] = {}
        self._unfinished: set[Entry] = set()
        # What follows is shared with the worker, under the condition's lock.
        self._work = threading.Condition()
        self._queue: OrderedDict[Entry, None] = OrderedDict()
        self._live = 0  # queued entries that somebody waits for
        self._turn = 0  # of the last entry that was taken: see `Entry.turn`
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

    async def ask(self, work: Work[Question, Answer], questions: Sequence[Question]) -> list[Answer]:
        """Answer one request's questions, batched with those of other requests. Cancelling the call is safe.

        Args:
            work: What the questions are, and how they are answered.
            questions: May be empty.

        Returns:
            One answer a question, in order.

        Raises:
            RequestError: The batcher is overloaded, stopping or broken (503).
            GDRError: What a question failed with.
        """
        self._check_open()
        room = max(self._settings.queue * WAITING_PER_SLOT, self._settings.max_items)
        if self.waiting and self.waiting + len(questions) > room:
            raise RequestError(
                f"the server is overloaded: {self.waiting:,} samples wait for room in the queue; try again later",
                status=503,
            )
        left, turn = len(questions), self._turn
        self.waiting += left
        held: list[Any] = []
        try:
            for number, question in enumerate(questions):
                if number % 256 == 255:
                    await asyncio.sleep(0)  # hashing thousands of samples must not hold up other requests
                held.append(await self._admit(work, question, turn + number // SHARE))
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
        answers: list[Answer] = [
            unwrap(answer.done.result()) if isinstance(answer, Entry) else answer for answer in held
        ]
        return answers

    async def _admit(self, work: Work[Any, Any], question: Any, turn: int) -> Any:
        """The question's answer if it is known, else its place in the queue; waits until there is room."""
        digest = work.key(question)
        key = None if digest is None else (work.name, digest)
        if (known := self._known(key, turn)) is not None:
            return known
        await self._slots.acquire()
        try:
            self._check_open()
            known = self._known(key, turn)  # another request may have asked for it meanwhile
        except BaseException:
            self._slots.release()
            raise
        if known is not None:
            self._slots.release()
            return known
        entry = Entry(work, question, key, self._loop.create_future(), max(turn, self._turn))
        self._unfinished.add(entry)
        if key is not None:
            self._in_flight[key] = entry
        with self._work:
            self._queue[entry] = None
            self._count_live(1)
        return entry

    def _known(self, key: Key | None, turn: int) -> Any:
        """The answer that is kept, or the place in the queue of a question that is being answered; else None."""
        if key is None:
            return None
        if (answer := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            self._metrics.hits.labels("finished").inc()
            return answer
        if (entry := self._in_flight.get(key)) is not None:
            self._metrics.hits.labels("in_flight").inc()
            with self._work:
                entry.waiters += 1
                entry.turn = min(entry.turn, max(turn, self._turn))
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
        # Requests take turns: a small one does not wait for all of a large one, nor a large one for all small ones.
        for entry in sorted((entry for entry in self._queue if entry.waiters), key=lambda entry: entry.turn):
            batch.append(entry)
            chars += entry.work.size(entry.question)
            if len(batch) == self._settings.max_batch or chars > BATCH_CHARS:
                break
        self._turn = max(self._turn + 1, batch[-1].turn)
        for entry in batch:
            del self._queue[entry]
        self._live -= len(batch)
        return batch

    def _outcomes(self, batch: Sequence[Entry]) -> list[Outcome]:
        """Answer a batch, one kind of work after the other."""
        now = time.monotonic()
        for entry in batch:
            self._metrics.waited.observe(now - entry.arrived)
        outcomes: dict[Entry, Outcome] = {}
        for work in dict.fromkeys(entry.work for entry in batch):
            own = [entry for entry in batch if entry.work is work]
            outcomes.update(zip(own, self._answered(work, own), strict=True))
        return [outcomes[entry] for entry in batch]

    def _answered(self, work: Work[Any, Any], entries: Sequence[Entry]) -> Sequence[Outcome]:
        """Answer entries together; where that fails, each gets a second chance alone."""
        try:
            outcomes = work.run([entry.question for entry in entries])
            self._log_failures(outcomes)
            return outcomes
        except Exception as error:
            self._metrics.failed_batches.inc()
            log.warning("a batch of %d failed (%s: %s): one by one now", len(entries), type(error).__name__, error)
        return [self._alone(entry) for entry in entries]

    def _alone(self, entry: Entry) -> Outcome:
        try:
            outcomes = entry.work.run([entry.question])
        except Exception as error:
            outcomes = [error]
        self._log_failures(outcomes)
        return outcomes[0]

    def _log_failures(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                self._metrics.failed_samples.inc()
                log.error("a sample failed", exc_info=outcome)

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
            if not isinstance(outcome, Exception):
                entry.work.computed(outcome)
                if entry.key is not None and entry.work.keeps:
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
