"""How the model pair is loaded beside a trainer's own sharded model.

Knows transformers' global DeepSpeed configuration; does not load anything itself. On which GPU each rank's pair goes is
decided in `gdr_plugin.models.local.device`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DEEPSPEED = "transformers.integrations.deepspeed"
_REFERENCE = "_hf_deepspeed_config_weak_ref"


@contextmanager
def outside_zero3() -> Iterator[None]:
    """Load models whole, although the trainer shards its own.

    Under ZeRO-3 transformers keeps a weak reference to the trainer's DeepSpeed configuration and splits every model
    that is loaded afterwards over the ranks. The reference is taken away for the block and put back after it. Without
    ZeRO-3 nothing happens.
    """
    module: Any = sys.modules.get(_DEEPSPEED)
    if module is None or not module.is_deepspeed_zero3_enabled():
        yield
        return
    reference = getattr(module, _REFERENCE)
    module.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        setattr(module, _REFERENCE, reference)
