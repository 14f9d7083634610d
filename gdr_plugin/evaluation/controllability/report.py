"""`gdr controllability` from end to end: the run, and its tables for terminal, page and JSON.

Knows the order of things and how the result is shown; the measuring is in `measure`, the data's form in
`prompts`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.guidance import Guidance
from gdr_plugin.api.types import Placement, Reduction
from gdr_plugin.arithmetic.reduction import REDUCTIONS, UNITS
from gdr_plugin.config.load import named_config
from gdr_plugin.config.schema import Config
from gdr_plugin.evaluation.controllability.measure import (
    ALL,
    SETTINGS,
    Controllability,
    Numbers,
    controllability,
    score_prompts,
)
from gdr_plugin.evaluation.controllability.prompts import DATA, ControlPrompt, criteria_of, read_control_prompts
from gdr_plugin.files import atomic
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress
from gdr_plugin.report.tables import Table, estimate_json, estimate_text, section
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.store.store import DEFAULT_STORE

__all__ = ["ControllabilityReport", "run_controllability"]

_COLUMNS = ("unguided", "both", "strong", "pmi")
"""The settings of the table by criterion."""


@dataclass(frozen=True, slots=True)
class ControllabilityReport:
    """What was measured, ready to be shown."""

    result: Controllability
    criteria: Mapping[str, Guidance]
    data: str
    """What the data set is called."""
    strong: str
    weak: str
    placement: Placement
    """gdr.yaml's placement; with `none`, tables that show one placement show `both`."""
    reduction: Reduction
    """gdr.yaml's reduction; tables that show one reduction show this."""

    @property
    def shown(self) -> str:
        """The setting of tables that show one: gdr.yaml's placement."""
        return "both" if self.placement == "none" else self.placement

    @property
    def summary(self) -> str:
        """One line on what was compared."""
        result = self.result
        missing = f", {result.not_scored:,} scores missing" if result.not_scored else ""
        return (
            f"{result.prompts:,} prompts, {result.responses:,} responses, {len(result.criteria)} criteria{missing}; "
            f"strong {self.strong}, weak {self.weak}. A share says how often the response that meets the criterion "
            "beats another response to the same prompt (chance: 0.5); 95 % intervals resample prompts."
        )

    def tables(self, *, everything: bool = False) -> list[Table]:
        """The tables: overall, by criterion, and who wins under which criterion.

        Args:
            everything: Whether the latter two come for every reduction, as a page has room for; default: gdr.yaml's.
        """
        reductions = REDUCTIONS if everything else (self.reduction,)
        tables = [self._overall(), *(self._by_criterion(reduction, everything) for reduction in reductions)]
        settings = dict.fromkeys((self.shown, *(["strong", "pmi"] if everything else [])))
        for setting in settings:
            if setting in self.result.winners:
                tables += [self._winners(setting, reduction) for reduction in reductions]
        return tables

    def html(self) -> Any:
        """All tables as a section of a page (`Raw`)."""
        return section(
            "How often the reward prefers what its guidance asks for", self.summary, self.tables(everything=True)
        )

    def json(self) -> dict[str, Any]:
        """Everything for machines: plain values, shares between 0 and 1."""
        result = self.result

        def plain(tables: Mapping[str, Numbers]) -> dict[str, Any]:
            return {
                criterion: {name: {r: estimate_json(e) for r, e in row.items()} for name, row in table.items()}
                for criterion, table in tables.items()
            }

        return {
            "data": self.data,
            "strong": self.strong,
            "weak": self.weak,
            "configured": {"placement": self.placement, "reduction": self.reduction},
            "prompts": result.prompts,
            "responses": result.responses,
            "not_scored": result.not_scored,
            "criteria": {
                name: {"instruction": self.criteria[name].instruction, "prompts": count}
                for name, count in result.criteria.items()
            },
            "settings": {name: SETTINGS[name].label for name in result.winners},
            "shares": plain(result.shares),
            "gains": plain(result.gains),
            "winners": result.winners,
        }

    def _overall(self) -> Table:
        rows = tuple(
            (SETTINGS[name].label, *(estimate_text(row[reduction]) for reduction in REDUCTIONS))
            for name, row in self.result.shares[ALL].items()
        )
        note = (
            "guided: the model sees the criterion as its guidance. strong guided - strong: one model on both sides, "
            "the pointwise mutual information of response and criterion. Where every response is asked for once, "
            "as in the package's data, whatever has no guidance gets 0.5 by construction."
        )
        return Table("Comparisons won by the response that meets the criterion", ("who", *REDUCTIONS), rows, note)

    def _by_criterion(self, reduction: Reduction, everything: bool) -> Table:
        wanted = (*_COLUMNS, "logprob") if everything or "pmi" not in self.result.shares[ALL] else _COLUMNS
        columns = [name for name in wanted if name in self.result.shares[ALL]]
        counts = {**self.result.criteria, ALL: self.result.prompts}
        gains = [self.shown] if everything and self.shown in self.result.gains[ALL] else []
        rows = tuple(
            (
                criterion,
                f"{counts[criterion]:,}",
                *(estimate_text(table[name][reduction]) for name in columns),
                *(estimate_text(self.result.gains[criterion][name][reduction], signed=True) for name in gains),
            )
            for criterion, table in self.result.shares.items()
        )
        headers = ("criterion", "prompts", *(SETTINGS[name].label for name in columns))
        headers += tuple("gain" for _ in gains)
        label = SETTINGS[self.shown].label
        note = f"gain: {label}, less the same comparisons without guidance, with a paired interval." if gains else ""
        return Table(f"The same by criterion, {reduction} ({UNITS[reduction]})", headers, rows, note)

    def _winners(self, setting: str, reduction: Reduction) -> Table:
        table = self.result.winners[setting][reduction]
        kinds = list(self.result.criteria)
        rows = tuple(
            (told, *(f"{100 * shares[kind]:.0f}" if shares.get(kind) else "." for kind in kinds))
            for told, shares in table.items()
        )
        caption = f"Which response is the best of its prompt, in % of prompts: {SETTINGS[setting].label}, {reduction}"
        note = (
            "Rows: the guidance. Columns: the criterion that the best response meets. Not every prompt has "
            "a response for every criterion; a dot stands for never."
        )
        return Table(caption, ("guidance", *kinds), rows, note)


