"""Which token ids end a completion of the policy, and with them: was a completion cut, and how long is it?

TRL does not pass these ids. They come from the tokenizer that the user names or, where the trainer's log functions are
passed (GRPO, RLOO), from the trainer itself. This is the one place that relies on an attribute of TRL's trainers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.errors import ChatError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class CompletionTokens:
    """A completion's token ids, and the ids that end a completion."""

    ids: Sequence[int]
    """Padded on the right or not."""
    ends: Collection[int]
    """The policy's end-of-sequence ids."""

    def ended(self, turns: int = 1) -> bool:
        """Whether the completion ended by itself rather than at the length limit.

        Args:
            turns: Assistant turns in it: each of several has an end of its own, and the last one's counts.
        """
        if turns > 1:
            return bool(self.ids) and self.ids[-1] in self.ends
        return any(token in self.ends for token in self.ids)

    def length(self, turns: int = 1) -> int:
        """How many tokens the completion has: its end counts, padding after it does not; `turns` as for `ended`."""
        if turns > 1:
            return len(self.ids)
        return next((place for place, token in enumerate(self.ids, start=1) if token in self.ends), len(self.ids))


class Ends:
    """Finds the policy's end-of-sequence ids.

    Args:
        tokenizer: The policy's tokenizer, or its hub id or folder. None: the trainer is asked.
    """

    def __init__(self, tokenizer: str | PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer if isinstance(tokenizer, str) else None
        self._ids: frozenset[int] | None = None
        if tokenizer is not None and not isinstance(tokenizer, str):
            self._ids = _stops(tokenizer, tokenizer.name_or_path or None, local=True)

    def find(self, log_function: object) -> frozenset[int] | None:
        """The ids; None when nobody knows them.

        Args:
            log_function: `log_metric` or `log_extra` as TRL passes it, or None.
        """
        if self._ids is None and self._tokenizer is not None:
            self._ids = _read(self._tokenizer)
        if self._ids is not None:
            return self._ids
        trainer: Any = getattr(log_function, "__self__", None)
        if hasattr(trainer, "eos_token_ids"):
            return _as_ids(trainer.eos_token_ids) or None
        # Older trainers (TRL 1.9, which Axolotl pins) stop at their tokenizer's own end and no other.
        processing = getattr(trainer, "processing_class", None)
        tokenizer = getattr(processing, "tokenizer", processing)
        return _as_ids(getattr(tokenizer, "eos_token_id", None)) or None


def _read(name: str) -> frozenset[int]:
    """The ids that a policy stops at, by its tokenizer's name."""
    from transformers import AutoTokenizer

    return _stops(AutoTokenizer.from_pretrained(name), name)


def _stops(tokenizer: PreTrainedTokenizerBase, name: str | None, *, local: bool = False) -> frozenset[int]:
    """What a policy may end a turn with: its tokenizer's EOS, what its template writes, its generation config's ids."""
    from gdr_plugin.models.text.chat import Chat
    from gdr_plugin.models.text.opening import generation_stops

    listed = generation_stops(name, local=local) if name else frozenset[int]()
    ids = listed | _as_ids(tokenizer.eos_token_id)
    if not tokenizer.chat_template:
        return ids
    try:
        return ids | Chat(tokenizer, stops=listed, max_length=1 << 20).stop_ids
    except ChatError:  # a template that nothing can be learned of; completions still end with what is listed
        return ids


def _as_ids(value: int | Iterable[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)
