"""A model that servers compute: a `LogprobModel` whose weights are elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from gdr_plugin.api.errors import ModelError, PartlyScoredError
from gdr_plugin.api.models import Probe
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.digests import combine
from gdr_plugin.models.servers.answers import Served
from gdr_plugin.models.servers.client import Client
from gdr_plugin.models.servers.flow import flow
from gdr_plugin.models.servers.order import home_of, ordered
from gdr_plugin.models.servers.turns import adapters_at, taking_turns
from gdr_plugin.models.text.chat import Chat

__all__ = ["NUMERICS", "ServerModel", "Wire"]

NUMERICS = 1
"""Raise it when what is asked of servers changes, so that log-probs stored before are not used."""

Send = Callable[[str, Mapping[str, Any]], dict[str, Any]]


class Wire(Protocol):
    """A way to ask a server for log-probs."""

    @property
    def reuses(self) -> bool:
        """Whether the server keeps what it has computed of a context."""
        ...

    @property
    def takes_ids(self) -> bool:
        """Whether token ids are sent, rather than text that the server cuts into tokens itself."""
        ...

    @property
    def strategy(self) -> str:
        """What is asked, in words."""
        ...

    @property
    def why(self) -> str:
        """Why in this way, and what it costs."""
        ...

    def score(self, send: Send, context: Sequence[int], response: Sequence[int]) -> Logprobs:
        """Log-probs of a response's ids behind a context; raises `ModelError` for any answer that is not that."""
        ...


class ServerModel:
    """A language model on one or several equal servers: a `LogprobModel`.

    Make one with `open_server`. Safe to use from several threads; no more requests are under way than
    `server.concurrency` for each call of `score`.

    Args:
        spec: The model as the user asked for it.
        client: Its servers.
        served: What they say of it.
        wire: How they are asked.
        chat: Its template and tokenizer, which are local.
        vocabulary: How many ids the tokenizer has.
        probe: The fixed text as scored when it was opened.
        tokenizer: Where the tokenizer is from, and how it was compared, for people.
    """

    def __init__(
        self,
        spec: ModelSpec,
        client: Client,
        served: Served,
        wire: Wire,
        chat: Chat,
        *,
        vocabulary: int,
        probe: Probe,
        tokenizer: str,
    ) -> None:
        self.name = f"{spec.model} + {spec.adapter}" if spec.adapter else spec.model
        self.chat = chat
        self.probe = probe
        self.client = client
        self._spec = spec
        self._served = served
        self._wire = wire
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer

    @property
    def identity(self) -> str:
        """Hex digest of what the server and the user say of the weights, of tokenizer and template.

        It leaves out addresses: replicas are equal, and a server that moves is the same.
        """
        served, spec = self._served, self._spec
        return combine(
            "server",
            NUMERICS,
            spec.scheme,
            served.name,
            served.adapter,
            served.facts,
            spec.revision,
            self.chat.fingerprint,
        )

    @property
    def beside(self) -> bool:
        """Whether another model on servers may be asked at the same time: not where both take turns at one."""
        return not (self._spec.scheme == "vllm" and adapters_at(self.client.urls))

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        """Log-probs of every span's response tokens; see `LogprobModel.score`.

        Equal spans are asked once. One text of each guidance goes first, then one of each context, where the server
        keeps what it has seen.

        Raises:
            ModelError: A span has ids that the tokenizer does not have, or is too long.
            PartlyScoredError: A server failed for good; it brings what was scored before.
        """
        asked: dict[TokenSpan, int] = {}
        for place, span in enumerate(spans):
            self._check(span)
            if span.response:
                asked.setdefault(span, place)
        if not asked:
            return [np.empty(0, np.float32) for _ in spans]
        servers = len(self.client.replicas)
        order = ordered(spans, list(asked.values()), servers=servers, reuses=self._wire.reuses)
        with self._turn():
            done, failed = flow(
                lambda place: self._ask(spans[place]), order.first, order.then, at_once=self.client.settings.concurrency
            )
        if failed:
            raise _partly(self.name, failed, done, spans, asked)
        empty = np.empty(0, np.float32)
        return [done[asked[span]].copy() if span.response else empty.copy() for span in spans]

    def describe(self) -> dict[str, str]:
        """Facts for a person: the server, how it is asked and why."""
        served = self._served
        facts = {
            "backend": served.kind,
            "servers": ", ".join(self.client.urls),
            "served as": served.name,
            "adapter": served.adapter or "none",
            "tokenizer": self._tokenizer,
            "device": "the server's",
            "weights": "the server's",
            "length": f"{self.chat.max_length} tokens",
            **{f"server's {key}": value for key, value in served.facts if key != "dtype"},
        }
        facts |= {key: value for key, value in served.facts if key == "dtype"}
        if not self.beside:
            facts["turns"] = (
                "models at this server take turns, since an adapter is asked for; on a CPU set server.concurrency to 1"
            )
        how = {"strategy": self._wire.strategy, "why": self._wire.why}
        return facts | self.chat.describe() | how | {"requests at once": str(self.client.settings.concurrency)}

    def unload(self) -> None:
        """Nothing to give back here: the weights are the server's."""

    def _turn(self) -> Any:
        return taking_turns(self.client.urls if self._spec.scheme == "vllm" else ())

    def _ask(self, span: TokenSpan) -> Logprobs:
        home = home_of(span.context)
        return self._wire.score(lambda path, body: self.client.post(path, body, home=home), span.context, span.response)

    def _check(self, span: TokenSpan) -> None:
        """Refuse what a server must not be sent: some die of ids that they do not have."""
        if not span.context:
            raise ModelError(f"{self.name}: a response without a context cannot be scored")
        length = len(span.context) + len(span.response)
        if length > self.chat.max_length:
            raise ModelError(f"{self.name}: a text has {length} tokens, the limit is {self.chat.max_length}")
        highest = max(max(span.context), max(span.response, default=0))
        lowest = min(min(span.context), min(span.response, default=0))
        if highest >= self._vocabulary or lowest < 0:
            wrong = highest if highest >= self._vocabulary else lowest
            raise ModelError(f"{self.name}: id {wrong} is not one of the tokenizer's {self._vocabulary}")


def _partly(
    name: str,
    failed: Mapping[int, Exception],
    done: Mapping[int, Logprobs],
    spans: Sequence[TokenSpan],
    asked: Mapping[TokenSpan, int],
) -> PartlyScoredError:
    """One error for a call that failed: the first span's, with what was scored."""
    error = failed[min(failed)]
    if not isinstance(error, ModelError):
        raise error
    scored = {place: done[asked[span]] for place, span in enumerate(spans) if span.response and asked[span] in done}
    text = str(error)
    made = PartlyScoredError(text if "://" in text else f"{name}: {text}", scored)
    made.__cause__ = error
    return made
