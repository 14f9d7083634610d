"""`gdr annotate`: prompts in, a preference data set out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.engine import chosen_engine
from gdr_plugin.cli.main import app
from gdr_plugin.cli.show import say

if TYPE_CHECKING:
    from gdr_plugin.annotation.annotate import Annotated as Result
    from gdr_plugin.annotation.summary import Summary


@app.command()
def annotate(
    ctx: typer.Context,
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS",
            help="JSONL, JSON, CSV or Parquet file, a folder of them, or hf:ORG/NAME. Rows: prompt (text or messages), "
            "and optionally id, domain, responses.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the data set; an interrupted run continues there.")
    ],
    config: options.Config = Path("gdr.yaml"),
    set_: options.Set = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Draw the responses from this model (hub id, folder, .gguf; vllm:, sglang: or openai: and a server's "
            "address; strong or weak for those of gdr.yaml); responses in the rows are then ignored.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Number of responses drawn for each prompt.")] = 8,
    temperature: Annotated[float, typer.Option(help="Sampling temperature of the policy.")] = 1.0,
    top_p: Annotated[
        float, typer.Option(help="Nucleus sampling of the policy: tokens are drawn from this share of the probability.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of a drawn response, in tokens.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of the policy's sampling and of selectors that draw.")] = 0,
    policy_batch: Annotated[
        int | None,
        typer.Option(help="Number of responses drawn together; default: 32 on CPU, 64 on CUDA, 16 from servers."),
    ] = None,
    select: Annotated[
        str, typer.Option(help="How pairs are picked: max-min, max-random, top-k, top-k:K, or a plugin's selector.")
    ] = "max-min",
    min_margin: Annotated[float, typer.Option(help="Smallest difference between the rewards of a pair.")] = 0.0,
    length_balance: Annotated[
        float | None, typer.Option(help="Largest ratio of the longer to the shorter response of a pair, in tokens.")
    ] = None,
    map_: options.Map = None,
    limit: options.Limit = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first response that cannot be scored.")] = False,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad", help="Put bad rows into rejects.jsonl instead of stopping before anything is scored."
        ),
    ] = False,
    engine: options.Engine = "local",
    address: options.Address = None,
) -> None:
    """Make a preference data set from prompts: draw or take responses, score them, pick chosen and rejected."""
    from gdr_plugin.annotation.annotate import annotate as run
    from gdr_plugin.annotation.filters import Filters
    from gdr_plugin.annotation.options import AnnotateOptions
    from gdr_plugin.data.columns import parse_columns
    from gdr_plugin.sampling.sampler import Sampling

    chosen = AnnotateOptions(
        select=select,
        filters=Filters(min_margin=min_margin, length_balance=length_balance),
        policy=policy,
        sampling=Sampling(
            samples=samples, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed
        ),
        policy_batch=policy_batch,
        columns=parse_columns(map_),
        limit=limit,
        strict=strict,
        skip_bad=skip_bad,
    )
    elsewhere, ranks = chosen_engine(engine, address), ctx.obj.ranks
    with ctx.obj.progress("prompts") as progress:
        result = run(
            prompts,
            options.configured(config, set_),
            out,
            chosen,
            plugins=ctx.obj.plugins(),
            progress=progress,
            engine=elsewhere,
            ranks=ranks,
        )
    if ranks is None or ranks.first:
        _print(result)


def _print(result: Result) -> None:
    """Print what the run made, and where it is."""
    from gdr_plugin.cli.show import print_facts, print_table

    summary, out = result.summary, result.out
    if result.already_complete:
        say(f"already complete: {out}")
    print_table(
        "",
        ("domain", "prompts", "with pair", "pairs", "margin mean", "median", "p10", "p90"),
        [_domain(name, counts) for name, counts in summary["domains"].items()],
    )
    print_facts("prompts", _counts(summary))
    print_facts(
        "files",
        {
            "pairs": out / "preferences.parquet",
            "KTO": out / "kto.parquet",
            "all responses": out / "candidates.parquet",
            "without a pair": out / "rejects.jsonl",
            "card": out / "README.md",
        },
    )
    if summary["candidates"] and summary["candidates_unfinished"] == summary["candidates"]:
        say("every response was cut at the length limit, so no end of turn counted: raise --max-new-tokens")
    if result.spelt_marks:
        say(f"{result.spelt_marks:,} responses or their prompts hold marks of a chat template (scored as text)")
    if summary["pairs"]:
        say(f'load with: datasets.load_dataset("{out}", split="train")')
    else:
        say(f"no prompt gave a pair: {out / 'rejects.jsonl'} says why")


def _domain(name: str, counts: Mapping[str, Any]) -> list[str]:
    spread = counts["margin"]
    margins = ["-"] * 4 if spread is None else [f"{spread[key]:.3g}" for key in ("mean", "median", "p10", "p90")]
    return [name, *(f"{counts[key]:,}" for key in ("prompts", "with_pair", "pairs")), *margins]


def _counts(summary: Summary) -> dict[str, str]:
    facts = {"rows": f"{summary['rows']:,}", "pairs": f"{summary['pairs']:,}"}
    if summary.get("pairs_within_noise"):  # summaries of earlier versions do not say
        facts["margins that may be rounding"] = f"{summary['pairs_within_noise']:,} (column gdr_within_noise)"
    for reason, count in summary["rejects"].items():
        facts[f"without a pair: {reason}"] = f"{count:,}"
    facts["responses"] = f"{summary['candidates']:,} ({summary['candidates_unfinished']:,} cut at a length limit)"
    for reason, count in summary["candidates_not_scored"].items():
        facts[f"not scored: {reason}"] = f"{count:,}"
    facts["domains by"] = ", ".join(f"{name} {count:,}" for name, count in summary["routers"].items()) or "-"
    return facts | {f"{side} model": strategy for side, strategy in summary["run"].get("strategies", {}).items()}
