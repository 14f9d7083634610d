"""The data set card: README.md with everything that is needed to judge or repeat a run.

Knows a finished run's summary and the guidance; nothing of files or models. The YAML at its head tells `datasets` which
files belong to which configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from gdr_plugin.annotation.tables import TABLES
from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.arithmetic.reduction import UNITS


def card(summary: Mapping[str, Any], rendered: Mapping[str, RenderedGuidance]) -> str:
    """The text of README.md.

    Args:
        summary: What summary.json says.
        rendered: Each domain's guidance.
    """
    run = summary["run"]
    unit = UNITS[run["config"]["reward"]["reduction"]]
    sections = [
        _front_matter(),
        "# Preference data from a guided density ratio\n",
        "The better of two responses is the one with the higher `log p_strong(y|x) - log p_weak(y|x)` "
        f"({run['config']['reward']['reduction']}, in {unit}), both models shown the guidance of the prompt's domain "
        "where the configuration says so. No person has judged these pairs.\n",
        _loading(summary),
        _figures(summary, unit),
        "## Configuration\n",
        _block("yaml", _yaml({"options": run["options"], **run["config"]})),
        "## Models and input\n",
        _models(run),
        "## Guidance\n",
        *_guidance(rendered),
    ]
    return "\n".join(sections)


def _front_matter() -> str:
    configs: list[dict[str, Any]] = [{"config_name": name, "data_files": f"{name}.parquet"} for name in TABLES]
    configs[0]["default"] = True
    head = {"pretty_name": "Guided density ratio preferences", "tags": ["preference", "dpo", "gdr"], "configs": configs}
    return f"---\n{_yaml(head)}---\n"


def _loading(summary: Mapping[str, Any]) -> str:
    rows = summary["tables"]
    return _block(
        "python",
        "from datasets import load_dataset\n\n"
        f"# {rows['preferences']:,} pairs, for DPO, SimPO or a reward model\n"
        'pairs = load_dataset("path/of/this/folder", split="train")\n'
        f"# {rows['kto']:,} rows for KTO\n"
        'kto = load_dataset("path/of/this/folder", "kto", split="train")\n'
        f"# {rows['candidates']:,} responses with their scores\n"
        'candidates = load_dataset("path/of/this/folder", "candidates", split="train")\n',
    )


def _figures(summary: Mapping[str, Any], unit: str) -> str:
    seconds = summary["seconds"]
    parts = [
        "## Figures\n",
        _table(
            ("what", "count"),
            [
                ("prompts", summary["rows"]),
                ("prompts with a pair", summary["prompts_with_pair"]),
                ("pairs", summary["pairs"]),
                *_noise(summary),
                *((f"without a pair: {reason}", count) for reason, count in summary["rejects"].items()),
                ("responses", summary["candidates"]),
                ("responses cut at a length limit", summary["candidates_unfinished"]),
                ("responses whose prompt lost its start", summary["candidates_truncated"]),
                *(
                    (f"responses not scored: {reason}", count)
                    for reason, count in summary["candidates_not_scored"].items()
                ),
                *((f"domain decided by: {router}", count) for router, count in summary["routers"].items()),
                ("seconds of sampling", seconds["sampling"]),
                ("seconds of scoring", seconds["scoring"]),
            ],
        ),
        f"Margins (chosen minus rejected, in {unit}) and lengths (in the strong model's tokens):\n",
        _spreads(summary),
    ]
    if summary["pairs"]:
        parts.append(
            f"Chosen is the longer one in {summary['chosen_longer']:.1%} of the pairs, "
            f"the shorter one in {summary['chosen_shorter']:.1%}.\n"
        )
    if summary["pairs_within_noise"]:
        parts.append(
            "`gdr_within_noise` marks pairs whose margin is under three standard deviations of the rounding error that "
            "the models' precision causes, so that its sign may be chance. The error was measured on one model of 135M "
            "parameters: for others it is an order of magnitude. They are kept; a run in float32 has hardly any.\n"
        )
    return "\n".join(parts)


def _noise(summary: Mapping[str, Any]) -> list[tuple[str, int]]:
    hidden = summary["pairs_within_noise"]
    return [] if hidden is None else [("pairs whose margin may be rounding", hidden)]


def _spreads(summary: Mapping[str, Any]) -> str:
    columns = ("mean", "p10", "p25", "median", "p75", "p90")
    named = [(f"margin, {name}", one["margin"]) for name, one in summary["domains"].items()]
    named += [("margin, all", summary["margin"])]
    named += [(f"{side} tokens", summary[f"{side}_tokens"]) for side in ("chosen", "rejected")]
    pairs = {f"margin, {name}": one["pairs"] for name, one in summary["domains"].items()}
    rows = [
        (name, pairs.get(name, summary["pairs"]), *(f"{spread[column]:.3g}" for column in columns))
        for name, spread in named
        if spread is not None
    ]
    return _table(("", "pairs", *columns), rows)


def _models(run: Mapping[str, Any]) -> str:
    config, options = run["config"], run["options"]
    named = {side: config[side]["model"] for side in ("strong", "weak")} | {"policy": options.get("policy")}
    adapters = {side: config[side]["adapter"] or "" for side in ("strong", "weak")}
    rows = [(side, named[side], adapters.get(side, ""), key) for side, key in run["models"].items()]
    source = run["source"] if run["source"].startswith("hf:") else run["source"].rpartition("/")[2]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return "\n".join(
        [
            _table(("", "model", "adapter", "identity"), rows),
            f"Input: {source}, {run['input']['rows']:,} rows, content {run['input']['content']}.\n",
            f"Versions: {versions}.\n",
        ]
    )


def _guidance(rendered: Mapping[str, RenderedGuidance]) -> Iterable[str]:
    for domain, guidance in rendered.items():
        yield f"### {domain}: `{guidance.id}`\n"
        if guidance.text:
            yield _block("text", guidance.text + "\n")


def _yaml(value: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    return text


def _block(language: str, text: str) -> str:
    """A code block whose fence is longer than any run of backquotes inside."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}{fence}\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
