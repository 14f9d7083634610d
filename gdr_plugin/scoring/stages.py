"""Scoring in stages, for models that run in different places: what each place opens, and what travels between them.

Knows the steps of a reward and how one is opened again elsewhere; nothing of clusters' options, rows or files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gdr_plugin.api.errors import ConfigError, ModelError
from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.api.models import TokenOffsets
from gdr_plugin.api.types import Reduction, Sample, Score, Side
from gdr_plugin.arithmetic.reduction import Answer
from gdr_plugin.cluster.engine import Engine, Stage
from gdr_plugin.cluster.pools import Pool
from gdr_plugin.config.load import COST_ONLY, fingerprint
from gdr_plugin.config.schema import Config, PoolName
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.questions import GuidedSample
from gdr_plugin.reward.reward import GuidedDensityRatio

__all__ = ["Batch", "Facts", "Recipe", "reward_identity", "scoring_stages"]

_SIDES: tuple[Side, ...] = ("strong", "weak")


@dataclass(slots=True)
class Batch:
    """Samples that are scored together, on their way through the stages."""

    carried: Any
    """What the caller wants back with the scores."""
    samples: Sequence[Sample]
    drawn: bool = False
    """Whether a policy has answered already."""
    guided: Sequence[GuidedSample] | None = None
    strong: Sequence[Answer] | None = None
    """The strong model's answers, between the two models."""
    scores: Sequence[Score] = ()
    spelt_marks: int = 0
    """Samples that spell out a control token of a model."""
    strategies: dict[str, str] = field(default_factory=dict)
    """How each model computed, and why."""
    sampling: float = 0.0
    """Seconds that drawing the responses took."""
    scoring: float = 0.0
    """Seconds that both models took."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reward is where its models run: the machine that asks may have another kind of processor."""

    identities: Mapping[Side, str]
    dtypes: Mapping[Side, str | None]
    offsets: Mapping[Side, bool]
    """Whether a model's backend says where its tokens are."""
    rendered: Mapping[str, RenderedGuidance]
    """Each domain's guidance."""
    reduction: Reduction


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a reward is opened in another process; can be pickled."""

    config: Config
    plugins: tuple[Path, ...]
    """Files of plugins that are not installed."""

    @classmethod
    def of(cls, config: Config, plugins: Plugins) -> Recipe:
        """The recipe of a reward; a store is left out, since machines cannot share an SQLite file.

        Raises:
            ConfigError: A plugin was given as an object, which exists in this process alone.
        """
        files = [Path(plugin).absolute() for plugin in plugins.extra if isinstance(plugin, str | Path)]
        if len(files) < len(plugins.extra):
            raise ConfigError("other processes need plugins as files, or installed: give --plugin FILE")
        return cls(config.model_copy(update={"store": None, "load": "together"}), tuple(files))

    def open(self) -> GuidedDensityRatio:
        """The reward; no weights are loaded yet."""
        return GuidedDensityRatio.from_config(self.config, plugins=Plugins(*self.plugins))

    def facts(self) -> Facts:
        """What the reward is here."""
        ratio = self.open()
        models = dict(zip(_SIDES, (ratio.strong, ratio.weak), strict=True))
        return Facts(
            identities={side: model.identity for side, model in models.items()},
            dtypes={side: model.describe().get("dtype") for side, model in models.items()},
            offsets={side: isinstance(model.chat, TokenOffsets) for side, model in models.items()},
            rendered=ratio.rendered,
            reduction=ratio.reduction,
        )

    def facts_in(self, engine: Engine, pools: Mapping[PoolName, Pool]) -> Facts:
        """What the reward is on the cluster: each model as its own pool has it."""
        both = pools.get("both")
        strong = engine.once(both or pools["strong"], self.facts)
        weak = strong if both else engine.once(pools["weak"], self.facts)

        def of_each(name: str) -> dict[Side, Any]:
            return {"strong": getattr(strong, name)["strong"], "weak": getattr(weak, name)["weak"]}

        return replace(strong, identities=of_each("identities"), dtypes=of_each("dtypes"), offsets=of_each("offsets"))


def reward_identity(
    config: Config, rendered: Mapping[str, RenderedGuidance], models: Mapping[str, str]
) -> dict[str, Any]:
    """What decides a reward, as JSON: runs that agree in it may go on in one folder. What changes the cost is left out.

    Args:
        config: The configuration.
        rendered: Each domain's guidance.
        models: `strong` and `weak` -> identity.
    """
    return {
        "config": config.model_dump(mode="json", exclude=COST_ONLY),
        "config_content": fingerprint(config),
        "guidance": {domain: guidance.id for domain, guidance in rendered.items()},
        "models": dict(models),
    }


def scoring_stages(
    recipe: Recipe, pools: Mapping[PoolName, Pool], facts: Facts, *, tokens: bool = False
) -> list[Stage]:
    """The stages that score a `Batch`: one where a pool holds both models, else the strong one and then the weak one.

    Args:
        recipe: Opens the reward.
        pools: The pools there are.
        facts: What every actor has to agree with.
        tokens: Whether scores carry token log-probs.
    """
    if "both" in pools:
        return [Stage(pools["both"], _Scoring(recipe, facts, _SIDES, tokens=tokens))]
    return [Stage(pools[side], _Scoring(recipe, facts, (side,), tokens=tokens)) for side in _SIDES]


@dataclass(frozen=True)
class _Scoring:
    """Opens a stage that asks one model, or both in turn."""

    recipe: Recipe
    facts: Facts
    sides: tuple[Side, ...]
    tokens: bool

    def __call__(self) -> Callable[[Batch], Batch]:
        ratio = self.recipe.open()
        for side in self.sides:
            model = ratio.strong if side == "strong" else ratio.weak
            if model.identity != self.facts.identities[side]:
                raise ModelError(
                    f"{side} model {model.name}: is another one on this machine than where the run began (other files, "
                    "or another dtype, as on a CPU): make the machines alike, or set `dtype` in gdr.yaml"
                )

        def step(batch: Batch) -> Batch:
            started = time.perf_counter()
            for side in self.sides:
                batch = _asked(ratio, side, batch, tokens=self.tokens)
            known = {side: words for side, words in ratio.strategies.items() if side in self.sides}
            seconds = batch.scoring + time.perf_counter() - started
            return replace(batch, strategies=batch.strategies | known, scoring=seconds)

        return step


def _asked(ratio: GuidedDensityRatio, side: Side, batch: Batch, *, tokens: bool) -> Batch:
    """The batch with the strong model's answers, or with the scores that the weak one's complete."""
    guided = ratio.guide(batch.samples) if batch.guided is None else batch.guided
    answers = ratio.ask(side, guided)
    if side == "strong":
        return replace(batch, guided=guided, strong=[_without_context(answer) for answer in answers])
    assert batch.strong is not None
    before = ratio.spelt_marks
    scores = ratio.combine(guided, batch.strong, answers, tokens=tokens)
    return replace(batch, samples=(), guided=None, strong=None, scores=scores, spelt_marks=ratio.spelt_marks - before)


def _without_context(answer: Answer) -> Answer:
    """An answer without the ids of its context, which nobody asks for any more: they are most of what would travel."""
    return answer if answer.span is None else replace(answer, span=replace(answer.span, context=()))
