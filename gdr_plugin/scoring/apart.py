"""Rewards for given rows, scored by several processes or on a cluster: what `gdr score` does there.

Finished windows are kept in a folder beside the output, so that a run that is killed goes on where it was; when all are
there, they become the output file, in the input's order. Knows windows and output rows; how rows are read and what an
output row says is decided in `rows`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gdr_plugin.api.errors import ConfigError, OutputError
from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.api.models import TokenOffsets
from gdr_plugin.api.types import Sample, Score, Side
from gdr_plugin.cluster.engine import Engine
from gdr_plugin.cluster.pools import pools_of
from gdr_plugin.config.load import named_config
from gdr_plugin.config.schema import Config
from gdr_plugin.data.checked import CheckedRows, SavedWindows
from gdr_plugin.data.read import bad_rows_error
from gdr_plugin.data.rows import ScoreRow, parse_score_row
from gdr_plugin.data.sources import STDIN
from gdr_plugin.files import atomic, dumps
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress, silent
from gdr_plugin.reward.resolve import Resolved, resolve_names
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import field_check
from gdr_plugin.scoring.ranks import Ranks, check_agreement, of_rank
from gdr_plugin.scoring.rows import FILE_WINDOW, ScoreSummary, check_offsets, keeping, output_rows, samples_of
from gdr_plugin.scoring.run_folder import RunFolder
from gdr_plugin.scoring.sequential import warm_one_model_at_a_time
from gdr_plugin.scoring.stages import Batch, Recipe, reward_identity, scoring_stages

__all__ = ["ScoreOptions", "score_rows_apart", "work_folder"]

T = TypeVar("T")
_ROWS = "rows"
"""Shards with output rows."""
_ROWS_FILE = "rows.pickle"


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What output rows say; as the arguments of `score_rows`."""

    columns: Mapping[str, str]
    tokens: bool = False
    steps: str | None = None
    strict: bool = False
    skip_bad: bool = False
    keep: bool = False

    @property
    def by_token(self) -> bool:
        """Whether scores have to carry tokens."""
        return self.tokens or self.steps is not None


def work_folder(out: Path) -> Path:
    """The folder that keeps the finished windows of an output file until it is there."""
    return out.with_name(out.name + ".work")


def score_rows_apart(
    source: str | Path,
    config: str | Path | Config,
    out: Path,
    options: ScoreOptions,
    *,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
    ranks: Ranks | None = None,
) -> ScoreSummary:
    """Score every row of an input into a JSONL file, the same that `score_rows` writes.

    Args:
        source: A file, folder or data set, as for `score_rows`; not standard input.
        config: The reward: a gdr.yaml or a validated configuration.
        out: The file; it appears under its name once it is complete. A run that stopped goes on when it is called again
            with the same arguments.
        options: What output rows say.
        plugins: Where names are looked up; default: built-in and installed plugins.
        progress: Told how far the scoring is, in rows.
        engine: The cluster that scores.
        ranks: The processes that share the work, of which this is one; each calls this function.

    Returns:
        What was done, in this and earlier calls for the same file; seconds are this call's.

    Raises:
        ConfigError: The configuration is wrong, or the input or output cannot be shared.
        DataError: A row is bad (without `skip_bad`), or could not be scored (with `strict`).
        ModelError: A model does not exist or fails.
        OutputError: The file cannot be written, or another run has begun it.
    """
    started = time.perf_counter()
    if engine is not None and ranks is not None:
        raise ConfigError("--engine ray has its own processes: start it once, without accelerate launch or torchrun")
    if str(source) == STDIN:
        raise ConfigError("several processes cannot share standard input: write it to a file first")
    plugins = plugins or Plugins()
    config, origin = named_config(config)
    resolved = resolve_names(config, plugins, origin=origin)
    check = field_check(resolved.routers, resolved.guidances, origin=origin)
    place: _Place | None = None if engine else _Here(config, plugins, resolved, options, ranks)
    rows = CheckedRows(source, keeping if options.keep else parse_score_row, columns=options.columns, check=check)
    with rows, engine or ranks or nullcontext():
        if rows.first_bad is not None and not options.skip_bad:
            raise bad_rows_error(rows.first_bad, rows.bad, "; --skip-bad writes bad rows with their reason")
        if place is None:
            assert engine is not None
            place = _OnCluster(config, plugins, options, engine)
        identity = {
            **reward_identity(config, place.rendered, place.models),
            "input": {"rows": len(rows), "bad": rows.bad, "content": rows.fingerprint},
            "options": {key: value for key, value in asdict(options).items() if key != "skip_bad"},
        }
        summary = _work(place, rows, identity, out, ranks, progress or silent)
    summary.seconds = time.perf_counter() - started
    return summary


