"""Guidance from labelled pairs: the job behind `gdr tune`.

Knows the order of things: check everything, part the pairs, search, and only then look at the held-out pairs. A run
that was killed and is started again takes from the store what was computed and comes to the same result.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gdr_plugin.api.errors import ConfigError, DataError
from gdr_plugin.api.guidance import Guidance
from gdr_plugin.config.load import named_config
from gdr_plugin.config.schema import Config
from gdr_plugin.data.fingerprint import fingerprint
from gdr_plugin.data.item import Item
from gdr_plugin.data.items import load_items
from gdr_plugin.data.sources import STDIN
from gdr_plugin.guidance import library, load_guidance_file
from gdr_plugin.plugins.registry import RESERVED, Plugins
from gdr_plugin.progress import Progress, silent
from gdr_plugin.reward.resolve import Resolved, resolve_names
from gdr_plugin.store.store import DEFAULT_STORE
from gdr_plugin.tuning.candidates import CandidateGuidance, Making, make_candidates, read_instructions
from gdr_plugin.tuning.contest import Contest
from gdr_plugin.tuning.exemplars import draw_sets, prompt_text
from gdr_plugin.tuning.halving import PromptResults, Round, evaluations, halve, plan
from gdr_plugin.tuning.report import TuneReport
from gdr_plugin.tuning.split import ADVISED, Split, split
from gdr_plugin.tuning.verdict import compare, judge
from gdr_plugin.tuning.write import check_out, write_guidance

BUDGET = 32
"""Candidates that are tried at most."""
DOMAIN = "tuned"
"""The domain's name where neither the user nor the data has one."""


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """What to search for."""

    domain: str | None = None
    """The domain that the guidance is for. Where rows name domains, only this one's are taken."""
    instructions: Path | None = None
    """The user's own candidates; see `read_instructions`."""
    exemplars: int | None = None
    """Exemplars that a candidate shows at most; None: as many as gdr.yaml says."""
    budget: int = BUDGET
    seed: int = 0
    """Which pairs are searched on and which are held out."""
    format: str = "auto"
    """The data's format; see `data.items.load_items`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """New name -> the input's name of columns."""
    limit: int | None = None
    """Only the first rows."""
    skip_bad: bool = False
    """Whether bad rows are left out rather than stop."""


