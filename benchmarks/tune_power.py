"""How often `gdr tune` recommends guidance, by the number of prompts and by what the best candidate really gains.

    python -m benchmarks.tune_power [--runs 400]

There is no model. 32 candidates agree with a label with a given chance, which is the same for all but one that is
better by the gain. They share most of their luck on a prompt, as guidances of one model pair do. The search, the
held-out comparison and the recommendation are the real ones. With a gain of 0 every recommendation is a false one.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from gdr_plugin.tuning.halving import PromptResult, PromptResults, halve
from gdr_plugin.tuning.split import parts
from gdr_plugin.tuning.verdict import compare, judge

CANDIDATES, BASE, SHARED = 32, 0.6, 0.8
"""How many candidates, their accuracy without the gain, and the share of prompts on which all have the same luck."""
GOOD = 1
"""The candidate that gains; 0 is no guidance."""


def results(rng: random.Random, prompts: int, gain: float) -> list[list[PromptResult]]:
    """Draw every candidate's results on every prompt."""
    luck = [rng.random() for _ in range(prompts)]
    table = []
    for candidate in range(CANDIDATES):
        chance = BASE + gain * (candidate == GOOD)
        own = (draw if rng.random() < SHARED else rng.random() for draw in luck)
        table.append([PromptResult(float(draw < chance), (draw < chance) - 0.5) for draw in own])
    return table


def once(seed: int, prompts: int, gain: float) -> tuple[bool, bool, float, float]:
    """Run one search; say whether guidance is recommended, whether the right candidate won, and its search score and
    held-out accuracy."""
    _, search, held_out = parts(prompts)
    table = results(random.Random(seed), search + held_out, gain)

    def ask(names: Sequence[int], start: int, stop: int) -> dict[int, PromptResults]:
        return {name: table[name][start:stop] for name in names}

    winner, optimistic = halve(range(CANDIDATES), search, ask)[-1].ranking[0]
    result = compare(table[winner][search:], table[0][search:], table[0][search:])
    assert result is not None
    verdict = judge(result, guided=winner != 0, configured_guided=False)
    return verdict.use, winner == GOOD, optimistic, result.tuned.value


def main() -> None:
    """Run the searches and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400, help="searches for each row (400)")
    runs = parser.parse_args().runs
    table = Table("prompts", "true gain", "recommended", "right winner", "search score", "held-out accuracy")
    for gain in (0.0, 0.1, 0.2, 0.3):
        for prompts in (50, 100, 300):
            use, right, search, held_out = zip(*(once(seed, prompts, gain) for seed in range(runs)), strict=True)
            shares = (f"{sum(flags) / runs:.1%}" for flags in (use, right))
            means = (f"{statistics.mean(values):.2f}" for values in (search, held_out))
            table.add_row(str(prompts), f"{gain:+.2f}", *shares, *means)
    Console().print(table)


if __name__ == "__main__":
    main()
