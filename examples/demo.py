"""The demo that `make demo` runs: annotate real prompts with a real pair, then show what guidance does.

Part one is the main job as a user runs it: `gdr annotate` with on-policy responses. Part two ranks given responses
under opposed criteria. Everything goes into demo-out/; a second run finds the finished work there and only shows it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import demo_criteria
import demo_tables
from base_model import PAIR, link_base
from rich.console import Console

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "demo-out"
SAMPLES, TOKENS, TEMPERATURE, SEED = 4, 64, 0.9, 0


def annotate(out: Path, console: Console) -> None:
    """Run `gdr annotate` as a user would, and show the command."""
    command = ["gdr", "annotate", HERE / "data" / "prompts.jsonl", "-c", PAIR / "gdr.yaml", "-o", out]
    options = {"policy": "weak", "samples": SAMPLES, "max-new-tokens": TOKENS, "temperature": TEMPERATURE, "seed": SEED}
    words = [_relative(word) for word in command] + [f"--{name}={value}" for name, value in options.items()]
    console.print(f"$ {shlex.join(words)}", style="bold", soft_wrap=True)
    gdr = Path(sys.executable).with_name("gdr")
    code = subprocess.run([gdr, *words[1:]], cwd=HERE.parent, check=False).returncode
    if code:
        sys.exit(code)


def _relative(word: str | Path) -> str:
    return str(word.relative_to(HERE.parent)) if isinstance(word, Path) else word


def main() -> None:
    console, base, started = Console(), link_base(), time.perf_counter()
    OUT.mkdir(exist_ok=True)
    console.rule("1. From prompts to preference pairs")
    annotate(OUT / "pairs", console)
    demo_tables.show(OUT / "pairs", console)
    console.rule("2. What guidance does")
    demo_criteria.show(demo_criteria.score_all(base, OUT / "criteria.sqlite"), console)
    console.print(
        f"Done in {time.perf_counter() - started:.0f} s. The pairs and their data set card are in {OUT / 'pairs'}"
    )


if __name__ == "__main__":
    main()
