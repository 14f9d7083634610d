"""A model behind the store: what the store knows is not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gdr_plugin.api.models import LogprobModel, score_beside
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.store.store import LogprobStore, span_keys, windows


@dataclass(frozen=True, slots=True)
class _LookUp:
    """What one call asks, and what is known of it."""

    identity: str
    """The model's, when it was asked: one that is being trained has another afterwards."""
    keys: list[bytes]
    """Of each span asked."""
    spans: dict[bytes, TokenSpan]
    known: dict[bytes, Logprobs]

    @property
    def missing(self) -> list[bytes]:
        """Keys that nothing is known of, each once."""
        return [key for key in self.spans if key not in self.known]


class StoredModel:
    """A `LogprobModel` that asks the store first: only misses reach the model, and duplicates in one call do once.

    Args:
        model: The model that computes.
        store: Where results are kept.
        window: Misses handed to the model at once; its results are committed before the next window starts.
    """

    def __init__(self, model: LogprobModel, store: LogprobStore, *, window: int = 512) -> None:
        self.model = model
        self.store = store
        self.name = model.name
        self.chat = model.chat
        self.hits = 0
        """Spans found in the store or repeated within a call."""
        self.misses = 0
        """Spans that the model scored."""
        self._window = window

    @property
    def identity(self) -> str:
        """The model's."""
        return self.model.identity

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        """Log-probs of every span; see `LogprobModel.score`.

        Raises:
            ModelError: The model failed.
            StoreError: The store cannot be read or written.
        """
        return self._complete(self._look_up(spans))

    def score_beside(
        self, other: LogprobModel, spans: Sequence[TokenSpan]
    ) -> tuple[list[Logprobs], list[Logprobs]] | None:
        """See `ScoresBeside`: what both miss goes in one pass where their models can, the rest model by model.

        Raises:
            ModelError: A model failed.
            StoreError: The store cannot be read or written.
        """
        if not isinstance(other, StoredModel) or other.identity == self.identity:
            return None  # what one has been asked the other knows: one after the other computes it once
        mine, theirs = self._look_up(spans), other._look_up(spans)
        others = dict(zip(mine.keys, theirs.keys, strict=True))
        lacking = set(theirs.missing)
        for window in windows([key for key in mine.missing if others[key] in lacking], self._window):
            both = score_beside(self.model, other.model, [mine.spans[key] for key in window])
            if both is None:
                break
            self._keep(mine, window, both[0])
            other._keep(theirs, [others[key] for key in window], both[1])
        return self._complete(mine), other._complete(theirs)

    def _look_up(self, spans: Sequence[TokenSpan]) -> _LookUp:
        identity = self.identity
        keys = span_keys(identity, spans)
        by_key = dict(zip(keys, spans, strict=True))
        unique = list(by_key)
        known = {key: found for key, found in zip(unique, self.store.read(unique), strict=True) if found is not None}
        self.misses += len(unique) - len(known)
        self.hits += len(spans) - len(unique) + len(known)
        return _LookUp(identity, keys, by_key, known)

    def _keep(self, found: _LookUp, keys: Sequence[bytes], logprobs: Sequence[Logprobs]) -> None:
        self.store.write(found.identity, self.name, keys, logprobs)
        found.known.update(zip(keys, logprobs, strict=True))

    def _complete(self, found: _LookUp) -> list[Logprobs]:
        """Score what is missing, window by window."""
        for window in windows(found.missing, self._window):
            self._keep(found, window, self.model.score([found.spans[key] for key in window]))
        return [found.known[key] for key in found.keys]

    def describe(self) -> dict[str, str]:
        """The model's facts, and the store's."""
        return {**self.model.describe(), "store": f"{self.store.path}: {self.hits:,} hits, {self.misses:,} misses"}

    def unload(self) -> None:
        """Give the weights' memory back."""
        self.model.unload()
