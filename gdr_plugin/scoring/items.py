"""Items in, their scores out: each model sees each text once, whatever is computed from the scores afterwards.

Knows how items become samples and how a score's log-probs are reduced again; nothing of accuracy or of files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice

from gdr_plugin.api.errors import DomainError, unknown
from gdr_plugin.api.routers import Router
from gdr_plugin.api.types import Sample, Side
from gdr_plugin.data.item import Item, ItemScores
from gdr_plugin.progress import Progress, silent
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.routing import FieldRouter

__all__ = ["domain_check", "samples", "score_items"]

WINDOW = 128
"""Responses scored together, as far as whole items allow: what a killed run does again."""


def samples(item: Item) -> list[Sample]:
    """The item's responses as samples: the chosen ones, then the rejected ones, with the row's columns."""
    fields = dict(item.fields) if item.domain is None else {**item.fields, "domain": item.domain}
    return [Sample(item.prompt, response, fields=fields) for response in (*item.chosen, *item.rejected)]


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
    sides: tuple[Side, ...] = ("strong", "weak")
    for side in sides:
        done = 0
        for window in _windows(items, WINDOW):
            ratio.warm(side, [sample for item in window for sample in samples(item)])
            done += len(window)
            tell(f"scoring ({side})", done, len(items))
        ratio.unload()


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


def domain_check(domains: Collection[str], routers: Iterable[Router], *, origin: str) -> Callable[[Item], None]:
    """A check that an item names no domain that a `field` router of the chain would not know.

    Args:
        domains: The configured domains.
        routers: The chain.
        origin: What the configuration is called in messages.

    Returns:
        A function that raises DomainError for an item that names an unknown domain.
    """
    columns = [router.column for router in routers if isinstance(router, FieldRouter)]

    def check(item: Item) -> None:
        fields = samples(item)[0].fields
        for column in columns:
            value = fields.get(column)
            if value is None or value != value or value == "":  # table readers say NaN for "no value"
                continue
            if not isinstance(value, str) or value.strip() not in domains:
                known = unknown("domain", value, domains)
                raise DomainError(f"column {column!r}: {known}; guidance.domains in {origin} lists them")

    return check
