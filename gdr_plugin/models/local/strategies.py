"""The ladder of ways to run a network, and the fastest one that an architecture allows.

Read off configuration and code, without a forward. Whether it is right as well is the engine's business.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gdr_plugin.models.local.forward import Network


class Rung(IntEnum):
    """How a network is run; higher is simpler and slower."""

    TREE = 1
    CACHED = 2
    PADDED = 3
    PLAIN = 4

    @property
    def words(self) -> str:
        """What it means, for a person."""
        return {
            Rung.TREE: "packed trees: shared prefixes and prompts computed once, no padding",
            Rung.CACHED: "shared prefixes computed once",
            Rung.PADDED: "padded whole sequences",
            Rung.PLAIN: "one sequence at a time",
        }[self]


def first_rung(network: Network) -> tuple[Rung, int | None, str]:
    """The fastest way that an architecture allows.

    Args:
        network: What will be run.

    Returns:
        The rung; the longest sequence that `CACHED` holds for (None: any); why, for a person.
    """
    config = network.config
    kinds = set(getattr(config, "layer_types", None) or ())
    foreign = sorted(kinds - {"full_attention", "sliding_attention", "chunked_attention"})
    if foreign:
        return Rung.PADDED, None, f"layers without plain keys and values: {', '.join(foreign)}"
    if getattr(network.model, "_is_stateful", False):
        return Rung.PADDED, None, "a recurrent architecture"
    if getattr(config, "num_kv_shared_layers", 0):
        return Rung.PADDED, None, "layers that share keys and values"
    if getattr(config, "use_bidirectional_attention", False):
        return Rung.PLAIN, None, "an architecture that also looks ahead"
    windows = [
        int(size)
        for name, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention"))
        if (size := getattr(config, name, None)) and (not kinds or kind in kinds)
    ]
    window = min(windows) if windows and getattr(config, "use_sliding_window", True) else None
    if "chunked_attention" not in kinds and network.takes_attention:
        return Rung.TREE, window, "full attention in every layer" if window is None else f"a window of {window} tokens"
    if window is not None:
        return Rung.CACHED, window, f"sequences beyond the attention window of {window} run whole"
    return Rung.CACHED, None, "its attention is its own: packed rows need transformers' attention interface"
