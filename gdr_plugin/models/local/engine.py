"""Scores spans on a loaded network: plans, runs, checks itself, and goes on by a slower strategy where one is wrong.

`strategies` lists how a network can be run, `planner` decides what runs together. Knows nothing of files, adapters or
templates.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from gdr_plugin.api.errors import EngineWarning, ModelError
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.local.compiling import is_out_of_memory
from gdr_plugin.models.local.fetch import Fetched
from gdr_plugin.models.local.forward import run_cached, run_padded, run_plain, start_tree
from gdr_plugin.models.local.identity import computed_in
from gdr_plugin.models.local.kvcache import PrefixCache
from gdr_plugin.models.local.memory import free_bytes, token_budget
from gdr_plugin.models.local.network import Network
from gdr_plugin.models.local.planner import Budget, DistinctSpan, Pack, distinct, plan_cached, plan_padded, plan_tree
from gdr_plugin.models.local.prefixes import Ids
from gdr_plugin.models.local.strategies import Strategy, first_strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1.5e-1, "float32 by tf32": 2e-2, "float32 by bf16": 1.5e-1}
"""Mean difference from one sequence at a time, in nats a token, that is still rounding: three times what SmolLM2 shows
on text (1e-5, 6e-3 and 5e-2; single tokens up to 3e-5, 5e-2 and 0.3). A wrong strategy is off by whole nats."""
_LOGITS_BYTES = 256 << 20
"""Bound on a batch's logits where the whole model makes them."""
_SEEN = 16
"""How many contexts of earlier calls are remembered."""


