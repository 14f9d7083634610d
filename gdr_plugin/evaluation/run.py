"""The job behind `gdr evaluate`: read and check everything, score, write what was asked for.

Knows the order of things and the files; how data are read, scored, measured and drawn is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gdr_plugin.api.errors import OutputError
from gdr_plugin.config.load import named_config
from gdr_plugin.config.schema import Config
from gdr_plugin.data.items import Data, load_items
from gdr_plugin.evaluation.ablations import report as ablations_report
from gdr_plugin.evaluation.ablations.ablate import ablate
from gdr_plugin.evaluation.exports import as_csv, as_latex, rewardbench_scores
from gdr_plugin.evaluation.provenance import MADE_WITH, made_with
from gdr_plugin.evaluation.summary import Report, evaluate_items
from gdr_plugin.evaluation.track import Tracker, check_tracker, log
from gdr_plugin.evaluation.verdict import verdict
from gdr_plugin.files import atomic, check_output, dumps
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress
from gdr_plugin.reward.resolve import resolve_names
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import field_check
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.store import DEFAULT_STORE


@dataclass(frozen=True, slots=True)
class Outputs:
    """Files to write; None: not."""

    html: Path | None = None
    rows: Path | None = None
    csv: Path | None = None
    """The accuracies as a table."""
    latex: Path | None = None
    """The same for LaTeX."""
    scores: Path | None = None
    """The scores of each item as RewardBench writes them."""
    tracker: Tracker = "none"
    """Where the numbers are logged, too."""
    plot: Path | None = None
    """The figure of the ablations."""

    def check(self, *inputs: str | Path | None) -> None:
        """Refuse what could not be written at the end, before anything is scored.

        Args:
            inputs: What is read; see `check_output`.

        Raises:
            OutputError: A folder is missing, a file is a folder or an input, or two are the same.
            MissingDependencyError: A figure is asked for, and Matplotlib is missing.
        """
        check_tracker(self.tracker)
        if self.plot is not None:
            from gdr_plugin.report.plots import check_plots

            check_plots(self.plot)
        given = {
            **{"--html": self.html, "--rows": self.rows, "--plot": self.plot},
            **{"--csv": self.csv, "--latex": self.latex, "--scores": self.scores},
        }
        seen: dict[Path, str] = {}
        for option, path in given.items():
            if path is None:
                continue
            check_output(option, path, inputs)
            twin = seen.setdefault(path.resolve(), option)
            if twin != option:
                raise OutputError(f"{option} and {twin} name the same file {path}: name two")


def evaluate_data(
    source: str | Path,
    config: str | Path | Config,
    outputs: Outputs | None = None,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    ablations: bool = False,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
) -> tuple[Report, dict[str, str]]:
    """Measure a reward on a preference data set.

    Args:
        source: The data, as for `load_items`.
        config: The reward: a gdr.yaml or a validated configuration.
        outputs: Files to write.
        format: As for `load_items`.
        columns: New name -> the input's name of columns.
        limit: Only the first rows.
        sample: Only so many items, drawn by subset; see `load_items`.
        seed: Seed of the sample.
        skip_bad: Whether bad rows are left out rather than stop.
        ablations: Whether the reward's variants are measured too; see `ablations.ablate`.
        plugins: Where names are looked up; default: built-in and installed plugins.
        progress: Told how many items are done.

    Returns:
        The report, and facts on where it comes from.

    Raises:
        ConfigError: The configuration is wrong.
        DataError: The data cannot be read, or a row is bad (without `skip_bad`).
        OutputError: An output cannot be written.
        ModelError: A model does not exist or fails.
    """
    outputs = outputs or Outputs()
    outputs.check(source, None if isinstance(config, Config) else config)
    plugins = plugins or Plugins()
    config, named = named_config(config)
    resolved = resolve_names(config, plugins, origin=named)
    data = load_items(
        source,
        format=format,
        columns=columns,
        limit=limit,
        sample=sample,
        seed=seed,
        check=field_check(resolved.routers, resolved.guidances, origin=named),
        skip_bad=skip_bad,
    )
    ratio = GuidedDensityRatio.from_config(config, plugins=plugins, store=DEFAULT_STORE, resolved=resolved)
    try:
        report = evaluate_items(ratio, data.items, format=data.format, progress=progress)
        origin = _origin(source, named, data, ratio) | made_with(ratio, report.scores)
        if ablations:
            variants = ablate(ratio, data.items, format=data.format, progress=progress)
            report = replace(report, ablations=variants)
    finally:
        if ratio.store is not None:
            ratio.store.close()
    write(report, origin, outputs)
    return report, origin


def as_json(report: Report, origin: Mapping[str, str]) -> dict[str, Any]:
    """Everything for machines: what `--json` prints."""
    found = {"origin": dict(origin), **report.as_json(), "verdict": verdict(report)}
    if report.ablations is not None:
        found["ablations"] = ablations_report.as_json(report.ablations)
    return found


def write(report: Report, origin: Mapping[str, str], outputs: Outputs) -> None:
    """Write what was asked for; each file appears when it is complete."""
    ablations = report.ablations
    if outputs.html is not None:
        from gdr_plugin.evaluation.summary_page import report_page

        more = ablations_report.as_html(ablations) if ablations is not None else ""
        with atomic(outputs.html) as file:
            file.write(report_page(report, f"Reward on {Path(origin['data']).name}", dict(origin), more))
    if outputs.plot is not None and ablations is not None:
        from gdr_plugin.report.plots import save

        save(ablations_report.as_figure(ablations), outputs.plot)
    if outputs.rows is not None:
        with atomic(outputs.rows) as file:
            file.writelines(dumps(row) + "\n" for row in report.rows())
    for path, text in ((outputs.csv, as_csv), (outputs.latex, as_latex)):
        if path is not None:
            with atomic(path) as file:
                file.write(text(report, origin))
    if outputs.scores is not None:
        with atomic(outputs.scores) as file:
            file.write(dumps(rewardbench_scores(report, origin)) + "\n")
    if outputs.tracker != "none":  # last: the files are there, whatever a network does
        log(report, origin, outputs.tracker)


def shown(origin: Mapping[str, str]) -> dict[str, str]:
    """What a terminal says of where the numbers come from; pages and files say everything."""
    return {name: fact for name, fact in origin.items() if name not in MADE_WITH}


def _origin(source: str | Path, config: str, data: Data, ratio: GuidedDensityRatio) -> dict[str, str]:
    """Where the numbers come from, for people."""
    facts = {
        "data": "standard input" if str(source) == "-" else str(source),
        "config": config,
        "strong": ratio.strong.name,
        "weak": ratio.weak.name,
    }
    facts |= data.facts
    models = [model for model in (ratio.strong, ratio.weak) if isinstance(model, StoredModel)]
    if models:
        hits, misses = sum(model.hits for model in models), sum(model.misses for model in models)
        facts["store"] = f"{hits:,} hits, {misses:,} misses"
    return facts | {f"{side} on": strategy for side, strategy in ratio.strategies.items()}
