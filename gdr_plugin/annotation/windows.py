"""The long part of an annotation: window by window, responses are drawn and scored.

A finished window is a file in OUT/work, so that a run that is killed goes on where it was, and nothing is lost or done
twice. Knows windows, stages and records; not how responses are drawn or scored, nor what becomes of the scores.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from gdr_plugin.annotation.options import AnnotateOptions
from gdr_plugin.annotation.records import (
    CANDIDATES,
    RESPONSES,
    PromptRecord,
    ScoredRecord,
    Seconds,
    read_responses,
    write_responses,
    write_scored,
)
from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Sample, Score, Side
from gdr_plugin.data.checked import CheckedRows
from gdr_plugin.data.rows import PromptRow
from gdr_plugin.progress import Progress
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.sampling.sampler import Sampled, Sampler
from gdr_plugin.scoring.run_folder import RunFolder
from gdr_plugin.scoring.sequential import warm_one_model_at_a_time

WINDOW = 32
"""Most prompts in one window: what a killed run does again."""
DRAWN = 256
"""Most responses drawn in one window, as far as one prompt does not have more."""


def window_size(samples: int | None) -> int:
    """Prompts in a window; depends on nothing that may change when a run is taken up again.

    Args:
        samples: Responses drawn for each prompt; None when the rows bring them.
    """
    return WINDOW if samples is None else max(1, min(WINDOW, DRAWN // samples))


def window_numbers(prompts: int, samples: int | None) -> range:
    """The numbers of all windows.

    Args:
        prompts: Rows of the input.
        samples: As for `window_size`.
    """
    return range(math.ceil(prompts / window_size(samples)))


def rows_in(windows: Iterable[int], size: int, prompts: int) -> int:
    """How many prompts some windows have.

    Args:
        windows: Their numbers.
        size: Prompts in a window; the last one has fewer.
        prompts: Rows of the input.
    """
    return sum(min(size, prompts - window * size) for window in windows)


@dataclass(slots=True)
class Windows:
    """The windows of one run."""

    folder: RunFolder
    """Keeps finished windows; held by this process."""
    prompts: CheckedRows[PromptRow]
    ratio: GuidedDensityRatio
    """Scores the responses."""
    sampler: Sampler | None
    """Draws them; None when the rows bring them."""
    options: AnnotateOptions
    """Says how responses are drawn, and whether to be strict."""
    progress: Progress
    """Told how far each stage is, in prompts."""
    own: Sequence[int]
    """The windows to score; of several processes, each has its own."""
    total: int
    """Prompts that this process answers for in its progress: those of its windows, and those that are done."""
    _stage: str = field(default="", init=False)
    _done: int = field(default=0, init=False)
    _drawing: float = field(default=1.0, init=False)
    """The share of a window's time that goes into drawing, as the last one showed: what a drawn prompt counts."""

    @property
    def size(self) -> int:
        """Prompts in a window; the last one has fewer."""
        return window_size(self.options.sampling.samples if self.sampler else None)

    def run(self, *, sequential: bool) -> None:
        """Score every window that is not finished.

        Args:
            sequential: Whether the models come one after the other, each over all windows.

        Raises:
            DataError: With `strict`, a response could not be drawn or scored.
            ModelError: A model cannot be loaded or fails.
            OutputError: A window cannot be kept, or one that was kept is damaged.
        """
        if sequential:
            if self.sampler is not None:
                for window, prompts in self._unfinished("sampling", RESPONSES):
                    self._answered(window, prompts)
                self.sampler.unload()
            warm_one_model_at_a_time(self._batches)
        stage = "scoring"
        if self.sampler is not None and not sequential:
            stage, self._drawing = "sampling and scoring", 0.5
        for window, prompts in self._unfinished(stage):
            self._score(window, prompts)

    def _batches(self, side: Side) -> Iterator[tuple[GuidedDensityRatio, list[Sample]]]:
        """What is to be scored under one model."""
        for window, prompts in self._unfinished(f"scoring ({side})"):
            yield self.ratio, samples_of(self._answered(window, prompts)[0])

    def _unfinished(self, stage: str, *also_finished: str) -> Iterator[tuple[int, list[PromptRecord]]]:
        """The windows that have no scores yet, nor shards of the kinds in `also_finished`, with their prompts."""
        kinds = (CANDIDATES, *also_finished)
        wanted = {window for window in self.own if not any(self.folder.has(kind, window) for kind in kinds)}
        self._stage, self._done = stage, self.total - rows_in(wanted, self.size, len(self.prompts))
        self._tell(0)
        for window, rows in self.prompts.windows(self.size, wanted):
            yield window, [PromptRecord.of(row, sampled=self.sampler is not None) for row in rows]
            self._done += len(rows)
            self._tell(0)

    def _tell(self, within: int) -> None:
        """Report progress: so many prompts of the window at hand are drawn, and all of those before it are done."""
        self.progress(self._stage, self._done + int(within * self._drawing), self.total)

    def _answered(self, window: int, prompts: Sequence[PromptRecord]) -> tuple[Sequence[PromptRecord], float]:
        """A window's prompts with their responses, which are given, were drawn before or are drawn now; and seconds."""
        if self.sampler is None:
            return prompts, 0.0
        if self.folder.has(RESPONSES, window):
            return read_responses(self.folder, window, prompts)
        started = time.perf_counter()
        answered = answer(self.sampler, prompts, self.options, progress=self._tell)
        seconds = time.perf_counter() - started
        write_responses(self.folder, window, answered, seconds)
        return answered, seconds

    def _score(self, window: int, prompts: Sequence[PromptRecord]) -> None:
        """Score a window and keep the result."""
        answered, sampling = self._answered(window, prompts)
        started = time.perf_counter()
        scores = self.ratio.score(samples_of(answered))
        seconds = Seconds(sampling, time.perf_counter() - started)
        if seconds.sampling:
            self._drawing = seconds.sampling / (seconds.sampling + seconds.scoring)
        keep_scored(self.folder, window, answered, scores, seconds, self.options)


