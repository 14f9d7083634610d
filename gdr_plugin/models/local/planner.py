"""Decides from token ids alone what is computed together: no tensor, no model.

Equal work is found once: identical spans, responses to one context, and the prefix that contexts share (a domain's
guidance). The result is data: packs, each of which can be run, split or repeated on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gdr_plugin.api.types import TokenSpan
from gdr_plugin.models.local.prefixes import Ids, families

_KEYS_PER_TOKEN = 8
"""Bound on attended keys in one forward, in multiples of the token budget: the expanded context costs memory too."""


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """One response to one of a pack's contexts."""

    tail: int
    """Which of the pack's contexts, by its place in `Pack.tails`."""
    response: Ids
    """The ids to score; at least one."""
    places: tuple[int, ...]
    """Which of the spans given to `distinct` this row answers."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Responses that are computed together. Every context is `prefix` followed by one of `tails`."""

    prefix: Ids
    """Ids that all contexts share and whose keys and values are kept; may be empty."""
    tails: tuple[Ids, ...]
    """The rest of each context; at least one id each, since its last state scores the first response token."""
    rows: tuple[ResponseRow, ...]
    """All responses."""
    batches: tuple[tuple[int, ...], ...]
    """Which rows run together, longest first. Together they hold every row that needs its own forward."""

    def context(self, row: ResponseRow) -> Ids:
        """The whole context of one of the rows."""
        return self.prefix + self.tails[row.tail]


@dataclass(frozen=True, slots=True)
class DistinctSpan:
    """A context with a response, however often it was asked."""

    context: Ids
    response: Ids
    places: tuple[int, ...]
    """Where it stands among the spans given to `distinct`."""

    @property
    def length(self) -> int:
        """Tokens that a forward of the whole sequence reads: the last response token is only predicted."""
        return len(self.context) + len(self.response) - 1


