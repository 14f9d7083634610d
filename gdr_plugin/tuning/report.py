"""What a search found, as facts for a table, a file's comments and JSON. Knows results; asks nobody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.arithmetic.statistics import Estimate
from gdr_plugin.config.schema import Config
from gdr_plugin.report.tables import estimate_text
from gdr_plugin.tuning.candidates import CandidateGuidance
from gdr_plugin.tuning.contest import Cost
from gdr_plugin.tuning.halving import Round
from gdr_plugin.tuning.verdict import HeldOut, Verdict
from gdr_plugin.version import __version__

OPTIMISTIC = "search scores (optimistic)"
"""What the search's own accuracies are always called."""


@dataclass(frozen=True, slots=True)
class TuneReport:
    """A finished search."""

    domain: str
    source: str
    """The data's file name."""
    fingerprint: str
    """A digest of the pairs' texts."""
    seed: int
    pairs: int
    prompts: tuple[int, int, int]
    """Different prompts kept for exemplars, searched on, and held out."""
    candidates: tuple[CandidateGuidance, ...]
    """Who took part; the first is no guidance."""
    left_out: int
    """Candidates that the budget had no room for."""
    rounds: tuple[Round[int], ...]
    """The search; names are places in `candidates`."""
    winner: int
    """Its place in `candidates`."""
    configured: Mapping[str, int]
    """What gdr.yaml shows the held-out pairs: guidance -> pairs."""
    result: HeldOut
    verdict: Verdict
    not_scored: Mapping[str, int]
    """Responses that were not scored, by the kind of reason."""
    cost: Cost
    seconds: float
    config: Config

    @property
    def best(self) -> CandidateGuidance:
        """The winner of the search, whether recommended or not."""
        return self.candidates[self.winner]

    def provenance(self) -> list[str]:
        """Where the guidance comes from, as comment lines that are the same in every run."""
        result, section = self.result, self.config.guidance
        return [
            f"(gdr-plugin {__version__}) from {self.source}: {self.pairs} pairs, fingerprint {self.fingerprint}, "
            f"seed {self.seed}.",
            f"strong {_model(self.config.strong)}; weak {_model(self.config.weak)}; placement {section.placement}; "
            f"reduction {self.config.reward.reduction}.",
            f"The best of {len(self.candidates)} candidates on {self.prompts[1]} prompts: {self.best.label}.",
            f"Accuracy on {result.tuned.n} other prompts, held out, with 95 % intervals: {two_digits(result.tuned)};",
            f"no guidance {two_digits(result.unguided)}, difference {two_digits(result.gain, signed=True)}, "
            f"sign test p = {result.sign_p:.2g};",
            f"gdr.yaml before {two_digits(result.configured)}, difference "
            f"{two_digits(result.gain_over_configured, signed=True)}.",
            "gdr tune overwrites this file: copy it before you change it.",
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything for machines. `held_out` is the result; `search_optimistic` is not."""
        best = self.best
        return {
            "domain": self.domain,
            "recommended": self.verdict.use,
            "because": self.verdict.because,
            "best": best.label,
            "guidance": asdict(best.guidance) if best.guidance else None,
            "held_out": asdict(self.result),
            "gdr_yaml_shows": dict(self.configured),
            "data": {
                "source": self.source,
                "fingerprint": self.fingerprint,
                "seed": self.seed,
                "pairs": self.pairs,
                **dict(zip(("exemplar_prompts", "search_prompts", "held_out_prompts"), self.prompts, strict=True)),
            },
            "search_optimistic": [
                {
                    "prompts": stage.prompts,
                    "accuracy": [{"candidate": self.candidates[i].label, "value": value} for i, value in stage.ranking],
                }
                for stage in self.rounds
            ],
            "candidates_left_out": self.left_out,
            "not_scored": dict(self.not_scored),
            "cost": {**asdict(self.cost), "seconds": self.seconds},
        }


def two_digits(estimate: Estimate, *, signed: bool = False) -> str:
    """An estimate as text: on fifty prompts or so, a third digit says nothing."""
    return estimate_text(estimate, digits=2, signed=signed)


def _model(spec: ModelSpec) -> str:
    """A model for people: its name, not where it lies on this machine."""
    names = [Path(part).name if Path(part).is_absolute() else part for part in (spec.model, spec.adapter) if part]
    return " + ".join(names)
