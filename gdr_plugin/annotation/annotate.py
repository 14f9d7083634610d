"""Prompts to preference pairs: what `gdr annotate` does.

Knows the order of things: check everything, claim the folder, work through the windows (`job`), write the files
(`finish`). Nothing is made before everything that can be checked without weights has been checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdr_plugin.annotation.options import AnnotateOptions, describe_run, open_policy, versions
from gdr_plugin.annotation.outputs import Picking, finish
from gdr_plugin.annotation.prompts import Prompts
from gdr_plugin.annotation.run_folder import RunFolder
from gdr_plugin.annotation.selectors import find_selector
from gdr_plugin.annotation.windows import Job, window_size
from gdr_plugin.api.routers import Router, RoutingContext
from gdr_plugin.api.types import Sample
from gdr_plugin.arithmetic.noise import RewardNoise
from gdr_plugin.config.load import load_config
from gdr_plugin.config.schema import Config
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress
from gdr_plugin.reward.resolve import resolve_names
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import FieldRouter


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
    config, origin = (config, "configuration") if isinstance(config, Config) else (load_config(config), str(config))
    routers = resolve_names(config, plugins, origin=origin).routers
    selector = find_selector(options.select, plugins.selectors())
    RunFolder.check_usable(root)
    sampler = open_policy(config, options)
    ratio = GuidedDensityRatio.from_config(config, plugins=plugins)
    prompts = Prompts(
        source,
        columns=options.columns,
        limit=options.limit,
        sampled=sampler is not None,
        check_fields=_field_check(routers, ratio),
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
        size = window_size(options.sampling.samples if sampler else None)
        job = Job(folder, prompts, inventory.rows, size, ratio, sampler, options, progress or _silent)
        job.run(sequential=sequential)
        dtypes = (model.describe().get("dtype") for model in (ratio.strong, ratio.weak))
        noise = RewardNoise.of(dtypes, ratio.reduction)
        picking = Picking(selector, options.filters, options.sampling.seed, noise)
        facts = {**run, **compare, "strategies": ratio.strategies}
        summary = finish(folder, job.windows, picking, facts, ratio.rendered)
        folder.clear_work()
        return Annotated(root, summary, already_complete=False)


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