@dataclass(frozen=True, slots=True)
class Budget:
    """How much runs at once."""

    tokens: int
    """Tokens in one forward, padding included. A single sequence that is longer runs alone."""
    merge: bool = False
    """Whether several contexts share a forward, which pays where small forwards are slow (CUDA)."""

    @property
    def slack(self) -> int:
        """Padding that is cheaper than one more forward, in tokens."""
        return max(1, self.tokens // 32)


def distinct(spans: Sequence[TokenSpan]) -> list[DistinctSpan]:
    """Merge equal spans; those with an empty response need no work and are left out.

    Args:
        spans: What is to be scored.

    Returns:
        Distinct spans, in the order of their first appearance.
    """
    places: dict[tuple[Ids, Ids], list[int]] = {}
    for place, span in enumerate(spans):
        if span.response:
            places.setdefault((span.context, span.response), []).append(place)
    return [DistinctSpan(context, response, tuple(found)) for (context, response), found in places.items()]


def plan_cached(
    spans: Sequence[DistinctSpan], budget: Budget, known: Sequence[Ids] = (), seen: Sequence[Ids] = ()
) -> list[Pack]:
    """Plan forwards that compute each shared prefix once and each context once.

    Args:
        spans: From `distinct`.
        budget: How much runs at once.
        known: Prefixes whose keys and values are kept already; they are used where they fit.
        seen: Contexts of earlier calls: a prefix shared with one of them is worth keeping too.

    Returns:
        Packs that together score every span once; those with one prefix follow each other.
    """
    groups = _by_context(spans)
    return [
        pack for prefix, contexts in families(groups, known, seen) for pack in _packs(prefix, contexts, groups, budget)
    ]


def plan_tree(
    spans: Sequence[DistinctSpan], tokens: int, known: Sequence[Ids] = (), seen: Sequence[Ids] = ()
) -> list[Pack]:
    """Plan packed rows: a shared prefix, then contexts each followed by its responses, without padding.

    A context whose responses need more than one row becomes a prefix itself, so that it is computed once all the same.

    Args:
        spans: From `distinct`.
        tokens: Tokens in one row; a single sequence that is longer runs alone.
        known: Prefixes whose keys and values are kept already; they are used where they fit.
        seen: Contexts of earlier calls: a prefix shared with one of them is worth keeping too.

    Returns:
        Packs that together score every span once; those with one prefix follow each other.
    """
    groups = _by_context(spans)
    packs: list[Pack] = []
    for prefix, contexts in families(groups, known, seen):
        members: list[Ids] = []
        filled = 0
        for context in contexts:
            mine = groups[context]
            size = len(context) - len(prefix) + sum(len(span.response) - 1 for span in mine)
            if size > tokens and len(mine) > 1:
                packs.extend(_tree_pack(context[:-1], [context], part) for part in _split(mine, tokens))
                continue
            if members and filled + size > tokens:
                packs.append(_tree_pack(prefix, members, [span for member in members for span in groups[member]]))
                members, filled = [], 0
            members.append(context)
            filled += size
        if members:
            packs.append(_tree_pack(prefix, members, [span for member in members for span in groups[member]]))
    return packs


def plan_padded(spans: Sequence[DistinctSpan], budget: Budget) -> list[Pack]:
    """Plan forwards of whole sequences, right-padded to similar lengths; nothing is shared but the batch.

    Args:
        spans: From `distinct`.
        budget: How much runs at once.

    Returns:
        Packs of one batch each, without prefix.
    """
    order = sorted(spans, key=lambda span: -span.length)
    packs = []
    for batch in _fill([span.length for span in order], budget, keys=0):
        tails: dict[Ids, int] = {}
        rows = tuple(
            ResponseRow(tails.setdefault(order[i].context, len(tails)), order[i].response, order[i].places)
            for i in batch
        )
        packs.append(Pack((), tuple(tails), rows, (tuple(range(len(rows))),)))
    return packs


def _by_context(spans: Sequence[DistinctSpan]) -> dict[Ids, list[DistinctSpan]]:
    groups: dict[Ids, list[DistinctSpan]] = {}
    for span in spans:
        groups.setdefault(span.context, []).append(span)
    return groups


def _split(spans: Sequence[DistinctSpan], tokens: int) -> Iterator[list[DistinctSpan]]:
    """Cut one context's spans into parts of about equal size that fit into a row."""
    parts = -(-sum(len(span.response) for span in spans) // max(1, tokens - 1))
    share = sum(len(span.response) for span in spans) / parts
    part: list[DistinctSpan] = []
    filled = 0
    for span in spans:
        if part and (filled + len(span.response) > tokens - 1 or filled >= share):
            yield part
            part, filled = [], 0
        part.append(span)
        filled += len(span.response)
    yield part


def _tree_pack(prefix: Ids, contexts: Sequence[Ids], spans: Sequence[DistinctSpan]) -> Pack:
    place = {context: tail for tail, context in enumerate(contexts)}
    rows = tuple(ResponseRow(place[span.context], span.response, span.places) for span in spans)
    return Pack(prefix, tuple(context[len(prefix) :] for context in contexts), rows, ())


def _packs(
    prefix: Ids, contexts: Sequence[Ids], groups: dict[Ids, list[DistinctSpan]], budget: Budget
) -> Iterator[Pack]:
    """Packs of one prefix: one context each, or several of similar length where the budget merges them."""
    start = len(prefix)
    order = sorted(contexts, key=lambda context: -len(context)) if budget.merge else list(contexts)
    tails = [len(context) - start for context in order]
    together: Iterator[Sequence[int]] = (
        _fill(tails, budget, keys=start) if budget.merge else ([i] for i in range(len(order)))
    )
    for batch in together:
        members: list[Ids] = []
        tokens = 0
        for i in batch:  # many responses to one context fill a pack alone: states of a whole pack are held at once
            mine = sum(len(span.response) for span in groups[order[i]])
            if members and tokens + mine > budget.tokens:
                yield _pack(prefix, members, groups, budget)
                members, tokens = [], 0
            members.append(order[i])
            tokens += mine
        yield _pack(prefix, members, groups, budget)


def _pack(prefix: Ids, contexts: Sequence[Ids], groups: dict[Ids, list[DistinctSpan]], budget: Budget) -> Pack:
    rows = [
        ResponseRow(tail, span.response, span.places)
        for tail, context in enumerate(contexts)
        for span in groups[context]
    ]
    rows.sort(key=lambda row: -len(row.response))
    # The first response token is scored by the context's last state: a one-token response needs no forward.
    inputs = [len(row.response) - 1 for row in rows if len(row.response) > 1]
    batches = tuple(tuple(batch) for batch in _fill(inputs, budget, keys=max(map(len, contexts))))
    return Pack(prefix, tuple(context[len(prefix) :] for context in contexts), tuple(rows), batches)


def _fill(lengths: Sequence[int], budget: Budget, keys: int) -> Iterator[list[int]]:
    """Cut lengths, longest first, into batches that respect the budget and waste little on padding.

    Args:
        lengths: In falling order.
        budget: How much runs at once.
        keys: Tokens that every row sees in front of its own.

    Yields:
        Places in `lengths`; every place once.
    """
    batch: list[int] = []
    padding = 0
    for place, length in enumerate(lengths):
        if batch:
            longest, count = lengths[batch[0]], len(batch) + 1
            padding += longest - length
            full = longest * count > budget.tokens or (keys + longest) * count > _KEYS_PER_TOKEN * budget.tokens
            if full or padding > budget.slack:
                yield batch
                batch, padding = [], 0
        batch.append(place)
    if batch:
        yield batch
