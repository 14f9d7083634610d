"""Controllability: does the reward prefer what its guidance asks for?

Every response of a prompt is scored under every criterion of the prompt, and once without guidance. From these four
log-probs (strong and weak, guided or not) follow all the ways to place the guidance, without another pass. Knows
scores and shares; nothing of files (`prompts`) or of how results are shown (`report`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from gdr_plugin.api.guidance import Guidance
from gdr_plugin.api.types import Reduction, Sample, Score, Side
from gdr_plugin.arithmetic.reduction import REDUCTIONS, value
from gdr_plugin.arithmetic.statistics import Estimate, share
from gdr_plugin.config.schema import GuidanceSection
from gdr_plugin.evaluation.controllability.prompts import ControlPrompt
from gdr_plugin.progress import Progress
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import FieldRouter, RouterChain

__all__ = ["ALL", "NO_GUIDANCE", "SETTINGS", "Controllability", "Setting", "Told", "controllability", "score_prompts"]

NO_GUIDANCE = "(none)"
"""The baseline's name; no guidance can have it."""
ALL = "(all)"
"""The row of all criteria together."""
Numbers = Mapping[str, Mapping[Reduction, Estimate | None]]
"""Setting -> reduction -> number."""
_COLUMN = "criterion"
_WINDOW = 8
"""Prompts scored together: what a killed run does again."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One number made of the four log-probs: which model is guided by the criterion, and what is subtracted."""

    label: str
    plus: tuple[Side, bool]
    """Whose log-prob counts, and whether the criterion is that model's guidance."""
    minus: tuple[Side, bool] | None = None
    """What is subtracted; None: nothing."""


SETTINGS: dict[str, Setting] = {
    "unguided": Setting("ratio, no guidance", ("strong", False), ("weak", False)),
    "both": Setting("ratio, both guided", ("strong", True), ("weak", True)),
    "strong": Setting("ratio, strong guided", ("strong", True), ("weak", False)),
    "pmi": Setting("strong guided - strong", ("strong", True), ("strong", False)),
    "pmi_weak": Setting("weak guided - weak", ("weak", True), ("weak", False)),
    "logprob": Setting("strong alone, guided", ("strong", True)),
    "logprob_unguided": Setting("strong alone", ("strong", False)),
}
"""Name -> setting. `pmi` is `strong` with one model on both sides: the pointwise mutual information of response and
criterion. Since `both` = `unguided` + `pmi` - `pmi_weak`, guidance to both changes the reward only by what the two
models make of it differently."""
_SAME_MODEL = ("strong", "logprob", "logprob_unguided")
"""What is left where strong and weak are one model: `both` and `unguided` are 0 then, `pmi` is `strong`."""


@dataclass(frozen=True, slots=True)
class Told:
    """All responses of one prompt under one criterion."""

    prompt: ControlPrompt
    criterion: str
    guided: Mapping[str, Score]
    """Kind of response (the criterion that it meets) -> its score with both models guided by `criterion`."""
    unguided: Mapping[str, Score]
    """Kind of response -> its score with neither model guided."""

    def values(self, setting: Setting, reduction: Reduction) -> dict[str, float | None]:
        """Kind of response -> its number in a setting; None where it was not scored."""
        found: dict[str, float | None] = {}
        for kind, response in self.prompt.responses.items():
            parts = [
                value((self.guided if told else self.unguided)[kind], response, kind=side, reduction=reduction)
                for side, told in (setting.plus, *([setting.minus] if setting.minus else []))
            ]
            first, *rest = parts
            second = rest[0] if rest else 0.0
            found[kind] = None if first is None or second is None else first - second
        return found


@dataclass(frozen=True, slots=True)
class Controllability:
    """How often the response that meets the criterion wins."""

    prompts: int
    responses: int
    criteria: Mapping[str, int]
    """Criterion -> how many prompts have a response that meets it."""
    not_scored: int
    """Responses (under a criterion or under none) that could not be scored."""
    shares: Mapping[str, Numbers]
    """Criterion, then `(all)` -> setting -> reduction -> the share of comparisons won; intervals resample prompts."""
    gains: Mapping[str, Numbers]
    """The same keys -> the share, less that of the same comparisons without guidance (`unguided`; with one model: its
    log-prob)."""
    winners: Mapping[str, Mapping[Reduction, Mapping[str, Mapping[str, float]]]]
    """Setting -> reduction -> guidance -> kind -> the share of prompts whose best response is of that kind."""


def score_prompts(
    ratio: GuidedDensityRatio,
    prompts: Sequence[ControlPrompt],
    criteria: Mapping[str, Guidance],
    *,
    progress: Progress | None = None,
) -> list[Told]:
    """Score every response under each of its prompt's criteria and without guidance; each text once a model.

    Args:
        ratio: Its models, store, load order, exemplars and seed are used; its own guidance and routing play no part.
        prompts: What is scored.
        criteria: Criterion -> its guidance.
        progress: Told how many prompts are done.

    Returns:
        One entry a prompt and criterion.

    Raises:
        ModelError: A model cannot be loaded or fails as a whole.
    """
    section = ratio.config.guidance if ratio.config else GuidanceSection()
    told = ratio.variant(
        domains={**criteria, NO_GUIDANCE: None},
        chain=RouterChain([FieldRouter(_COLUMN)], NO_GUIDANCE),
        guidance=section.model_copy(update={"placement": "both", "instruction": True}),
    )
    # One model after the other: all in one call, so that each is loaded once.
    size = len(prompts) if ratio.sequential else _WINDOW
    found: list[Told] = []
    if progress:
        progress("scoring", 0, len(prompts))
    for start in range(0, len(prompts), size):
        window = prompts[start : start + size]
        scores = iter(told.score([sample for prompt in window for sample in _samples(prompt)]))
        for prompt in window:
            kinds = list(prompt.responses)
            by_told = {
                name: dict(zip(kinds, islice(scores, len(kinds)), strict=True)) for name in (NO_GUIDANCE, *kinds)
            }
            found += [Told(prompt, kind, by_told[kind], by_told[NO_GUIDANCE]) for kind in kinds]
        if progress:
            progress("scoring", start + len(window), len(prompts))
    return found