def tune(
    source: str | Path,
    config: str | Path,
    out: str | Path,
    options: TuneOptions | None = None,
    *,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> TuneReport:
    """Search for the guidance that makes a reward agree with labelled pairs, and say whether it is shown to help.

    Args:
        source: Labelled pairs, as for `data.items.load_items`.
        config: The gdr.yaml: models, placement, reduction, store.
        out: The guidance file to write; written only when the guidance is shown to help.
        options: What to search for.
        plugins: Where names are looked up; default: built-in and installed plugins.
        progress: Told how far each stage is, in pairs.
        notify: Told in one line what the user should know before the models load.

    Returns:
        What was found, with the held-out numbers.

    Raises:
        ConfigError: The configuration or an option is wrong.
        DataError: A row is wrong, or there are too few prompts.
        ModelError: A model does not exist or fails.
        OutputError: The guidance file cannot be written.
    """
    started = time.perf_counter()
    options, out, plugins = options or TuneOptions(), Path(out), plugins or Plugins()
    task = _prepare(source, Path(config), out, options, plugins, notify or (lambda line: None))
    contest = Contest(
        task.config,
        task.resolved,
        task.candidates,
        exemplars=task.exemplars,
        domain=options.domain if options.domain in task.resolved.guidances else None,
        plugins=plugins,
        store=DEFAULT_STORE,
        progress=progress or silent,
    )
    try:
        report = _run(task, contest, options.seed, started)
    finally:
        contest.close()
    if report.verdict.use and report.best.guidance is not None:
        write_guidance(out, report.best.guidance, report.provenance())
    return report


@dataclass(frozen=True, slots=True)
class _Task:
    """All that is known before a model loads."""

    config: Config
    resolved: Resolved
    source: str
    domain: str
    items: list[Item]
    parts: Split
    exemplars: int
    candidates: list[CandidateGuidance]
    left_out: int


def _prepare(
    source: str | Path,
    path: Path,
    out: Path,
    options: TuneOptions,
    plugins: Plugins,
    notify: Callable[[str], None],
) -> _Task:
    """Check everything that can be checked without a model, and make the candidates."""
    config, origin = named_config(path)
    resolved = resolve_names(config, plugins, origin=origin)
    shown = _exemplars(options, config)
    check_out(out, [path, source, options.instructions])
    given = read_instructions(options.instructions) if options.instructions else []
    known = _known(config, plugins)
    items, domain = _items(source, options, [*given, *known.values()], notify)
    parts = split(items, seed=options.seed, exemplars=shown > 0)
    # The name of the file that is written anew is free.
    taken = known.keys() - ({guidance.name for guidance in load_guidance_file(out)} if out.exists() else set())
    making = Making(_free_name(domain, taken), shown, config.guidance.seed)
    sets = draw_sets(parts.pool, shown)
    candidates, left_out = make_candidates(given, list(known.values()), sets, making, budget=options.budget)
    _announce(items, parts, len(candidates), left_out, options, notify)
    return _Task(config, resolved, Path(source).name, domain, items, parts, shown, candidates, left_out)


def _run(task: _Task, contest: Contest, seed: int, started: float) -> TuneReport:
    """Search, then look at the held-out pairs, once."""
    rounds = _search(contest, len(task.candidates), task.parts)
    winner = rounds[-1].ranking[0][0] if rounds else 0
    last = contest.ask(sorted({0, winner}), task.parts.held_out, "held-out pairs")
    configured, guidances = contest.ask_configured(task.parts.held_out, "held-out pairs, gdr.yaml")
    result = compare(last[winner], last[0], configured)
    if result is None:
        reason = ", ".join(text for text, _ in contest.reasons.most_common(1))
        raise DataError(f"{task.source}: no held-out pair could be scored ({reason})")
    parts = task.parts
    return TuneReport(
        domain=task.domain,
        source=task.source,
        fingerprint=fingerprint(task.items),
        seed=seed,
        pairs=len(task.items),
        prompts=(len(parts.pool), len(parts.search), len(parts.held_out)),
        candidates=tuple(task.candidates),
        left_out=task.left_out,
        rounds=tuple(rounds),
        winner=winner,
        configured=guidances,
        result=result,
        verdict=judge(
            result,
            guided=task.candidates[winner].guidance is not None,
            configured_guided=set(guidances) != {"none"},
        ),
        not_scored=dict(contest.reasons.most_common()),
        cost=contest.cost,
        seconds=time.perf_counter() - started,
        config=task.config,
    )


def _exemplars(options: TuneOptions, config: Config) -> int:
    section = config.guidance
    if section.placement == "none" or not section.instruction:
        key = "placement is none" if section.placement == "none" else "instruction is false"
        raise ConfigError(f"guidance.{key} in gdr.yaml: what is found would never be shown: change it first")
    if options.exemplars is not None and options.exemplars < 0:
        raise ConfigError(f"--exemplars must be 0 or more, not {options.exemplars}")
    if options.domain is not None and (options.domain in RESERVED or not re.fullmatch(r"\w[\w.-]*", options.domain)):
        raise ConfigError(
            f"--domain {options.domain!r}: take letters, digits, '.', '_' or '-', but not none or default"
        )
    return section.exemplars if options.exemplars is None else options.exemplars


def _known(config: Config, plugins: Plugins) -> dict[str, Guidance]:
    """The guidances of gdr.yaml's files, of plugins and of the library, the nearest to the user first."""
    own = {guidance.name: guidance for file in config.guidance.files for guidance in load_guidance_file(file)}
    ours = {guidance.name: guidance for guidance in library()}
    plugged = {name: guidance for name, guidance in plugins.guidances().items() if name not in ours}
    return own | {name: guidance for part in (plugged, ours) for name, guidance in part.items() if name not in own}


def _items(
    source: str | Path, options: TuneOptions, guidances: Sequence[Guidance], notify: Callable[[str], None]
) -> tuple[list[Item], str]:
    """The pairs that are used, and the name of their domain."""
    if str(source) == STDIN:
        raise DataError("gdr tune reads a file: write standard input to one first")
    data = load_items(
        source, format=options.format, columns=options.columns, limit=options.limit, skip_bad=options.skip_bad
    )
    for what, how_many in data.facts.items():
        notify(f"{what}: {how_many}")
    items = data.items
    domains = sorted({item.domain for item in items if item.domain is not None})
    if options.domain in domains:
        items = [item for item in items if item.domain == options.domain]
    elif len(domains) > 1:
        notify(f"the rows are of {len(domains)} domains ({', '.join(domains)}): --domain NAME takes those of one")
    # An exemplar must not be scored on, also when it came into a guidance long ago.
    exemplars = {_plain(exemplar.prompt) for guidance in guidances for exemplar in guidance.exemplars}
    fresh = [item for item in items if _plain(prompt_text(item.prompt)) not in exemplars]
    if len(fresh) < len(items):
        gone = len(items) - len(fresh)
        notify(f"pairs left out because their prompts are exemplars of guidances that are tried: {gone}")
    named = domains[0] if len(domains) == 1 and all(item.domain for item in items) else DOMAIN
    return fresh, options.domain or re.sub(r"[^\w.-]+", "-", named).strip("-.") or DOMAIN


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _free_name(domain: str, taken: set[str]) -> str:
    """The domain's name, or the next one that no other guidance has."""
    names = [domain, f"{domain}-tuned", *(f"{domain}-tuned-{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in {*taken, *RESERVED})


def _announce(
    items: Sequence[Item],
    parts: Split,
    candidates: int,
    left_out: int,
    options: TuneOptions,
    notify: Callable[[str], None],
) -> None:
    total = len(parts.pool) + len(parts.search) + len(parts.held_out)
    if total < ADVISED:
        notify(f"{total} prompts are few: only a large gain can be shown; {ADVISED} or more are better")
    if left_out:
        notify(f"{left_out} more candidates are left out by --budget {options.budget}")
    planned = plan(candidates, len(parts.search))
    asked = evaluations(planned) + 3 * len(parts.held_out)
    responses = sum(len(item.chosen) + len(item.rejected) for item in items) / total
    notify(
        f"{candidates} candidates, {len(planned)} rounds: about {asked * responses:,.0f} responses to score with "
        "each model, less what the store has"
    )


def _search(contest: Contest, candidates: int, parts: Split) -> list[Round[int]]:
    sizes = sorted({size for _, size in plan(candidates, len(parts.search))})

    def ask(names: Sequence[int], start: int, stop: int) -> Mapping[int, PromptResults]:
        stage = f"round {sizes.index(stop) + 1}: {len(names)} candidates"
        return contest.ask(names, parts.search[start:stop], stage)

    return halve(range(candidates), len(parts.search), ask)
