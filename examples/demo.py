"""The demo that `make demo` runs: the reward of a real model pair on two CPU cores, what convinces fastest first.

Four parts: two given answers are scored; a page shows which words the scores come from; the same responses are ranked
under opposed criteria; pairs are made from prompts alone. Each runs `gdr` as a user does; the criteria use the library.
Everything goes into demo-out/; a second run finds the ranked criteria and the pairs there and only shows them.
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

from gdr_plugin.cli.threads import settle_threads

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUT = ROOT / "demo-out"
CONFIG = DEMO_PAIR / "gdr.yaml"
SAMPLING = {"policy": "weak", "samples": 4, "max-new-tokens": 64, "temperature": 0.7, "top-p": 0.9, "seed": 0}
SHOWN = ("safety", "chat", "code")


def run(console: Console, *words: str | Path) -> None:
    """Run a `gdr` command as a user would, and show it."""
    shown = [str(word.relative_to(ROOT)) if isinstance(word, Path) else word for word in words]
    console.print(f"$ {shlex.join(['gdr', *shown])}", style="bold", soft_wrap=True)
    code = subprocess.run([Path(sys.executable).with_name("gdr"), *shown], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


def score(answers: Path, console: Console) -> None:
    """Score two given answers to a prompt, and show them with their rewards."""
    console.print("Two answers to one question. The reward is log p_strong - log p_weak: a higher one is better.")
    scores = OUT / "scores.jsonl"
    run(console, "score", answers, "-c", CONFIG, "-o", scores)
    rewards = {row["id"]: row["reward"] for row in _rows(scores)}
    rows = _rows(answers)
    console.print(rows[0]["prompt"], style="bold", markup=False)
    for row in rows:
        line = Text(f"{rewards[row['id']]:+6.2f}  ", style="bold")
        line.append(row["response"], style="not bold")
        console.print(line)
    console.print()


def explain(answers: Path, console: Console) -> None:
    """Write the page that shows the same rewards token by token."""
    page = OUT / "explain.html"
    console.print("The same rewards, token by token: open the page in a browser.")
    run(console, "explain", answers, "-c", CONFIG, "-o", page)
    console.print()


def criteria(base: Path, console: Console) -> None:
    """Rank the same responses under opposed criteria."""
    console.print(
        "One model with and without a criterion in its system turn, seven responses to each of four questions. Each "
        "response was written to one criterion: does it win when that criterion is the model's guidance?"
    )
    demo_criteria.show(demo_criteria.score_all(base, OUT / "criteria.sqlite"), console)


def annotate(console: Console) -> None:
    """Make pairs from prompts alone, and show a typical one of some domains."""
    console.print(
        "What the tool is for: the weak model answers 40 prompts four times each, the best and the worst answer by the "
        "reward become a pair. Answers and reward are those of a 135 M model: look at the pairs before you trust any."
    )
    run(
        console, "annotate", HERE / "data" / "prompts.jsonl", "-c", CONFIG, "-o", OUT / "pairs",
        *(f"--{name}={value}" for name, value in SAMPLING.items()),
    )  # fmt: skip
    pairs = _rows(OUT / "pairs" / "preferences.jsonl")
    console.print("The pair with the median margin in three of the domains, whatever it looks like:")
    for domain in SHOWN:
        found = sorted((row for row in pairs if row["gdr_domain"] == domain), key=lambda row: row["gdr_margin"])
        if found:
            console.print(_panel(found[len(found) // 2]))
    console.print("This pair was tuned for harmlessness, then for help and relevance: it knows no facts and no sums.")


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


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


NEXT = """\
The pairs and their card are in demo-out/pairs. Next:
  gdr score examples/data/answers.jsonl -c examples/demo-pair/gdr.yaml     change an answer, and score it again
  gdr init                                                                 write a gdr.yaml for two models of your own
  gdr evaluate YOUR-PAIRS.jsonl                                            how often it agrees with people
  gdr annotate YOUR-PROMPTS.jsonl --policy=... -o out/                     pairs from your own prompts
`gdr` is in .venv/bin. What this small pair can and cannot do: examples/demo-pair/README.md."""


def main() -> None:
    settle_threads()
    console, base, started = Console(), link_base(), time.perf_counter()
    OUT.mkdir(exist_ok=True)
    answers = HERE / "data" / "answers.jsonl"
    console.print("Four parts, two to five minutes on two idle CPU cores; the first use of the model takes 20 s more.")
    console.rule("1 of 4. Which answer is better? (half a minute)")
    score(answers, console)
    console.rule("2 of 4. Which words make it so? (half a minute)")
    explain(answers, console)
    console.rule("3 of 4. Does guidance change the ranking? (1 min)")
    criteria(base, console)
    console.rule("4 of 4. From prompts to preference pairs (2 min)")
    annotate(console)
    console.print(f"Done in {time.perf_counter() - started:.0f} s.", style="bold")
    console.print(NEXT, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    main()
