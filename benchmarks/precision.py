"""What a precision costs in decisions: errors of the reward, pairs that flip, winners that change, against float32.

    python -m benchmarks.precision [PAIRS.jsonl] [--config gdr.yaml] [--float16 ROWS] [--store FILE] [--json OUT]

Without a file, it compares all pairs within the prompts of data/responses.jsonl, and the best of each prompt's eight
responses. With one, it compares the pairs of its rows `{"prompt", "chosen", "rejected"}` as well. The reward is the
sum, unguided. float16 is slow on most CPUs, so only some rows are scored in it; on the same rows float32 itself is
compared with one sequence at a time.

Modes between bfloat16 and float32 were tried on the demo pair and left out, since none pays. A margin's error in nats
for a root token (5 prompts x 8 responses, 140 pairs): bfloat16 0.047; bfloat16 products with the residual stream and
norms in float32 0.050; with the head in float32 too 0.048; float32 arithmetic on bfloat16 weights 0.004. So neither
weights nor residual stream matter, but what goes into and comes out of every product. Of the kinds of layer none stands
out: attention's, the gates' or the down projections alone in float32 leave 70-90 % of the error. Products of bfloat16
that give float32 would leave 35 %; torch has none on the CPU, and inputs in two parts cost what float32 costs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.work import read_candidates
from gdr_plugin import GuidedDensityRatio
from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import Sample
from gdr_plugin.config.load import load_config
from gdr_plugin.config.schema import Config, GuidanceSection
from gdr_plugin.data.rows import parse_prompt
from gdr_plugin.models.local import open_local
from gdr_plugin.models.local.source import locate

DEMO_CONFIG = Path(__file__).resolve().parent.parent / "examples" / "demo-pair" / "gdr.yaml"
BEST_OF = 8
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Decisions:
    """Samples, and which of them are compared."""

    name: str
    samples: list[Sample]
    groups: list[list[int]]
    """Places of the samples of one prompt."""

    def first(self, rows: int) -> Decisions:
        """The decisions among the first samples, in whole groups only."""
        groups = [group for group in self.groups if group[-1] < rows]
        return Decisions(self.name, self.samples[: groups[-1][-1] + 1 if groups else 0], groups)


def drawn(prompts: int | None = None) -> Decisions:
    """Eight responses to each prompt, as in best-of-n sampling."""
    samples, groups = [], []
    for candidates in islice(read_candidates(), prompts):
        few = candidates.responses[:BEST_OF]
        groups.append(list(range(len(samples), len(samples) + len(few))))
        samples += [Sample(candidates.prompt, text, finished) for text, finished in few]
    return Decisions(f"best of {BEST_OF}", samples, groups)


def labelled(path: Path, limit: int | None = None) -> Decisions:
    """Chosen and rejected of each row of a file."""
    samples: list[Sample] = []
    with path.open(encoding="utf-8") as lines:
        for row in islice(map(json.loads, lines), limit):
            prompt = parse_prompt(row["prompt"])
            samples += [Sample(prompt, row["chosen"]), Sample(prompt, row["rejected"])]
    return Decisions(path.name, samples, [[place, place + 1] for place in range(0, len(samples), 2)])


def in_precision(config: Config, dtype: str) -> Config:
    """The reward with both models in one precision, unguided."""
    models = {side: getattr(config, side).model_copy(update={"dtype": dtype}) for side in ("strong", "weak")}
    return config.model_copy(update={**models, "guidance": unguided(config.guidance)})


def unguided(guidance: GuidanceSection) -> GuidanceSection:
    """Guidance that nobody sees: one that is shared takes nothing from the differences."""
    return guidance.model_copy(update={"placement": "none"})


def rewards(config: Config, samples: Sequence[Sample], store: Path | None = None) -> Values:
    """Rewards, NaN where a sample was not scored; shape `(samples,)`."""
    ratio = GuidedDensityRatio.from_config(config, store=store)
    scores = [score.reward for score in ratio.stream(samples, window=256)]
    ratio.unload()
    return np.array([np.nan if reward is None else reward for reward in scores])


def lengths(config: Config, samples: Sequence[Sample]) -> Values:
    """Response tokens of the strong model, NaN where one does not fit; shape `(samples,)`."""
    chat = open_local(config.strong, config.limits).chat

    def length(sample: Sample) -> float:
        try:
            return float(len(chat.span(sample.prompt, sample.response, end=sample.finished).response))
        except ChatError:
            return float("nan")

    return np.array([length(sample) for sample in samples])


def compare(
    truth: Values, other: Values, groups: Sequence[Sequence[int]], tokens: Values | None = None
) -> dict[str, Any]:
    """How rewards differ, and which decisions change.

    Args:
        truth: Rewards in float32.
        other: The same samples' rewards in another precision.
        groups: Places of the samples that are compared with each other.
        tokens: Response tokens of each sample.

    Returns:
        Error's standard deviation and largest value (nats), pairs, share flipped, share flipped among those whose
        margin is over three standard deviations, groups, and share whose best stayed; None without pairs. With tokens
        also `token_error`: the root mean square of a margin's error over the square root of its pair's tokens, which is
        what `gdr_plugin.arithmetic.noise.TOKEN_ERROR` holds.
    """
    error = other - truth
    known = error[np.isfinite(error)]
    spread = float(known.std()) if len(known) else float("nan")
    margins = np.array([(truth[a] - truth[b], other[a] - other[b]) for a, b in _pairs(groups, error)]).reshape(-1, 2)
    flipped = np.sign(margins[:, 0]) != np.sign(margins[:, 1])
    clear = np.abs(margins[:, 0]) > 3 * spread
    best = [np.argmax(truth[list(g)]) == np.argmax(other[list(g)]) for g in groups if np.isfinite(error[list(g)]).all()]
    return {
        "samples": len(known),
        "reward_sd": float(truth[np.isfinite(error)].std()) if len(known) else None,
        "error_sd": spread,
        "error_max": float(np.abs(known).max(initial=0.0)),
        "pairs": len(margins),
        "flipped": float(flipped.mean()) if len(margins) else None,
        "flipped_clear": float(flipped[clear].mean()) if clear.any() else None,
        "close_pairs": float((~clear).mean()) if len(margins) else None,
        "token_error": None if tokens is None else _token_error(error, groups, tokens),
        "groups": len(best),
        "same_best": float(np.mean(best)) if best else None,
    }


def _token_error(error: Values, groups: Sequence[Sequence[int]], tokens: Values) -> float | None:
    found = [(error[a] - error[b]) ** 2 / (tokens[a] + tokens[b]) for a, b in _pairs(groups, error)]
    return float(np.sqrt(np.mean(found))) if found else None


def _pairs(groups: Sequence[Sequence[int]], error: Values) -> Iterator[tuple[int, int]]:
    for group in groups:
        for a, b in combinations(group, 2):
            if np.isfinite(error[a]) and np.isfinite(error[b]):
                yield a, b


def plain(config: Config, samples: Sequence[Sample]) -> Values:
    """Rewards in float32 by transformers and peft alone: one sequence at a time, all logits, log-softmax."""
    import torch
    from transformers import AutoModelForCausalLM

    sides = []
    for spec in (config.strong, config.weak):
        network: Any = AutoModelForCausalLM.from_pretrained(locate(spec).path, dtype=torch.float32)
        if spec.adapter:
            from peft import PeftModel

            network = PeftModel.from_pretrained(network, spec.adapter)
        network.train(False)
        chat = open_local(spec).chat
        totals = []
        with torch.inference_mode():
            for sample in samples:
                span = chat.span(sample.prompt, sample.response, end=sample.finished)
                ids = torch.tensor([span.context + span.response])
                logprobs = network(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
                picked = logprobs[:-1].gather(-1, ids[0, 1:, None])[len(span.context) - 1 :]
                totals.append(float(picked.double().sum()))
        sides.append(np.array(totals))
    return sides[0] - sides[1]


def measure(
    config: Config, decisions: Decisions, few: int, say: Any, store: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Compare every precision with float32 on one set of decisions."""
    found: dict[str, dict[str, Any]] = {}
    say(f"{decisions.name}: float32, {len(decisions.samples)} samples")
    truth = rewards(in_precision(config, "float32"), decisions.samples, store)
    tokens = lengths(config, decisions.samples)
    some = decisions.first(few)
    if some.groups:
        say(f"{decisions.name}: float32 one by one, {len(some.samples)} samples")
        exact = plain(in_precision(config, "float32"), some.samples)
        found["float32"] = compare(exact, truth[: len(exact)], some.groups, tokens)
    for dtype, part in (("bfloat16", decisions), ("float16", some)):
        if part.groups:
            say(f"{decisions.name}: {dtype}, {len(part.samples)} samples")
            other = rewards(in_precision(config, dtype), part.samples, store)
            found[dtype] = compare(truth[: len(other)], other, part.groups, tokens)
    return found


