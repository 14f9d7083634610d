"""The variants of a reward: the same items scored with one part of its guidance or routing changed.

With four forms of guidance under each model, every placement and reduction is arithmetic: the variants share their
texts through the store. Knows configurations and scores; nothing of when an item is right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gdr_plugin.api.types import Placement, Sample, Side
from gdr_plugin.config.schema import Config, GuidanceSection
from gdr_plugin.data.item import Item, ItemScores
from gdr_plugin.data.items import labelled
from gdr_plugin.progress import Progress, silent
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import FieldRouter, RouterChain
from gdr_plugin.scoring.items import WINDOW, samples, score_items
from gdr_plugin.scoring.sequential import warm_one_model_at_a_time
from gdr_plugin.store.model import StoredModel

__all__ = ["FORMS", "FORM_NAMES", "UNGUIDED", "Runner", "Variant", "form_of", "with_label"]

FORMS = {"none": (False, 0), "instruction": (True, 0), "exemplars": (False, 1), "both": (True, 1)}
"""Form of guidance -> whether the instruction is shown, and whether exemplars are."""
FORM_NAMES = {"none": "none", "instruction": "instruction only", "exemplars": "exemplars only", "both": "both"}
"""Form of guidance -> what tables call it."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant: form of guidance, placement, router."""

    form: str
    placement: Placement
    router: str = "configured"


UNGUIDED = Variant("none", "none")


@dataclass(slots=True)
class Runner:
    """Scores items under variants of one configuration, with the models and the store of one ratio."""

    base: GuidedDensityRatio
    config: Config
    items: Sequence[Item]
    named: Sequence[Item]
    """The same items with the domains that the data name, as an oracle router would."""
    hits: int = 0
    misses: int = 0
    chains: dict[str, RouterChain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        routers, default = self.base.chain.routers, self.base.chain.default_domain
        self.chains["configured"] = self.base.chain
        if any(item.domain in self.base.domains for item in self.named):
            self.chains["oracle"] = RouterChain([FieldRouter()], default)
        left = [router for router in routers if not isinstance(router, FieldRouter)]
        if left:
            self.chains["routers"] = RouterChain(left, default)

    def ratio(self, variant: Variant) -> GuidedDensityRatio:
        """The reward of a variant; cheap, since the models are the base's."""
        instruction, exemplars = FORMS[variant.form]
        section = self.config.guidance
        guidance = section.model_copy(
            update={
                "placement": "none" if variant.form == "none" else variant.placement,
                "instruction": instruction,
                "exemplars": exemplars and (section.exemplars or 1),
            }
        )
        return self.base.variant(chain=self.chains[variant.router], guidance=guidance)

    def score(self, variants: Sequence[Variant], progress: Progress | None) -> dict[Variant, tuple[ItemScores, ...]]:
        """All items under all variants."""
        ratios = {variant: self.ratio(variant) for variant in variants}
        if self.config.load == "sequential":
            warm_one_model_at_a_time(lambda side: self._batches(side, ratios, progress or silent))
        found: dict[Variant, tuple[ItemScores, ...]] = {}
        for number, (variant, ratio) in enumerate(ratios.items()):
            tell = _shifted(progress, number * len(self.items), len(variants) * len(self.items))
            found[variant] = tuple(score_items(ratio, self._items(variant), progress=tell))
            for model in (ratio.strong, ratio.weak):
                if isinstance(model, StoredModel):
                    self.hits, self.misses = self.hits + model.hits, self.misses + model.misses
        return found

    def _items(self, variant: Variant) -> Sequence[Item]:
        return self.named if variant.router == "oracle" else self.items

    def _batches(
        self, side: Side, ratios: Mapping[Variant, GuidedDensityRatio], tell: Progress
    ) -> Iterator[tuple[GuidedDensityRatio, Sequence[Sample]]]:
        """All items under all variants, to be scored under one model before the other loads."""
        total = len(ratios) * len(self.items)
        for number, (variant, ratio) in enumerate(ratios.items()):
            for start in range(0, len(self.items), WINDOW):
                window = self._items(variant)[start : start + WINDOW]
                yield ratio, [sample for item in window for sample in samples(item)]
                tell(f"ablations ({side})", number * len(self.items) + start + len(window), total)


def form_of(section: GuidanceSection) -> str:
    """The form of guidance that a configuration shows."""
    if section.placement == "none":
        return "none"
    shows = (section.instruction, min(section.exemplars, 1))
    return next(form for form, switches in FORMS.items() if switches == shows)


def with_label(item: Item, domains: Collection[str]) -> Item:
    """The item in its benchmark's domain, where its row names none and that domain is configured."""
    known = labelled(item)
    return known if known.domain in domains else item


def _shifted(progress: Progress | None, before: int, total: int) -> Progress:
    """Progress over all variants, told by each in turn: `before` items are done already."""

    def tell(stage: str, done: int, _: int | None) -> None:
        if progress:
            progress("ablations" if stage == "scoring" else stage, before + done, total)

    return tell
