"""Where an annotation's windows are scored: in this process, in one of several, or on a cluster.

A place says what the models are there, and works through the windows. Knows windows, recipes and pools; nothing of
what becomes of the scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from gdr_plugin.annotation.options import AnnotateOptions, open_policy, policy_spec
from gdr_plugin.annotation.records import RESPONSES, PromptRecord, Seconds, read_responses
from gdr_plugin.annotation.windows import Windows, answer, keep_scored, rows_in, samples_of, window_size
from gdr_plugin.api.errors import ModelError
from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.api.types import Reduction
from gdr_plugin.cluster.engine import Engine, Stage
from gdr_plugin.cluster.pools import pools_of
from gdr_plugin.config.schema import Config
from gdr_plugin.data.checked import CheckedRows, SavedWindows
from gdr_plugin.data.rows import PromptRow
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress
from gdr_plugin.reward.resolve import Resolved
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.scoring.ranks import Ranks, of_rank
from gdr_plugin.scoring.run_folder import RunFolder
from gdr_plugin.scoring.stages import Batch, Facts, Recipe, scoring_stages

__all__ = ["Here", "OnCluster", "Place"]

_ROWS_FILE = "rows.pickle"


class Place(Protocol):
    """What an annotation asks of the place where its models run."""

    @property
    def models(self) -> Mapping[str, str]:
        """`strong`, `weak`, and `policy` where there is one -> identity."""
        ...

    @property
    def policy(self) -> str | None:
        """The policy's name; None when the rows bring their responses."""
        ...

    @property
    def dtypes(self) -> Sequence[str | None]:
        """What the strong and the weak model compute in; None where a backend does not say."""
        ...

    @property
    def rendered(self) -> Mapping[str, RenderedGuidance]:
        """Each domain's guidance."""
        ...

    @property
    def reduction(self) -> Reduction:
        """How token log-probs become one number."""
        ...

    @property
    def strategies(self) -> Mapping[str, str]:
        """How each model computed and why, as far as it has."""
        ...

    @property
    def spelt_marks(self) -> int:
        """How many samples spelt out a control token."""
        ...

    def run(self, folder: RunFolder, prompts: CheckedRows[PromptRow], own: Sequence[int], progress: Progress) -> None:
        """Score windows, and keep each when it is done.

        Args:
            folder: Keeps them.
            prompts: The input.
            own: The windows to score.
            progress: Told how far each stage is, in prompts.
        """
        ...


class Here:
    """This process, alone or as one of several.

    Args:
        config: The configuration.
        options: The annotation's options.
        plugins: Where names are looked up.
        resolved: What the configuration's names stand for.
        ranks: The processes, where there are several.

    Raises:
        ConfigError: The policy cannot be sampled, or a model cannot be opened in several processes.
        ModelError: A model does not exist.
    """

    def __init__(
        self, config: Config, options: AnnotateOptions, plugins: Plugins, resolved: Resolved, ranks: Ranks | None = None
    ) -> None:
        self._config = of_rank(config, ranks)
        self._options = options
        self._plugins = plugins
        self._resolved = resolved
        self._ranks = ranks
        self._sampler = open_policy(self._config, options, on_rank=ranks is not None)
        self._ratio = GuidedDensityRatio.from_config(self._config, plugins=plugins, resolved=resolved)
        self.policy = self._sampler.name if self._sampler else None
        self.rendered = self._ratio.rendered
        self.reduction = self._ratio.reduction

    @property
    def models(self) -> dict[str, str]:
        """See `Place.models`."""
        models = {"strong": self._ratio.strong.identity, "weak": self._ratio.weak.identity}
        return models | ({"policy": self._sampler.identity} if self._sampler else {})

    @property
    def dtypes(self) -> list[str | None]:
        """See `Place.dtypes`."""
        return [model.describe().get("dtype") for model in (self._ratio.strong, self._ratio.weak)]

    @property
    def strategies(self) -> dict[str, str]:
        """See `Place.strategies`."""
        return self._ratio.strategies

    @property
    def spelt_marks(self) -> int:
        """See `Place.spelt_marks`."""
        return self._ratio.spelt_marks

    def run(self, folder: RunFolder, prompts: CheckedRows[PromptRow], own: Sequence[int], progress: Progress) -> None:
        """See `Place.run`."""
        sequential = self._config.load == "sequential"
        if sequential and self._config.store is None:  # its place could not be made before the folder was ours
            machine = self._ranks.machine if self._ranks else 0  # one file for each: SQLite's locks end at a machine
            store = folder.work / (f"store-{machine}.sqlite" if machine else "store.sqlite")
            self._ratio = GuidedDensityRatio.from_config(
                self._config, plugins=self._plugins, store=store, resolved=self._resolved
            )
        total = len(prompts)
        if self._ranks is not None:
            size = window_size(self._options.sampling.samples if self._sampler else None)
            total = rows_in(own, size, len(prompts))
        windows = Windows(folder, prompts, self._ratio, self._sampler, self._options, progress, own, total)
        windows.run(sequential=sequential)