def show(name: str, found: dict[str, dict[str, Any]], console: Console) -> None:
    """Print one line for each precision."""
    columns = [
        "precision",
        "samples",
        "sd of r",
        "error sd",
        "max",
        "a root token",
        "pairs",
        "flipped",
        "of clear ones",
    ]
    columns.append("best same")
    table = Table(*columns, title=f"{name}: against float32 (nats; clear: margin over 3 sd of the error)")
    for dtype, result in found.items():
        share = {
            key: "" if result[key] is None else f"{result[key]:.1%}"
            for key in ("flipped", "flipped_clear", "same_best")
        }
        row = [dtype, str(result["samples"]), f"{result['reward_sd'] or 0:.2f}", f"{result['error_sd']:.2g}"]
        root = "" if result["token_error"] is None else f"{result['token_error']:.2g}"
        row += [f"{result['error_max']:.2g}", root, str(result["pairs"]), share["flipped"], share["flipped_clear"]]
        table.add_row(*row, share["same_best"])
    console.print(table)


def main() -> None:
    """Score in each precision, compare, then show and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, nargs="?", help="JSONL rows of prompt, chosen and rejected")
    parser.add_argument("--config", type=Path, default=DEMO_CONFIG)
    parser.add_argument("--limit", type=int, help="only the first pairs of the file")
    parser.add_argument("--float16", type=int, default=16, help="samples of each set that are scored in float16")
    parser.add_argument("--store", type=Path, help="keep log-probs here, so that a second run is instant")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()
    progress, console = Console(stderr=True), Console(width=None if sys.stdout.isatty() else 120)
    config, results = load_config(args.config), {}
    sets = [drawn(), *([labelled(args.pairs, args.limit)] if args.pairs else [])]
    for decisions in sets:
        results[decisions.name] = measure(config, decisions, args.float16, progress.print, args.store)
        show(decisions.name, results[decisions.name], console)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
