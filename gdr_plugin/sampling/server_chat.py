"""A policy on any server with OpenAI's `/v1/chat/completions`: it is sent messages and renders them itself.

How it renders them, and what it leaves out, cannot be seen from here; what was cut and what was refused can.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from gdr_plugin.api.errors import ConfigError, ModelError
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.api.types import TEXT, TOOLS, Conversation, Message
from gdr_plugin.data.rows import Response
from gdr_plugin.models.digests import combine
from gdr_plugin.models.servers.address import read_address
from gdr_plugin.models.servers.answers import looked_up
from gdr_plugin.models.servers.client import Client, RefusedError
from gdr_plugin.models.servers.names import Card, cards, choose
from gdr_plugin.models.text.reasoning import USUAL
from gdr_plugin.sampling.sampler import Sampling

__all__ = ["ChatPolicy"]

_NEWER = "max_completion_tokens"
_COMPLETE = ("sglang", "vllm")
"""Owners, in a card of `/v1/models`, of servers that list all of their models."""
_REASONING = ("reasoning_content", "reasoning")


class ChatPolicy:
    """Asks for chat completions; see `server.Policy`.

    Args:
        spec: The policy: `openai:` and an address.

    Raises:
        ConfigError: The address is wrong, there is no such model, or a key does not apply.
        ModelError: A server cannot be reached.
    """

    turns: Sequence[str] = ()

    def __init__(self, spec: ModelSpec) -> None:
        for key in ("adapter", "chat_template"):
            if getattr(spec, key) is not None:
                raise ConfigError(f"--policy {spec.model}: `{key}` does not apply: the server renders the messages")
        address = read_address(spec.model, spec.target)
        self.client = Client(address.urls, spec.server, purpose="to ask a server for responses")
        found = [
            _model(partial(self.client.get, replica), replica.url, address.name) for replica in self.client.replicas
        ]
        if len({(card.name, card.root) for card in found}) > 1:
            raise ConfigError(f"--policy {spec.model}: the servers have different models: replicas have to be equal")
        self._name = found[0].name
        self._variables = dict(spec.chat_template_kwargs)
        self._limit = "max_tokens"
        self.identity = combine(
            "chat policy on a server", self._name, found[0].root, spec.revision, sorted(self._variables.items())
        )

    def prepare(self, prompt: Conversation, room: int) -> list[dict[str, Any]] | str:
        """The prompt's messages, or why they cannot be sent."""
        if any(turn.role == TEXT for turn in prompt):
            return "policy: a prompt that is rendered text cannot be sent as messages: use `vllm:` or `sglang:`"
        if any(turn.role == TOOLS for turn in prompt):
            return (
                "policy: calls of tools come back in parts, whose text only the model's template knows: use `vllm:` or "
                "`sglang:` for prompts with tools"
            )
        return [_message(turn) for turn in prompt]

    def ask(self, prepared: list[dict[str, Any]], sampling: Sampling, seed: int) -> Response | str:
        """One response, or why there is none.

        Raises:
            ModelError: No server answers, or an answer is not what was asked.
        """
        body: dict[str, Any] = {
            "model": self._name,
            "messages": prepared,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        }
        if self._variables:
            body["chat_template_kwargs"] = self._variables
        limit = self._limit
        try:
            answer = self.client.post("/v1/chat/completions", body | {limit: sampling.max_new_tokens})
        except RefusedError as error:
            if limit == _NEWER or _NEWER not in error.said:
                raise
            self._limit = _NEWER  # newer models of some providers know the limit by this name only
            answer = self.client.post("/v1/chat/completions", body | {_NEWER: sampling.max_new_tokens})
        choice = looked_up(answer, "choices", 0)
        finish, message = looked_up(choice, "finish_reason"), looked_up(choice, "message")
        if finish == "content_filter":
            return "policy: the provider filtered an answer"
        if finish == "tool_calls" or looked_up(message, "role") != "assistant" or message.get("tool_calls"):
            return "policy: an answer calls tools"
        if finish not in ("stop", "length"):
            raise ModelError(f"an answer ended with {finish!r}")
        return Response(_text(message, finished=finish == "stop"), finish == "stop")


def _model(get: Any, url: str, name: str | None) -> Card:
    """The model that is meant; not every server lists its models, or all of them."""
    listed: list[Card] = []
    try:
        listed = cards(get)
    except RefusedError as error:
        if error.status not in (404, 405, 501):
            raise
    if name is None and not listed:
        raise ConfigError(f"{url}: which model is meant? It lists none: write the name behind the address")
    # SGLang answers to any name.
    complete = any(card.owner in _COMPLETE for card in listed)
    if name is not None and not complete and all(card.name != name for card in listed):
        return Card(name, None, None, None, "")
    return choose(listed, url, name)


def _message(turn: Message) -> dict[str, Any]:
    """A turn in OpenAI's form."""
    found: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.reasoning:
        found["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        found["tool_calls"] = [
            {
                "type": "function",
                "id": call.id or f"call_{number}",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for number, call in enumerate(turn.tool_calls)
        ]
    if turn.tool_call_id is not None:
        found["tool_call_id"] = turn.tool_call_id
    if turn.name is not None:
        found["name"] = turn.name
    return found


def _text(message: dict[str, Any], *, finished: bool) -> str:
    """An answer's text; reasoning that came apart from it stands before it, between the usual marks."""
    content = message.get("content") or ""
    reasoning = next((message[key] for key in _REASONING if message.get(key)), "")
    if not isinstance(content, str) or not isinstance(reasoning, str):
        raise ModelError(f"an answer's content is no text: {json.dumps(content)[:80]}")
    if not reasoning:
        return content
    opened = f"{USUAL.opening}\n{reasoning.strip()}"
    if not content and not finished:
        return opened  # cut while it reasoned
    return f"{opened}\n{USUAL.closing}\n\n{content.lstrip()}"
