"""Building transformers models, one at a time in this process, and complete or not at all.

While transformers builds a model it patches its own classes for the whole process: no tying of weights, no
initialisation, another default dtype. Two threads that build at once put the patches back in the wrong order, and all
later models of the process are wrong: with tied embeddings their head is random.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["building", "load_complete"]

_one_at_a_time = threading.RLock()


@contextmanager
def building() -> Iterator[None]:
    """Hold this around everything that builds a model or loads an adapter. Transformers' progress bars stay hidden."""
    from transformers.utils import logging

    with _one_at_a_time:
        hide = logging.is_progress_bar_enabled()
        if hide:
            logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            if hide:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_complete(path: str | Path, **options: Any) -> PreTrainedModel:
    """Load a causal language model of which every weight is in its files.

    Args:
        path: Folder or hub id.
        **options: As for transformers' `from_pretrained`, which also says what it raises.

    Raises:
        ModelError: Weights are missing. Transformers would fill them up at random, with a warning in its log.
    """
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    with building():
        model, info = load(path, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(
            f"{path} lacks {len(missing)} of the weights of a {type(model).__name__} ({some}): is it a complete causal "
            "language model?"
        )
    loaded: PreTrainedModel = model
    return loaded
