"""The package under test: everything that the harness asks of it. Only this file imports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from gdr_plugin.api.errors import ChatError, DataError
from gdr_plugin.data.messages import message_of
from gdr_plugin.data.prompts import prompt_of
from gdr_plugin.models.text.chat import Chat
from gdr_plugin.models.text.rendered_prompt import RenderedPromptReader

Turns = Sequence[Mapping[str, Any]]


class RefusedError(Exception):
    """The package refuses, and says why."""


class Asked:
    """What a model is asked: ids of conversations and responses.

    Args:
        tokenizer: The model's.
        template: Jinja text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str) -> None:
        try:
            self._chat = Chat(tokenizer, template=template, max_length=100_000)
        except ChatError as error:
            raise RefusedError(str(error)) from error

    def span(
        self, turns: Turns, response: str | Mapping[str, Any], *, end: bool, prefill: bool = False
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Context and response ids of a row: text as data sets have it, messages as TRL does.

        Args:
            turns: Messages; definitions of tools before them are given as a column.
            response: Text, or the assistant's message.
            end: Whether the end of turn counts.
            prefill: Whether the last turn is the beginning of the answer.

        Raises:
            RefusedError: The package refuses the row.
        """
        try:
            tools = {"tools": turns[0]["content"]} if turns[0]["role"] == "tools" else {}
            prompt = prompt_of(tools, list(turns[len(tools) :]), prefill=prefill).turns
            if isinstance(response, str):
                span = self._chat.span(prompt, response, end=end)
            else:
                span = self._chat.turn_span(prompt, message_of(response, "the response"), end=end)
        except (ChatError, DataError) as error:
            raise RefusedError(str(error)) from error
        return span.context, span.response


class Read:
    """Rendered prompts and decoded queries, back to messages and responses.

    Args:
        tokenizer: The policy's.
        template: Jinja text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str) -> None:
        try:
            self._inverter = RenderedPromptReader(tokenizer, template)
        except ChatError as error:
            raise RefusedError(str(error)) from error

    def messages(self, prompt: str) -> list[tuple[str, str]]:
        """Role and content of every turn of a rendered prompt.

        Raises:
            RefusedError: It cannot be read.
        """
        try:
            return [(turn.role, turn.content) for turn in self._inverter.messages(prompt)]
        except (ChatError, DataError) as error:
            raise RefusedError(str(error)) from error

    def response(self, query: str, prompt: str) -> tuple[str, bool]:
        """The response in a decoded query, and whether it ended by itself.

        Raises:
            RefusedError: It cannot be read.
        """
        try:
            return self._inverter.response(query, prompt)
        except (ChatError, DataError) as error:
            raise RefusedError(str(error)) from error
