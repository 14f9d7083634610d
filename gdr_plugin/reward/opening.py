"""Models for a reward: whatever names or is a model becomes one, and two precisions are warned about.

Loads no weights.
"""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, TypeAlias

from gdr_plugin.api.errors import ConfigError, EngineWarning
from gdr_plugin.api.models import LogprobModel
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Side
from gdr_plugin.plugins.registry import Plugins

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    ModelLike: TypeAlias = "str | ModelSpec | LogprobModel | tuple[PreTrainedModel, PreTrainedTokenizerBase]"

__all__ = ["open_any", "warn_of_dtypes"]


def open_any(given: ModelLike, plugins: Plugins, limits: Limits, side: Side) -> LogprobModel:
    """Open a model.

    Args:
        given: Hub id, folder or `.gguf`; a `ModelSpec`; any `LogprobModel`; or a loaded `(model, tokenizer)`.
        plugins: The plugins that open models by scheme.
        limits: Lengths and token budget.
        side: The name of a model that was given loaded.

    Raises:
        ConfigError: It is none of these.
        ModelError: The model does not exist.
    """
    if isinstance(given, str):
        given = ModelSpec(model=given)
    if isinstance(given, ModelSpec):
        return plugins.open_model(given, limits)
    if isinstance(given, tuple):
        from gdr_plugin.models.local import open_loaded

        return open_loaded(*given, limits=limits, name=side)
    if any(inspect.getattr_static(given, name, None) is None for name in ("name", "identity", "chat", "score")):
        raise ConfigError(
            f"{side}: a {type(given).__name__} is no model that can be asked: give a hub id, a folder, a loaded "
            "(model, tokenizer), or an object that has all of LogprobModel"
        )
    return given


def warn_of_dtypes(strong: LogprobModel, weak: LogprobModel) -> None:
    """Warn where both models say what they compute in, and it is not the same."""
    dtypes = [model.describe().get("dtype") for model in (strong, weak)]
    if None not in dtypes and dtypes[0] != dtypes[1]:
        warnings.warn(
            f"strong computes in {dtypes[0]}, weak in {dtypes[1]}: their rounding errors do not cancel and add to "
            "every reward; set the same dtype for both",
            EngineWarning,
            stacklevel=1,  # so that it is said once, however many ratios are made of one pair of models
        )
