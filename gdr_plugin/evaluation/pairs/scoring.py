"""N passes: every model scores every response once, alone; all model pairs are subtractions afterwards.

Knows the order of things: open all models, decide the domains, one model after the other into the store. What the
numbers mean is `matrix`' business.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gdr_plugin.api.errors import DataError, EngineWarning, ModelError
from gdr_plugin.api.guidance import Guidance
from gdr_plugin.api.models import LogprobModel
from gdr_plugin.api.routers import Router
from gdr_plugin.api.settings import Limits
from gdr_plugin.api.types import Reduction
from gdr_plugin.arithmetic.reduction import Kind, value
from gdr_plugin.arithmetic.statistics import Column
from gdr_plugin.config.schema import Config, GuidanceSection, RewardSection
from gdr_plugin.data.item import Item, ItemScores
from gdr_plugin.evaluation.pairs.models import NamedModel
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress
from gdr_plugin.reward.resolve import resolve_names
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import RouterChain
from gdr_plugin.routing.field import FieldRouter
from gdr_plugin.scoring.items import score_items
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.store import DEFAULT_STORE, LogprobStore
from gdr_plugin.text import without_numbers

__all__ = ["Conditions", "LogprobTable", "score_models"]


@dataclass(frozen=True)
class Conditions:
    """The conditions of a comparison: what all models are shown, and the reduction. Default: no guidance, sums."""

    domains: dict[str, Guidance | None] = field(default_factory=lambda: {"all": None})
    routers: tuple[Router, ...] = ()
    default_domain: str = "all"
    guidance: GuidanceSection = field(default_factory=GuidanceSection)
    reward: RewardSection = field(default_factory=RewardSection)
    limits: Limits = field(default_factory=Limits)
    store: Path = DEFAULT_STORE

    @classmethod
    def of(cls, config: Config, plugins: Plugins, *, origin: str) -> Conditions:
        """Those that a gdr.yaml describes; its strong and weak model are not used.

        Raises:
            ConfigError: A name in it is not known.
        """
        resolved = resolve_names(config, plugins, origin=origin)
        return cls(
            domains=resolved.guidances,
            routers=tuple(resolved.routers),
            default_domain=config.routing.default_domain,
            guidance=config.guidance,
            reward=config.reward,
            limits=config.limits,
            store=Path(config.store.path) if config.store else DEFAULT_STORE,
        )

    def reduced(self, reduction: Reduction | None) -> Conditions:
        """The same with another reduction; None changes nothing."""
        if reduction is None:
            return self
        return replace(self, reward=self.reward.model_copy(update={"reduction": reduction}))

    @property
    def shown(self) -> str:
        """Which models see guidance: `both`, `strong` or `none`."""
        guided = any(guidance is not None for guidance in self.domains.values())
        return self.guidance.placement if guided else "none"

    @property
    def reduction(self) -> Reduction:
        """How token log-probs become one number."""
        return self.reward.reduction


@dataclass(frozen=True)
class LogprobTable:
    """Every response's log-prob under every model, reduced."""

    names: tuple[str, ...]
    """The models' short names, in the order given."""
    items: tuple[Item, ...]
    """The items of which every model scored every response: all model pairs are judged on the same ones."""
    left_out: int
    """How many other items there are; `reasons` says why."""
    strong: dict[str, Column]
    """Name -> log-probs as the strong model of a pair, shape `(responses,)`: nats, nats a token or nats a byte. The
    responses of each item follow each other, the chosen ones first."""
    weak: dict[str, Column]
    """The same as the weak model: another number only where guidance is shown to the strong model alone."""
    per_token: dict[str, Column]
    """As the strong model, in nats a token, whatever the reduction."""
    asked: dict[str, int]
    """Name -> how many texts the model computed; the others came from the store."""
    facts: dict[str, dict[str, str]]
    """Name -> what the model's backend says of itself, with its identity."""
    reasons: dict[str, int]
    """Why responses were not scored, with counts over all models."""


def score_models(
    models: Sequence[NamedModel],
    items: Sequence[Item],
    conditions: Conditions,
    *,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
) -> LogprobTable:
    """Score every response under every model, one model in memory at a time.

    All models are opened (configuration and tokenizer only) before the first one loads. Results go through the store
    window by window, so that a killed run goes on where it stopped. The first model decides the domains where a router
    asks a model; all others are shown the same.

    Args:
        models: At least one.
        items: What to score; not empty.
        conditions: Guidance, routing, reduction, limits, store.
        plugins: Where names are looked up; default: built-in and installed plugins.
        progress: Told how many items of each model are done.

    Returns:
        The log-probs.

    Raises:
        DataError: No items, or none that every model could score.
        ModelError: A model does not exist, fails, or scored nothing at all.
        StoreError: The store cannot be used.
    """
    if not items:
        raise DataError("the data hold no preference pair")
    plugins = plugins or Plugins()
    opened = {model.name: plugins.open_model(model.spec, conditions.limits) for model in models}
    _warn_of_dtypes(opened)
    columns: tuple[dict[str, Column], dict[str, Column], dict[str, Column]] = ({}, {}, {})
    reasons: Counter[str] = Counter()
    asked: dict[str, int] = {}
    store = LogprobStore(conditions.store)
    try:
        for name, scores, computed in _passes(models, opened, items, conditions, store, progress):
            kinds: tuple[tuple[Kind, Reduction], ...] = (
                ("strong", conditions.reduction),
                ("weak", conditions.reduction),
                ("strong", "mean"),
            )
            for column, (kind, reduction) in zip(columns, kinds, strict=True):
                column[name] = _column(scores, kind, reduction)
            asked[name] = computed
            _count_reasons(name, scores, reasons)
    finally:
        for model in opened.values():
            model.unload()
        store.close()
    facts = {name: {"identity": model.identity, **model.describe()} for name, model in opened.items()}
    return _complete(tuple(opened), items, columns, asked, facts, reasons)


