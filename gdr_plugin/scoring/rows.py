"""Rewards for given rows: the job behind `gdr score`.

Knows the order of things: check the whole input where it can be read twice, then score window by window, one line out
for each row in. How a row is read or scored is decided elsewhere, and so is where lines go.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from gdr_plugin.api.errors import ConfigError, DataError
from gdr_plugin.api.models import TokenOffsets
from gdr_plugin.api.types import Score
from gdr_plugin.arithmetic.steps import step_rewards
from gdr_plugin.config.load import load_config
from gdr_plugin.config.schema import Config
from gdr_plugin.data.read import BadRow, check_rows, scan
from gdr_plugin.data.rows import ScoreRow, parse_score_row
from gdr_plugin.data.sources import STDIN, Row
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.resolve import resolve_names
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import FieldRouter
from gdr_plugin.store.model import StoredModel

FILE_WINDOW = 256
"""Rows scored together when the input is a file."""
PIPE_WINDOW = 64
"""Rows scored together when they come through a pipe: somebody may be waiting for the first."""

Progress = Callable[[str, int, "int | None"], None]
"""Called as `progress(stage, done, total)`, in rows; the total of a pipe is None."""

_TOKENS = (
    *("strong_token_logprobs", "weak_token_logprobs", "token_ratios", "token_rewards"),
    *("strong_token_offsets", "weak_token_offsets"),
)

_Window = list[tuple[Row, "ScoreRow | BadRow"]]


@dataclass(slots=True)
class ScoreSummary:
    """What a run did, for its last line."""

    rows: int = 0
    scored: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Rows that were not scored, by the kind of reason."""
    routers: Counter[str] = field(default_factory=Counter)
    """Rows by the router that decided their domain, `default` for those that none did."""
    tokens: int = 0
    """Response tokens under both models."""
    hits: int | None = None
    """Responses that came from the store, under both models; None without a store."""
    misses: int = 0
    """Responses that a model computed, with a store."""
    seconds: float = 0.0
    strategies: Mapping[str, str] = field(default_factory=dict)
    """How each model computed, and why."""

    def __str__(self) -> str:
        rate = f"{self.rows / self.seconds:,.1f} rows/s" if self.seconds > 0 else "at once"
        parts = [f"{self.rows:,} rows, {self.scored:,} scored"]
        if self.reasons:
            kinds = "; ".join(f"{count:,} x {reason}" for reason, count in self.reasons.most_common(3))
            parts[0] += f", {self.rows - self.scored:,} not ({kinds}{'; ...' if len(self.reasons) > 3 else ''})"
        if self.routers:
            parts.append("domains by " + ", ".join(f"{name} {count:,}" for name, count in self.routers.most_common()))
        parts.append(f"{self.tokens:,} tokens in {self.seconds:,.1f} s ({rate})")
        if self.hits is not None:
            parts.append(f"store: {self.hits:,} hits, {self.misses:,} misses")
        used = set(self.strategies.values())
        parts += [f"both models on {strategy}" for strategy in used if len(self.strategies) == 2 and len(used) == 1]
        parts += [f"{side} model on {strategy}" for side, strategy in self.strategies.items() if len(used) > 1]
        return "; ".join(parts)


