"""A model that runs in this process: opened cheaply, loaded at its first use, freed by `unload`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.logs import logger
from gdr_plugin.models.digests import combine
from gdr_plugin.models.local.adapters import Adapter
from gdr_plugin.models.local.engine import Engine
from gdr_plugin.models.local.identity import NUMERICS, computed_in
from gdr_plugin.models.local.network import Network
from gdr_plugin.models.local.source import Source, skeleton
from gdr_plugin.models.local.strategies import first_strategy
from gdr_plugin.models.local.weights import Weights, open_weights, release
from gdr_plugin.models.text.chat import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logger(__name__)

_UNKNOWN_STRATEGY = {"strategy": "chosen when the weights are loaded"}


class LocalModel:
    """A language model that runs in this process through transformers: a `LogprobModel`.

    Make one with `open_local` or `open_loaded`. Safe to use from several threads, one forward at a time.

    Args:
        spec: The model as the user asked for it.
        limits: Lengths, and what happens to what is longer.
        source: The located base model.
        adapter: The adapter on the base, if any.
        tokenizer: The model's tokenizer.
        chat: Its template and tokenizer.
    """

    name: str
    """The model's name, as the user wrote it."""
    tokenizer: PreTrainedTokenizerBase
    chat: Chat
    source: Source
    """Where the base model is; models that were given as objects have none."""

    def __init__(
        self,
        spec: ModelSpec,
        limits: Limits,
        source: Source,
        adapter: Adapter | None,
        tokenizer: PreTrainedTokenizerBase,
        chat: Chat,
    ) -> None:
        self.name = f"{spec.model} + {spec.adapter}" if spec.adapter else spec.model
        self.tokenizer = tokenizer
        self.chat = chat
        self._spec = spec
        self.source = source
        self._adapter = adapter
        self._begin(limits)

    def _begin(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.RLock()
        self._weights: Weights | None = None
        self._attached: str | None = None
        self._expected: dict[str, str] | None = None
        self._engine: Engine | None = None
        self._known_strategy = dict(_UNKNOWN_STRATEGY)

    @property
    def identity(self) -> str:
        """Hex digest of weights, adapter, dtype, tokenizer, template and the engine's numerics.

        It differs where the running program lets torch reduce float32 products, see `computed_in`.
        """
        adapter = self._adapter.digest if self._adapter else None
        dtype = f"torch.{computed_in(self.source.dtype, self.source.device)}"
        return combine(NUMERICS, self.source.digest, adapter, dtype, self.chat.fingerprint)

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        """Log-probs of every span's response tokens; see `LogprobModel.score`.

        Raises:
            ModelError: The weights cannot be loaded, a span has no context or ids beyond the vocabulary, or memory
                runs out for a single span.
        """
        if not spans:
            return []
        with self.running() as model:
            return self._scoring(model).score(spans)

    @contextmanager
    def running(self) -> Iterator[PreTrainedModel]:
        """The transformers model with its adapter on, for this thread alone, without autograd; loads it if needed.

        Yields:
            The model. Do not keep it beyond the block: `unload` could not give its memory back.
        """
        while True:
            weights, attached = self._loaded()
            with weights.lock:
                if self._weights is not weights:  # another thread has just unloaded them
                    continue
                with weights.running(attached) as model:
                    yield model
                return

    def describe(self) -> dict[str, str]:
        """Facts for a person: device, dtype and, once the model is loaded, its strategy and why."""
        facts = {
            "model": self._spec.model,
            "adapter": self._spec.adapter or "none",
            "tokenizer": self._spec.tokenizer or self._found_tokenizer(),
            "device": str(self._spec.device_map or self.source.device),
            "dtype": computed_in(self.source.dtype, self.source.device),
            "length": f"{self.chat.max_length} tokens",
        }
        return facts | self.chat.describe() | self._strategy()

    def _found_tokenizer(self) -> str:
        folder = self._adapter.folder if self._adapter else None
        if folder is not None and (folder / "tokenizer.json").is_file():
            return "the adapter's own"
        template = folder is not None and (folder / "chat_template.jinja").is_file()
        return "the model's, with the adapter's chat template" if template else "the model's"

    def expected_strategy(self) -> dict[str, str]:
        """The strategy and why, as `describe` says; before the first pass, what configuration and code allow.

        The first call takes a moment, since the network's modules are built, without weights.
        """
        if self._strategy() != _UNKNOWN_STRATEGY:
            return self._strategy()
        with self._lock:
            if self._expected is None:
                strategy, _, why = first_strategy(Network(self._modules()))
                why += " (expected; checked on the first pack when loaded)"
                self._expected = {"strategy": strategy.words, "why": why}
            return self._expected

    def unload(self) -> None:
        """Free the weights' memory, unless another model shares them. Scoring again loads them again."""
        with self._lock:
            self._strategy()  # so that `describe` still knows it afterwards
            weights, self._weights = self._weights, None
            attached, self._attached = self._attached, None
        if weights is not None:
            with weights.lock:  # when no forward runs
                self._forget()
                if attached is not None:
                    weights.detach(attached)
        del weights
        release()

    def _modules(self) -> PreTrainedModel:
        return skeleton(self.source, trust_remote_code=self._spec.trust_remote_code)

    def _loaded(self) -> tuple[Weights, str | None]:
        """The weights, loaded if need be, and the name of the adapter on them."""
        with self._lock:
            if self._weights is None:
                self._load()
            assert self._weights is not None
            return self._weights, self._attached

    def _load(self) -> None:
        log.info("%s: loading the weights", self.name)
        weights = open_weights(self._spec, self.source)
        if self._adapter is not None:
            self._attached = weights.attach(self._adapter.folder, self._adapter.digest)
        self._weights = weights

    def _scoring(self, model: PreTrainedModel) -> Engine:
        engine = self._engine
        if engine is None or engine.model is not model:
            kept = self._limits.kv_cache_mb << 20
            engine = self._engine = Engine(Network(model), tokens=self._limits.token_budget, kept_bytes=kept)
            log.info("%s: %s (%s)", self.name, engine.strategy.words, engine.why)
        return engine

    def _forget(self) -> None:
        self._engine = None

    def _strategy(self) -> dict[str, str]:
        engine = self._engine
        if engine is not None:
            self._known_strategy = words(engine)
        return self._known_strategy


def words(engine: Engine) -> dict[str, str]:
    """How an engine runs, and why: for a person."""
    told = {"strategy": engine.strategy.words, "why": engine.why}
    return told | ({} if engine.attention is None else {"attention": engine.attention})
