"""The long part of an annotation: window by window, responses are drawn and scored.

A finished window is a file in OUT/work, so that a run that is killed goes on where it was, and nothing is lost or done
twice. Knows windows, stages and records; not how responses are drawn or scored, nor what becomes of the scores.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

from gdr_plugin.annotation.options import AnnotateOptions
from gdr_plugin.annotation.outputs import BAD_ROW, NOT_SAMPLED
from gdr_plugin.annotation.prompts import Prompt, Prompts
from gdr_plugin.annotation.run_folder import RunFolder
from gdr_plugin.annotation.tables import CANDIDATE_FIELDS
from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Sample, Score, Side
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.sampling.sample import PolicySampler, Sampled

WINDOW = 32
"""Prompts in one window at most: what a killed run does again."""
DRAWN = 256
"""Responses drawn in one window, where a prompt has not more."""

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`, in prompts."""

Record: TypeAlias = dict[str, Any]
"""A prompt with what is known of it so far, as JSON."""


def window_size(samples: int | None) -> int:
    """Prompts in a window; depends on nothing that may change when a run is taken up again.

    Args:
        samples: Responses drawn for each prompt; None when they are given.
    """
    return WINDOW if samples is None else max(1, min(WINDOW, DRAWN // samples))


class Job:
    """The windows of one run that are not yet done.

    Args:
        folder: Where finished windows are kept; held by this process.
        prompts: The input.
        rows: How many there are.
        size: Prompts in a window.
        ratio: Scores the responses.
        sampler: Draws them; None when the rows bring them.
        options: Sampling, and whether to be strict.
        progress: Told how far each stage is.
    """

    def __init__(
        self,
        folder: RunFolder,
        prompts: Prompts,
        rows: int,
        size: int,
        ratio: GuidedDensityRatio,
        sampler: PolicySampler | None,
        options: AnnotateOptions,
        progress: Progress,
    ) -> None:
        self.windows = range(math.ceil(rows / size))
        """All windows, done or not."""
        self._folder, self._prompts, self._rows, self._window = folder, prompts, rows, size
        self._ratio, self._sampler, self._options = ratio, sampler, options
        self._progress = progress
        self._stage, self._done = "", 0

    def run(self, *, sequential: bool) -> None:
        """Score every window; with `sequential` the models come one after the other over all windows."""
        if sequential:
            if self._sampler is not None:
                for window, rows in self._pending("sampling", "responses"):
                    self._answered(window, rows)
                self._sampler.unload()
            sides: tuple[Side, ...] = ("strong", "weak")
            for side in sides:
                for window, rows in self._pending(f"scoring ({side})"):
                    self._ratio.warm(side, self._samples(rows, self._answered(window, rows)[0]))
                self._ratio.unload()
        for window, rows in self._pending("sampling and scoring" if self._sampler and not sequential else "scoring"):
            self._score(window, rows)

    def _pending(self, stage: str, *also_done: str) -> Iterator[tuple[int, list[Prompt]]]:
        """The windows that have no scores yet (nor files of the kinds in `also_done`), with their prompts."""
        kinds = ("candidates", *also_done)
        pending = [window for window in self.windows if not any(self._folder.has(kind, window) for kind in kinds)]
        wanted, last = set(pending), max(pending, default=-1)
        self._stage, self._done = stage, self._rows - sum(self._size(window) for window in pending)
        self._tell(0)
        for window, rows in enumerate(self._prompts.windows(self._window)):
            if window > last:
                return
            if window in wanted:
                yield window, rows
                self._done += len(rows)
                self._tell(0)

    def _tell(self, within: int) -> None:
        self._progress(self._stage, self._done + within, self._rows)

    def _size(self, window: int) -> int:
        return min(self._window, self._rows - window * self._window)

    def _answered(self, window: int, rows: Sequence[Prompt]) -> tuple[list[Record], float]:
        """A record for every prompt of a window, its responses given, drawn before or drawn now; and the seconds."""
        if self._sampler is None:
            return [_record(row, [(one.text, one.finished) for one in row.responses]) for row in rows], 0.0
        if self._folder.has("responses", window):
            header, records = self._folder.read("responses", window)
            return records, header["seconds"]
        started = time.perf_counter()
        fit = [row for row in rows if row.problem is None]
        drawn = iter(
            self._sampler.sample(
                [row.prompt for row in fit], [row.id for row in fit], self._options.sampling, progress=self._tell
            )
        )
        records = []
        for row in rows:
            sampled = Sampled() if row.problem is not None else next(drawn)
            if sampled.reason is not None and self._options.strict:
                raise DataError(f"{row.where}: not sampled: {sampled.reason} (without --strict the run goes on)")
            records.append(_record(row, sampled.responses, sampled.reason))
        seconds = time.perf_counter() - started
        self._folder.write("responses", window, {"seconds": seconds}, records)
        return records, seconds

    @staticmethod
    def _samples(rows: Sequence[Prompt], records: Sequence[Record]) -> list[Sample]:
        """Every response of a window, in order."""
        return [
            Sample(row.prompt, text, finished, row.fields)
            for row, record in zip(rows, records, strict=True)
            for text, finished in record["responses"]
        ]

    def _score(self, window: int, rows: Sequence[Prompt]) -> None:
        """Score a window and keep the result."""
        records, sampling = self._answered(window, rows)
        started = time.perf_counter()
        scores = iter(self._ratio.score(self._samples(rows, records)))
        seconds = time.perf_counter() - started
        scored = []
        for row, record in zip(rows, records, strict=True):
            own = list(islice(scores, len(record["responses"])))
            if self._options.strict:
                _refuse_unscored(row, own)
            scored.append(_scored(record, own))
        self._folder.write("candidates", window, {"seconds": {"sampling": sampling, "scoring": seconds}}, scored)


def _record(row: Prompt, responses: Sequence[tuple[str, bool]], not_sampled: str | None = None) -> Record:
    """A prompt with its responses, as JSON."""
    reason = BAD_ROW if row.problem is not None else NOT_SAMPLED if not_sampled is not None else None
    return {
        "row": row.number,
        "id": row.id,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in row.prompt],
        "responses": list(responses),
        "reason": reason,
        "detail": row.problem or not_sampled,
    }


def _scored(record: Record, scores: Sequence[Score]) -> Record:
    """A record with its scores in the place of its responses."""
    candidates = [
        {"response": text, "finished": finished, **{name: getattr(score, name) for name in CANDIDATE_FIELDS}}
        for (text, finished), score in zip(record["responses"], scores, strict=True)
    ]
    first = scores[0] if scores else None
    origin = {name: getattr(first, name, None) for name in ("domain", "router", "guidance")}
    exemplars = list(first.exemplars) if first else []
    kept = {name: record[name] for name in ("row", "id", "prompt", "reason", "detail")}
    return {**kept, **origin, "exemplars": exemplars, "candidates": candidates}


def _refuse_unscored(row: Prompt, scores: Sequence[Score]) -> None:
    for number, score in enumerate(scores):
        if score.reward is None:
            raise DataError(
                f"{row.where}: response {number} was not scored: {score.reason} (without --strict the run goes on)"
            )
