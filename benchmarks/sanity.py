"""How often does a reward prefer what people preferred? Accuracy on preference pairs, against baselines.

    python benchmarks/sanity.py DATA.jsonl [--config gdr.yaml] [--json OUT] [--limit N]

Rows: `{"id", "domain", "subset"?, "prompt": str | messages, "chosen": str, "rejected": str}`. Three passes over the
data (unguided; guided with the row's own domain; guided with the domain that the keyword router finds). A store keeps
what was scored, so no text is scored twice under the same prompt and a second run is instant. A tie counts half.
Intervals: 95 % percentile bootstrap over pairs. Lengths are counted in the strong model's tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gdr_plugin import GuidedDensityRatio
from gdr_plugin.config import Config, load_config
from gdr_plugin.preferences.read import parse_prompt
from gdr_plugin.types import Sample, Score

HERE = Path(__file__).resolve().parent
Margins = npt.NDArray[np.float64]
SEED, DRAWS, WINDOW = 0, 10_000, 32


@dataclass(frozen=True)
class Pass:
    """One way of guiding, with the scores of every pair's two responses."""

    name: str
    chosen: list[Score]
    rejected: list[Score]
    routing: dict[str, int]

    @property
    def guided(self) -> int:
        """Pairs whose prompt got a guidance."""
        return sum(score.guidance != "none" for score in self.chosen)


def ways(config: Config) -> Iterator[tuple[str, Config]]:
    """The configuration unguided, guided by the rows' domains, and guided by the keyword router."""
    guidance, routing = config.guidance, config.routing
    entries = {
        name: type(routing).model_validate({**routing.model_dump(), "routers": [name]}) for name in ("field", "keyword")
    }
    yield (
        "unguided",
        config.model_copy(
            update={"guidance": guidance.model_copy(update={"placement": "none"}), "routing": entries["field"]}
        ),
    )
    yield "guided, oracle domain", config.model_copy(update={"routing": entries["field"]})
    yield "guided, keyword domain", config.model_copy(update={"routing": entries["keyword"]})


def run(name: str, config: Config, rows: Sequence[dict[str, Any]], store: Path, console: Console) -> Pass:
    """Score both responses of every row in one way."""
    ratio = GuidedDensityRatio.from_config(config, store=store)
    samples = [
        Sample(parse_prompt(row["prompt"]), row[key], fields={"domain": row.get("domain")})
        for row in rows
        for key in ("chosen", "rejected")
    ]
    scores = list(track(ratio.stream(samples, window=WINDOW), name, total=len(samples), console=console))
    ratio.unload()
    return Pass(name, scores[::2], scores[1::2], ratio.routing_counts)


def margins(one: Pass, kind: str, reduction: str) -> Margins:
    """Chosen minus rejected for every pair, NaN where one was not scored; shape `(pairs,)`."""

    def value(score: Score) -> float:
        if score.reward is None or score.strong_logprob is None or score.weak_logprob is None:
            return float("nan")
        strong, weak = score.strong_logprob, score.weak_logprob if kind == "ratio" else 0.0
        if reduction == "mean":
            return strong / score.strong_tokens - weak / score.weak_tokens
        return strong - weak

    return np.array([value(c) - value(r) for c, r in zip(one.chosen, one.rejected, strict=True)])


def accuracy(values: Margins, rng: np.random.Generator) -> dict[str, Any]:
    """Share of positive margins, ties half, with its interval.

    Resampling pairs with replacement changes only how many wins, ties and losses there are, so the bootstrap is a
    multinomial draw: exact, and independent of the number of pairs.
    """
    values = values[~np.isnan(values)]
    n = len(values)
    if not n:
        return {"pairs": 0, "ties": 0, "accuracy": None, "low": None, "high": None}
    worth = np.array([1.0, 0.5, 0.0])
    counts = np.array([(values > 0).sum(), (values == 0).sum(), (values < 0).sum()])
    low, high = np.percentile(rng.multinomial(n, counts / n, size=DRAWS) @ worth / n, [2.5, 97.5])
    return {
        "pairs": n,
        "ties": int(counts[1]),
        "accuracy": float(counts @ worth / n),
        "low": float(low),
        "high": float(high),
    }


