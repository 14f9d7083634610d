"""Two policies on one set of weights, in one pass over the tokens: the weights are read once for both.

Only where the fastest rung holds for both, so that what cannot be split into lanes never gets here. Knows engines;
nothing of files, templates or rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.local.engine import Engine
from gdr_plugin.models.local.forward import Network
from gdr_plugin.models.local.lora import LaneError
from gdr_plugin.models.local.strategies import Rung

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_TOKENS = {"cpu": 256}
"""Up to how many new tokens one pass for both is faster, by device; 0 where it was not measured."""

Both = tuple[list[Logprobs], list[Logprobs]]
"""The log-probs of the spans by the one policy and by the other."""


class Beside:
    """Scores spans by two policies at once.

    Args:
        model: Both policies' weights.
        engines: Each policy's own engine, whose kept prefixes are used and added to.
    """

    def __init__(self, model: PreTrainedModel, engines: tuple[Engine, Engine]) -> None:
        self.engines = engines
        caches = [engine.kept for engine in engines]
        tokens = max(1, min(engine.tokens for engine in engines) // len(engines))
        self._engine = Engine(Network(model, policies=len(engines)), tokens=tokens, caches=caches)
        self._most = MOST_TOKENS.get(self._engine.device.type, 0)
        self._works = True

    @property
    def works(self) -> bool:
        """Whether both policies can be run beside each other, as far as is known."""
        return self._works and all(engine.rung is Rung.TREE for engine in (self._engine, *self.engines))

    def score(self, spans: Sequence[TokenSpan]) -> Both | None:
        """Both policies' log-probs of every span, as `Engine.score` gives them one by one; None: not this way."""
        if not self.works or self._engine.tokens_of(spans) > self._most:
            return None
        try:
            found = self._engine.score(spans)
        except LaneError:
            self._works = False
            return None
        return [one[0] for one in found], [one[1] for one in found]