class OnCluster:
    """Pools of actors on a cluster. Every actor opens its models again; windows come back here and are kept here.

    Args:
        config: The configuration.
        options: The annotation's options.
        plugins: Plugins that are not installed have to be files.
        engine: The cluster, entered.

    Raises:
        ConfigError: A pool or a plugin cannot be had there.
        ModelError: A model does not exist there.
    """

    def __init__(self, config: Config, options: AnnotateOptions, plugins: Plugins, engine: Engine) -> None:
        self._options = options
        self._engine = engine
        self._recipe = Recipe.of(config, plugins)
        self._drawing = _Drawing(self._recipe.config, options) if options.policy is not None else None
        scheme = None if options.policy is None else policy_spec(config, options.policy).scheme
        self._pools = pools_of(config, gpus=engine.gpus, policy=scheme)
        self._facts: Facts = self._recipe.facts_in(engine, self._pools)
        self.models: dict[str, str] = {str(side): name for side, name in self._facts.identities.items()}
        self.policy = None
        if self._drawing is not None:
            self.policy, self.models["policy"] = engine.once(self._pools["policy"], self._drawing.facts)
        self.dtypes = [self._facts.dtypes["strong"], self._facts.dtypes["weak"]]
        self.rendered = self._facts.rendered
        self.reduction = self._facts.reduction
        self.strategies: dict[str, str] = {}
        self.spelt_marks = 0

    def run(self, folder: RunFolder, prompts: CheckedRows[PromptRow], own: Sequence[int], progress: Progress) -> None:
        """See `Place.run`."""
        size = window_size(self._options.sampling.samples if self._drawing else None)
        rows = prompts.save(folder.work / _ROWS_FILE, size)
        total = len(prompts)
        done = total - rows_in(own, size, total)
        stage = "scoring on the cluster" if self._drawing is None else "sampling and scoring on the cluster"
        progress(stage, done, total)
        source = _Source(folder.root.absolute(), replace(rows, path=rows.path.absolute()), self._drawing is not None)
        for window, batch in self._engine.run(self._stages(), source, own):
            answered: Sequence[PromptRecord] = batch.carried
            seconds = Seconds(batch.sampling, batch.scoring)
            keep_scored(folder, window, answered, batch.scores, seconds, self._options)
            self.strategies |= batch.strategies
            self.spelt_marks += batch.spelt_marks
            done += len(answered)
            progress(stage, done, total)

    def _stages(self) -> list[Stage]:
        drawing = []
        if self._drawing is not None:
            expected = replace(self._drawing, identity=self.models["policy"])
            drawing = [Stage(self._pools["policy"], expected)]
        return [*drawing, *scoring_stages(self._recipe, self._pools, self._facts)]


@dataclass(frozen=True, slots=True)
class _Source:
    """Makes a window's batch from the saved rows, and from the responses that an earlier run has drawn."""

    root: Path
    rows: SavedWindows[PromptRow]
    sampled: bool

    def __call__(self, window: int) -> Batch:
        prompts = [PromptRecord.of(row, sampled=self.sampled) for row in self.rows.window(window)]
        if not self.sampled:
            return Batch(prompts, samples_of(prompts))
        folder = RunFolder(self.root, held=False)
        if not folder.has(RESPONSES, window):
            return Batch(prompts, ())
        answered, seconds = read_responses(folder, window, prompts)
        return Batch(answered, samples_of(answered), sampling=seconds, drawn=True)


@dataclass(frozen=True)
class _Drawing:
    """Opens the stage that draws responses."""

    config: Config
    options: AnnotateOptions
    identity: str | None = None
    """What the policy has to be on every machine."""

    def facts(self) -> tuple[str, str]:
        """The policy's name and identity here."""
        sampler = open_policy(self.config, self.options)
        assert sampler is not None
        return sampler.name, sampler.identity

    def __call__(self) -> Callable[[Batch], Batch]:
        sampler = open_policy(self.config, self.options)
        assert sampler is not None
        if sampler.identity != self.identity:
            raise ModelError(
                f"policy {sampler.name}: is another one on this machine than where the run began (other files, or "
                "another dtype, as on a CPU): make the machines alike"
            )

        def step(batch: Batch) -> Batch:
            if batch.drawn:
                return batch
            started = time.perf_counter()
            answered = answer(sampler, batch.carried, self.options)
            seconds = time.perf_counter() - started
            return replace(batch, carried=answered, samples=samples_of(answered), sampling=seconds, drawn=True)

        return step
