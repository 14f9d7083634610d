"""All parts of a day of chaos, one after the other, as large as its minutes allow."""

from __future__ import annotations

import asyncio
import random
import resource
import sys
from pathlib import Path

from tests.chaos.annotated import ROOT, annotate_again_and_again, annotate_the_demo_pair
from tests.chaos.configs import fuzz_configs
from tests.chaos.figures import Figures
from tests.chaos.served import Day

BODIES, CONFIGS = 1_000, 100
"""In one minute; they grow with the square of the minutes, since starting processes takes most of a single one."""
REAL_MINUTES = 5.0
"""From so many minutes on the demo pair is run, too, and trainers speak OpenRLHF's dialect with its tokenizer."""


def chaos(seed: int, minutes: float, folder: Path) -> Figures:
    """Live through all of it.

    Args:
        seed: Draws everything.
        minutes: About how long.
        folder: An empty folder.

    Returns:
        What happened, and what broke.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    figures = Figures()
    size, real = minutes**2, minutes >= REAL_MINUTES
    for part in ("annotate", "demo", "serve", "configurations"):
        own, rng = folder / part, random.Random(f"{seed} {part}")
        own.mkdir()
        print(f"chaos: {part}", file=sys.stderr, flush=True)
        if part == "annotate":
            annotate_again_and_again(rng, max(3, int(2 * minutes)), own, figures)
        elif part == "demo" and real:
            annotate_the_demo_pair(rng, own, figures)
        elif part == "serve":
            seconds, policy = (30 * minutes, ROOT / "examples/demo-pair/base.gguf") if real else (18 * minutes, None)
            asyncio.run(Day(rng, own, figures, seconds, int(BODIES * size), policy).run())
        elif part == "configurations":
            fuzz_configs(rng, int(CONFIGS * size), own, figures)
    return figures
