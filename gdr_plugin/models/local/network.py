"""A transformers model as the engine uses it: token ids to states, and states to log-probs.

Knows transformers' models; nothing of packs or of what runs together.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from gdr_plugin.models.local.head import Head
from gdr_plugin.models.local.kvcache import Front
from gdr_plugin.models.local.prefixes import Ids
from gdr_plugin.models.local.row import to_device
from gdr_plugin.models.local.ways import Ways, ways_on

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class Network:
    """A causal language model as the engine sees it: token ids to states, states to log-probs.

    Args:
        model: In evaluation mode, with its weights where they will stay.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
        self.decoder_config: PreTrainedConfig = getattr(self.decoder, "config", self.config)
        self.device: torch.device = next(model.get_input_embeddings().parameters()).device
        self.dtype: torch.dtype = model.dtype
        self.layers: int = self.config.num_hidden_layers
        self.takes_positions = "position_ids" in inspect.signature(self.decoder.forward).parameters
        self.takes_attention: bool = self.takes_positions and model._supports_attention_backend
        """Whether attention goes through transformers' attention interface, so that packed rows can be run."""
        self.ways: Ways | None = ways_on(self.device)
        """How the device attends over whole packed rows; None: segment by segment."""
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.head: Head | None = None
        """Set by `find_head`."""

    def find_head(self, ids: Ids) -> None:
        """Look for the head; `head` stays None where body and output projection cannot be run apart."""
        self.head = Head.of(self.model, self.decoder, self.tensor([ids[:8]]))

    def tensor(self, rows: Sequence[Ids]) -> Tensor:
        """Right-padded ids on the input device, `(rows, longest)`; padding never reaches a real token's state."""
        filled = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for row, given in zip(filled, rows, strict=True):
            row[: len(given)] = given
        (ids,) = to_device(self.device, filled.reshape(-1))
        return ids.reshape(filled.shape)

    def states(
        self, ids: Tensor, *, front: Front | None = None, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Final states of a batch.

        Args:
            ids: `(batch, tokens)`.
            front: Keys and values of what stands in front of the tokens.
            positions: Position of each token, `(batch or 1, tokens)`; default: counted on behind `front`.
            mask: Which keys of `front` and tokens are real, `(batch, keys)`; default: all.

        Returns:
            `(batch, tokens, width)`.
        """
        options = {"position_ids": positions} if positions is not None and self.takes_positions else {}
        out = self.decoder(
            input_ids=ids, attention_mask=mask, past_key_values=front, use_cache=front is not None, **options
        )
        states: Tensor = out.last_hidden_state
        return states

    def logits(self, ids: Tensor, keep: int) -> Tensor:
        """The model's own logits of the last `keep` tokens, `(batch, keep, vocabulary)`."""
        options = {"logits_to_keep": keep} if self._keeps_logits else {}
        logits: Tensor = self.model(input_ids=ids, use_cache=False, **options).logits
        return logits[:, -keep:]
