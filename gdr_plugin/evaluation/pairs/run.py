"""Which two of N models make the best reward? From names and a data set to a report.

Knows the order of things: everything that can be wrong is found before a model loads. The study's idea is the source's:
"Preference Data Annotation with Guided Density Ratios" (arXiv 2411.02481) compares 221 model pairs and finds the
reward better the larger their gap in alignment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gdr_plugin.api.types import Reduction
from gdr_plugin.config.load import named_config
from gdr_plugin.config.schema import Config
from gdr_plugin.data.items import load_items
from gdr_plugin.evaluation.measures.benchmarks import partial, whole
from gdr_plugin.evaluation.pairs.matrix import study
from gdr_plugin.evaluation.pairs.models import models_of, read_gap_scores
from gdr_plugin.evaluation.pairs.report import ModelPairsReport
from gdr_plugin.evaluation.pairs.scoring import Conditions, score_models
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress
from gdr_plugin.routing import field_check

__all__ = ["ModelPairsOptions", "compare_model_pairs"]


@dataclass(frozen=True, slots=True)
class ModelPairsOptions:
    """How model pairs are compared."""

    models_file: Path | None = None
    """A models.yaml with further models."""
    config: str | Path | Config | None = None
    """Guidance, routing, reduction, limits and store; its strong and weak model are not used. Default: no guidance."""
    reduction: Reduction | None = None
    """Default: as `config` says, else `sum`."""
    gap_scores: Path | None = None
    """CSV with external scores; default: each model's own log-prob accuracy."""
    format: str = "auto"
    """The data's format; see `data.items.read_items`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """New name -> the input's name of columns."""
    limit: int | None = None
    """Only the first items."""
    sample: int | None = None
    """Only so many items, drawn by subset with `seed`."""
    skip_bad: bool = False
    """Whether bad rows are left out rather than stop."""
    seed: int = 0
    """Seed of the halves and of all resampling."""


def compare_model_pairs(
    models: Sequence[str],
    data: str | Path,
    options: ModelPairsOptions | None = None,
    *,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
) -> ModelPairsReport:
    """Judge all ordered model pairs as rewards; each model scores each text once.

    Args:
        models: `[NAME=]MODEL[+ADAPTER]` each; see `models.model_of`.
        data: Preference data in any format of `gdr evaluate`.
        options: How.
        plugins: Where names are looked up; default: built-in and installed plugins.
        progress: Told how many items of each model are done.

    Returns:
        The report.

    Raises:
        ConfigError: A model, the configuration or the external scores are wrong.
        DataError: The data cannot be read, or no item was scored by every model.
        ModelError: A model does not exist or fails.
        StoreError: The store cannot be used.
    """
    options = options or ModelPairsOptions()
    plugins = plugins or Plugins()
    named = models_of(models, options.models_file)
    conditions, origin = _conditions(options, plugins)
    quality = read_gap_scores(options.gap_scores, [model.name for model in named]) if options.gap_scores else None
    read = load_items(
        data,
        format=options.format,
        columns=options.columns,
        limit=options.limit,
        sample=options.sample,
        seed=options.seed,
        check=field_check(conditions.routers, conditions.domains, origin=origin),
        skip_bad=options.skip_bad,
    )
    table = score_models(named, read.items, conditions, plugins=plugins, progress=progress)
    found = study(table, format=read.format, quality=quality, seed=options.seed)
    part = partial(len(table.items), whole(table.items, read.format))
    told = read.facts if part is None else {"benchmark": part, **read.facts}
    return ModelPairsReport(str(data), tuple(named), conditions, table, found, options.seed, told)


def _conditions(options: ModelPairsOptions, plugins: Plugins) -> tuple[Conditions, str]:
    """The conditions, and what messages call the configuration that they come from."""
    config = options.config
    if config is None:
        return Conditions().reduced(options.reduction), "configuration"
    loaded, origin = named_config(config)
    return Conditions.of(loaded, plugins, origin=origin).reduced(options.reduction), origin
