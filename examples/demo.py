"""The demo that `make demo` runs: annotate real prompts with a real pair, then show what guidance does.

Part one runs `gdr annotate` with on-policy responses, as a user does. Part two ranks given responses under opposed
criteria. Everything goes into demo-out/; a second run finds the finished work there and only shows it.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import demo_criteria
from base_model import DEMO_PAIR, link_base
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUT = ROOT / "demo-out"
SAMPLING = {"policy": "weak", "samples": 4, "max-new-tokens": 64, "temperature": 0.7, "top-p": 0.9, "seed": 0}
SHOWN = ("safety", "chat", "code")


def annotate(out: Path, console: Console) -> None:
    """Run `gdr annotate` as a user would, and show the command."""
    files = [HERE / "data" / "prompts.jsonl", "-c", DEMO_PAIR / "gdr.yaml", "-o", out]
    words = [str(word.relative_to(ROOT)) if isinstance(word, Path) else word for word in files]
    words = ["gdr", "annotate", *words, *(f"--{name}={value}" for name, value in SAMPLING.items())]
    console.print(f"$ {shlex.join(words)}", style="bold", soft_wrap=True)
    gdr = Path(sys.executable).with_name("gdr")
    code = subprocess.run([gdr, *words[1:]], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


def show_pairs(file: Path, console: Console) -> None:
    """Show a typical preference pair of some domains: the one with the median margin."""
    pairs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for domain in SHOWN:
        found = sorted((row for row in pairs if row["gdr_domain"] == domain), key=lambda row: row["gdr_margin"])
        if found:
            console.print(_panel(found[len(found) // 2]))
    console.print("This pair was tuned for harmlessness alone: elsewhere it prefers mostly by style and chance.\n")


def _panel(row: dict[str, Any]) -> Panel:
    """A preference pair, shortened; a model wrote the texts, so they are never read as markup."""
    body = Text()
    for turn in row["prompt"]:
        body.append(f"{turn['role']}: {_short(turn['content'], 160)}\n", style="bold")
    for side, style in (("chosen", "green"), ("rejected", "red")):
        body.append(f"\n{side} {row[f'gdr_{side}_reward']:+.2f}  ", style=style)
        body.append(_short(row[side][-1]["content"], 300))
    title = f"{row['gdr_id']}: a typical pair of {row['gdr_domain']}, margin {row['gdr_margin']:.2f} nats"
    return Panel(body, title=title, title_align="left")


def _short(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 4].rstrip() + " ..."


def main() -> None:
    console, base, started = Console(), link_base(), time.perf_counter()
    OUT.mkdir(exist_ok=True)
    console.rule("1. From prompts to preference pairs")
    annotate(OUT / "pairs", console)
    show_pairs(OUT / "pairs" / "preferences.jsonl", console)
    console.rule("2. What guidance does")
    demo_criteria.show(demo_criteria.score_all(base, OUT / "criteria.sqlite"), console)
    console.print(f"Done in {time.perf_counter() - started:.0f} s. The pairs and their card are in {OUT.name}/pairs.")


if __name__ == "__main__":
    main()
