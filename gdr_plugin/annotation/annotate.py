"""Prompts to preference pairs: what `gdr annotate` does.

Knows the order of things: check everything, claim the folder, work through the windows (`windows`), write the files
(`outputs`). Nothing is made before everything that can be checked without weights has been checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gdr_plugin.annotation.options import AnnotateOptions, describe_run, open_policy, versions
from gdr_plugin.annotation.outputs import Picking, write_outputs
from gdr_plugin.annotation.prompts import read_prompts
from gdr_plugin.annotation.run_folder import RunFolder
from gdr_plugin.annotation.selectors import find_selector
from gdr_plugin.annotation.summary import InputFacts, RunFacts, RunOrigin, Summary
from gdr_plugin.annotation.windows import Windows
from gdr_plugin.arithmetic.noise import RewardNoise
from gdr_plugin.config.load import named_config
from gdr_plugin.config.schema import Config
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress, silent
from gdr_plugin.reward.resolve import resolve_names
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import field_check


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
    config, origin = named_config(config)
    resolved = resolve_names(config, plugins, origin=origin)
    selector = find_selector(options.select, plugins.selectors())
    RunFolder.check_usable(root)
    sampler = open_policy(config, options)
    ratio = GuidedDensityRatio.from_config(config, plugins=plugins, resolved=resolved)
    with read_prompts(
        source,
        columns=options.columns,
        limit=options.limit,
        sampled=sampler is not None,
        check=field_check(resolved.routers, resolved.guidances, origin=origin),
        skip_bad=options.skip_bad,
    ) as prompts:
        given: InputFacts = {"rows": len(prompts), "bad": prompts.bad, "content": prompts.fingerprint}
        identity = describe_run(config, options, given, ratio, sampler)
        about: RunOrigin = {"source": str(source), "versions": versions()}
        with RunFolder(root) as folder:
            folder.claim(about, compare=identity)
            done = folder.summary()
            if done is not None:
                folder.clear_work()
                return Annotated(root, done, already_complete=True)
            sequential = config.load == "sequential"
            if sequential and config.store is None:  # its place could not be made before the folder was ours
                ratio = GuidedDensityRatio.from_config(
                    config, plugins=plugins, store=folder.work / "store.sqlite", resolved=resolved
                )
            tell = progress or silent
            windows = Windows(folder, prompts, ratio, sampler, options, tell)
            windows.run(sequential=sequential)
            dtypes = (model.describe().get("dtype") for model in (ratio.strong, ratio.weak))
            noise = RewardNoise.of(dtypes, ratio.reduction)
            picking = Picking(selector, options.filters, options.sampling.seed, noise)
            run: RunFacts = {**about, **identity, "strategies": ratio.strategies}
            summary = write_outputs(folder, windows.numbers, picking, run, config, ratio.rendered, tell)
            folder.clear_work()
            return Annotated(root, summary, already_complete=False, spelt_marks=ratio.spelt_marks)
