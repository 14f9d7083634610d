"""What is computed together, decided from token ids alone: no tensor, no model.

Equal work is found once: identical (context, response) pairs, responses of one context, and the prefix that contexts
share (a domain's guidance). The result is data: packs, each of which can be run, split or repeated on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gdr_plugin.api.types import TokenSpan
from gdr_plugin.models.local.prefixes import Ids, families

_KEYS_PER_TOKEN = 8
"""Bound on attended keys in one forward, in multiples of the token budget: the expanded context costs memory too."""


@dataclass(frozen=True, slots=True)
class Row:
    """One response to one of a pack's contexts."""

    tail: int
    """Which of the pack's contexts, by its place in `Pack.tails`."""
    response: Ids
    """The ids to score; at least one."""
    spans: tuple[int, ...]
    """Places of the asked spans that this row answers."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Responses that are computed together. Every context is `prefix` followed by one of `tails`."""

    prefix: Ids
    """Ids that all contexts share and whose keys and values are kept; may be empty."""
    tails: tuple[Ids, ...]
    """The rest of each context; at least one id each, since its last state scores the first response token."""
    rows: tuple[Row, ...]
    """All responses."""
    batches: tuple[tuple[int, ...], ...]
    """Which rows run together, longest first. Together they hold every row that needs its own forward."""

    def context(self, row: Row) -> Ids:
        """The whole context of one of the rows."""
        return self.prefix + self.tails[row.tail]


@dataclass(frozen=True, slots=True)
class Job:
    """A distinct (context, response) pair."""

    context: Ids
    response: Ids
    spans: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens that a forward of the whole sequence takes: the last response token is scored, never read."""
        return len(self.context) + len(self.response) - 1


@dataclass(frozen=True, slots=True)
class Budget:
    """How much runs at once."""

    tokens: int
    """Tokens in one forward, padding included. A single sequence that is longer runs alone."""
    merge: bool = False
    """Whether several contexts share a forward. Worth it where small forwards are slow (CUDA)."""

    @property
    def slack(self) -> int:
        """Padding that is cheaper than one more forward, in tokens."""
        return max(1, self.tokens // 32)


def distinct(spans: Sequence[TokenSpan]) -> list[Job]:
    """Unite spans that ask the same; those with an empty response ask nothing and are left out.

    Args:
        spans: What was asked.

    Returns:
        Distinct pairs, in the order of their first appearance.
    """
    places: dict[tuple[Ids, Ids], list[int]] = {}
    for place, span in enumerate(spans):
        if span.response:
            places.setdefault((span.context, span.response), []).append(place)
    return [Job(context, response, tuple(found)) for (context, response), found in places.items()]


def plan_cached(jobs: Sequence[Job], budget: Budget, known: Sequence[Ids] = (), seen: Sequence[Ids] = ()) -> list[Pack]:
    """Plan forwards that compute each shared prefix once and each context once.

    Args:
        jobs: Distinct pairs.
        budget: How much runs at once.
        known: Prefixes whose keys and values are kept already; they are used where they fit.
        seen: Contexts of earlier calls: a prefix shared with one of them is worth keeping too.

    Returns:
        Packs that together score every job once; those with one prefix follow each other.
    """
    groups = _by_context(jobs)
    return [
        pack for prefix, contexts in families(groups, known, seen) for pack in _packs(prefix, contexts, groups, budget)
    ]


def plan_tree(jobs: Sequence[Job], tokens: int, known: Sequence[Ids] = (), seen: Sequence[Ids] = ()) -> list[Pack]:
    """Plan packed rows: a shared prefix, then contexts each followed by its responses, without padding.

    A context whose responses need more than one row becomes a prefix itself, so that it is computed once all the same.

    Args:
        jobs: Distinct pairs.
        tokens: Tokens in one row; a single sequence that is longer runs alone.
        known: Prefixes whose keys and values are kept already; they are used where they fit.
        seen: Contexts of earlier calls: a prefix shared with one of them is worth keeping too.

    Returns:
        Packs that together score every job once; those with one prefix follow each other.
    """
    groups = _by_context(jobs)
    packs: list[Pack] = []
    for prefix, contexts in families(groups, known, seen):
        members: list[Ids] = []
        filled = 0
        for context in contexts:
            mine = groups[context]
            size = len(context) - len(prefix) + sum(len(job.response) - 1 for job in mine)
            if size > tokens and len(mine) > 1:
                packs.extend(_tree_pack(context[:-1], [context], part) for part in _split(mine, tokens))
                continue
            if members and filled + size > tokens:
                packs.append(_tree_pack(prefix, members, [job for one in members for job in groups[one]]))
                members, filled = [], 0
            members.append(context)
            filled += size
        if members:
            packs.append(_tree_pack(prefix, members, [job for one in members for job in groups[one]]))
    return packs


def plan_padded(jobs: Sequence[Job], budget: Budget) -> list[Pack]:
    """Plan forwards of whole sequences, right-padded to similar lengths; nothing is shared but the batch.

    Args:
        jobs: Distinct pairs.
        budget: How much runs at once.

    Returns:
        Packs of one batch each, without prefix.
    """
    order = sorted(jobs, key=lambda job: -job.length)
    packs = []
    for batch in _fill([job.length for job in order], budget, keys=0):
        tails: dict[Ids, int] = {}
        rows = tuple(
            Row(tails.setdefault(order[i].context, len(tails)), order[i].response, order[i].spans) for i in batch
        )
        packs.append(Pack((), tuple(tails), rows, (tuple(range(len(rows))),)))
    return packs


def _by_context(jobs: Sequence[Job]) -> dict[Ids, list[Job]]:
    groups: dict[Ids, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.context, []).append(job)
    return groups


def _split(jobs: Sequence[Job], tokens: int) -> Iterator[list[Job]]:
    """Cut one context's jobs into parts of about equal size that fit into a row."""
    parts = -(-sum(len(job.response) for job in jobs) // max(1, tokens - 1))
    share = sum(len(job.response) for job in jobs) / parts
    part: list[Job] = []
    filled = 0
    for job in jobs:
        if part and (filled + len(job.response) > tokens - 1 or filled >= share):
            yield part
            part, filled = [], 0
        part.append(job)
        filled += len(job.response)
    yield part


def _tree_pack(prefix: Ids, contexts: Sequence[Ids], jobs: Sequence[Job]) -> Pack:
    place = {context: tail for tail, context in enumerate(contexts)}
    rows = tuple(Row(place[job.context], job.response, job.spans) for job in jobs)
    return Pack(prefix, tuple(context[len(prefix) :] for context in contexts), rows, ())


def _packs(prefix: Ids, contexts: Sequence[Ids], groups: dict[Ids, list[Job]], budget: Budget) -> Iterator[Pack]:
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
            mine = sum(len(job.response) for job in groups[order[i]])
            if members and tokens + mine > budget.tokens:
                yield _pack(prefix, members, groups, budget)
                members, tokens = [], 0
            members.append(order[i])
            tokens += mine
        yield _pack(prefix, members, groups, budget)


def _pack(prefix: Ids, contexts: Sequence[Ids], groups: dict[Ids, list[Job]], budget: Budget) -> Pack:
    rows = [Row(tail, job.response, job.spans) for tail, context in enumerate(contexts) for job in groups[context]]
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
