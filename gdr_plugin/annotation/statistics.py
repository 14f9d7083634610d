"""Figures of a run: what became of the prompts, how large the margins are, how long the responses.

Knows records, pairs and numbers; nothing of files or models. Keeps a few numbers a pair, never a text.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gdr_plugin.annotation.filters import Picked
from gdr_plugin.annotation.records import ScoredRecord
from gdr_plugin.annotation.summary import Figures, Spread

_QUANTILES = {"p10": 0.1, "p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9}


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and quantiles of some numbers; None where there are none."""
    if not values:
        return None
    quantiles = np.quantile(np.asarray(values, dtype=np.float64), list(_QUANTILES.values()))
    named = dict(zip(_QUANTILES, quantiles.tolist(), strict=True))
    return {"mean": math.fsum(values) / len(values), "min": min(values), **named, "max": max(values)}


@dataclass(slots=True)
class _Domain:
    prompts: int = 0
    with_pair: int = 0
    margins: array[float] = field(default_factory=lambda: array("d"))


@dataclass(slots=True)
class Statistics:
    """Counts what became of the prompts, one after the other."""

    rows: int = 0
    candidates: int = 0
    not_scored: Counter[str] = field(default_factory=Counter)
    """Candidates without a reward, by reason."""
    unfinished: int = 0
    """Candidates cut at a length limit."""
    truncated: int = 0
    """Candidates whose prompt lost its start."""
    routers: Counter[str] = field(default_factory=Counter)
    guidance: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    chosen_tokens: array[int] = field(default_factory=lambda: array("q"))
    rejected_tokens: array[int] = field(default_factory=lambda: array("q"))
    domains: dict[str, _Domain] = field(default_factory=dict)
    within_noise: Counter[bool | None] = field(default_factory=Counter)
    """Pairs whose margin may be rounding, or not; None where that is not known."""

    def add(self, record: ScoredRecord, picked: Picked, within_noise: Sequence[bool | None]) -> None:
        """Count one prompt.

        Args:
            record: The prompt with its candidates.
            picked: What became of it.
            within_noise: Whether each pair's margin may be rounding.
        """
        candidates = record.candidates
        self.rows += 1
        self.candidates += len(candidates)
        self.not_scored.update(str(candidate.reason) for candidate in candidates if candidate.reward is None)
        self.unfinished += sum(not candidate.finished for candidate in candidates)
        self.truncated += sum(candidate.truncated for candidate in candidates)
        if picked.reason is not None:
            self.rejects[picked.reason] += 1
        if record.domain is None or record.router is None or record.guidance is None:  # nothing to score
            return
        self.routers[record.router] += 1
        self.guidance[record.guidance] += 1
        domain = self.domains.setdefault(record.domain, _Domain())
        domain.prompts += 1
        domain.with_pair += bool(picked.pairs)
        self.within_noise.update(within_noise)
        for pair in picked.pairs:
            chosen, rejected = pair
            domain.margins.append(record.margin(pair))
            self.chosen_tokens.append(candidates[chosen].strong_tokens)
            self.rejected_tokens.append(candidates[rejected].strong_tokens)

    def figures(self) -> Figures:
        """Everything counted, as JSON; `default` among the routers counts prompts that no router decided."""
        margins = array("d")
        for domain in self.domains.values():
            margins.extend(domain.margins)
        pairs = len(margins)
        shorter = sum(a < b for a, b in zip(self.chosen_tokens, self.rejected_tokens, strict=True))
        longer = sum(a > b for a, b in zip(self.chosen_tokens, self.rejected_tokens, strict=True))
        return {
            "rows": self.rows,
            "pairs": pairs,
            "pairs_within_noise": None if self.within_noise[None] else self.within_noise[True],
            "prompts_with_pair": sum(domain.with_pair for domain in self.domains.values()),
            "rejects": dict(self.rejects.most_common()),
            "candidates": self.candidates,
            "candidates_not_scored": dict(self.not_scored.most_common(20)),
            "candidates_unfinished": self.unfinished,
            "candidates_truncated": self.truncated,
            "margin": spread(margins),
            "chosen_tokens": spread(self.chosen_tokens),
            "rejected_tokens": spread(self.rejected_tokens),
            "chosen_longer": longer / pairs if pairs else None,
            "chosen_shorter": shorter / pairs if pairs else None,
            "routers": dict(self.routers.most_common()),
            "guidance": dict(self.guidance.most_common()),
            "domains": {
                name: {
                    "prompts": domain.prompts,
                    "with_pair": domain.with_pair,
                    "pairs": len(domain.margins),
                    "margin": spread(domain.margins),
                }
                for name, domain in sorted(self.domains.items())
            },
        }
