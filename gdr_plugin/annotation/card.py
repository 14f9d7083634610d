"""The data set card: README.md with everything that is needed to judge or repeat a run.

Knows a finished run's summary and the guidance; nothing of files or models. The YAML at its head tells `datasets` which
files belong to which configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import yaml

from gdr_plugin.annotation.summary import RunFacts, Summary
from gdr_plugin.annotation.tables import TABLES
from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.arithmetic.reduction import UNITS
from gdr_plugin.config.schema import Config
from gdr_plugin.text import printable

_MARKUP: Final = re.compile(r"[\\`*\[\]<>&|~$@]|(?<![^\W_])_|_(?![^\W_])|(?<=:)(?=//)|(?<=www)(?=\.)")
"""What Markdown, HTML or mathematics could begin with. An underscore within a word is only itself; a backslash in an
address keeps it from becoming a link."""


def card(summary: Summary, config: Config, rendered: Mapping[str, RenderedGuidance]) -> str:
    """The text of README.md.

    Args:
        summary: What summary.json says.
        config: The configuration.
        rendered: Each domain's guidance.
    """
    run = summary["run"]
    unit = UNITS[config.reward.reduction]
    sections = [
        _front_matter(),
        "# Preference data from a guided density ratio\n",
        "The better of two responses is the one with the higher `log p_strong(y|x) - log p_weak(y|x)` "
        f"({config.reward.reduction}, in {unit}), both models shown the guidance of the prompt's domain "
        "where the configuration says so. No person has judged these pairs.\n",
        _loading(summary),
        _figures(summary, unit),
        "## Configuration\n",
        _block("yaml", _yaml({"options": run["options"], **run["config"]})),
        "## Models and input\n",
        _models(run, config),
        "## Guidance\n",
        *_guidance(rendered),
    ]
    return "\n".join(sections)


def _front_matter() -> str:
    configs: list[dict[str, Any]] = [{"config_name": name, "data_files": f"{name}.parquet"} for name in TABLES]
    configs[0]["default"] = True
    head = {"pretty_name": "Guided density ratio preferences", "tags": ["preference", "dpo", "gdr"], "configs": configs}
    return f"---\n{_yaml(head)}---\n"


def _loading(summary: Summary) -> str:
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


def _figures(summary: Summary, unit: str) -> str:
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
    longer, shorter = summary["chosen_longer"], summary["chosen_shorter"]
    if longer is not None and shorter is not None:
        parts.append(f"Chosen is the longer one in {longer:.1%} of the pairs, the shorter one in {shorter:.1%}.\n")
    if summary["pairs_within_noise"]:
        parts.append(
            "`gdr_within_noise` marks pairs whose margin is under three standard deviations of the rounding error that "
            "the models' precision causes, so that its sign may be chance. The error was measured on one model of 135M "
            "parameters: for others it is an order of magnitude. They are kept; a run in float32 has hardly any.\n"
        )
    return "\n".join(parts)


def _noise(summary: Summary) -> list[tuple[str, int]]:
    hidden = summary["pairs_within_noise"]
    return [] if hidden is None else [("pairs whose margin may be rounding", hidden)]


def _spreads(summary: Summary) -> str:
    columns = ("mean", "p10", "p25", "median", "p75", "p90")
    named = [(f"margin, {name}", domain["margin"]) for name, domain in summary["domains"].items()]
    named += [("margin, all", summary["margin"])]
    named += [("chosen tokens", summary["chosen_tokens"]), ("rejected tokens", summary["rejected_tokens"])]
    pairs = {f"margin, {name}": domain["pairs"] for name, domain in summary["domains"].items()}
    rows = [
        (name, pairs.get(name, summary["pairs"]), *(f"{spread[column]:.3g}" for column in columns))
        for name, spread in named
        if spread is not None
    ]
    return _table(("", "pairs", *columns), rows)


def _models(run: RunFacts, config: Config) -> str:
    specs = {"strong": config.strong, "weak": config.weak}
    names = {side: spec.model for side, spec in specs.items()} | {"policy": run["options"].get("policy")}
    adapters = {side: spec.adapter or "" for side, spec in specs.items()}
    rows = [(side, names[side], adapters.get(side, ""), identity) for side, identity in run["models"].items()]
    source = run["source"] if run["source"].startswith("hf:") else run["source"].rpartition("/")[2]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return "\n".join(
        [
            _table(("", "model", "adapter", "identity"), rows),
            f"Input: {_inline(source)}, {run['input']['rows']:,} rows, content {run['input']['content']}.\n",
            f"Versions: {_inline(versions)}.\n",
        ]
    )


def _guidance(rendered: Mapping[str, RenderedGuidance]) -> Iterable[str]:
    for domain, guidance in rendered.items():
        yield f"### {_inline(domain)}: {_code(guidance.id)}\n"
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
    return f"{value:,}" if isinstance(value, int) else _inline(str(value))


def _inline(text: str) -> str:
    """Text of others as it is, on one line: nothing in it becomes a link, an element of HTML or other markup."""
    return _MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))


def _code(text: str) -> str:
    """Text of others as code, which knows no markup but the backquotes around it."""
    fence = "`"
    while fence in text:
        fence += "`"
    space = " " if "`" in text else ""
    return f"{fence}{space}{printable(' '.join(text.split()))}{space}{fence}"
