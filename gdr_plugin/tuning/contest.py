"""Scores each candidate guidance on prompts, with both models and through one store.

Knows how a candidate becomes a domain of a reward, and how scores become results. Which candidate is asked when is
`halving`'s.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gdr_plugin.api.routers import RoutingContext
from gdr_plugin.api.types import Sample
from gdr_plugin.config.schema import Config
from gdr_plugin.data.item import Item, ItemScores
from gdr_plugin.evaluation.measures.item_rules import compare
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress
from gdr_plugin.reward.resolve import Resolved
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import RouterChain
from gdr_plugin.scoring.items import score_items
from gdr_plugin.store.model import StoredModel
from gdr_plugin.text import without_numbers
from gdr_plugin.tuning.candidates import CandidateGuidance
from gdr_plugin.tuning.halving import PromptResult
from gdr_plugin.tuning.split import Prompted

COLUMN = "gdr tune candidate"
"""The field that says under which candidate a sample is scored; no data set has it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What was asked of the models, both sides together."""

    computed: int
    """Responses that a model computed."""
    saved: int
    """Responses whose log-probs the store had: from an earlier run, or asked before in this one."""


class Contest:
    """Two models, all candidates, one store. Making one loads no weights.

    Args:
        config: The reward; its placement, reduction and limits are kept.
        resolved: The guidances and routers that the configuration names.
        candidates: Who takes part.
        exemplars: Exemplars shown at most.
        domain: The domain of gdr.yaml that the prompts are in; None: its routers decide.
        plugins: Who opens models.
        store: Store file that is used when the configuration names none.
        progress: Told how far each stage is, in pairs.
    """

    def __init__(
        self,
        config: Config,
        resolved: Resolved,
        candidates: Sequence[CandidateGuidance],
        *,
        exemplars: int,
        domain: str | None,
        plugins: Plugins,
        store: str | Path,
        progress: Progress,
    ) -> None:
        self._progress = progress
        self.reasons: Counter[str] = Counter()
        """Why responses were not scored, by the kind of reason."""
        names = [_name(index) for index in range(len(candidates))]
        ratio = GuidedDensityRatio.from_config(config, plugins=plugins, store=store, resolved=resolved)
        self._tuned = ratio.variant(
            domains={name: candidate.guidance for name, candidate in zip(names, candidates, strict=True)},
            chain=RouterChain([_ByColumn()], names[0]),
            guidance=config.guidance.model_copy(update={"exemplars": exemplars, "instruction": True}),
        )
        self._configured = ratio.variant(chain=RouterChain([], domain)) if domain else ratio

    def ask(
        self, candidates: Sequence[int], prompts: Sequence[Prompted], stage: str
    ) -> dict[int, list[PromptResult | None]]:
        """Score candidates on prompts.

        Args:
            candidates: Numbers of candidates.
            prompts: What they are asked about.
            stage: What progress calls it.

        Returns:
            For each candidate one result a prompt, in order.

        Raises:
            ModelError: A model cannot be loaded or fails as a whole.
        """
        # Candidate by candidate: prompts that follow each other share the guidance in front of them.
        items = [
            replace(item, domain=None, fields={COLUMN: _name(index)})
            for index in candidates
            for prompt in prompts
            for item in prompt
        ]
        scored = iter(self._scored(self._tuned, items, stage))
        return {index: [_prompt_result([next(scored) for _ in prompt]) for prompt in prompts] for index in candidates}

    def ask_configured(
        self, prompts: Sequence[Prompted], stage: str
    ) -> tuple[list[PromptResult | None], dict[str, int]]:
        """Score the guidance that gdr.yaml has today.

        Args:
            prompts: What it is asked about.
            stage: What progress calls it.

        Returns:
            One result a prompt, in order; and how many pairs were shown which guidance (`none` for none).
        """
        known = self._configured.domains
        # A domain that gdr.yaml does not have yet would be an error: its routers see the prompt without it.
        items = [item if item.domain in known else replace(item, domain=None) for prompt in prompts for item in prompt]
        scored = self._scored(self._configured, items, stage)
        shown = Counter(scores.chosen[0].guidance.partition("[")[0] for scores in scored)
        rest = iter(scored)
        return [_prompt_result([next(rest) for _ in prompt]) for prompt in prompts], dict(shown)

    @property
    def cost(self) -> Cost:
        """What was asked so far."""
        models = [model for ratio in (self._tuned, self._configured) for model in (ratio.strong, ratio.weak)]
        stored = [model for model in models if isinstance(model, StoredModel)]
        return Cost(sum(model.misses for model in stored), sum(model.hits for model in stored))

    @property
    def strategies(self) -> Mapping[str, str]:
        """How each model computed, and why."""
        return self._tuned.strategies

    def close(self) -> None:
        """Give the models' memory back and close the store."""
        self._tuned.unload()
        if self._tuned.store is not None:
            self._tuned.store.close()

    def _scored(self, ratio: GuidedDensityRatio, items: Sequence[Item], stage: str) -> list[ItemScores]:
        def tell(part: str, done: int, total: int | None) -> None:
            self._progress(stage if part == "scoring" else f"{stage}, {part.removeprefix('scoring ')}", done, total)

        scored = list(score_items(ratio, items, progress=tell))
        reasons = (score.reason for scores in scored for score in (*scores.chosen, *scores.rejected) if score.reason)
        self.reasons.update(without_numbers(reason) for reason in reasons)
        return scored


class _ByColumn:
    """Routes a sample to the candidate that its field names."""

    name = "candidate"

    def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
        """See `Router.route`."""
        return [sample.fields[COLUMN] for sample in samples]


def _name(index: int) -> str:
    return f"candidate-{index}"


def _prompt_result(pairs: Sequence[ItemScores]) -> PromptResult | None:
    """A prompt's result, the mean over its pairs; None when one of its responses was not scored."""
    found = []
    for scores in pairs:
        chosen = [score.reward for score in scores.chosen if score.reward is not None]
        rejected = [score.reward for score in scores.rejected if score.reward is not None]
        if len(chosen) < len(scores.chosen) or len(rejected) < len(scores.rejected):
            return None
        found.append(compare((chosen, rejected), "matrix"))
    return PromptResult(
        _mean([comparison.worth for comparison in found]), _mean([comparison.margin for comparison in found])
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
