"""Prompts to the ids that a policy is asked, and the ids that it draws to responses, under its own template.

Knows ids and texts; nothing of what draws the ids.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import Conversation, Message
from gdr_plugin.data.rows import Response
from gdr_plugin.models.text.chat import Chat
from gdr_plugin.models.text.reasoning import is_mark

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Context", "PolicyTexts"]

Context: TypeAlias = tuple[int, ...]


class PolicyTexts:
    """The two ways between texts and ids, for one policy.

    Args:
        chat: Its template and tokenizer.
        tokenizer: The tokenizer by itself.
    """

    def __init__(self, chat: Chat, tokenizer: PreTrainedTokenizerBase) -> None:
        self.chat = chat
        self._tokenizer = tokenizer

    def asked(self, prompt: Conversation, room: int) -> tuple[Context, str] | str:
        """The prompt's ids and the mark of reasoning that they open, or why it has none.

        Args:
            prompt: What the policy answers.
            room: New tokens that have to fit behind it.
        """
        try:
            context, opened = self.chat.asked(prompt)
        except ChatError as error:
            return f"policy: {error}"
        longest = self.chat.max_length
        if len(context) + room <= longest:
            return context, opened
        return (
            f"policy: behind the prompt ({len(context)} tokens) {room} new tokens exceed {longest}: lower "
            "--max-new-tokens, or set `limits.long_input: keep_end`"
        )

    def response(self, ids: Sequence[int], ends: Collection[int], opened: str) -> Response:
        """The response that drawn ids make, its text as it would be scored: with the mark that its prompt opened.

        Args:
            ids: At least one; where the policy ended the response, with the id that it ended it with.
            ends: Ids that end a response.
            opened: From `asked`.
        """
        finished = ids[-1] in ends
        # Whoever renders the response adds again what the template writes before it and before the end's last token.
        end = self.chat.end_of_turn
        whole = finished and tuple(ids[-len(end) :]) == end
        text = self._decode(ids[: -len(end)] if whole else ids[:-1] if finished else ids).removeprefix(self._lead)
        if finished and not whole:  # the tokenizer may have merged it with the answer
            text = text.removesuffix(self.chat.before_end)
        # A character of several tokens that was cut at the limit is left out.
        return Response(opened + (text if finished else text.rstrip("\ufffd")), finished)

    @cached_property
    def _lead(self) -> str:
        """White space that the template puts before an answer, as decoding shows it where it comes first."""
        ids = self.chat.span((Message("user", "Hello"),), "a", end=False).response
        return self._decode(ids).removesuffix("a")

    @cached_property
    def _hidden(self) -> frozenset[int]:
        """Special tokens that are no part of a response's text: all but marks of reasoning."""
        added = self._tokenizer.added_tokens_decoder.items()
        return frozenset(id for id, token in added if token.special and not is_mark(token.content))

    def _decode(self, ids: Sequence[int]) -> str:
        shown = [id for id in ids if id not in self._hidden]
        text = self._tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
