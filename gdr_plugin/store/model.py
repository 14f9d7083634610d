"""A model behind the store: log-probs that the store holds are not computed again."""

from __future__ import annotations

from collections.abc import Sequence

from gdr_plugin.api.models import LogprobModel
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.store.store import LogprobStore, span_keys, windows


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
        identity = self.identity  # read once: a model that is being trained has another one afterwards
        keys = span_keys(identity, spans)
        by_key = dict(zip(keys, spans, strict=True))
        unique = list(by_key)
        known = {key: found for key, found in zip(unique, self.store.read(unique), strict=True) if found is not None}
        missing = [key for key in unique if key not in known]
        self.misses += len(missing)
        self.hits += len(spans) - len(missing)
        for window in windows(missing, self._window):
            logprobs = self.model.score([by_key[key] for key in window])
            self.store.write(identity, self.name, window, logprobs)
            known.update(zip(window, logprobs, strict=True))
        return [known[key] for key in keys]

    def describe(self) -> dict[str, str]:
        """The model's facts, and the store's."""
        return {**self.model.describe(), "store": f"{self.store.path}: {self.hits:,} hits, {self.misses:,} misses"}

    def unload(self) -> None:
        """Give the weights' memory back."""
        self.model.unload()
