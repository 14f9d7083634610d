"""Prompts to preference pairs: the resumable job behind `gdr annotate`.

Knows the order of things: check everything, draw responses, score, pick, write. It works in windows of prompts; each
finished window is a file in OUT/work, so that a run that is killed goes on where it was, and nothing is lost or done
twice. How a prompt is read, sampled, scored or picked from is decided elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gdr_plugin.config import Config, load_config
from gdr_plugin.errors import DataError
from gdr_plugin.plugins import Plugins
from gdr_plugin.preferences.finish import BAD_ROW, NOT_SAMPLED, Picking, finish
from gdr_plugin.preferences.options import AnnotateOptions, describe_run, open_policy, versions
from gdr_plugin.preferences.output import CANDIDATE_FIELDS
from gdr_plugin.preferences.prompts import Inventory, Prompt, Prompts
from gdr_plugin.preferences.sample import PolicySampler, Sampled
from gdr_plugin.preferences.select import find_selector
from gdr_plugin.preferences.work import RunFolder
from gdr_plugin.resolve import resolve_names
from gdr_plugin.reward import GuidedDensityRatio, Side
from gdr_plugin.routing import FieldRouter, Router, RoutingContext
from gdr_plugin.types import Sample, Score

WINDOW = 32
"""Prompts in one window: what a killed run does again at most."""

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`, in prompts."""


@dataclass(frozen=True, slots=True)
class Annotated:
    """A finished run."""

    out: Path
    summary: dict[str, Any]
    """What summary.json says."""
    already_complete: bool
    """Whether the run had been finished before, so that nothing was done."""


def annotate(
    source: str | Path,
    config: str | Path | Config,
    out: str | Path,
    options: AnnotateOptions | None = None,
    *,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
) -> Annotated:
    """Make a preference data set from prompts.

    Args:
        source: The prompts: a file, folder or data set as `read_rows` takes them.
        config: The reward: a gdr.yaml or a validated configuration.
        out: Folder of the data set. A run that stopped goes on when it is called again with the same arguments.
        options: Everything else.
        plugins: Where names are looked up; default: built-in and installed plugins.
        progress: Told how far each stage is.

    Returns:
        The finished run.

    Raises:
        ConfigError: The configuration or an option is wrong.
        DataError: A row is wrong, or with `strict` could not be scored.
        ModelError: A model does not exist or fails.
        OutputError: The folder belongs to another run, or is in use.
    """
    options = options or AnnotateOptions()
    root = Path(out)
    plugins = plugins or Plugins()
    config = config if isinstance(config, Config) else load_config(config)
    selector = find_selector(options.select, plugins.selectors())
    RunFolder.check_usable(root)
    sampler = open_policy(config, options)
    ratio = GuidedDensityRatio.from_config(config, plugins=plugins)
    prompts = Prompts(
        source,
        columns=options.columns,
        limit=options.limit,
        sampled=sampler is not None,
        check_fields=_field_check(resolve_names(config, plugins).routers, ratio),
    )
    inventory = prompts.check(skip_bad=options.skip_bad)
    compare = describe_run(config, options, inventory, ratio, sampler)
    run = {"source": str(source), "versions": versions()}
    with RunFolder(root) as folder:
        folder.claim(run, compare=compare)
        done = folder.summary()
        if done is not None:
            folder.clear_work()
            return Annotated(root, done, already_complete=True)
        sequential = config.load == "sequential"
        if sequential and config.store is None:  # its place could not be made before the folder was ours
            ratio = GuidedDensityRatio.from_config(config, plugins=plugins, store=folder.work / "store.sqlite")
        job = _Job(folder, prompts, inventory, ratio, sampler, options, progress or _silent)
        job.run(sequential=sequential)
        picking = Picking(selector, options.filters, options.sampling.seed)
        summary = finish(folder, job.windows, picking, {**run, **compare}, ratio.rendered)
        folder.clear_work()
        return Annotated(root, summary, already_complete=False)


