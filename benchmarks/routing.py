"""What routing by likelihood costs compared with the scoring after it, and what another order of the prompt would cost.

    python -m benchmarks.routing [--config gdr.yaml] [--prompts 8] [--responses 4] [--json OUT]

The router asks a question of its own: task and domains first, which all requests share, then the request. The other way
puts the question after the prompt, so that prompts whose domain has no guidance share their prefix with the scoring,
but the domains are read again for every prompt. Both orders are counted (tokens that a model must read, every distinct
prefix once) and timed on the strong model, on prompts as they are and on long ones. Prompt-first gets the best
conditions possible: its spans and the scoring's are in one call, so that everything that can be shared is. It loses
anyway: the counts are in `gdr_plugin.routing.likelihood`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.work import Candidates, read_candidates
from gdr_plugin import GuidedDensityRatio
from gdr_plugin.api.models import LogprobModel
from gdr_plugin.api.types import Logprobs, Message, Sample, TokenSpan
from gdr_plugin.config.load import load_config
from gdr_plugin.config.schema import Config
from gdr_plugin.models.local import open_local
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.resolve import resolve_names
from gdr_plugin.routing import RouterChain

DEMO_CONFIG = Path(__file__).resolve().parent.parent / "examples" / "demo-pair" / "gdr.yaml"


@dataclass
class Watched:
    """A model that keeps and times its calls."""

    model: LogprobModel
    calls: list[tuple[list[TokenSpan], float]] = field(default_factory=list)
    """The spans and seconds of each call."""

    def __post_init__(self) -> None:
        self.name, self.identity, self.chat = self.model.name, self.model.identity, self.model.chat

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        """As the model does."""
        start = time.perf_counter()
        found = self.model.score(spans)
        self.calls.append((list(spans), time.perf_counter() - start))
        return found

    def describe(self) -> dict[str, str]:
        """As the model does."""
        return self.model.describe()

    def unload(self) -> None:
        """As the model does."""
        self.model.unload()


def tokens(spans: Sequence[TokenSpan]) -> int:
    """Count the tokens that must be read: every distinct prefix once, the last token of a response never."""
    read = 0
    before: tuple[int, ...] = ()
    for ids in sorted(span.context + span.response[:-1] for span in spans):
        differ = (place for place, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b)
        read += len(ids) - next(differ, min(len(before), len(ids)))
        before = ids
    return read


def prompt_first(model: LogprobModel, prompts: Sequence[Candidates], domains: dict[str, str]) -> list[TokenSpan]:
    """Put the question after each prompt, with the names of all domains as its answers."""
    listed = "\n".join(f"- {name}: {text}" if text else f"- {name}" for name, text in domains.items())
    question = f"Do not carry the request out. Which of these domains does it belong to?\n{listed}"
    return [
        model.chat.span((*entry.prompt, Message("user", question)), name, end=False)
        for entry in prompts
        for name in domains
    ]


def long_prompts(prompts: Sequence[Candidates]) -> list[Candidates]:
    """Put the same requests behind a long text that is made of other prompts' responses."""
    found = []
    for place, entry in enumerate(prompts):
        others = [prompts[(place + step) % len(prompts)] for step in range(1, 9)]
        texts = [other.responses[0][0] for other in others]
        *before, last = entry.prompt
        request = Message(last.role, "Read this first.\n\n" + "\n\n".join(texts) + "\n\n" + last.content)
        found.append(Candidates((*before, request), entry.responses))
    return found


