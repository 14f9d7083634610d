"""Opens the models that this process or its own processes compute."""

from __future__ import annotations

from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.models.local.adapters import open_adapter
from gdr_plugin.models.local.model import LocalModel
from gdr_plugin.models.local.source import load_tokenizer, locate, longest_of
from gdr_plugin.models.local.split import SplitModel
from gdr_plugin.models.text.opening import generation_stops, open_chat

__all__ = ["open_local"]


def open_local(spec: ModelSpec, limits: Limits | None = None) -> LocalModel:
    """Open a local model: hub id, folder or `.gguf`, with or without an adapter.

    Reads configuration, tokenizer and digests; a GGUF is converted the first time. Weights load at the first `score`.

    Args:
        spec: The model as the user asked for it.
        limits: Lengths, and what happens to what is longer.

    Returns:
        The model.

    Raises:
        ModelError: The model or adapter does not exist, cannot be used, or they do not belong together.
        ChatError: The tokenizer has no usable chat template and the spec names none.
        MissingDependencyError: An optional package is needed.
    """
    limits = limits or Limits()
    source = locate(spec)
    adapter = None
    if spec.adapter:
        adapter = open_adapter(spec.adapter, source, trust_remote_code=spec.trust_remote_code)
    tokenizer = load_tokenizer(spec, source, adapter.folder if adapter else None)
    stops = generation_stops(source.path, source.revision)
    chat = open_chat(tokenizer, spec, limits, longest=longest_of(source.config), stops=stops)
    kind = SplitModel if spec.tensor_parallel_size > 1 else LocalModel
    return kind(spec, limits, source, adapter, tokenizer, chat)
