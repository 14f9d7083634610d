"""A model that the caller has loaded and may change between calls, as in a notebook or a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.errors import ModelError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.digests import combine
from gdr_plugin.models.local.identity import NUMERICS, computed_in, parameters_digest
from gdr_plugin.models.local.model import LocalModel
from gdr_plugin.models.local.source import longest_of
from gdr_plugin.models.local.weights import Weights
from gdr_plugin.models.text.opening import open_chat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LoadedModel(LocalModel):
    """A `LocalModel` around a model and a tokenizer that the caller owns and may change."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits,
        name: str | None,
        chat_template: str | None,
    ) -> None:
        if any(getattr(config, "is_prompt_learning", False) for config in getattr(model, "peft_config", {}).values()):
            raise ModelError("prompt-learning adapters cannot be scored: use a LoRA adapter or a merged model")
        wrapper: Any = model
        inner: Any = wrapper.get_base_model() if hasattr(wrapper, "get_base_model") else wrapper
        if not hasattr(inner, "get_output_embeddings") or inner.get_output_embeddings() is None:
            raise ModelError(f"{type(inner).__name__} has no language-model head: load it with AutoModelForCausalLM")
        self.name = name or getattr(inner.config, "name_or_path", "") or type(inner).__name__
        self.tokenizer = tokenizer
        stops = getattr(getattr(inner, "generation_config", None), "eos_token_id", None)
        spec = ModelSpec(model=self.name, chat_template=chat_template)
        listed = [stops] if isinstance(stops, int) else stops or ()
        self.chat = open_chat(tokenizer, spec, limits, longest=longest_of(inner.config), stops=listed)
        self._begin(limits)
        self._weights = Weights(inner, owned=False)
        self._state: tuple[object, ...] = ()
        self._digest = ""

    @property
    def identity(self) -> str:
        """Hex digest of the parameters as they are now, which are read again only when one has changed."""
        model = self._model
        state = self._versions()
        if state != self._state or not self._digest:
            self._state, self._digest = state, parameters_digest(model)
        dtype = computed_in(model.dtype, model.device)
        kind = type(model).__name__
        return combine(NUMERICS, "loaded", kind, dtype, self._digest, model.config, self.chat.fingerprint)

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        """As `LocalModel.score`; no prefix is kept between calls, since the weights may change."""
        weights, _ = self._loaded()
        with weights.lock:  # so that no other thread loses its prefixes during a forward
            try:
                return super().score(spans)
            finally:
                if self._engine is not None:
                    self._engine.kept.clear()

    def describe(self) -> dict[str, str]:
        """Facts for a person."""
        model = self._model
        facts = {"model": self.name, "device": str(model.device), "dtype": computed_in(model.dtype, model.device)}
        return facts | {"length": f"{self.chat.max_length} tokens"} | self.chat.describe() | self._strategy()

    def unload(self) -> None:
        """Drop what the engine keeps; the model itself belongs to the caller."""
        weights, _ = self._loaded()
        with weights.lock:
            self._forget()

    def _modules(self) -> PreTrainedModel:
        return self._model

    @property
    def _model(self) -> PreTrainedModel:
        assert self._weights is not None
        return self._weights.model

    def _versions(self) -> tuple[object, ...]:
        """A value that changes when a parameter is replaced, or written to in place as optimizers do."""
        parameters = self._model.parameters()
        return tuple((p.data_ptr(), -1 if p.is_inference() else p._version) for p in parameters)


def open_loaded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    limits: Limits | None = None,
    name: str | None = None,
    chat_template: str | None = None,
) -> LoadedModel:
    """Wrap a model that is loaded already, as in a notebook. Its weights may change between calls.

    Args:
        model: A causal language model, PEFT-wrapped or not; used as it stands, never changed.
        tokenizer: Its tokenizer.
        limits: Lengths, and what happens to what is longer.
        name: For messages; default: the configuration's name, or the class.
        chat_template: As in `ModelSpec`.

    Returns:
        The model. `unload` only drops what the engine keeps: the weights are yours.

    Raises:
        ModelError: It is not a causal language model.
    """
    return LoadedModel(model, tokenizer, limits or Limits(), name, chat_template)