def answer(
    sampler: Sampler,
    prompts: Sequence[PromptRecord],
    options: AnnotateOptions,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[PromptRecord]:
    """Draw the responses of a window; prompts that cannot be sampled get the reason.

    Args:
        sampler: Draws them.
        prompts: The window's prompts.
        options: Say how responses are drawn, and whether to be strict.
        progress: Told how many prompts are done.

    Raises:
        DataError: With `strict`, a prompt could not be sampled.
        ModelError: The policy cannot be loaded or fails.
    """
    usable = [prompt for prompt in prompts if prompt.reason is None]
    texts, ids = [prompt.prompt for prompt in usable], [prompt.id for prompt in usable]
    drawn = iter(sampler.sample(texts, ids, options.sampling, progress=progress))
    return [
        prompt if prompt.reason is not None else _drawn(prompt, next(drawn), strict=options.strict)
        for prompt in prompts
    ]


def keep_scored(
    folder: RunFolder,
    window: int,
    prompts: Sequence[PromptRecord],
    scores: Sequence[Score],
    seconds: Seconds,
    options: AnnotateOptions,
) -> None:
    """Keep a window's scores, which finishes it.

    Args:
        folder: The run's folder.
        window: The window's number.
        prompts: Its prompts with their responses.
        scores: One a response, in the order of `samples_of`.
        seconds: How long the window took.
        options: Say whether to be strict.

    Raises:
        DataError: With `strict`, a response was not scored.
        OutputError: The window cannot be kept.
    """
    rest = iter(scores)
    scored = []
    for prompt in prompts:
        own = list(islice(rest, len(prompt.responses)))
        if options.strict:
            _refuse_unscored(prompt, own)
        scored.append(ScoredRecord.of(prompt, own))
    write_scored(folder, window, scored, seconds)


def _drawn(prompt: PromptRecord, sampled: Sampled, *, strict: bool) -> PromptRecord:
    if sampled.reason is not None and strict:
        raise DataError(f"{prompt.where}: not sampled: {sampled.reason} (without --strict the run goes on)")
    return prompt.answered(sampled.responses, sampled.reason)


def samples_of(prompts: Sequence[PromptRecord]) -> list[Sample]:
    """Every response of a window, in order."""
    return [
        Sample(prompt.prompt, response.text, response.finished, prompt.fields)
        for prompt in prompts
        for response in prompt.responses
    ]


def _refuse_unscored(prompt: PromptRecord, scores: Sequence[Score]) -> None:
    for number, score in enumerate(scores):
        if score.reward is None:
            raise DataError(
                f"{prompt.where}: response {number} was not scored: {score.reason} (without --strict the run goes on)"
            )