def score_rows(
    source: str | Path,
    config: str | Path | Config,
    write: Callable[[list[dict[str, Any]]], None],
    *,
    plugins: Plugins | None = None,
    columns: Mapping[str, str] | None = None,
    tokens: bool = False,
    steps: str | None = None,
    strict: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> ScoreSummary:
    """Score every row of an input.

    A file is read through first, so that a bad row is found before a model loads. Standard input is scored as it comes,
    unless the models are loaded one after the other: then it is kept in a temporary file.

    Args:
        source: Rows with `prompt` and `response`; as for `read_rows`.
        config: The reward: a gdr.yaml or a validated configuration.
        write: Takes the output rows of one window, in the input's order.
        plugins: Where names are looked up; default: built-in and installed plugins.
        columns: New name -> the input's name of columns.
        tokens: Whether the output has log-probs and rewards by token.
        steps: Where given, the output has rewards by step, cut as `steps.cut` says.
        strict: Whether a row that cannot be scored stops the run.
        skip_bad: Whether bad rows are written with their reason rather than stop the run.
        progress: Told how far each stage is.

    Returns:
        What was done.

    Raises:
        ConfigError: The configuration is wrong.
        DataError: A row is bad (without `skip_bad`), or could not be scored (with `strict`).
        ModelError: A model does not exist or fails.
    """
    plugins = plugins or Plugins()
    config, origin = (config, "configuration") if isinstance(config, Config) else (load_config(config), str(config))
    resolved = resolve_names(config, plugins, origin=origin)
    options: dict[str, Any] = {
        "columns": columns,
        "domains": resolved.guidances,
        "domain_columns": [router.column for router in resolved.routers if isinstance(router, FieldRouter)],
    }
    started = time.perf_counter()
    summary = ScoreSummary()
    sequential = config.load == "sequential"
    with ExitStack() as stack:
        named, total = str(source), None
        if sequential:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gdr-score-")))
            source = _spooled(folder) if named == STDIN else source
        if str(source) != STDIN:
            report = scan(source, parse_score_row, **options)
            if not skip_bad:
                report.raise_first("; --skip-bad writes bad rows with their reason")
            total = report.rows
        job = _Job(source, options, skip_bad, progress or _silent, total)
        ratio = GuidedDensityRatio.from_config(
            config, plugins=plugins, store=folder / "store.sqlite" if sequential else None
        )
        if steps is not None:
            _check_offsets(ratio)
        if sequential:
            for side in ("strong", "weak"):
                for window in job.windows(f"scoring ({side})"):
                    ratio.warm(side, [row.sample for _, row in window if isinstance(row, ScoreRow)])
                ratio.unload()
        for window in job.windows("scoring" if not sequential else "writing"):
            rows = _score_window(ratio, window, summary, tokens=tokens, steps=steps, strict=strict)
            write(rows)
        _count_store(summary, ratio)
        summary.strategies = ratio.strategies
        if ratio.store is not None:
            ratio.store.close()
    summary.seconds = time.perf_counter() - started
    return summary


@dataclass(frozen=True, slots=True)
class _Job:
    """An input that is gone through once or several times."""

    source: str | Path
    options: Mapping[str, Any]
    skip_bad: bool
    progress: Progress
    total: int | None

    def windows(self, stage: str) -> Iterator[_Window]:
        """The rows in windows; a bad one stops here, as a file may have changed since it was read through."""
        stream = check_rows(self.source, parse_score_row, **self.options)
        size = PIPE_WINDOW if str(self.source) == STDIN else FILE_WINDOW
        done = 0
        self.progress(stage, 0, self.total)
        while window := list(islice(stream, size)):
            for _, row in window:
                if isinstance(row, BadRow) and not self.skip_bad:
                    raise DataError(row.reason)
            yield window
            done += len(window)
            self.progress(stage, done, self.total)


def _spooled(folder: Path) -> Path:
    path = folder / "standard-input.jsonl"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def _score_window(
    ratio: GuidedDensityRatio, window: _Window, summary: ScoreSummary, *, tokens: bool, steps: str | None, strict: bool
) -> list[dict[str, Any]]:
    """The output rows of one window."""
    samples = [row.sample for _, row in window if isinstance(row, ScoreRow)]
    scores = iter(ratio.score(samples, tokens=tokens or steps is not None))
    rows = []
    for place, row in window:
        summary.rows += 1
        if isinstance(row, BadRow):
            summary.reasons["bad row"] += 1
            divided = {} if steps is None else {"steps": None}
            rows.append({**_output(row.id, None, tokens=tokens), "reason": row.reason, **divided})
            continue
        score = next(scores)
        if score.reward is None:
            if strict:
                raise DataError(f"{place.where}: not scored: {score.reason} (without --strict the run goes on)")
            summary.reasons[re.sub(r"\d[\d,]*", "N", score.reason or "")] += 1
        summary.scored += score.reward is not None
        summary.routers[score.router] += 1
        summary.tokens += score.strong_tokens + score.weak_tokens
        rows.append(_output(row.id, score, tokens=tokens))
        if steps is not None:
            divided_reward = step_rewards(score, row.sample.response, by=steps)
            rows[-1]["steps"] = divided_reward and [step._asdict() for step in divided_reward]
    return rows


def _output(identifier: str, score: Score | None, *, tokens: bool = False) -> dict[str, Any]:
    """An output row; without a score every value is null but the counts."""
    names: Sequence[str] = (
        *("reward", "strong_logprob", "weak_logprob", "strong_tokens", "weak_tokens"),
        *("domain", "router", "guidance", "exemplars", "truncated", "reason"),
        *(_TOKENS if tokens else ()),
    )
    empty = {"strong_tokens": 0, "weak_tokens": 0, "exemplars": (), "truncated": False}
    return {"id": identifier, **{name: getattr(score, name) if score else empty.get(name) for name in names}}


def _check_offsets(ratio: GuidedDensityRatio) -> None:
    """Refuse steps before a model loads where a backend cannot say in which step a token is."""
    for side, model in (("strong", ratio.strong), ("weak", ratio.weak)):
        if not isinstance(model.chat, TokenOffsets):
            raise ConfigError(
                f"{side} model {model.name}: its backend does not say where tokens are: leave out --steps"
            )


def _count_store(summary: ScoreSummary, ratio: GuidedDensityRatio) -> None:
    models = [model for model in (ratio.strong, ratio.weak) if isinstance(model, StoredModel)]
    if models:
        summary.hits = sum(model.hits for model in models)
        summary.misses = sum(model.misses for model in models)


def _silent(stage: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""
