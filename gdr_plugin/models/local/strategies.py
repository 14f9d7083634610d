"""The strategies by which a network can be run, and the fastest one that an architecture allows.

Configuration and code decide, without a forward pass. Whether the strategy is also right is checked by the engine.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdr_plugin.models.local.network import Network


class Strategy(IntEnum):
    """How a network is run, the fastest first; a higher number is simpler and slower."""

    TREE = 1
    CACHED = 2
    PADDED = 3
    PLAIN = 4

    @property
    def words(self) -> str:
        """What the strategy does, for a person."""
        return {
            Strategy.TREE: "packed trees: shared prefixes and prompts computed once, no padding",
            Strategy.CACHED: "shared prefixes computed once",
            Strategy.PADDED: "padded whole sequences",
            Strategy.PLAIN: "one sequence at a time",
        }[self]


def first_strategy(network: Network) -> tuple[Strategy, int | None, str]:
    """Choose the fastest strategy that an architecture allows.

    Args:
        network: What will be run.

    Returns:
        The strategy; the longest sequence that `CACHED` holds for (None: any); why, for a person.
    """
    config = network.config
    kinds = set(getattr(config, "layer_types", None) or ())
    foreign = sorted(kinds - {"full_attention", "sliding_attention", "chunked_attention"})
    if foreign:
        return Strategy.PADDED, None, f"layers without plain keys and values: {', '.join(foreign)}"
    if getattr(network.model, "_is_stateful", False):
        return Strategy.PADDED, None, "a recurrent architecture"
    if getattr(config, "num_kv_shared_layers", 0):
        return Strategy.PADDED, None, "layers that share keys and values"
    if getattr(config, "kv_lora_rank", None):
        return Strategy.PADDED, None, "keys and values are kept compressed"
    if getattr(config, "use_bidirectional_attention", False):
        return Strategy.PLAIN, None, "an architecture that also looks ahead"
    windows = [
        int(size)
        for name, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention"))
        if (size := getattr(config, name, None)) and (not kinds or kind in kinds)
    ]
    window = min(windows) if windows and getattr(config, "use_sliding_window", True) else None
    if any(name.endswith(".sinks") for name, _ in network.model.named_parameters()):
        return Strategy.CACHED, window, "attention sinks, which packed rows do not know"
    if (original := _long_rope(config)) is not None:
        window = original if window is None else min(window, original)
        return Strategy.CACHED, window, f"rotary factors change at {original} tokens: longer sequences run whole"
    if "chunked_attention" not in kinds and network.takes_attention:
        why = "full attention in every layer" if window is None else f"a window of {window} tokens"
        return Strategy.TREE, window, why
    if window is not None:
        return Strategy.CACHED, window, f"sequences beyond the attention window of {window} run whole"
    return Strategy.CACHED, None, "its attention is its own: packed rows need transformers' attention interface"


def _long_rope(config: Any) -> int | None:
    """The length beyond which LongRoPE takes other factors, for all of a forward; None: it is no LongRoPE."""
    rope = getattr(config, "rope_parameters", None) or {}
    if not any(isinstance(part, dict) and part.get("rope_type") == "longrope" for part in (rope, *rope.values())):
        return None
    return int(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