def controllability(found: Sequence[Told], *, same_model: bool = False) -> Controllability:
    """Count who wins.

    A comparison sets the response that meets the criterion against another response to the same prompt: 1 when its
    number is higher, 0.5 when equal. A prompt's share under a criterion is the mean over its other responses.

    Args:
        found: From `score_prompts`.
        same_model: Whether strong and weak are one model; settings that are then 0 for every response are left out.

    Returns:
        Shares by setting, reduction and criterion with intervals over prompts, and who wins under which criterion.
    """
    names = _SAME_MODEL if same_model else tuple(SETTINGS)
    base = "logprob_unguided" if same_model else "unguided"
    counts: dict[str, int] = {}
    for told in found:
        counts[told.criterion] = counts.get(told.criterion, 0) + 1
    worths = {
        (name, reduction): [_worth(told.values(SETTINGS[name], reduction), told.criterion) for told in found]
        for name in names
        for reduction in REDUCTIONS
    }
    scored = [score for told in _once(found) for score in told.unguided.values()]
    scored += [score for told in found for score in told.guided.values()]
    return Controllability(
        prompts=len(_once(found)),
        responses=sum(len(told.prompt.responses) for told in _once(found)),
        criteria=counts,
        not_scored=sum(score.reward is None for score in scored),
        shares={
            criterion: {n: {r: _share(found, worths[n, r], criterion) for r in REDUCTIONS} for n in names}
            for criterion in (*counts, ALL)
        },
        gains={
            criterion: {
                n: {r: _share(found, _minus(worths[n, r], worths[base, r]), criterion) for r in REDUCTIONS}
                for n in names
                if n not in (base, "logprob_unguided")
            }
            for criterion in (*counts, ALL)
        },
        winners={n: {r: _winners(found, SETTINGS[n], r, counts, same_model) for r in REDUCTIONS} for n in names},
    )


def _samples(prompt: ControlPrompt) -> list[Sample]:
    fields: list[dict[str, str]] = [{_COLUMN: criterion} for criterion in (NO_GUIDANCE, *prompt.responses)]
    return [Sample(prompt.prompt, text, fields=told) for told in fields for text in prompt.responses.values()]


def _worth(values: Mapping[str, float | None], criterion: str) -> float | None:
    """The share of the other responses that the matching one beats; None when it or all others were not scored."""
    own = values[criterion]
    others = [other for kind, other in values.items() if kind != criterion and other is not None]
    if own is None or not others:
        return None
    return sum((own > other) + 0.5 * (own == other) for other in others) / len(others)


def _minus(a: Sequence[float | None], b: Sequence[float | None]) -> list[float | None]:
    return [None if first is None or other is None else first - other for first, other in zip(a, b, strict=True)]


def _share(found: Sequence[Told], worths: Sequence[float | None], criterion: str) -> Estimate | None:
    """The mean over prompts under one criterion, or under all.

    Whole prompts are resampled, as a prompt's criteria share its responses.
    """
    grouped: dict[str, list[float]] = {}
    for told, worth in zip(found, worths, strict=True):
        if worth is not None and criterion in (told.criterion, ALL):
            grouped.setdefault(told.prompt.id, []).append(worth)
    means = [sum(group) / len(group) for group in grouped.values()]
    if len(set(means)) == 1:  # every resample has the same mean
        return Estimate(means[0], means[0], means[0], len(means))
    return share(means, weights=[float(len(group)) for group in grouped.values()])


def _winners(
    found: Sequence[Told], setting: Setting, reduction: Reduction, criteria: Iterable[str], same_model: bool
) -> dict[str, dict[str, float]]:
    """Guidance -> kind -> how often it is the best; equals share. Without any: the setting without its guidance."""
    bare = Setting(setting.label, (setting.plus[0], False), setting.minus and (setting.minus[0], False))
    kinds = list(criteria)
    groups = {}
    if bare.minus is None or (bare.plus != bare.minus and not same_model):  # else every response has 0
        groups[NO_GUIDANCE] = [entry.values(bare, reduction) for entry in _once(found)]
    groups |= {name: [entry.values(setting, reduction) for entry in found if entry.criterion == name] for name in kinds}
    return {told: _best(values, kinds) for told, values in groups.items()}


def _best(groups: Iterable[Mapping[str, float | None]], kinds: Sequence[str]) -> dict[str, float]:
    total, best = 0, dict.fromkeys(kinds, 0.0)
    for values in groups:
        known = {kind: number for kind, number in values.items() if number is not None}
        if not known:
            continue
        total += 1
        top = [kind for kind, number in known.items() if number == max(known.values())]
        for kind in top:
            best[kind] += 1 / len(top)
    return {kind: count / total for kind, count in best.items()} if total else {}


def _once(found: Sequence[Told]) -> list[Told]:
    """One entry a prompt."""
    return list({entry.prompt.id: entry for entry in found}.values())
