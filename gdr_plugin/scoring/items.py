"""Items in, their scores out: each model sees each text once, whatever is computed from the scores afterwards.

Knows how items become samples and how a score's log-probs are reduced again; nothing of accuracy or of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from gdr_plugin.api.types import Sample, Side
from gdr_plugin.data.item import Item, ItemScores
from gdr_plugin.progress import Progress, silent
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.scoring.sequential import warm_one_model_at_a_time

__all__ = ["samples", "score_items"]

WINDOW = 128
"""Responses scored together, as far as whole items allow: what a killed run does again."""


def samples(item: Item) -> list[Sample]:
    """The item's responses as samples: the chosen ones, then the rejected ones, with the row's columns."""
    columns = item.columns
    return [
        Sample(asked, turn.content, fields=columns, reasoning=turn.reasoning, tool_calls=turn.tool_calls)
        for asked, turn in zip(item.asked, (*item.chosen, *item.rejected), strict=True)
    ]


def score_items(
    ratio: GuidedDensityRatio, items: Iterable[Item], *, progress: Progress | None = None
) -> Iterator[ItemScores]:
    """Score items window by window; all responses to one prompt are scored together and share its work.

    A reward whose models are loaded one after the other sees all items under the first before the second is loaded.

    Args:
        ratio: The reward. With a store, texts that it has seen are not computed again.
        items: What to score; a stream is not held in memory, except where models are loaded one after the other.
        progress: Told how many items are done.

    Yields:
        One result an item, in order. A response that cannot be scored has `reward=None` and a reason.

    Raises:
        ModelError: A model cannot be loaded or fails as a whole.
    """
    total = len(items) if isinstance(items, Sequence) else None
    tell = progress or silent
    # One model after the other: through the store where there is one, else in one call, which loads each model once.
    sequential = ratio.config is not None and ratio.config.load == "sequential" and ratio.strong is not ratio.weak
    size: int | None = WINDOW
    if sequential:
        items = list(items)
        total = len(items)
        if ratio.store is None:
            size = None
        else:
            _warm(ratio, items, tell)
    done = 0
    tell("scoring", 0, total)
    for window in _windows(items, size):
        scores = iter(ratio.score([sample for item in window for sample in samples(item)]))
        for item in window:
            chosen = tuple(islice(scores, len(item.chosen)))
            yield ItemScores(item, chosen, tuple(islice(scores, len(item.rejected))))
        done += len(window)
        tell("scoring", done, total)


def _warm(ratio: GuidedDensityRatio, items: Sequence[Item], tell: Progress) -> None:
    """Score everything into the store, one model at a time."""

    def work(side: Side) -> Iterator[tuple[GuidedDensityRatio, list[Sample]]]:
        done = 0
        for window in _windows(items, WINDOW):
            yield ratio, [sample for item in window for sample in samples(item)]
            done += len(window)
            tell(f"scoring ({side})", done, len(items))

    warm_one_model_at_a_time(work)


def _windows(items: Iterable[Item], size: int | None) -> Iterator[list[Item]]:
    """Items in order, in groups of at most `size` responses (one item at least); None: one group."""
    window: list[Item] = []
    responses = 0
    for item in items:
        own = len(item.chosen) + len(item.rejected)
        if window and size is not None and responses + own > size:
            yield window
            window, responses = [], 0
        window.append(item)
        responses += own
    if window:
        yield window
