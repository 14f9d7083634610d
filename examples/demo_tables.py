"""What a finished annotation holds, as tables: read from the files that `gdr annotate` wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

Row = dict[str, Any]
CAPTION = "margin: median, in nats; chosen, rejected: median length in tokens"
EXAMPLES = ("safety", "chat", "code")


def rows(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def show(folder: Path, console: Console) -> None:
    """Domains and margins, routers, and a few pairs."""
    pairs, candidates, rejects = (rows(folder / f"{name}.jsonl") for name in ("preferences", "candidates", "rejects"))
    prompts = {row["gdr_id"]: row for row in candidates}
    console.print(_domains(prompts.values(), candidates, pairs))
    routers = Counter(row["gdr_router"] for row in prompts.values())
    console.print("Domains decided by: " + ", ".join(f"{name} {count}" for name, count in routers.most_common()))
    reasons = Counter(row["reason"] for row in rejects)
    console.print("Prompts without a pair: " + (", ".join(f"{why} {n}" for why, n in reasons.items()) or "none"))
    for domain in EXAMPLES:
        found = [row for row in pairs if row["gdr_domain"] == domain]
        if found:
            console.print(_pair(sorted(found, key=lambda row: row["gdr_margin"])[len(found) // 2]))


def _domains(prompts: Iterable[Row], candidates: Sequence[Row], pairs: Sequence[Row]) -> Table:
    table = Table("domain", title="Preference pairs by domain", box=SIMPLE_HEAD, caption=CAPTION)
    for name in ("prompts", "responses", "pairs", "margin", "largest", "chosen", "rejected"):
        table.add_column(name, justify="right")
    known = sorted(prompts, key=lambda row: row["gdr_domain"])
    for domain in [*dict.fromkeys(row["gdr_domain"] for row in known), "all"]:

        def inside(group: Iterable[Row], domain: str = domain) -> list[Row]:
            return [row for row in group if domain in (row["gdr_domain"], "all")]

        mine = inside(pairs)
        table.add_row(
            domain,
            str(len(inside(known))),
            str(len(inside(candidates))),
            str(len(mine)),
            *_figures(mine),
        )
    return table


def _figures(pairs: Sequence[Row]) -> list[str]:
    if not pairs:
        return ["-"] * 4
    margins = [row["gdr_margin"] for row in pairs]
    tokens = [median(row[f"gdr_{side}_tokens"] for row in pairs) for side in ("chosen", "rejected")]
    return [f"{median(margins):.2f}", f"{max(margins):.2f}", *(f"{count:g}" for count in tokens)]


def _pair(row: Row) -> Panel:
    """A pair, shortened; texts come from a model and are shown as they are, never as markup."""
    body = Text()
    for turn in row["prompt"]:
        body.append(f"{turn['role']}: {_short(turn['content'])}\n", style="bold")
    for side, style in (("chosen", "green"), ("rejected", "red")):
        body.append(f"\n{side} {row[f'gdr_{side}_reward']:+.2f}  ", style=style)
        body.append(_short(row[side][-1]["content"], 300))
    title = f"{row['gdr_id']}: the median margin in {row['gdr_domain']} ({row['gdr_margin']:.2f} nats)"
    return Panel(body, title=title, title_align="left")


def _short(text: str, limit: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 4].rstrip() + " ..."
