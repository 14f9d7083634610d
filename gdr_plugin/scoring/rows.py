"""Rewards for given rows: what `gdr score` does.

Knows the order of things: check the whole input, unless its rows are waited for, then score window by window, one line
out for each row in. How a row is read or scored is decided elsewhere, and so is where lines go.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from gdr_plugin.api.errors import ConfigError, DataError
from gdr_plugin.api.models import TokenOffsets
from gdr_plugin.api.types import Sample, Score, Side
from gdr_plugin.arithmetic.steps import step_rewards
from gdr_plugin.config.load import named_config
from gdr_plugin.config.schema import Config
from gdr_plugin.data.checked import CheckedRows
from gdr_plugin.data.read import BadRow, CheckColumns, bad_rows_error, check_rows
from gdr_plugin.data.rows import ScoreRow, parse_score_row
from gdr_plugin.data.sources import STDIN, Row
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress, silent
from gdr_plugin.reward.resolve import resolve_names
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import field_check
from gdr_plugin.scoring.sequential import warm_one_model_at_a_time
from gdr_plugin.store.model import StoredModel
from gdr_plugin.text import without_numbers

FILE_WINDOW = 256
"""Rows scored together when the input is a file."""
PIPE_WINDOW = 64
"""Rows scored together when they come through a pipe: somebody may be waiting for the first."""

_COLUMNS = (
    *("reward", "strong_logprob", "weak_logprob", "strong_tokens", "weak_tokens"),
    *("domain", "router", "guidance", "exemplars", "truncated", "reason"),
)
_TOKENS = (
    *("strong_token_logprobs", "weak_token_logprobs", "token_ratios", "token_rewards"),
    *("strong_token_offsets", "weak_token_offsets"),
)

Window: TypeAlias = "list[ScoreRow | BadRow]"
"""Rows that are scored together."""


@dataclass(slots=True)
class ScoreSummary:
    """What a run did; as text, the run's last line."""

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
    spelt_marks: int = 0
    """Rows whose prompt or response spells out a control token of a model: it was scored as plain text."""
    seconds: float = 0.0
    strategies: Mapping[str, str] = field(default_factory=dict)
    """How each model computed, and why."""

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count output rows."""
        for row in rows:
            self.rows += 1
            if row["router"] is None:  # bad rows are not routed, and their reason is their own
                self.reasons["bad row"] += 1
                continue
            if row["reward"] is None:
                self.reasons[without_numbers(row["reason"] or "")] += 1
            self.scored += row["reward"] is not None
            self.routers[row["router"]] += 1
            self.tokens += row["strong_tokens"] + row["weak_tokens"]

    def __str__(self) -> str:
        rate = f"{self.rows / self.seconds:,.1f} rows/s" if self.seconds > 0 else "at once"
        parts = [f"{self.rows:,} rows, {self.scored:,} scored"]
        if self.reasons:
            kinds = "; ".join(f"{count:,} x {reason}" for reason, count in self.reasons.most_common(3))
            parts[0] += f", {self.rows - self.scored:,} not ({kinds}{'; ...' if len(self.reasons) > 3 else ''})"
        if self.spelt_marks:
            parts.append(f"{self.spelt_marks:,} hold marks of a chat template (scored as text)")
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
    keep: bool = False,
    progress: Progress | None = None,
) -> ScoreSummary:
    """Score every row of an input.

    The input is read once. A file is read as a whole before a model loads, so that a bad row is found first, and its
    rows are scored from a temporary file. Standard input is scored as it comes, unless the models are loaded one after
    the other: then it is treated as a file is.

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
        keep: Whether output rows have the input's columns, too; `id` and `domain` are then the output's.
        progress: Told how far each stage is, in rows; the total of standard input is None.

    Returns:
        What was done.

    Raises:
        ConfigError: The configuration is wrong.
        DataError: A row is bad (without `skip_bad`), or could not be scored (with `strict`).
        ModelError: A model does not exist or fails.
        OutputError: The temporary file cannot be written.
    """
    plugins = plugins or Plugins()
    config, origin = named_config(config)
    resolved = resolve_names(config, plugins, origin=origin)
    check = field_check(resolved.routers, resolved.guidances, origin=origin)
    parse = keeping if keep else parse_score_row
    tell = progress or silent
    started = time.perf_counter()
    summary = ScoreSummary()
    sequential = config.load == "sequential"
    with ExitStack() as stack:
        rows = None
        if sequential or str(source) != STDIN:
            rows = stack.enter_context(CheckedRows(source, parse, columns=columns, check=check))
            if rows.first_bad is not None and not skip_bad:
                raise bad_rows_error(rows.first_bad, rows.bad, "; --skip-bad writes bad rows with their reason")
        store = None
        if sequential:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gdr-score-"))
            store = Path(folder, "store.sqlite")
        ratio = GuidedDensityRatio.from_config(config, plugins=plugins, store=store, resolved=resolved)
        if steps is not None:
            models = {"strong": ratio.strong, "weak": ratio.weak}
            check_offsets({side: isinstance(model.chat, TokenOffsets) for side, model in models.items()}, config)
        if sequential and rows is not None:
            _warm(ratio, rows, tell)
        stage, total = "writing" if sequential else "scoring", None if rows is None else len(rows)
        tell(stage, 0, total)
        for window in _windows(source, parse, rows, columns, check):
            for row in window:
                if isinstance(row, BadRow) and not skip_bad:
                    raise DataError(row.reason)
            scores = ratio.score(samples_of(window), tokens=tokens or steps is not None)
            made = output_rows(window, scores, tokens=tokens, steps=steps, strict=strict)
            summary.add(made)
            write(made)
            tell(stage, summary.rows, total)
        _count_store(summary, ratio)
        summary.spelt_marks = ratio.spelt_marks
        summary.strategies = ratio.strategies
        if ratio.store is not None:
            ratio.store.close()
    summary.seconds = time.perf_counter() - started
    return summary


def keeping(row: Row) -> ScoreRow:
    """Read a row and keep its columns, unless the output would write over one of them."""
    parsed = parse_score_row(row, keep=True)
    taken = [name for name in (*_COLUMNS, *_TOKENS, "steps") if name in parsed.given and name != "domain"]
    if taken:
        name = taken[0]
        raise DataError(
            f"{row.where}: the column {name!r} would be written over: rename it with --map old_{name}={name}"
        )
    return replace(parsed, given={name: _in_json(value) for name, value in parsed.given.items()})


def _in_json(value: Any) -> Any:
    """A cell as JSON has it: NaN is null, and what JSON has no word for, such as a date, is its text."""
    if isinstance(value, Mapping):
        return {str(key): _in_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _windows(
    source: str | Path,
    parse: Callable[[Row], ScoreRow],
    rows: CheckedRows[ScoreRow] | None,
    columns: Mapping[str, str] | None,
    check: CheckColumns,
) -> Iterator[Window]:
    """The input in windows: from the checked rows, or from standard input as it comes."""
    if rows is not None:
        yield from (window for _, window in rows.windows(FILE_WINDOW))
        return
    stream = (row for _, row in check_rows(source, parse, columns=columns, check=check))
    while window := list(islice(stream, PIPE_WINDOW)):
        yield window


def _warm(ratio: GuidedDensityRatio, rows: CheckedRows[ScoreRow], tell: Progress) -> None:
    """Score everything into the store, one model at a time."""

    def work(side: Side) -> Iterator[tuple[GuidedDensityRatio, list[Sample]]]:
        done = 0
        tell(f"scoring ({side})", 0, len(rows))
        for _, window in rows.windows(FILE_WINDOW):
            yield ratio, [row.sample for row in window if isinstance(row, ScoreRow)]
            done += len(window)
            tell(f"scoring ({side})", done, len(rows))

    warm_one_model_at_a_time(work)


def samples_of(window: Window) -> list[Sample]:
    """What is to be scored of a window, in order."""
    return [row.sample for row in window if isinstance(row, ScoreRow)]


def output_rows(
    window: Window, scores: Sequence[Score], *, tokens: bool = False, steps: str | None = None, strict: bool = False
) -> list[dict[str, Any]]:
    """The output rows of one window.

    Args:
        window: Its rows.
        scores: One for each of `samples_of(window)`.
        tokens: As for `score_rows`.
        steps: As for `score_rows`.
        strict: As for `score_rows`.

    Raises:
        DataError: With `strict`, a row was not scored.
    """
    rest = iter(scores)
    rows = []
    for row in window:
        if isinstance(row, BadRow):
            divided = {} if steps is None else {"steps": None}
            rows.append({**_output(row.id, None, tokens=tokens), "reason": row.reason, **divided})
            continue
        score = next(rest)
        if score.reward is None and strict:
            raise DataError(f"{row.where}: not scored: {score.reason} (without --strict the run goes on)")
        rows.append({**row.given, **_output(row.id, score, tokens=tokens)})
        if steps is not None:
            # Where a template writes tool calls, nobody can say which token is in which step.
            told = score.strong_token_offsets is not None and score.weak_token_offsets is not None
            sample = row.sample
            divided_reward = (
                step_rewards(score, sample.response, by=steps, written=sample.text)
                if told or not sample.tool_calls
                else None
            )
            rows[-1]["steps"] = divided_reward and [step._asdict() for step in divided_reward]
    return rows


def _output(identifier: str, score: Score | None, *, tokens: bool = False) -> dict[str, Any]:
    """An output row; without a score every value is null but the counts."""
    names: Sequence[str] = (*_COLUMNS, *(_TOKENS if tokens else ()))
    empty = {"strong_tokens": 0, "weak_tokens": 0, "exemplars": (), "truncated": False}
    return {"id": identifier, **{name: getattr(score, name) if score else empty.get(name) for name in names}}


def check_offsets(told: Mapping[str, bool], config: Config) -> None:
    """Refuse steps before a model loads where a backend cannot say in which step a token is.

    Args:
        told: `strong` and `weak` -> whether it can.
        config: Says what the models are called.

    Raises:
        ConfigError: One cannot.
    """
    for side, can in told.items():
        if not can:
            name = getattr(config, side).model
            raise ConfigError(f"{side} model {name}: its backend does not say where tokens are: leave out --steps")


def _count_store(summary: ScoreSummary, ratio: GuidedDensityRatio) -> None:
    models = [model for model in (ratio.strong, ratio.weak) if isinstance(model, StoredModel)]
    if models:
        summary.hits = sum(model.hits for model in models)
        summary.misses = sum(model.misses for model in models)
