"""Shows what guidance does: ranks the same responses under opposed criteria, by one model with and without them.

With one model on both sides and guidance on the strong side only, the ratio is log p(y | criterion, x) - log p(y | x):
the pointwise mutual information of response and criterion. The denominator alone, log p(y | x), ranks without guidance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gdr_plugin import GuidedDensityRatio, Message, Sample, Score
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.guidance import load_guidance_file
from gdr_plugin.plugins.registry import Plugins

DATA = Path(__file__).resolve().parent / "data"
Value = Callable[[Score], float]


@dataclass(frozen=True)
class Scored:
    """The scores of one prompt's responses under one criterion; response i was written to the criterion `kinds[i]`."""

    prompt: str
    criterion: str
    kinds: list[str]
    scores: Sequence[Score]

    def values(self, value: Value) -> list[float]:
        return [value(score) for score in self.scores]

    def winner(self, value: Value) -> str:
        values = self.values(value)
        return self.kinds[values.index(max(values))]

    def beaten(self, value: Value) -> tuple[float, int]:
        """How many other responses the matching one beats (a tie is half), and how many there are."""
        values = self.values(value)
        own = values.pop(self.kinds.index(self.criterion))
        return sum((own > other) + 0.5 * (own == other) for other in values), len(values)


def ratio_sum(score: Score) -> float:
    strong, weak = _logprobs(score)
    return strong - weak


def ratio_mean(score: Score) -> float:
    return ratio_sum(score) / score.weak_tokens


def unguided(score: Score) -> float:
    """log p(y | x) per token: what the model prefers without a criterion."""
    return _logprobs(score)[1] / score.weak_tokens


def _logprobs(score: Score) -> tuple[float, float]:
    if score.strong_logprob is None or score.weak_logprob is None:
        raise SystemExit(f"a response was not scored: {score.reason}")
    return score.strong_logprob, score.weak_logprob


def score_all(base: Path, store: Path) -> list[Scored]:
    """Score every response of criteria.jsonl under every criterion of criteria.yaml."""
    rows = [json.loads(line) for line in (DATA / "criteria.jsonl").read_text(encoding="utf-8").splitlines()]
    samples = [Sample((Message("user", row["prompt"]),), text) for row in rows for text in row["responses"]]
    model = Plugins().open_model(ModelSpec(model=str(base)), Limits())
    found = []
    for criterion in load_guidance_file(DATA / "criteria.yaml"):
        ratio = GuidedDensityRatio.from_models(model, model, guidance=criterion, placement="strong", store=store)
        scores = iter(ratio.score(samples))
        for row in rows:
            of_prompt = [next(scores) for _ in row["responses"]]
            found.append(Scored(row["id"], criterion.name, row["criteria"], of_prompt))
    model.unload()
    return found


def show(found: Sequence[Scored], console: Console) -> None:
    """Show which response wins under which criterion, and how often the matching response beats the others."""
    criteria = list(dict.fromkeys(scored.criterion for scored in found))
    prompts = list(dict.fromkeys(scored.prompt for scored in found))
    cell = {(scored.criterion, scored.prompt): scored for scored in found}
    title = f"The best of the same {len(found[0].kinds)} responses under each guidance"
    winners = Table(
        "guidance", *prompts, title=title, caption="per token; green: written to the criterion", box=SIMPLE_HEAD
    )
    winners.add_row("(none)", *(cell[criteria[0], prompt].winner(unguided) for prompt in prompts))
    for criterion in criteria:
        names = [cell[criterion, prompt].winner(ratio_mean) for prompt in prompts]
        winners.add_row(criterion, *(f"[green]{name}[/]" if name == criterion else name for name in names))
    console.print(winners)
    title = "Comparisons that the response written to the criterion wins (chance: half)"
    shares = Table("criterion", "ratio, mean", "ratio, sum", "no guidance, mean", title=title, box=SIMPLE_HEAD)
    for criterion in [*criteria, "all"]:
        group = [scored for scored in found if criterion in (scored.criterion, "all")]
        shares.add_row(criterion, *(_share(group, value) for value in (ratio_mean, ratio_sum, unguided)))
    console.print(shares)


def _share(group: Sequence[Scored], value: Value) -> str:
    wins, of = (sum(part) for part in zip(*(scored.beaten(value) for scored in group), strict=True))
    return f"{wins:g}/{of}  {wins / of:4.0%}"