def correlation(values: Margins, lengths: Margins) -> float | None:
    """Pearson correlation of margins and length differences; None where one of them does not vary."""
    known = ~np.isnan(values) & ~np.isnan(lengths)
    if known.sum() < 2 or values[known].std() == 0 or lengths[known].std() == 0:
        return None
    return float(np.corrcoef(values[known], lengths[known])[0, 1])


def evaluate(passes: Sequence[Pass], subsets: Sequence[str]) -> list[dict[str, Any]]:
    """Every method's accuracy over all pairs and by subset."""
    plain = passes[0]
    length = np.array(
        [float(c.strong_tokens - r.strong_tokens) for c, r in zip(plain.chosen, plain.rejected, strict=True)]
    )
    methods: list[tuple[str, str, Margins]] = [("longer wins", "tokens", length), ("shorter wins", "tokens", -length)]
    methods += [("strong log-prob only", how, margins(plain, "strong", how)) for how in ("sum", "mean")]
    methods += [(f"ratio, {one.name}", how, margins(one, "ratio", how)) for one in passes for how in ("sum", "mean")]
    rng = np.random.default_rng(SEED)
    names = np.array(subsets)
    return [
        {
            "method": method,
            "reduction": how,
            **accuracy(values, rng),
            "length_correlation": correlation(values, length),
            "subsets": {name: accuracy(values[names == name], rng) for name in sorted(set(subsets))},
        }
        for method, how, values in methods
    ]


def show(results: Sequence[dict[str, Any]], title: str, console: Console) -> None:
    """One line a method; where there are several subsets, a second table with their accuracies."""
    table = Table("method", "by", "pairs", "accuracy", "95 % interval", "r with length", title=title)
    subsets = list(results[0]["subsets"])
    parts = Table("method", "by", *subsets, title=f"{title}: accuracy by subset")
    for one in results:
        r = one["length_correlation"]
        interval = f"{_number(one['low'])}-{_number(one['high'])}"
        correlation = "" if r is None else f"{r:+.2f}"
        name, how = one["method"], one["reduction"]
        table.add_row(name, how, str(one["pairs"]), _number(one["accuracy"]), interval, correlation)
        parts.add_row(name, how, *(_number(one["subsets"][subset]["accuracy"]) for subset in subsets))
    console.print(table)
    if len(subsets) > 1:
        console.print(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """Read, score in three ways, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--config", type=Path, default=HERE.parent / "examples" / "demo-pair" / "gdr.yaml")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--limit", type=int, help="only the first N pairs")
    parser.add_argument("--store", type=Path, default=Path(".gdr/sanity.sqlite"))
    args = parser.parse_args()
    with args.data.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][: args.limit]
    args.store.parent.mkdir(parents=True, exist_ok=True)
    progress = Console(stderr=True)
    console = Console(width=None if sys.stdout.isatty() else 140)
    passes = [run(name, config, rows, args.store, progress) for name, config in ways(load_config(args.config))]
    results = evaluate(passes, [row.get("subset") or row.get("domain") or "all" for row in rows])
    show(results, f"{args.data.name}: {len(rows)} pairs", console)
    for one in passes:
        console.print(f"{one.name}: {one.guided} of {len(rows)} pairs had guidance; routing {one.routing}")
    reasons = {score.reason for one in passes for score in one.chosen + one.rejected if score.reason}
    for reason in sorted(reasons):
        console.print(f"not scored: {reason}")
    if args.json:
        summary = {one.name: {"guided": one.guided, "routing": one.routing} for one in passes}
        report = {"data": args.data.name, "config": str(args.config), "passes": summary, "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