class _Job:
    """One run of the windows that are not yet done."""

    def __init__(
        self,
        folder: RunFolder,
        prompts: Prompts,
        inventory: Inventory,
        ratio: GuidedDensityRatio,
        sampler: PolicySampler | None,
        options: AnnotateOptions,
        progress: Progress,
    ) -> None:
        self.windows = range(math.ceil(inventory.rows / WINDOW))
        self.progress = progress
        self._folder, self._prompts, self._rows = folder, prompts, inventory.rows
        self._ratio, self._sampler, self._options = ratio, sampler, options

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
                    self._ratio.warm(side, self._samples(rows, self._answered(window, rows)))
                self._ratio.unload()
        for window, rows in self._pending("sampling and scoring" if self._sampler and not sequential else "scoring"):
            self._score(window, rows)

    def _pending(self, stage: str, *also_done: str) -> Iterator[tuple[int, list[Prompt]]]:
        """The windows that have no scores yet (nor files of the kinds in `also_done`), with their prompts."""
        kinds = ("candidates", *also_done)
        pending = [window for window in self.windows if not any(self._folder.has(kind, window) for kind in kinds)]
        wanted, last = set(pending), max(pending, default=-1)
        done = self._rows - sum(self._size(window) for window in pending)
        self.progress(stage, done, self._rows)
        for window, rows in enumerate(self._prompts.windows(WINDOW)):
            if window > last:
                return
            if window in wanted:
                yield window, rows
                done += len(rows)
                self.progress(stage, done, self._rows)

    def _size(self, window: int) -> int:
        return min(WINDOW, self._rows - window * WINDOW)

    def _answered(self, window: int, rows: Sequence[Prompt]) -> list[dict[str, Any]]:
        """A record for every prompt of a window, with its responses: given, drawn before, or drawn now."""
        if self._sampler is None:
            return [_record(row, [(one.text, one.finished) for one in row.responses]) for row in rows]
        if self._folder.has("responses", window):
            return self._folder.read("responses", window)[1]
        started = time.perf_counter()
        fit = [row for row in rows if row.problem is None]
        drawn = iter(self._sampler.sample([row.prompt for row in fit], [row.id for row in fit], self._options.sampling))
        records = []
        for row in rows:
            sampled = Sampled() if row.problem is not None else next(drawn)
            if sampled.reason is not None and self._options.strict:
                raise DataError(f"{row.where}: not sampled: {sampled.reason} (without --strict the run goes on)")
            records.append(_record(row, sampled.responses, sampled.reason))
        self._folder.write("responses", window, {"seconds": time.perf_counter() - started}, records)
        return records

    @staticmethod
    def _samples(rows: Sequence[Prompt], records: Sequence[Mapping[str, Any]]) -> list[Sample]:
        """Every response of a window, in order."""
        return [
            Sample(row.prompt, text, finished, row.fields)
            for row, record in zip(rows, records, strict=True)
            for text, finished in record["responses"]
        ]

    def _score(self, window: int, rows: Sequence[Prompt]) -> None:
        """Score a window and keep the result."""
        records = self._answered(window, rows)
        started = time.perf_counter()
        scores = iter(self._ratio.score(self._samples(rows, records)))
        seconds = time.perf_counter() - started
        scored = []
        for row, record in zip(rows, records, strict=True):
            own = list(islice(scores, len(record["responses"])))
            if self._options.strict:
                _refuse_unscored(row, own)
            scored.append(_scored(record, own))
        self._folder.write("candidates", window, {"seconds": seconds}, scored)


def _silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


def _field_check(routers: Sequence[Router], ratio: GuidedDensityRatio) -> Callable[[Mapping[str, Any]], None]:
    """A check that a row's columns name no unknown domain, by the field routers of the chain."""
    context = RoutingContext(domains=dict.fromkeys(ratio.rendered, ""), model=ratio.strong)
    fields = [router for router in routers if isinstance(router, FieldRouter)]

    def check(columns: Mapping[str, Any]) -> None:
        for router in fields:
            router.route([Sample((), "", fields=columns)], context)

    return check


def _record(row: Prompt, responses: Sequence[tuple[str, bool]], not_sampled: str | None = None) -> dict[str, Any]:
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


def _scored(record: Mapping[str, Any], scores: Sequence[Score]) -> dict[str, Any]:
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