def _work(
    place: _Place,
    rows: CheckedRows[ScoreRow],
    identity: Mapping[str, Any],
    out: Path,
    ranks: Ranks | None,
    progress: Progress,
) -> ScoreSummary:
    """Score what is not scored yet, then write the file; of several processes, the first one writes."""
    numbers = range(-(-len(rows) // FILE_WINDOW))
    if ranks is not None:
        check_agreement(ranks, json.loads(dumps(identity)))

    def first(make: Callable[[], T]) -> T:
        return make() if ranks is None else ranks.first_says(make)

    with RunFolder(work_folder(out), held=ranks is None or ranks.first) as folder:

        def begin() -> list[int]:
            folder.claim({"out": out.name}, compare=identity)
            return [window for window in numbers if not folder.has(_ROWS, window)]

        left = first(begin)
        place.run(folder, rows, left if ranks is None else ranks.share(left), progress)
        marks = place.spelt_marks if ranks is None else sum(ranks.gather(place.spelt_marks))
        summary = first(lambda: _merge(folder, numbers, out))
        summary.spelt_marks, summary.strategies = marks, place.strategies
        return summary


def _merge(folder: RunFolder, numbers: range, out: Path) -> ScoreSummary:
    """Write the finished windows into the output, and remove their folder."""
    if missing := [window for window in numbers if not folder.has(_ROWS, window)]:
        raise OutputError(
            f"{folder.work}: window {missing[0]} of another process is not there: -o has to be on storage that all "
            "machines share"
        )
    summary = ScoreSummary()
    with atomic(out) as file:
        for window in numbers:
            with folder.reading(_ROWS, window) as (_, made):
                summary.add(made)
                file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in made)
    folder.remove()
    return summary


class _Place(Protocol):
    """Where rows are scored."""

    @property
    def models(self) -> Mapping[str, str]: ...

    @property
    def rendered(self) -> Mapping[str, RenderedGuidance]: ...

    @property
    def strategies(self) -> Mapping[str, str]: ...

    @property
    def spelt_marks(self) -> int: ...

    def run(self, folder: RunFolder, rows: CheckedRows[ScoreRow], own: Sequence[int], progress: Progress) -> None: ...


class _Here:
    """This process, as one of several."""

    def __init__(
        self, config: Config, plugins: Plugins, resolved: Resolved, options: ScoreOptions, ranks: Ranks | None
    ) -> None:
        self._config = of_rank(config, ranks)
        self._options = options
        self._plugins = plugins
        self._resolved = resolved
        self._machine = ranks.machine if ranks else 0
        self._ratio = self._open()
        models = {"strong": self._ratio.strong, "weak": self._ratio.weak}
        self.models = {side: model.identity for side, model in models.items()}
        self.rendered = self._ratio.rendered
        if options.steps is not None:
            check_offsets({side: isinstance(model.chat, TokenOffsets) for side, model in models.items()}, config)

    def _open(self, store: Path | None = None) -> GuidedDensityRatio:
        return GuidedDensityRatio.from_config(self._config, plugins=self._plugins, store=store, resolved=self._resolved)

    @property
    def strategies(self) -> dict[str, str]:
        return self._ratio.strategies

    @property
    def spelt_marks(self) -> int:
        return self._ratio.spelt_marks

    def run(self, folder: RunFolder, rows: CheckedRows[ScoreRow], own: Sequence[int], progress: Progress) -> None:
        wanted = set(own)
        if self._config.load == "sequential":
            if self._config.store is None:
                self._ratio = self._open(folder.work / f"store-{self._machine}.sqlite")

            def batches(side: Side) -> Iterator[tuple[GuidedDensityRatio, list[Sample]]]:
                for _, window in _told(rows.windows(FILE_WINDOW, wanted), f"scoring ({side})", wanted, rows, progress):
                    yield self._ratio, samples_of(window)

            warm_one_model_at_a_time(batches)
        for number, window in _told(rows.windows(FILE_WINDOW, wanted), "scoring", wanted, rows, progress):
            scores = self._ratio.score(samples_of(window), tokens=self._options.by_token)
            _keep(folder, number, window, scores, self._options)


class _OnCluster:
    """Pools of actors on a cluster."""

    def __init__(self, config: Config, plugins: Plugins, options: ScoreOptions, engine: Engine) -> None:
        self._options = options
        self._engine = engine
        recipe = Recipe.of(config, plugins)
        pools = pools_of(config, gpus=engine.gpus)
        facts = recipe.facts_in(engine, pools)
        if options.steps is not None:
            check_offsets({str(side): told for side, told in facts.offsets.items()}, config)
        self._stages = scoring_stages(recipe, pools, facts, tokens=options.by_token)
        self.models = {str(side): identity for side, identity in facts.identities.items()}
        self.rendered = facts.rendered
        self.strategies: dict[str, str] = {}
        self.spelt_marks = 0

    def run(self, folder: RunFolder, rows: CheckedRows[ScoreRow], own: Sequence[int], progress: Progress) -> None:
        saved = rows.save(folder.work / _ROWS_FILE, FILE_WINDOW)
        source = _Source(replace(saved, path=saved.path.absolute()))
        windows = self._engine.run(self._stages, source, own)
        told = _told(windows, "scoring on the cluster", set(own), rows, progress)
        for number, batch in told:
            _keep(folder, number, batch.carried, batch.scores, self._options)
            self.strategies |= batch.strategies
            self.spelt_marks += batch.spelt_marks


@dataclass(frozen=True, slots=True)
class _Source:
    """Makes a window's batch from the saved rows."""

    rows: SavedWindows[ScoreRow]

    def __call__(self, window: int) -> Batch:
        rows = self.rows.window(window)
        return Batch(rows, samples_of(rows))


def _told(
    windows: Iterator[tuple[int, T]], stage: str, wanted: set[int], rows: CheckedRows[ScoreRow], progress: Progress
) -> Iterator[tuple[int, T]]:
    """The windows, while progress is told how many rows of those that are wanted are done."""

    def size(window: int) -> int:
        return min(FILE_WINDOW, len(rows) - window * FILE_WINDOW)

    done, total = 0, sum(map(size, wanted))
    progress(stage, done, total)
    for number, window in windows:
        yield number, window
        done += size(number)
        progress(stage, done, total)


def _keep(folder: RunFolder, number: int, window: Any, scores: Sequence[Score], options: ScoreOptions) -> None:
    made = output_rows(window, scores, tokens=options.tokens, steps=options.steps, strict=options.strict)
    folder.write(_ROWS, number, {}, made)
