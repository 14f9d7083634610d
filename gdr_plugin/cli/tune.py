"""`gdr tune`: labelled pairs in, a guidance file out if the guidance is shown to help."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.main import app
from gdr_plugin.cli.show import say

if TYPE_CHECKING:
    from gdr_plugin.tuning.report import TuneReport

_SHOWN = 8
"""Most rows of the table that shows the search."""
_QUOTED = 160
"""Most characters of the winner's instruction that are printed."""


@app.command()
def tune(
    ctx: typer.Context,
    pairs: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Labelled pairs of the domain, 50 to 500 prompts: a file, folder or hf:ORG/NAME:SPLIT, as for gdr "
            "evaluate. Rows: prompt, chosen, rejected, and optionally id, domain, why.",
        ),
    ],
    config: options.Config = Path("gdr.yaml"),
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="Guidance file to write; it is written only if the guidance is shown to help."
        ),
    ] = Path("guidance.yaml"),
    domain: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Domain of the guidance; where rows name domains, only the rows of this one are used. Default: the "
            "rows' own domain where all share one, else tuned.",
        ),
    ] = None,
    instructions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Your own candidates: a text file with one on each line, a YAML list, or a guidance file.",
        ),
    ] = None,
    exemplars: Annotated[
        int | None, typer.Option(help="Largest number of exemplars that a candidate shows. Default: as in gdr.yaml.")
    ] = None,
    budget: Annotated[int, typer.Option(help="Largest number of candidates that are tried.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed: decides which pairs the search uses and which are held out.")] = 0,
    format: options.Format = "auto",
    map_: options.Map = None,
    limit: options.Limit = None,
    skip_bad: options.SkipBad = False,
    as_json: options.Json = False,
) -> None:
    """Find the guidance for a domain from labelled pairs, and measure on held-out pairs whether it helps."""
    from gdr_plugin.cli.show import print_json
    from gdr_plugin.data.columns import parse_columns
    from gdr_plugin.tuning.tune import TuneOptions
    from gdr_plugin.tuning.tune import tune as run

    chosen = TuneOptions(
        domain=domain,
        instructions=instructions,
        exemplars=exemplars,
        budget=budget,
        seed=seed,
        format=format,
        columns=parse_columns(map_),
        limit=limit,
        skip_bad=skip_bad,
    )
    with ctx.obj.progress("pairs") as progress:
        report = run(
            pairs,
            config,
            out,
            chosen,
            plugins=ctx.obj.plugins(),
            progress=progress,
            notify=ctx.obj.note,
        )
    if as_json:
        print_json({**report.to_json(), "file": str(out) if report.verdict.use else None})
    else:
        _print(report, out, config)


def _print(report: TuneReport, out: Path, config: Path) -> None:
    _search(report)
    _held_out(report)
    cost = report.cost
    say(
        "",
        f"cost: {cost.computed:,} responses computed by the two models, {cost.saved:,} more were in the store; "
        f"{report.seconds:,.1f} s",
    )
    for reason, count in report.not_scored.items():
        say(f"not scored: {count:,} x {reason}")
    say("", f"{report.verdict.because[0].upper()}{report.verdict.because[1:]}.")
    if report.verdict.use:
        _registration(report, out, config)
    else:
        say(f"{out} was not written (--json shows the best candidate's text).")


def _search(report: TuneReport) -> None:
    """Print the last accuracy of each candidate, under a title that says it is optimistic."""
    from gdr_plugin.cli.show import print_table
    from gdr_plugin.tuning.report import OPTIMISTIC

    last = {index: (ranked.prompts, value) for ranked in report.rounds for index, value in ranked.ranking}
    order = list(dict.fromkeys(index for ranked in reversed(report.rounds) for index, _ in ranked.ranking))
    shown = order[:_SHOWN] + [index for index in order[_SHOWN:] if index == 0]
    print_table(
        OPTIMISTIC,
        ("candidate", "left after prompts", "accuracy"),
        [[report.candidates[index].label, f"{last[index][0]}", f"{last[index][1]:.2f}"] for index in shown],
    )
    more = f"and {len(order) - len(shown)} more that left earlier; " if len(order) > len(shown) else ""
    say(f"{more}these prompts chose the winner, so these numbers are no result", "")


def _held_out(report: TuneReport) -> None:
    from gdr_plugin.cli.show import print_table
    from gdr_plugin.tuning.report import two_digits

    result, guidance = report.result, report.best.guidance
    shown = sorted(report.configured.items(), key=lambda item: -item[1])
    counts = [("no guidance" if name == "none" else name, count) for name, count in shown]
    today = counts[0][0] if len(counts) == 1 else ", ".join(f"{name} for {count}" for name, count in counts)
    rows = [
        [f"best found: {report.best.label}", two_digits(result.tuned), ""],
        ["no guidance", two_digits(result.unguided), two_digits(result.gain, signed=True)],
        [
            f"gdr.yaml today: {today}",
            two_digits(result.configured),
            two_digits(result.gain_over_configured, signed=True),
        ],
    ]
    title = f"Held out: {result.tuned.n} prompts that chose nothing (95 % intervals)"
    print_table(title, ("guidance", "accuracy", "best found minus this"), rows)
    if guidance is not None and guidance.instruction:
        say(f"best found says: {shorten(guidance.instruction, _QUOTED, placeholder=' ...')}")
    say(
        f"best found against no guidance: better on {result.better} prompts, worse on {result.worse}, "
        f"sign test p = {result.sign_p:.2g}"
    )
    if result.not_scored:
        say(f"left out: {result.not_scored} prompts that one of the three cannot score")


def _registration(report: TuneReport, out: Path, config: Path) -> None:
    """Print what to put into gdr.yaml, and to which prompts it then applies."""
    from gdr_plugin.tuning.write import registration

    guidance = report.best.guidance
    assert guidance is not None  # no guidance is never recommended
    now = report.config
    say(f"Written to {out}. To use it, {config} needs:", "")
    say(*registration(now, config.parent, out, domain=report.domain, guidance=guidance).split("\n"))
    if len(guidance.exemplars) > now.guidance.exemplars:
        say("", f"exemplars: {len(guidance.exemplars)} holds for every domain's guidance, not only for this one.")
    say(
        "",
        f'It applies to rows with "domain": "{report.domain}" (router field); for all prompts that no router '
        f"decides, set routing.default_domain: {report.domain}.",
    )
