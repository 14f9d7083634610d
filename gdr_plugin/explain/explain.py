"""The job behind `gdr explain`: read a few rows, score them with and without guidance, write the page.

Knows the order of things. How text is cut is `cells`', what the page looks like `page`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gdr_plugin.api.errors import DataError, nearest
from gdr_plugin.config.load import named_config
from gdr_plugin.config.schema import Config
from gdr_plugin.data.item import Item
from gdr_plugin.data.items import ItemReader
from gdr_plugin.data.read import BadRow, CheckColumns, Undecided, check_rows
from gdr_plugin.data.rows import is_score_row, parse_score_row
from gdr_plugin.data.sources import STDIN, read_rows
from gdr_plugin.evaluation.measures.item_rules import Rule, rule_of
from gdr_plugin.explain.shown import Explained, Origin, Shown
from gdr_plugin.files import atomic, check_output
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.progress import Progress, silent
from gdr_plugin.reward.resolve import resolve_names
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import field_check
from gdr_plugin.scoring.items import samples
from gdr_plugin.scoring.sequential import warm_one_model_at_a_time
from gdr_plugin.store.store import DEFAULT_STORE

__all__ = ["DEFAULT_ROWS", "explain", "read_shown"]

DEFAULT_ROWS = 20
"""Rows shown when nobody says how many: a page that a browser opens at once."""


def explain(
    source: str,
    config: str | Path | Config,
    out: Path,
    *,
    ids: Sequence[str] = (),
    limit: int | None = None,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
) -> list[Explained]:
    """Write a page that shows where each response's reward comes from.

    Args:
        source: A file or data set, as for `read_rows`: rows with `response`, or preference rows of any format that
            `gdr evaluate` reads.
        config: The reward: a gdr.yaml or a validated configuration.
        out: The HTML file; it appears when it is complete.
        ids: Only the rows with these ids.
        limit: Only so many rows; None: all that `ids` name, else the first 20.
        format: Format of preference data, as for `read_items`.
        columns: New name -> the input's name of columns.
        plugins: Where names are looked up; default: built-in and installed plugins.
        progress: Told how many rows are done.

    Returns:
        What the page shows.

    Raises:
        ConfigError: The configuration is wrong.
        DataError: A row that is to be shown is bad, or an id is not there.
        OutputError: The page cannot be written.
        ModelError: A model does not exist or fails.
    """
    from gdr_plugin.explain.page import explain_page

    check_output("-o", out, [source, None if isinstance(config, Config) else config])
    plugins = plugins or Plugins()
    config, named = named_config(config)
    resolved = resolve_names(config, plugins, origin=named)
    rows = read_shown(
        source,
        ids=ids,
        limit=limit,
        format=format,
        columns=columns,
        check=field_check(resolved.routers, resolved.guidances, origin=named),
    )
    ratio = GuidedDensityRatio.from_config(config, plugins=plugins, store=DEFAULT_STORE, resolved=resolved)
    ratios = [ratio] if config.guidance.placement == "none" else [ratio, ratio.variant(placement="none")]
    try:
        explained = _scored(rows, ratios, progress or silent)
    finally:
        if ratio.store is not None:
            ratio.store.close()
    shown = {domain: rendered.text for domain, rendered in ratio.rendered.items()}
    origin = Origin(source, named, config, ratio.strong.name, ratio.weak.name, shown)
    with atomic(out) as file:
        file.write(explain_page(explained, origin))
    return explained


def read_shown(
    source: str,
    *,
    ids: Sequence[str] = (),
    limit: int | None = None,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    check: CheckColumns | None = None,
) -> list[Shown]:
    """Read the rows to show; other rows are not looked at more than it takes to find these.

    Args:
        source: As for `explain`.
        ids: As for `explain`.
        limit: As for `explain`.
        format: As for `explain`.
        columns: As for `explain`.
        check: Raises DataError for a row whose columns cannot be used.

    Returns:
        The rows in the order of the input.

    Raises:
        DataError: A row that is to be shown is bad, an id is not there, or there is nothing to show.
    """
    if source == STDIN:
        raise DataError("gdr explain reads its input more than once: give a file rather than standard input")
    if limit is not None and limit < 1:
        raise DataError(f"--limit must be 1 or more, not {limit}")
    named = next(iter(read_rows(source, columns=columns))).content or {}
    if format == "auto" and is_score_row(named):
        scored = check_rows(source, parse_score_row, columns=columns, check=check)
        stream: Iterator[Shown | BadRow] = (
            row if isinstance(row, BadRow) else Shown(row.id, (("response", row.sample),)) for _, row in scored
        )
    else:
        reader = ItemReader(format, columns)
        stream = (
            row if isinstance(row, BadRow) else _shown(row, rule_of(reader.name, row.subset), check)
            for row in reader.read(source)
        )
    wanted, found = set(ids), []
    seen: set[str] = set()
    limit = limit if limit is not None else None if ids else DEFAULT_ROWS
    for row in stream:
        seen.add(row.id)
        if (wanted and row.id not in wanted) or (isinstance(row, Undecided) and not wanted):
            continue
        if isinstance(row, BadRow):
            raise DataError(row.reason)
        found.append(row)
        if len(found) == limit or len(found) == len(wanted) > 0:
            return found
    missing = [name for name in ids if name not in seen]
    if missing:
        near = nearest(missing[0], seen)
        raise DataError(f"{source}: no row has the id {missing[0]!r}{f'; did you mean {near!r}?' if near else ''}")
    return found


def _shown(item: Item, rule: Rule, check: CheckColumns | None) -> Shown:
    if check is not None:
        try:
            check(item.columns)
        except DataError as error:
            raise type(error)(f"row {item.id!r}: {error}") from None
    labels = [
        name if len(texts) == 1 else f"{name} {number}"
        for name, texts in (("chosen", item.chosen), ("rejected", item.rejected))
        for number, _ in enumerate(texts, start=1)
    ]
    return Shown(item.id, tuple(zip(labels, samples(item), strict=True)), rule)


def _scored(rows: Sequence[Shown], ratios: Sequence[GuidedDensityRatio], progress: Progress) -> list[Explained]:
    """Every row's scores under each reward; where models are loaded one after the other, each is loaded once."""
    if ratios[0].sequential:
        everything = [sample for row in rows for _, sample in row.responses]
        warm_one_model_at_a_time(lambda side: ((ratio, everything) for ratio in ratios))
    explained = []
    progress("scoring", 0, len(rows))
    for done, row in enumerate(rows, start=1):
        asked = [sample for _, sample in row.responses]
        both = [tuple(ratio.score(asked, tokens=True)) for ratio in ratios]
        same = len(both) < 2 or all(score.guidance == "none" for score in both[0])
        explained.append(Explained(row, both[0], None if same else both[1]))
        progress("scoring", done, len(rows))
    return explained