class Engine:
    """Scores spans on one network.

    Args:
        network: Loaded, in evaluation mode.
        tokens: Token budget of a forward; None: what fits, see `memory.token_budget`.
        kept_bytes: Bytes of keys and values of prefixes that are kept between calls.
    """

    def __init__(self, network: Network, *, tokens: int | None = None, kept_bytes: int = 0) -> None:
        self._net = network
        device = network.device.type
        self.tokens = tokens or token_budget(network.config, network.dtype, free_bytes(network.device))
        """Token budget of a forward; halved when memory runs out."""
        self.merge = device != "cpu" and network.takes_positions
        self.kept = PrefixCache(kept_bytes)
        """Prefixes that are kept between calls."""
        self._seen: deque[Ids] = deque(maxlen=_SEEN)
        self.strategy, self.window, self.why = first_strategy(network)
        self._checked: set[tuple[Strategy, bool]] = set()
        self._probed = False

    @property
    def attention(self) -> str | None:
        """How packed rows are attended, and why, for a person; None: they are not packed, or segment by segment."""
        return None if self._net.ways is None or self.strategy is not Strategy.TREE else self._net.ways.words

    @property
    def model(self) -> PreTrainedModel:
        """The model that is run."""
        return self._net.model

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        """Log-probs of every span's response tokens; see `LogprobModel.score`."""
        results = [np.empty(0, dtype=np.float32) for _ in spans]
        todo = distinct(spans)
        self._refuse_foreign_ids(todo)
        if todo and not self._probed:
            self._probe(todo[0].context)
        try:
            while todo:
                done: set[int] = set()
                running: tuple[Pack, Fetched] | None = None
                for strategy, pack in self._plan(todo):
                    started = self._start_checked(strategy, pack)
                    if running is not None:  # read only now, so that a GPU has its next work before this host waits
                        self._take(*running, results, done)
                    running = (pack, started) if started is not None else None
                    if started is None:  # the budget or the strategy has changed: plan the rest anew
                        break
                if running is not None:
                    self._take(*running, results, done)
                todo = [span for span in todo if span.places[0] not in done]
        finally:
            self.kept.trim()
        return results

    @staticmethod
    def _take(pack: Pack, fetched: Fetched, results: list[Logprobs], done: set[int]) -> None:
        """Put a pack's results where they belong; waits for them."""
        for row, logprobs in zip(pack.rows, fetched.rows(), strict=True):
            done.add(row.places[0])
            usable = np.isfinite(logprobs).all()
            for place in row.places:
                results[place] = np.where(usable, logprobs, np.float32(np.nan))

    def plan(self, spans: Sequence[TokenSpan]) -> list[tuple[Strategy, Pack]]:
        """What `score` would run, and how, as things stand."""
        return self._plan(distinct(spans))

    def _plan(self, spans: Sequence[DistinctSpan]) -> list[tuple[Strategy, Pack]]:
        if self.strategy is Strategy.TREE:
            packs = plan_tree(spans, self.tokens, self.kept.known, tuple(self._seen))
            self._remember(packs)
            return [(Strategy.TREE, pack) for pack in packs]
        budget = Budget(self.tokens, self.merge)
        limit = (self.window or sys.maxsize) if self.strategy is Strategy.CACHED else 0
        cached = [span for span in spans if span.length <= limit]
        whole = [span for span in spans if span.length > limit]
        plan = [(Strategy.CACHED, pack) for pack in plan_cached(cached, budget, self.kept.known, tuple(self._seen))]
        self._remember([pack for _, pack in plan])
        if self._net.head is None:  # the model's own head makes logits of all of a batch's response rows at once
            most = _LOGITS_BYTES // (4 * int(self._net.config.vocab_size))
            budget = Budget(max(1, min(budget.tokens, most)))
        strategy = Strategy.PLAIN if self.strategy is Strategy.PLAIN else Strategy.PADDED
        return plan + [(strategy, pack) for pack in plan_padded(whole, budget)]

    def _remember(self, packs: Sequence[Pack]) -> None:
        """Remember some contexts of each prefix: a prefix shared with a later context is then worth keeping.

        One context is enough where they share most of their ids; otherwise several, since each may begin with guidance
        of its own.
        """
        by_prefix: dict[Ids, list[Ids]] = {}
        for pack in packs:
            by_prefix.setdefault(pack.prefix, []).extend(pack.tails)
        for prefix, tails in by_prefix.items():
            for tail in tails[: 1 if len(prefix) > len(tails[0]) else _SEEN // 4]:
                if prefix + tail not in self._seen:
                    self._seen.append(prefix + tail)

    def _start_checked(self, strategy: Strategy, pack: Pack) -> Fetched | None:
        """Start a pack; the first of its kind is also run one sequence at a time, and compared.

        Returns None when the budget, the strategy or the way of attending has changed: plan the rest anew.
        """
        started = self._run(strategy, pack)
        kind = (strategy, len(pack.tails) > 1)
        if started is None or strategy is Strategy.PLAIN or kind in self._checked:
            return started
        places, rows = _witnesses(pack), started.rows()
        witnesses = Pack(pack.prefix, pack.tails, tuple(pack.rows[place] for place in places), ())
        expected = self._run(Strategy.PLAIN, witnesses)
        if expected is None:
            return None
        off = deviation([rows[place] for place in places], expected.rows())
        if off > TOLERANCE.get(computed_in(self._net.dtype, self._net.device), 1e-1):
            self._leave(strategy, f"the self-check found {off:.2g} nats a token against one sequence at a time")
            return None
        self._checked.add(kind)
        return started

    def _leave(self, strategy: Strategy, why: str) -> None:
        """Go on without what computed wrong results: a way to attend over whole rows if one did, else the strategy."""
        ways = self._net.ways
        if strategy is Strategy.TREE and ways is not None and ways.drop_used(why):
            self._checked.clear()
            self.forget()
        else:
            self._step_down(strategy, why)

    def _step_down(self, strategy: Strategy, why: str) -> None:
        self.strategy, self.why = Strategy(strategy + 1), why
        self.forget()
        warnings.warn(
            f"{type(self._net.model).__name__}: {why}; scoring goes on by a slower way: {self.strategy.words}",
            EngineWarning,
            stacklevel=2,
        )

    def _run(self, strategy: Strategy, pack: Pack) -> Fetched | None:
        """Start a pack; None when memory ran out, and the budget is smaller now."""
        try:
            return self._forward(strategy, pack)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = str(error).splitlines()[0] if str(error) else "out of memory"
        # Outside of the except block, since the traceback holds the failed forward's tensors.
        self.forget()
        gc.collect()
        if self._net.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.tokens == 1:
            raise ModelError(f"not enough memory for a single sequence: {message}; lower limits.max_length")
        self.tokens = max(1, min(self.tokens, _largest(pack)) // 2)
        warnings.warn(
            f"out of memory: going on with {self.tokens} tokens a forward (limits.token_budget)",
            EngineWarning,
            stacklevel=2,
        )
        return None

    def _forward(self, strategy: Strategy, pack: Pack) -> Fetched:
        if strategy is Strategy.TREE:
            return start_tree(self._net, pack, self.kept)
        if strategy is Strategy.CACHED:
            return run_cached(self._net, pack, self.kept)
        return run_padded(self._net, pack) if strategy is Strategy.PADDED else run_plain(self._net, pack)

    def forget(self) -> None:
        """Drop what is kept of earlier calls."""
        self._seen.clear()
        self.kept.clear()

    def _probe(self, context: Ids) -> None:
        self._net.find_head(context)
        self._probed = True
        if self._net.head is None and self.strategy < Strategy.PADDED:
            self.strategy, self.why = Strategy.PADDED, "the architecture's head cannot be taken apart from its body"

    def _refuse_foreign_ids(self, spans: Sequence[DistinctSpan]) -> None:
        size = int(self._net.config.vocab_size)
        for span in spans:
            if not span.context:
                raise ModelError("a span without context cannot be scored: give at least one context token")
            if max(max(span.context), max(span.response)) >= size or min(min(span.context), min(span.response)) < 0:
                raise ModelError(f"token ids beyond the model's vocabulary of {size}: the tokenizer is another model's")


def deviation(got: Sequence[Logprobs], expected: Sequence[Logprobs]) -> float:
    """How far two results differ: the largest mean difference of a row, in nats a token.

    The mean of few tokens may be large by chance: it is divided by `1 + 4 / sqrt(tokens)`.

    Args:
        got: One array a row.
        expected: As `got`, from the trusted strategy.

    Returns:
        The largest row's difference, infinite where only `got` overflowed. Rows where `expected` did are left out.
    """
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        if np.isfinite(b).all():
            mean = float(np.abs(a.astype(np.float64) - b).mean()) / (1 + 4 / len(b) ** 0.5)
            worst = max(worst, mean if np.isfinite(mean) else np.inf)
    return worst


def _witnesses(pack: Pack) -> list[int]:
    """Two rows in which a wrong strategy shows: the longest, and the most padded one of the same batch."""
    batch = pack.batches[0] if pack.batches else tuple(range(len(pack.rows)))
    return sorted({batch[0], batch[-1]})


def _largest(pack: Pack) -> int:
    """Tokens of the pack's largest forward, near enough to know where halving begins to help."""
    if not pack.batches:  # a packed row
        return sum(map(len, pack.tails)) + sum(max(0, len(row.response) - 1) for row in pack.rows)
    whole = len(pack.tails) * max(map(len, pack.tails))
    return max([whole, *(len(batch) * len(pack.rows[batch[0]].response) for batch in pack.batches)])
