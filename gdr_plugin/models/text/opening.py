"""Opens a tokenizer by folder or hub id and makes the chat format of a model of it, wherever its weights are."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from gdr_plugin.api.errors import MissingDependencyError, ModelError
from gdr_plugin.models.text.chat import Chat
from gdr_plugin.text import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gdr_plugin.api.settings import Limits, ModelSpec

__all__ = ["generation_stops", "open_chat", "tokenizer_at"]

_OPEN: WeakValueDictionary[tuple[object, ...], Chat] = WeakValueDictionary()


def tokenizer_at(path: str, revision: str | None = None, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Open a tokenizer.

    Args:
        path: Folder or hub id.
        revision: The hub's commit.
        trust_remote_code: Whether code that comes with it may run.

    Raises:
        ModelError: There is none, or it needs a package that is missing.
        MissingDependencyError: transformers is missing. Models in this process have looked for it before; models on
            servers need it for their tokenizers alone.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        purpose = "to tokenize here what a server scores"
        raise MissingDependencyError("transformers", "servers", purpose) from error
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
        return tokenizer
    except Exception as error:  # transformers raises errors of all kinds
        raise ModelError(
            f"no tokenizer could be opened in {path!r} ({first_line(error)}): set `tokenizer:` to a folder or hub id"
        ) from error


def generation_stops(path: str, revision: str | None = None, *, local: bool = False) -> frozenset[int]:
    """The ids that generation stops at by a model's generation config; empty where it has none.

    Args:
        path: Folder or hub id.
        revision: The hub's commit.
        local: Whether only folders and the hub's cache are looked at.
    """
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(path, revision=revision or "main", local_files_only=local).eos_token_id
    except (OSError, ValueError):  # models need not have one
        return frozenset()
    return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


def open_chat(
    tokenizer: PreTrainedTokenizerBase,
    spec: ModelSpec,
    limits: Limits,
    *,
    longest: int | None = None,
    stops: Collection[int] = (),
) -> Chat:
    """The chat format of a model under limits; a length beyond what the model takes is lowered to that.

    Models whose texts become the same ids share it, and so what it remembers: the weak model of a pair mostly has the
    tokenizer and the template of the strong one, and then nothing is rendered or tokenized twice.

    Args:
        tokenizer: The model's tokenizer.
        spec: Says which template, with which variables, and what ends a turn.
        limits: Lengths, and what happens to what is longer.
        longest: The most tokens that the model takes, where that is known.
        stops: The EOS ids of the model's generation config.
    """
    lengths = [length for length in (limits.max_length, longest) if length is not None]
    made = Chat(
        tokenizer,
        template=spec.chat_template,
        variables=spec.chat_template_kwargs,
        stops=stops,
        end_of_turn=spec.end_of_turn_token,
        max_length=min(lengths, default=1 << 20),
        max_response=limits.max_response,
        long_input=limits.long_input,
    )
    return _OPEN.setdefault(made.settings, made)