def _passes(
    models: Sequence[NamedModel],
    opened: Mapping[str, LogprobModel],
    items: Sequence[Item],
    conditions: Conditions,
    store: LogprobStore,
    progress: Progress | None,
) -> Iterator[tuple[str, list[ItemScores], int]]:
    """One model after the other: its name, its scores, and how many texts it computed."""
    chain = RouterChain(conditions.routers, conditions.default_domain)
    previous: NamedModel | None = None
    for number, model in enumerate(models, start=1):
        if previous is not None and not _share_weights(previous, model):
            opened[previous.name].unload()
        stored = StoredModel(opened[model.name], store)
        ratio = _alone(stored, conditions, chain)
        stage = f"{model.name} ({number}/{len(models)})"
        scores = list(score_items(ratio, items, progress=_named(progress, stage)))
        if previous is not None:  # weights that both use stay: this model holds them
            opened[previous.name].unload()
        else:
            items, chain = _with_domains(scores), _same_again(conditions)
        previous = model
        yield model.name, scores, stored.misses


def _complete(
    names: tuple[str, ...],
    items: Sequence[Item],
    columns: tuple[dict[str, Column], ...],
    asked: dict[str, int],
    facts: dict[str, dict[str, str]],
    reasons: Counter[str],
) -> LogprobTable:
    """The table of the items that all models scored."""
    sizes = [len(item.chosen) + len(item.rejected) for item in items]
    known = np.isfinite([column for by_name in columns for column in by_name.values()]).all(axis=0)
    whole = np.array([part.all() for part in np.split(known, np.cumsum(sizes)[:-1])])
    if not whole.any():
        raise DataError(f"no item was scored by every model: {'; '.join(list(reasons)[:3])}")
    strong, weak, per_token = (
        {name: column[np.repeat(whole, sizes)] for name, column in by_name.items()} for by_name in columns
    )
    kept = tuple(item for item, fine in zip(items, whole, strict=True) if fine)
    counts = dict(reasons.most_common())
    return LogprobTable(names, kept, len(items) - len(kept), strong, weak, per_token, asked, facts, counts)


def _alone(model: StoredModel, conditions: Conditions, chain: RouterChain) -> GuidedDensityRatio:
    """The ratio of a model with itself, for its two log-probs; its store knows what both sides are shown."""
    return GuidedDensityRatio(
        model, model, domains=conditions.domains, chain=chain, guidance=conditions.guidance, reward=conditions.reward
    )


def _with_domains(scores: Sequence[ItemScores]) -> Sequence[Item]:
    """The items with the domains that they were routed to (empty where routing failed: then it fails again)."""
    return tuple(replace(own.item, domain=own.chosen[0].domain or own.item.domain) for own in scores)


def _same_again(conditions: Conditions) -> RouterChain:
    """A chain that takes the domain that `_with_domains` noted; without routers everything has the default domain."""
    return RouterChain([FieldRouter()] if conditions.routers else [], conditions.default_domain)


def _column(scores: Sequence[ItemScores], kind: Kind, reduction: Reduction) -> Column:
    found = [
        value(score, turn.text, kind=kind, reduction=reduction)
        for own in scores
        for score, turn in zip((*own.chosen, *own.rejected), (*own.item.chosen, *own.item.rejected), strict=True)
    ]
    return np.array([np.nan if number is None else number for number in found])


def _count_reasons(name: str, scores: Sequence[ItemScores], reasons: Counter[str]) -> None:
    """Count why responses were not scored.

    Raises:
        ModelError: None was scored: no model pair with this model could be judged.
    """
    found = [score.reason for own in scores for score in (*own.chosen, *own.rejected)]
    missing = [without_numbers(reason.removeprefix("strong model: ")) for reason in found if reason]
    if len(missing) == len(found):
        raise ModelError(f"{name} could score no response: {next(reason for reason in found if reason)}")
    reasons.update(f"{name}: {reason}" for reason in missing)


def _share_weights(model: NamedModel, other: NamedModel) -> bool:
    """Whether two models are adapters on one base (or the base itself): then the base need not be loaded again."""
    return model.spec.model_copy(update={"adapter": None}) == other.spec.model_copy(update={"adapter": None})


def _warn_of_dtypes(opened: dict[str, LogprobModel]) -> None:
    dtypes = {name: model.describe().get("dtype") for name, model in opened.items()}
    kinds = sorted({dtype for dtype in dtypes.values() if dtype is not None})
    if len(kinds) > 1:
        warnings.warn(
            f"models compute in {' and '.join(kinds)}: their rounding errors do not cancel and blur accuracies; set "
            "one dtype for all in models.yaml",
            EngineWarning,
            stacklevel=3,
        )


def _named(progress: Progress | None, stage: str) -> Callable[[str, int, int | None], None]:
    return lambda _, done, total: progress(stage, done, total) if progress else None
