"""The Guided Density Ratio: the one object that every adapter and command holds.

Owns the order of things: route, guide, render, score each model alone, subtract. It does not know how a prompt is
routed, what a template looks like, how a model computes or how log-probs become one number (`reduction`).

Source: "Preference Data Annotation with Guided Density Ratios" (arXiv 2411.02481); no beta and no partition function.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gdr_plugin.api.errors import ChatError, ConfigError, EngineWarning, unknown
from gdr_plugin.api.guidance import Guidance, RenderedGuidance
from gdr_plugin.api.models import LogprobModel, TokenOffsets
from gdr_plugin.api.routers import RoutingContext
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Conversation, Placement, Reduction, Sample, Score, Side
from gdr_plugin.arithmetic.reduction import Answer, reduce, token_details
from gdr_plugin.config.load import load_config
from gdr_plugin.config.schema import Config, GuidanceSection, RewardSection
from gdr_plugin.guidance import apply, render
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.resolve import Resolved, resolve_names
from gdr_plugin.routing import Routed, RouterChain
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.store import LogprobStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    ModelLike: TypeAlias = "str | ModelSpec | LogprobModel | tuple[PreTrainedModel, PreTrainedTokenizerBase]"


@dataclass(frozen=True, slots=True)
class _Job:
    """A routed sample with what each model is shown."""

    sample: Sample
    routed: Routed
    rendered: RenderedGuidance
    guided: Conversation


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
        self._chain = chain
        self._guidance = guidance or GuidanceSection()
        self._reward = reward or RewardSection()
        self._sequential = sequential
        self._routed: Counter[str] = Counter(dict.fromkeys((*(router.name for router in chain.routers), "default"), 0))
        self.rendered: dict[str, RenderedGuidance] = {name: self._render(one) for name, one in self.domains.items()}
        """What each domain's prompts are shown."""
        self._context = RoutingContext(
            domains={name: one.description if one else "" for name, one in self.domains.items()}, model=self.strong
        )
        dtypes = [model.describe().get("dtype") for model in (strong, weak)]
        if None not in dtypes and dtypes[0] != dtypes[1]:
            warnings.warn(
                f"strong computes in {dtypes[0]}, weak in {dtypes[1]}: their rounding errors do not cancel and add to "
                "every reward; set the same dtype for both",
                EngineWarning,
                stacklevel=1,  # so that it is said once, however many ratios are made of one pair of models
            )

    @classmethod
    def from_config(
        cls,
        config: str | Path | Config,
        *,
        plugins: Plugins | None = None,
        store: str | Path | None = None,
        resolved: Resolved | None = None,
    ) -> GuidedDensityRatio:
        """Build the reward that a gdr.yaml describes.

        Args:
            config: Path of a gdr.yaml, or a validated configuration.
            plugins: Where names are looked up; default: built-in and installed plugins.
            store: Store file that is used when the configuration names none.
            resolved: What `resolve_names` found for this configuration, where the caller has looked that up already.

        Returns:
            The reward; no weights are loaded yet.

        Raises:
            ConfigError: The file or a name in it is wrong.
            ModelError: A model does not exist, or an adapter does not fit its base.
        """
        origin = "configuration"
        if not isinstance(config, Config):
            config, origin = load_config(config), str(config)
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
            store=LogprobStore(path) if path else None,
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
            weak: Likewise. The same object on both sides is fine with `placement="strong"`: the reward is then the
                pointwise mutual information of response and guidance.
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
            _as_model(strong, plugins, limits, "strong"),
            _as_model(weak, plugins, limits, "weak"),
            domains={"all": guidance},
            chain=RouterChain([], "all"),
            guidance=GuidanceSection(placement=placement, exemplars=exemplars),
            reward=RewardSection(reduction=reduction),
            store=LogprobStore(store) if store else None,
        )

    @property
    def reduction(self) -> Reduction:
        """How token log-probs become one number."""
        return self._reward.reduction

    @property
    def routing_counts(self) -> dict[str, int]:
        """How many samples of `score` each router decided, `default` where none did, `error` where one failed."""
        return dict(self._routed)

    @property
    def strategies(self) -> dict[str, str]:
        """How each model computes and why, as far as it has computed; empty where the backend does not say."""
        facts = {"strong": self.strong.describe(), "weak": self.weak.describe()}
        return {
            side: f"{said['strategy']} ({said['why']})"
            for side, said in facts.items()
            if "strategy" in said and "why" in said
        }

    def score(self, samples: Sequence[Sample], *, tokens: bool = False) -> list[Score]:
        """Score samples; any number, but for a long stream use `stream`.

        Args:
            samples: What to score. Responses to one prompt share its work when they come in one call.
            tokens: Whether the scores carry token log-probs.

        Returns:
            One score a sample, in order. A sample that cannot be scored has `reward=None` and a reason.

        Raises:
            ModelError: A model cannot be loaded or fails as a whole.
        """
        jobs = self._jobs(samples)
        strong, weak = self._ask_both(jobs)
        self._routed.update("error" if job.routed.error else job.routed.router for job in jobs)
        return [self._scored(job, s, w, tokens) for job, s, w in zip(jobs, strong, weak, strict=True)]

    def stream(self, samples: Iterable[Sample], *, window: int = 1024, tokens: bool = False) -> Iterator[Score]:
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
        self._ask(side, self._jobs(samples))

    def unload(self) -> None:
        """Give both models' memory back; scoring again loads them again."""
        self.strong.unload()
        self.weak.unload()

    def _render(self, guidance: Guidance | None) -> RenderedGuidance:
        section = self._guidance
        shown = None if section.placement == "none" else guidance
        return render(shown, instruction=section.instruction, exemplars=section.exemplars, seed=section.seed)

    def _jobs(self, samples: Sequence[Sample]) -> list[_Job]:
        guided: dict[tuple[str, Conversation], Conversation] = {}
        jobs = []
        for sample, routed in zip(samples, self._chain.route(samples, self._context, strict=False), strict=True):
            rendered = self.rendered.get(routed.domain) or self._render(None)
            key = (routed.domain, sample.prompt)
            if key not in guided:
                guided[key] = apply(rendered, sample.prompt)
            jobs.append(_Job(sample, routed, rendered, guided[key]))
        return jobs

    def _ask_both(self, jobs: Sequence[_Job]) -> tuple[list[Answer], list[Answer]]:
        """Both models' answers; with `load: sequential` each model leaves memory afterwards."""
        strong = self._ask("strong", jobs)
        if self._sequential and self.strong is not self.weak:
            self.strong.unload()
        weak = self._ask("weak", jobs)
        if self._sequential:
            self.weak.unload()
        return strong, weak

    def _ask(self, side: Side, jobs: Sequence[_Job]) -> list[Answer]:
        """One model's log-probs for every job; a job that cannot be rendered gets a reason."""
        model = self.strong if side == "strong" else self.weak
        guided = self._guidance.placement == "both" or (self._guidance.placement == "strong" and side == "strong")
        asked = [self._span(model, job, job.guided if guided else job.sample.prompt, side) for job in jobs]
        scored = iter(model.score([answer.span for answer in asked if answer.span is not None]))
        return [answer if answer.span is None else Answer(next(scored), answer.span) for answer in asked]

    def _span(self, model: LogprobModel, job: _Job, conversation: Conversation, side: Side) -> Answer:
        if job.routed.error is not None:
            return Answer(reason=job.routed.error)
        policy = self._reward.end_of_turn
        end = policy == "always" or (policy == "when-finished" and job.sample.finished)
        try:
            return Answer(span=model.chat.span(conversation, job.sample.response, end=end))
        except ChatError as error:
            return Answer(reason=f"{side} model: {error}")

    def _scored(self, job: _Job, strong: Answer, weak: Answer, tokens: bool) -> Score:
        reward, reason = reduce(job.sample.response, strong, weak, self._reward.reduction)
        spans = [answer.span for answer in (strong, weak) if answer.span is not None]
        return Score(
            reward=reward,
            reason=reason,
            strong_logprob=strong.finite_total,
            weak_logprob=weak.finite_total,
            strong_tokens=strong.tokens,
            weak_tokens=weak.tokens,
            domain=job.routed.domain,
            router=job.routed.router,
            guidance=job.rendered.id,
            exemplars=job.rendered.exemplars,
            truncated=any(span.dropped for span in spans),
            **(self._details(job, strong, weak) if tokens and reward is not None else {}),
        )

    def _details(self, job: _Job, strong: Answer, weak: Answer) -> dict[str, Any]:
        """What a score says of its tokens, as fields of `Score`."""
        prompt, response = job.sample.prompt, job.sample.response
        details = token_details(response, strong, weak, self._reward.reduction)
        for side, model, answer in (("strong", self.strong, strong), ("weak", self.weak, weak)):
            if isinstance(model.chat, TokenOffsets):
                # The response's ids are those of its text alone, with or without guidance in front of them.
                offsets = model.chat.offsets(prompt, response)
                end_of_turn = ((len(response), len(response)),) * (answer.tokens - len(offsets))
                details[f"{side}_token_offsets"] = offsets + end_of_turn
        return details


def _as_model(given: ModelLike, plugins: Plugins, limits: Limits, side: Side) -> LogprobModel:
    if isinstance(given, str):
        given = ModelSpec(model=given)
    if isinstance(given, ModelSpec):
        return plugins.open_model(given, limits)
    if isinstance(given, tuple):
        from gdr_plugin.models.local import open_loaded

        return open_loaded(*given, limits=limits, name=side)
    return given