def run_controllability(
    config: str | Path | Config,
    data: str | Path | None = None,
    *,
    plugins: Plugins | None = None,
    store: str | Path | None = DEFAULT_STORE,
    sample: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ControllabilityReport:
    """Measure how well guidance controls the reward that a gdr.yaml describes.

    Data and criteria are read and checked before a model loads. Domains and routers of gdr.yaml play no part: every
    prompt is scored under its own criteria.

    Args:
        config: A gdr.yaml or a validated configuration.
        data: A data set of the form of `prompts`; default: the one of the package.
        plugins: Where names are looked up; default: built-in and installed plugins.
        store: Where log-probs are kept when the configuration names no store; None: nowhere.
        sample: Only so many prompts, drawn with `seed`: the time that it takes shrinks with them.
        seed: Seed of the sample.
        progress: Told how many prompts are done.

    Returns:
        Shares with intervals, by criterion, placement and reduction.

    Raises:
        ConfigError: The configuration or a guidance file is wrong.
        DataError: The data are wrong, or a criterion has no guidance.
        ModelError: A model does not exist or fails.
    """
    config, _ = named_config(config)
    plugins = plugins or Plugins()
    prompts = read_control_prompts(DATA if data is None else data)
    there = len(prompts)
    if sample is not None:
        prompts = _drawn(prompts, sample, seed)
    criteria = criteria_of(prompts, config, plugins)
    ratio = GuidedDensityRatio.from_config(config, plugins=plugins, store=store)
    try:
        found = score_prompts(ratio, prompts, criteria, progress=progress)
    finally:
        if ratio.store is not None:
            ratio.store.close()
    return ControllabilityReport(
        result=controllability(found, same_model=ratio.strong.identity == ratio.weak.identity),
        criteria=criteria,
        data=("controllability.jsonl of the package" if data is None else str(data))
        + (f" ({len(prompts):,} of {there:,} prompts)" if len(prompts) < there else ""),
        strong=ratio.strong.name,
        weak=ratio.weak.name,
        placement=config.guidance.placement,
        reduction=config.reward.reduction,
    )


def _drawn(prompts: Sequence[ControlPrompt], size: int, seed: int) -> list[ControlPrompt]:
    """Some of the prompts, in their order."""
    if size < 1:
        raise DataError(f"--sample must be 1 or more, not {size}")
    order = sorted(range(len(prompts)), key=lambda at: random.Random(f"{seed}/{prompts[at].id}").random())
    return [prompts[at] for at in sorted(order[:size])]


def write(report: ControllabilityReport, *, html_file: Path | None = None) -> None:
    """Write what is asked for; each file appears when it is complete.

    Raises:
        OutputError: A file cannot be written.
    """
    if html_file is not None:
        from gdr_plugin.report.page import page

        with atomic(html_file) as file:
            file.write(page("Controllability", report.html()))
