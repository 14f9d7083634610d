"""The variants of a reward: the same items scored with one part of its guidance or routing changed.

With four forms of guidance under each model, every placement and reduction is arithmetic: the variants share their
texts through the store. Knows configurations and scores; nothing of how an item is judged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gdr_plugin.api.types import Placement, Side
from gdr_plugin.config.schema import Config, GuidanceSection
from gdr_plugin.data.item import Item, ItemScores
from gdr_plugin.data.items import labelled
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress
from gdr_plugin.reward.resolve import resolve_names
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import FieldRouter, RouterChain
from gdr_plugin.scoring.items import WINDOW, samples, score_items
from gdr_plugin.store.model import StoredModel

__all__ = ["FORMS", "FORM_NAMES", "UNGUIDED", "Runner", "Way", "form_of", "with_label"]

FORMS = {"none": (False, 0), "instruction": (True, 0), "exemplars": (False, 1), "both": (True, 1)}
"""Form of guidance -> whether the instruction is shown, and whether exemplars are."""
FORM_NAMES = {"none": "none", "instruction": "instruction only", "exemplars": "exemplars only", "both": "both"}
"""Form of guidance -> what tables call it."""


@dataclass(frozen=True, slots=True)
class Way:
    """How prompts are guided; what has to be scored anew."""

    form: str
    placement: Placement
    router: str = "configured"


UNGUIDED = Way("none", "none")


@dataclass(slots=True)
class Runner:
    """Scores items under variants of one configuration, with the models and the store of one ratio."""

    base: GuidedDensityRatio
    config: Config
    plugins: Plugins
    items: Sequence[Item]
    named: Sequence[Item]
    """The same with the domains that the data name, as an oracle router would."""
    hits: int = 0
    misses: int = 0
    chains: dict[str, RouterChain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        routers = resolve_names(self.config, self.plugins).routers
        default = self.config.routing.default_domain
        self.chains["configured"] = RouterChain(routers, default)
        if any(item.domain in self.base.domains for item in self.named):
            self.chains["oracle"] = RouterChain([FieldRouter()], default)
        left = [router for router in routers if not isinstance(router, FieldRouter)]
        if left:
            self.chains["routers"] = RouterChain(left, default)

    def ratio(self, way: Way) -> GuidedDensityRatio:
        """The reward of a variant; cheap, since the models are the base's."""
        instruction, exemplars = FORMS[way.form]
        section = self.config.guidance
        guidance = section.model_copy(
            update={
                "placement": "none" if way.form == "none" else way.placement,
                "instruction": instruction,
                "exemplars": exemplars and (section.exemplars or 1),
            }
        )
        strong, weak = (
            one.model if isinstance(one, StoredModel) else one for one in (self.base.strong, self.base.weak)
        )
        made = GuidedDensityRatio(
            strong,
            weak,
            domains=self.base.domains,
            chain=self.chains[way.router],
            guidance=guidance,
            reward=self.config.reward,
            store=self.base.store,
            sequential=self.config.load == "sequential",
        )
        made.config = self.config
        return made

    def score(self, ways: Sequence[Way], progress: Progress | None) -> dict[Way, tuple[ItemScores, ...]]:
        """All items under all variants."""
        ratios = {way: self.ratio(way) for way in ways}
        if self.config.load == "sequential":
            self._warm(ratios, progress)
        found: dict[Way, tuple[ItemScores, ...]] = {}
        for number, (way, ratio) in enumerate(ratios.items()):
            tell = _shifted(progress, number * len(self.items), len(ways) * len(self.items))
            found[way] = tuple(score_items(ratio, self._items(way), progress=tell))
            for model in (ratio.strong, ratio.weak):
                if isinstance(model, StoredModel):
                    self.hits, self.misses = self.hits + model.hits, self.misses + model.misses
        return found

    def _items(self, way: Way) -> Sequence[Item]:
        return self.named if way.router == "oracle" else self.items

    def _warm(self, ratios: Mapping[Way, GuidedDensityRatio], progress: Progress | None) -> None:
        """All variants under one model before the other loads."""
        sides: tuple[Side, ...] = ("strong", "weak")
        for side in sides:
            for number, (way, ratio) in enumerate(ratios.items()):
                tell = _shifted(progress, number * len(self.items), len(ratios) * len(self.items))
                for start in range(0, len(self.items), WINDOW):
                    window = self._items(way)[start : start + WINDOW]
                    ratio.warm(side, [sample for item in window for sample in samples(item)])
                    tell(f"ablations ({side})", start + len(window), None)
            self.base.unload()


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
