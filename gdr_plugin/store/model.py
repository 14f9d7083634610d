"""A model behind the store: log-probs that the store holds are not computed again."""

from __future__ import annotations

from collections.abc import Sequence

from gdr_plugin.api.errors import ModelError, PartlyScoredError
from gdr_plugin.api.models import PROBE_NOISE, Elsewhere, LogprobModel
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
        self._known_again: str | None = None

    @property
    def identity(self) -> str:
        """The model's."""
        return self.model.identity

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        """Log-probs of every span; see `LogprobModel.score`.

        What a window had scored when the model failed is kept, where the model says so (`PartlyScoredError`).

        Raises:
            ModelError: The model failed, or is not the one whose log-probs the store holds.
            StoreError: The store cannot be read or written.
        """
        identity = self.identity  # read once: a model that is being trained has another one afterwards
        self._know_again(identity)
        keys = span_keys(identity, spans)
        by_key = dict(zip(keys, spans, strict=True))
        unique = list(by_key)
        known = {key: found for key, found in zip(unique, self.store.read(unique), strict=True) if found is not None}
        missing = [key for key in unique if key not in known]
        self.misses += len(missing)
        self.hits += len(spans) - len(missing)
        for window in windows(missing, self._window):
            try:
                logprobs = self.model.score([by_key[key] for key in window])
            except PartlyScoredError as error:
                done = sorted(error.scored)
                self.store.write(identity, self.name, [window[at] for at in done], [error.scored[at] for at in done])
                kept = f"{len(done)} texts that were scored meanwhile are in {self.store.path}: run it again"
                raise PartlyScoredError(f"{error}; {kept}", error.scored) from error
            self.store.write(identity, self.name, window, logprobs)
            known.update(zip(window, logprobs, strict=True))
        return [known[key] for key in keys]

    def _know_again(self, identity: str) -> None:
        """Compare a model that another machine computes with the one that the store has met under its identity."""
        if self._known_again == identity or not isinstance(self.model, Elsewhere):
            return
        probe = self.model.probe
        (key,) = span_keys(identity, [probe.span])
        (met,) = self.store.read([key])
        if met is None:
            self.store.write(identity, self.name, [key], [probe.logprobs])
        elif (gap := probe.gap(met)) > PROBE_NOISE:
            raise ModelError(
                f"{self.name}: the server's model is not the one whose log-probs {self.store.path} holds: a fixed text "
                f"differs by {gap:.2f} nats a token. Set the model's `revision` to a word for the new weights, or name "
                "another store"
            )
        self._known_again = identity

    def describe(self) -> dict[str, str]:
        """The model's facts, and the store's."""
        return {**self.model.describe(), "store": f"{self.store.path}: {self.hits:,} hits, {self.misses:,} misses"}

    def unload(self) -> None:
        """Give the weights' memory back."""
        self.model.unload()
