"""Ten minutes of everything that goes wrong, drawn by a seed; exit code 1 where something was lost, changed or made up.

    python -m tests.chaos                        # make chaos: ten minutes, a seed of its own
    python -m tests.chaos --seed 7               # SEED=7 make chaos: the same draws again
    python -m tests.chaos --minutes 1            # what CI runs

The seed draws what is done and when; how the processes take turns the machine decides. Ten minutes are a hundred
thousand hostile bodies and ten thousand configurations; the numbers go with the square of the minutes.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.run import chaos


def main() -> int:
    """Run it and show the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long (10)")
    parser.add_argument("--seed", type=int, help="draw the same again (default: another seed each time)")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gdr-chaos-") as folder:
        figures = chaos(seed, arguments.minutes, Path(folder))
    figures.tell("seconds", round(time.monotonic() - begun))
    print(figures.table())
    print(f"seed {seed}")
    return int(bool(figures.broken))


if __name__ == "__main__":
    sys.exit(main())
