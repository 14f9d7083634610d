"""What each part of a reward is worth: the same items judged with one part changed at a time.

Knows which variants answer which question. How they are scored is `variants`', when an item is right
`item_rules`', and how the result is shown `report`'s.

Source: the questions of the method's reviewers (instruction or exemplars, router or oracle, guidance to both or one).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.types import Placement, Reduction
from gdr_plugin.arithmetic.reduction import REDUCTIONS
from gdr_plugin.arithmetic.statistics import Estimate, difference, share
from gdr_plugin.data.item import Item, ItemScores
from gdr_plugin.evaluation.ablations.variants import FORM_NAMES, FORMS, UNGUIDED, Runner, Variant, form_of, with_label
from gdr_plugin.evaluation.measures.item_rules import chance, compare, rule_of
from gdr_plugin.evaluation.measures.metrics import Ranking, lengths, rewards
from gdr_plugin.progress import Progress
from gdr_plugin.reward.reward import GuidedDensityRatio

__all__ = ["Ablations", "Line", "ablate"]


@dataclass(frozen=True, slots=True)
class Line:
    """One variant of the reward on all items."""

    question: str
    """What its group of lines answers: guidance, placement, router, reduction, baseline."""
    name: str
    configured: bool
    """Whether this is the reward as gdr.yaml describes it."""
    accuracy: Estimate | None
    """None where no item was scored."""
    difference: Estimate | None
    """Accuracy less that of the reward it is set against on the same items, paired: the configured one, but for a
    log-prob alone the ratio with the same guidance and reduction. None for the configured reward itself."""


@dataclass(frozen=True, slots=True)
class Ablations:
    """The configured reward and its variants."""

    lines: tuple[Line, ...]
    grid: Mapping[str, Mapping[tuple[str, Reduction], Estimate | None]]
    """Form of guidance -> (placement, reduction) -> accuracy: whether an answer holds under the other settings too."""
    items: int
    chance: float
    """The accuracy of a coin: 0.5 where each item is a pair."""
    guided: int
    """Items whose prompt gets guidance as configured."""
    named: int
    """Items of which the data name the domain, in the row or by the part of a benchmark that it is in."""
    agreement: Estimate | None
    """Share of the items whose domain the data name where the routers, without being told, find the same; None where no
    router is left or no domain is named."""
    hits: int
    """Responses that came from the store, under both models."""
    misses: int
    """Responses that a model computed: each text once a model."""


def ablate(
    ratio: GuidedDensityRatio,
    items: Sequence[Item],
    *,
    format: str = "plain",
    progress: Progress | None = None,
) -> Ablations:
    """Score items with one part of the reward changed at a time.

    Args:
        ratio: The configured reward, from `GuidedDensityRatio.from_config`, with a store.
        items: What is judged.
        format: The data's format: what makes an item right.
        progress: Told how many variants are done.

    Returns:
        Accuracies with intervals, and paired differences to the configured reward.

    Raises:
        ConfigError: The ratio has no configuration or no store.
        ModelError: A model cannot be loaded or fails as a whole.
    """
    if ratio.config is None or ratio.store is None:
        raise ConfigError("ablations need a reward from a gdr.yaml with a store, so that no text is scored twice")
    named = [with_label(item, ratio.domains) for item in items]
    runner = Runner(ratio, ratio.config, items, named)
    form, section = form_of(ratio.config.guidance), ratio.config.guidance
    configured = Variant(form, section.placement)
    same = ratio.strong.identity == ratio.weak.identity
    # An unguided configuration is compared with what guidance, shown in full to both models, would change.
    placement: Placement = "both" if section.placement == "none" else section.placement
    shown = form if form != "none" else "both"
    if same and form == "none":
        raise ConfigError(
            "strong and weak are one model and nothing is shown to it: every reward is 0; give it guidance"
        )
    places: tuple[Placement, ...] = ("strong",) if same else ("both", "strong")
    grid = [Variant(shape, place) for place in places for shape in FORMS if shape != "none"]
    unguided = [] if same else [UNGUIDED]
    routed = [Variant(shown, placement, name) for name in runner.chains if name != "configured"]
    if configured.form == "none":
        configured = UNGUIDED
    scored = runner.score([*unguided, *grid, *routed], progress)
    judge = partial(_worths, format)
    lines = _lines(judge, scored, configured, Variant(shown, placement), ratio.config.reward.reduction)
    return Ablations(
        lines=tuple(lines),
        grid=_grid(judge, scored),
        items=len(items),
        chance=chance(items, format),
        guided=sum(scores.chosen[0].guidance != "none" for scores in scored[Variant(shown, placement)]),
        named=sum(item.domain is not None for item in named),
        agreement=_agreement(named, scored.get(Variant(shown, placement, "routers"))),
        hits=runner.hits,
        misses=runner.misses,
    )


_Judge = Callable[[Ranking, Sequence[ItemScores]], "list[float | None]"]
"""What each item is worth under a ranking; None where it was not scored."""


def _worths(format: str, ranking: Ranking, scored: Sequence[ItemScores]) -> list[float | None]:
    found: list[float | None] = []
    for scores in scored:
        values = ranking(scores)
        found.append(None if values is None else compare(values, rule_of(format, scores.item.subset)).worth)
    return found


def _lines(
    judge: _Judge,
    scored: Mapping[Variant, Sequence[ItemScores]],
    configured: Variant,
    shown: Variant,
    reduction: Reduction,
) -> list[Line]:
    """One factor at a time, from the configured reward."""
    base = judge(rewards("ratio", reduction), scored[configured])

    def line(question: str, name: str, variant: Variant, ranking: Ranking, *, is_base: bool = False) -> list[Line]:
        if variant not in scored:
            return []
        worths = base if is_base else judge(ranking, scored[variant])
        gap = None if is_base else difference(worths, base)
        return [Line(question, name, is_base, share(worths), gap)]

    def alone(question: str, variant: Variant) -> list[Line]:
        # Set against the ratio of the same guidance and reduction: what is missing is the weak model and nothing else.
        found = []
        for own in REDUCTIONS if variant in scored else ():
            worths = judge(rewards("strong", own), scored[variant])
            gap = difference(worths, judge(rewards("ratio", own), scored[variant]))
            found.append(Line(question, own, False, share(worths), gap))
        return found

    ratio = rewards("ratio", reduction)
    lines = line("configured", "as in gdr.yaml", configured, ratio, is_base=True)
    for form, name in FORM_NAMES.items():
        variant = UNGUIDED if form == "none" else Variant(form, shown.placement)
        lines += line("guidance", name, variant, ratio, is_base=variant == configured)
    places: dict[str, Placement] = {"both models": "both", "strong only": "strong"}
    for name, placement in places.items():
        variant = Variant(shown.form, placement)
        lines += line("guidance to", name, variant, ratio, is_base=variant == configured)
    lines += line("guidance to", "none", UNGUIDED, ratio, is_base=configured.form == "none")
    names = {"configured": "as configured", "oracle": "the data's domain", "routers": "without the data's domain"}
    for router, name in names.items():
        variant = Variant(shown.form, shown.placement, router)
        lines += line("router", name, variant, ratio, is_base=variant == configured)
    for own in REDUCTIONS:
        lines += line("reduction", own, configured, rewards("ratio", own), is_base=own == reduction)
    lines += alone("strong log-prob alone", configured)
    if configured.form != "none":
        lines += alone("its log-prob, no guidance", UNGUIDED)
    lines += line("length", "the shorter wins", configured, lengths(-1))
    return lines + line("length", "the longer wins", configured, lengths(1))


def _grid(
    judge: _Judge, scored: Mapping[Variant, Sequence[ItemScores]]
) -> dict[str, dict[tuple[str, Reduction], Estimate | None]]:
    """Form x placement x reduction: costs nothing more."""
    grid: dict[str, dict[tuple[str, Reduction], Estimate | None]] = {}
    for variant, scores in scored.items():
        if variant.router != "configured":
            continue
        for reduction in REDUCTIONS:
            accuracy = share(judge(rewards("ratio", reduction), scores))
            for placement in ("both", "strong") if variant.form == "none" else (variant.placement,):
                grid.setdefault(variant.form, {})[placement, reduction] = accuracy
    return grid


def _agreement(items: Sequence[Item], scored: Sequence[ItemScores] | None) -> Estimate | None:
    """How often the routers find the domain that the data name."""
    if scored is None:
        return None
    pairs = zip(items, scored, strict=True)
    return share([None if i.domain is None else float(s.chosen[0].domain == i.domain) for i, s in pairs])
