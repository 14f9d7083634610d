"""Prompts to preference pairs: what `gdr annotate` does.

Knows the order of things: check everything, claim the folder, work through the windows (`places`), write the files
(`outputs`). Nothing is made before everything that can be checked without weights has been checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from gdr_plugin.annotation.options import AnnotateOptions, describe_run, versions
from gdr_plugin.annotation.outputs import Picking, write_outputs
from gdr_plugin.annotation.places import Here, OnCluster, Place
from gdr_plugin.annotation.prompts import read_prompts
from gdr_plugin.annotation.records import CANDIDATES
from gdr_plugin.annotation.selectors import find_selector
from gdr_plugin.annotation.summary import InputFacts, RunFacts, RunIdentity, RunOrigin, Summary
from gdr_plugin.annotation.windows import window_numbers
from gdr_plugin.api.errors import ConfigError, OutputError
from gdr_plugin.arithmetic.noise import RewardNoise
from gdr_plugin.cluster.engine import Engine
from gdr_plugin.config.load import named_config
from gdr_plugin.config.schema import Config
from gdr_plugin.data.checked import CheckedRows
from gdr_plugin.data.rows import PromptRow
from gdr_plugin.files import dumps
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress, silent
from gdr_plugin.reward.resolve import resolve_names
from gdr_plugin.routing import field_check
from gdr_plugin.scoring.ranks import Ranks, check_agreement
from gdr_plugin.scoring.run_folder import RunFolder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Annotated:
    """A finished run."""

    out: Path
    summary: Summary
    """What summary.json says."""
    already_complete: bool
    """Whether the run had been finished before, so that nothing was done."""
    spelt_marks: int = 0
    """Candidates, among those scored in this call, whose prompt or response spells out a control token of a model: it
    was scored as plain text."""


def annotate(
    source: str | Path,
    config: str | Path | Config,
    out: str | Path,
    options: AnnotateOptions | None = None,
    *,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
    ranks: Ranks | None = None,
) -> Annotated:
    """Make a preference data set from prompts.

    Args:
        source: The prompts: a file, folder or data set as `read_rows` takes them.
        config: The reward: a gdr.yaml or a validated configuration.
        out: Folder of the data set. A run that stopped goes on when it is called again with the same arguments, also
            in another place.
        options: Everything else.
        plugins: Where names are looked up; default: built-in and installed plugins.
        progress: Told how far each stage is.
        engine: The cluster that draws and scores; default: this process.
        ranks: The processes that share the work, of which this is one; each calls this function. `out` is on storage
            that all of them see.

    Returns:
        The finished run.

    Raises:
        ConfigError: The configuration or an option is wrong.
        DataError: A row is wrong, or with `strict` could not be scored.
        ModelError: A model does not exist or fails.
        OutputError: The folder belongs to another run, or is in use.
    """
    if engine is not None and ranks is not None:
        raise ConfigError("--engine ray has its own processes: start it once, without accelerate launch or torchrun")
    options = options or AnnotateOptions()
    root = Path(out)
    plugins = plugins or Plugins()
    config, origin = named_config(config)
    resolved = resolve_names(config, plugins, origin=origin)
    selector = find_selector(options.select, plugins.selectors())
    RunFolder.check_usable(root)
    place: Place | None = None if engine else Here(config, options, plugins, resolved, ranks)
    prompts = read_prompts(
        source,
        columns=options.columns,
        limit=options.limit,
        sampled=options.policy is not None,
        check=field_check(resolved.routers, resolved.guidances, origin=origin),
        skip_bad=options.skip_bad,
    )
    with prompts, engine or ranks or nullcontext():
        if place is None:
            assert engine is not None
            place = OnCluster(config, options, plugins, engine)
        given: InputFacts = {"rows": len(prompts), "bad": prompts.bad, "content": prompts.fingerprint}
        identity = describe_run(config, options, given, place.rendered, place.models, place.policy)
        about: RunOrigin = {"source": str(source), "versions": versions()}
        noise = RewardNoise.of(place.dtypes, place.reduction)
        picking = Picking(selector, options.filters, options.sampling.seed, noise)
        run = _Run(root, config, identity, about, picking, ranks)
        return run.work(place, prompts, options, progress or silent)


@dataclass(frozen=True, slots=True)
class _Run:
    """A run that is known and can begin."""

    root: Path
    config: Config
    identity: RunIdentity
    about: RunOrigin
    picking: Picking
    ranks: Ranks | None

    def work(
        self, place: Place, prompts: CheckedRows[PromptRow], options: AnnotateOptions, progress: Progress
    ) -> Annotated:
        """Score what is not scored yet, then write the files; of several processes, the first one writes."""
        numbers = window_numbers(len(prompts), options.sampling.samples if place.policy is not None else None)
        if self.ranks is not None:
            check_agreement(self.ranks, json.loads(dumps(self.identity)))
        with RunFolder(self.root, held=self.ranks is None or self.ranks.first) as folder:
            done, left = self._first(lambda: self._begin(folder, numbers))
            if done is not None:
                return Annotated(self.root, done, already_complete=True)
            place.run(folder, prompts, left if self.ranks is None else self.ranks.share(left), progress)
            marks = place.spelt_marks if self.ranks is None else sum(self.ranks.gather(place.spelt_marks))
            summary = self._first(lambda: self._finish(folder, numbers, place, progress))
            return Annotated(self.root, summary, already_complete=False, spelt_marks=marks)

    def _first(self, make: Callable[[], T]) -> T:
        """What this process makes, or of several the first one."""
        return make() if self.ranks is None else self.ranks.first_says(make)

    def _begin(self, folder: RunFolder, numbers: range) -> tuple[Summary | None, list[int]]:
        """Claim the folder: the summary of a finished run, or the windows that are to be scored."""
        folder.claim(self.about, compare=self.identity)
        done = folder.summary()
        if done is not None:
            folder.clear_work()
        return cast("Summary | None", done), [window for window in numbers if not folder.has(CANDIDATES, window)]

    def _finish(self, folder: RunFolder, numbers: range, place: Place, progress: Progress) -> Summary:
        """Write the files, when all windows are scored."""
        if missing := [window for window in numbers if not folder.has(CANDIDATES, window)]:
            raise OutputError(
                f"{folder.work}: window {missing[0]} of another process is not there: -o has to be on storage that all "
                "machines share"
            )
        run: RunFacts = {**self.about, **self.identity, "strategies": dict(place.strategies)}
        summary = write_outputs(folder, numbers, self.picking, run, self.config, place.rendered, progress)
        folder.clear_work()
        return summary