def measure(config: Config, prompts: Sequence[Candidates], responses: int, rounds: int) -> dict[str, Any]:
    """Measure both orders on one set of prompts.

    Args:
        config: The reward; its routers are replaced by `likelihood`.
        prompts: The requests and their responses.
        responses: How many of each prompt's are scored.
        rounds: Timed runs, in turn; the results hold their medians.

    Returns:
        Tokens and seconds of routing and scoring on the strong model, and of prompt-first.
    """
    resolved = resolve_names(config, Plugins(), origin="configuration")
    strong, weak = (Watched(open_local(spec, config.limits)) for spec in (config.strong, config.weak))
    ratio = GuidedDensityRatio(
        strong,
        weak,
        domains=resolved.guidances,
        chain=RouterChain(resolved.routers, config.routing.default_domain),
        guidance=config.guidance,
    )
    samples = [Sample(entry.prompt, *response) for entry in prompts for response in entry.responses[:responses]]
    ratio.score(samples)  # loads, checks, and reads what is kept: guidance, the router's task, content-free requests
    names = {name: guidance.description if guidance else "" for name, guidance in resolved.guidances.items()}
    first = prompt_first(strong, prompts, names)
    spent: dict[str, list[float]] = {"routing": [], "strong": [], "weak": [], "prompt_first": []}
    for _ in range(rounds):
        for side in (strong, weak):
            side.calls.clear()
        scores = ratio.score(samples)
        (asked, routing), (scored, scoring) = strong.calls
        spent["routing"].append(routing)
        spent["strong"].append(scoring)
        spent["weak"].append(weak.calls[0][1])
        strong.score([*first, *scored])
        spent["prompt_first"].append(strong.calls[-1][1] - scoring)
    ratio.unload()
    seconds = {name: round(statistics.median(found), 3) for name, found in spent.items()}
    whole = seconds["routing"] + seconds["strong"] + seconds["weak"]
    unguided = sum(score.guidance == "none" for score in scores) / len(scores)
    return {
        "prompts": len(prompts),
        "responses": len(samples),
        "prompt_tokens": round(
            statistics.mean(len(strong.chat.span(entry.prompt, "", end=False).context) for entry in prompts)
        ),
        "unguided": round(unguided, 3),
        "tokens": {
            "routing": tokens(asked),
            "scoring": tokens(scored),
            "prompt_first": tokens([*first, *scored]) - tokens(scored),
        },
        "seconds": seconds,
        "runs": {name: [round(run, 3) for run in found] for name, found in spent.items()},
        "routing_share": round(seconds["routing"] / whole, 4),
    }


def main() -> None:
    """Measure on short and long prompts, then show and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=DEMO_CONFIG)
    parser.add_argument("--prompts", type=int, default=8, help="short prompts, and half as many long ones (8)")
    parser.add_argument("--responses", type=int, default=4, help="responses that are scored for each prompt (4)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()
    config = load_config(args.config)
    routing = type(config.routing).model_validate({**config.routing.model_dump(), "routers": ["likelihood"]})
    config = config.model_copy(update={"routing": routing})
    candidates = read_candidates()[: args.prompts]
    results = {}
    for name, prompts in (("short", candidates), ("long", long_prompts(candidates)[: args.prompts // 2])):
        Console(stderr=True).print(f"{name} prompts")
        results[name] = measure(config, prompts, args.responses, args.rounds)
        if args.json:  # after each set: nothing that was measured is lost
            args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table = Table("prompts", "tokens a prompt", "unguided", "", "tokens read", "seconds")
    for name, result in results.items():
        table.add_row(
            name, str(result["prompt_tokens"]), f"{result['unguided']:.0%}", "routing", *_cells(result, "routing")
        )
        table.add_row("", "", "", "routing, prompt first", *_cells(result, "prompt_first"))
        table.add_row(
            "", "", "", "scoring, strong", str(result["tokens"]["scoring"]), f"{result['seconds']['strong']:.2f}"
        )
        table.add_row("", "", "", "scoring, weak", "", f"{result['seconds']['weak']:.2f}")
        table.add_row("", "", "", "routing's share of all", "", f"{result['routing_share']:.1%}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def _cells(result: dict[str, Any], name: str) -> tuple[str, str]:
    return str(result["tokens"][name]), f"{result['seconds'][name]:.2f}"


if __name__ == "__main__":
    main()
