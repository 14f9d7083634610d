"""The Guided Density Ratio: the one object that every adapter and command holds.

Owns the order of things: route, guide, render, score each model alone, subtract. It does not know how a prompt is
routed, what a template looks like, how a model computes, or how log-probs become one number.

Source: "Preference Data Annotation with Guided Density Ratios" (arXiv 2411.02481); no beta and no partition function.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.errors import ConfigError, DataError, EngineWarning, unknown
from gdr_plugin.api.guidance import Guidance, RenderedGuidance
from gdr_plugin.api.models import LogprobModel
from gdr_plugin.api.routers import RoutingContext
from gdr_plugin.api.settings import Limits
from gdr_plugin.api.types import Placement, Reduction, Sample, Score, Side
from gdr_plugin.arithmetic.reduction import Answer
from gdr_plugin.config.load import named_config
from gdr_plugin.config.schema import Config, GuidanceSection, RewardSection
from gdr_plugin.data.rows import parse_score_row
from gdr_plugin.data.sources import Row
from gdr_plugin.guidance import render
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.opening import open_any, warn_of_dtypes
from gdr_plugin.reward.questions import GuidedSample, ask, guide
from gdr_plugin.reward.resolve import Resolved, resolve_names
from gdr_plugin.reward.scores import score_of
from gdr_plugin.reward.together import at_once, wait_elsewhere
from gdr_plugin.routing import RouterChain, field_check
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.store import LogprobStore
from gdr_plugin.text import type_name

if TYPE_CHECKING:
    from gdr_plugin.reward.opening import ModelLike


class GuidedDensityRatio:
    """Rewards responses with `log p_strong(y|x) - log p_weak(y|x)`, both under the domain's guidance.

    Make one with `from_config` or `from_models`. Making one loads no weights: each model loads at its first use.

    Args:
        strong: The better-aligned model.
        weak: The less-aligned model.
        domains: Every domain that a router may return, with its guidance or None.
        chain: Routers in order, with the default domain.
        guidance: Placement, switches and seed.
        reward: Reduction and end-of-turn policy.
        store: Where log-probs are kept between calls and runs.
        sequential: Whether one model leaves memory before the other loads.
    """

    def __init__(
        self,
        strong: LogprobModel,
        weak: LogprobModel,
        *,
        domains: Mapping[str, Guidance | None],
        chain: RouterChain,
        guidance: GuidanceSection | None = None,
        reward: RewardSection | None = None,
        store: LogprobStore | None = None,
        sequential: bool = False,
    ) -> None:
        self.store = store
        self.strong: LogprobModel = StoredModel(strong, store) if store else strong
        self.weak: LogprobModel = StoredModel(weak, store) if store else weak
        self.domains = dict(domains)
        self.config: Config | None = None
        self.sequential = sequential
        self._models = strong, weak
        self.chain = chain
        self._guidance = guidance or GuidanceSection()
        self._reward = reward or RewardSection()
        self._routed: Counter[str] = Counter(dict.fromkeys((*(router.name for router in chain.routers), "default"), 0))
        self._spelt_marks = 0
        self._counting = threading.Lock()
        self.rendered: dict[str, RenderedGuidance] = {
            domain: self._render(own_guidance) for domain, own_guidance in self.domains.items()
        }
        """What each domain's prompts are shown."""
        self._context = RoutingContext(
            domains={
                domain: own_guidance.description if own_guidance else ""
                for domain, own_guidance in self.domains.items()
            },
            model=self.strong,
        )
        warn_of_dtypes(strong, weak)

    @classmethod
    def from_config(
        cls,
        config: str | Path | Config | Mapping[str, Any],
        *,
        plugins: Plugins | None = None,
        store: str | Path | None = None,
        resolved: Resolved | None = None,
        open_store: Callable[[str | Path], LogprobStore] = LogprobStore,
    ) -> GuidedDensityRatio:
        """Build the reward that a gdr.yaml describes.

        Args:
            config: Path of a gdr.yaml, its content as a mapping, or a validated configuration.
            plugins: Where names are looked up; default: built-in and installed plugins.
            store: Store file that is used when the configuration names none.
            resolved: What the configuration's names stand for, where a caller has looked them up already.
            open_store: Opens the store; a server passes one that it can do without.

        Returns:
            The reward; no weights are loaded yet.

        Raises:
            ConfigError: The file or a name in it is wrong.
            ModelError: A model does not exist, or an adapter does not fit its base.
        """
        config, origin = named_config(config)
        plugins = plugins or Plugins()
        resolved = resolved or resolve_names(config, plugins, origin=origin)
        path = config.store.path if config.store else store
        ratio = cls(
            plugins.open_model(config.strong, config.limits),
            plugins.open_model(config.weak, config.limits),
            domains=resolved.guidances,
            chain=RouterChain(resolved.routers, config.routing.default_domain),
            guidance=config.guidance,
            reward=config.reward,
            store=open_store(path) if path else None,
            sequential=config.load == "sequential",
        )
        ratio.config = config
        return ratio

    @classmethod
    def from_models(
        cls,
        strong: ModelLike,
        weak: ModelLike,
        *,
        guidance: str | Guidance | None = None,
        placement: Placement = "both",
        exemplars: int = 1,
        reduction: Reduction = "sum",
        store: str | Path | None = None,
        limits: Limits | None = None,
        plugins: Plugins | None = None,
    ) -> GuidedDensityRatio:
        """Build a reward in a notebook: two models and, if wanted, one guidance for every prompt.

        Args:
            strong: Hub id, folder or `.gguf`; a `ModelSpec`; any `LogprobModel`; or a loaded `(model, tokenizer)`.
            weak: As for `strong`. The same object on both sides is fine with `placement="strong"`: the reward is then
                the pointwise mutual information of response and guidance.
            guidance: A `Guidance`, or the name of a registered one.
            placement: Which models see the guidance.
            exemplars: How many preference exemplars are shown.
            reduction: `sum`, `mean` or `per_byte`.
            store: SQLite file that keeps log-probs.
            limits: Lengths, token budget.
            plugins: Where names are looked up; default: built-in and installed plugins.

        Returns:
            The reward; every sample is in the domain `all`.

        Raises:
            ConfigError: The guidance's name is not known.
            ModelError: A model does not exist.
        """
        plugins = plugins or Plugins()
        limits = limits or Limits()
        if isinstance(guidance, str):
            known = plugins.guidances()
            if guidance not in known:
                raise ConfigError(unknown("guidance", guidance, known))
            guidance = known[guidance]
        return cls(
            open_any(strong, plugins, limits, "strong"),
            open_any(weak, plugins, limits, "weak"),
            domains={"all": guidance},
            chain=RouterChain([], "all"),
            guidance=GuidanceSection(placement=placement, exemplars=exemplars),
            reward=RewardSection(reduction=reduction),
            store=LogprobStore(store) if store else None,
        )

    def variant(
        self,
        *,
        domains: Mapping[str, Guidance | None] | None = None,
        chain: RouterChain | None = None,
        guidance: GuidanceSection | None = None,
        placement: Placement | None = None,
        reduction: Reduction | None = None,
    ) -> GuidedDensityRatio:
        """The same models, store and load order under another guidance, routing or reduction.

        Cheap: the models are shared, loaded or not, and texts that they have scored come from the store, where there
        is one. Counts (of routing, of the store's hits) begin at 0.

        Args:
            domains: Every domain that a router may return, with its guidance or None.
            chain: Routers in order, with the default domain.
            guidance: The whole section: placement, switches and seed.
            placement: Which models see the guidance; also changes a given `guidance`.
            reduction: How token log-probs become one number.

        Returns:
            A reward of its own. What is not given stays as it is here, `config` too: it describes this reward, not the
            variant.
        """
        section = self._guidance if guidance is None else guidance
        reward = self._reward
        made = GuidedDensityRatio(
            *self._models,
            domains=self.domains if domains is None else domains,
            chain=self.chain if chain is None else chain,
            guidance=section if placement is None else section.model_copy(update={"placement": placement}),
            reward=reward if reduction is None else reward.model_copy(update={"reduction": reduction}),
            store=self.store,
            sequential=self.sequential,
        )
        made.config = self.config
        return made

    def __repr__(self) -> str:
        names = f"strong={self.strong.name!r}, weak={self.weak.name!r}"
        return f"GuidedDensityRatio({names}, domains={list(self.domains)}, reduction={self.reduction!r})"

    @property
    def reduction(self) -> Reduction:
        """How token log-probs become one number."""
        return self._reward.reduction

    @property
    def placement(self) -> Placement:
        """Which models see the guidance."""
        return self._guidance.placement

    @property
    def routing_counts(self) -> dict[str, int]:
        """How many samples of `score` each router decided, `default` where none did, `error` where one failed."""
        return dict(self._routed)

    @property
    def spelt_marks(self) -> int:
        """How many samples of `score` spell out a control token of a model in prompt or response, as plain text."""
        return self._spelt_marks

    @property
    def strategies(self) -> dict[str, str]:
        """How each model computes and why, as far as it has computed; empty where the backend does not say."""
        facts = {"strong": self.strong.describe(), "weak": self.weak.describe()}
        return {
            side: f"{described['strategy']} ({described['why']})"
            for side, described in facts.items()
            if "strategy" in described and "why" in described
        }

    def score(self, samples: Sequence[Sample | Mapping[str, Any]], *, tokens: bool = False) -> list[Score]:
        """Score samples; any number, but for a long stream use `stream`.

        Args:
            samples: What to score: samples, or rows as `gdr score` reads them (`{"prompt": ..., "response": ...}`).
                Responses to one prompt share its work when they come in one call.
            tokens: Whether the scores carry token log-probs.

        Returns:
            One score a sample, in order. A sample that cannot be scored has `reward=None` and a reason.

        Raises:
            DataError: A row is malformed, or an item is neither.
            ModelError: A model cannot be loaded or fails as a whole.
        """
        guided = self.guide([_sample_of(item, at) for at, item in enumerate(samples)])
        strong, weak = self._ask_both(guided)
        return self.combine(guided, strong, weak, tokens=tokens)

    def guide(self, samples: Sequence[Sample]) -> list[GuidedSample]:
        """The first step of `score`: find each sample's domain and put its guidance in front of the prompt.

        `guide`, `ask` and `combine` are `score` in three steps, for who runs the two models in different places. What
        they return are plain values that can be pickled; domains are found once, so that both places agree on them.

        Args:
            samples: What to score.

        Returns:
            One guided sample a sample, in order. A sample that cannot be routed carries the reason.

        Raises:
            ModelError: A router that asks the strong model could not.
        """
        routed = self.chain.route(samples, self._context, strict=False)
        return guide(samples, routed, self.rendered, unguided=self._render(None))

    def ask(self, side: Side, guided: Sequence[GuidedSample]) -> list[Answer]:
        """The second step of `score`: one model's log-probs. Only this model is loaded.

        Args:
            side: Which model.
            guided: From `guide`, of this object or of one with the same configuration.

        Returns:
            One answer a sample, in order: token log-probs, or the reason why there are none.

        Raises:
            ModelError: The model cannot be loaded or fails as a whole.
        """
        model = self.strong if side == "strong" else self.weak
        placement, end_of_turn = self._guidance.placement, self._reward.end_of_turn
        return ask(side, model, guided, placement=placement, end_of_turn=end_of_turn)

    def combine(
        self, guided: Sequence[GuidedSample], strong: Sequence[Answer], weak: Sequence[Answer], *, tokens: bool = False
    ) -> list[Score]:
        """The last step of `score`: from both models' answers to scores. Loads no weights.

        Args:
            guided: What was asked.
            strong: The strong model's answers, in the same order.
            weak: The weak model's.
            tokens: Whether the scores carry token log-probs.

        Returns:
            What `score` returns for the same samples.
        """
        self._routed.update("error" if sample.routed.error else sample.routed.router for sample in guided)
        self._count_marks(strong, weak)
        chats = (self.strong.chat, self.weak.chat) if tokens else None
        return [
            score_of(sample, s, w, self._reward.reduction, chats)
            for sample, s, w in zip(guided, strong, weak, strict=True)
        ]

    def stream(
        self, samples: Iterable[Sample | Mapping[str, Any]], *, window: int = 1024, tokens: bool = False
    ) -> Iterator[Score]:
        """Score a stream window by window; at most `window` samples are in memory.

        Args:
            samples: What to score, grouped by prompt for speed.
            window: Samples scored together.
            tokens: Whether the scores carry token log-probs.

        Yields:
            One score a sample, in order.
        """
        stream = iter(samples)
        while batch := list(islice(stream, window)):
            yield from self.score(batch, tokens=tokens)

    def warm(self, side: Side, samples: Sequence[Sample]) -> None:
        """Score samples under one model into the store, so that a later `score` needs no model.

        This is how a long job runs with one model in memory at a time: warm the whole input with `strong`, then with
        `weak`, then score.

        Args:
            side: Which model.
            samples: What will be scored later.

        Raises:
            ConfigError: There is no store to keep the results.
        """
        if self.store is None:
            raise ConfigError("one model after the other needs a store: set store.path in gdr.yaml")
        self.ask(side, self.guide(samples))

    def check_fields(self, fields: Mapping[str, Any]) -> None:
        """Refuse a row whose columns name a domain that is not configured, before anything is scored.

        Args:
            fields: The row's columns, as in `Sample.fields`.

        Raises:
            DomainError: A column that a `field` router reads names an unknown domain.
        """
        field_check(self.chain.routers, self.domains)(fields)

    def unload(self) -> None:
        """Give both models' memory back; scoring again loads them again."""
        self.strong.unload()
        self.weak.unload()

    def _render(self, guidance: Guidance | None) -> RenderedGuidance:
        section = self._guidance
        shown = None if section.placement == "none" else guidance
        return render(shown, instruction=section.instruction, exemplars=section.exemplars, seed=section.seed)

    def _count_marks(self, strong: Sequence[Answer], weak: Sequence[Answer]) -> None:
        """Count the samples that spell out control tokens, and warn of the first."""
        spans = ((s.span, w.span) for s, w in zip(strong, weak, strict=True))
        marks = [mark for s, w in spans if s is not None and w is not None and (mark := s.mark or w.mark) is not None]
        with self._counting:
            first = bool(marks) and not self._spelt_marks
            self._spelt_marks += len(marks)
        if first:
            warnings.warn(
                f"a prompt or response spells out {marks[0]!r}, a mark of the models' chat template: it is scored as "
                "text that the assistant or user wrote. Is it text that a template has rendered already? Then give "
                "messages, or the response without the template's marks",
                EngineWarning,
                stacklevel=4,
            )

    def _ask_both(self, samples: Sequence[GuidedSample]) -> tuple[list[Answer], list[Answer]]:
        """Both models' answers; with `load: sequential` each model leaves memory afterwards.

        Two models that other machines compute are asked at the same time.
        """
        if not self.sequential and wait_elsewhere(*self._models):
            return at_once(partial(self.ask, "strong", samples), partial(self.ask, "weak", samples))
        strong = self.ask("strong", samples)
        if self.sequential and self.strong is not self.weak:
            self.strong.unload()
        weak = self.ask("weak", samples)
        if self.sequential:
            self.weak.unload()
        return strong, weak


def _sample_of(item: Sample | Mapping[str, Any], place: int) -> Sample:
    """A sample, or a row read as one."""
    if isinstance(item, Sample):
        return item
    if not isinstance(item, Mapping):
        raise DataError(f"item {place} must be a Sample or a row with `prompt` and `response`, not {type_name(item)}")
    return parse_score_row(Row(place + 1, f"item {place}", item)).sample
