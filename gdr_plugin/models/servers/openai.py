"""Providers with OpenAI's old completions: with `echo` and `logprobs` they give the log-probs of a prompt.

Few do, and some give wrong ones: `probe` finds out before any work starts. Token ids are sent where they are taken,
else text, whose tokens have to come back as the ids that were meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from gdr_plugin.api.errors import ConfigError, ModelError
from gdr_plugin.api.types import Logprobs
from gdr_plugin.models.servers.answers import Served, as_list, logprobs_of, looked_up
from gdr_plugin.models.servers.client import RefusedError
from gdr_plugin.models.servers.names import Card, cards, choose

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CAN", "EchoWire", "choose_wire", "look"]

Get = Callable[[str], dict[str, Any]]
Send = Callable[[str, Mapping[str, Any]], dict[str, Any]]

CAN: Final = (
    "what can is vLLM (`vllm:`), SGLang (`sglang:`), LMDeploy and other servers that echo, or a model in this process"
)
_CANNOT: Final = {"llamacpp": "llama.cpp's server", "library": "Ollama", "organization_owner": "LM Studio"}
"""Who a card of `/v1/models` says it is owned by -> a server that gives no log-probs of a given text."""
_BETTER: Final = {"vllm": "vLLM", "sglang": "SGLang"}


def look(get: Get, url: str, name: str | None, adapter: str | None) -> Served:
    """What a provider says of a model; not all list theirs.

    Args:
        get: Asks the server for a path.
        url: The server, for messages.
        name: What the user calls the model; None: the one that the server has.
        adapter: The adapter wanted: a model of its own, where the provider has such.

    Raises:
        ConfigError: The server is known to give no log-probs, or has no such model.
    """
    listed: list[Card] = []
    try:
        listed = cards(get)
    except RefusedError as error:
        if error.status not in (404, 405, 501):
            raise
    for card in listed:
        if card.owner in _CANNOT:
            raise ConfigError(f"{url} is {_CANNOT[card.owner]}, which gives no log-probs of a given text: {CAN}")
    if adapter is not None:
        raise ConfigError(f"{url}: `adapter` does not apply to `openai:`: write the adapter's name as the model's")
    if name is None and not listed:
        raise ConfigError(f"{url}: which model is meant? It lists none: write the name behind the address")
    # Providers list some models only, so that a name which is not there may still be one.
    found = {card.name: card for card in listed}
    only = choose(listed, url) if name is None else found.get(name)
    names = [only.root if only else None, only.name if only else name]
    owner = only.owner if only and only.owner else "unknown"
    return Served(
        kind=f"OpenAI's completions, server of {_BETTER.get(owner, owner)}",
        name=only.name if only else str(name),
        longest=only.longest - 1 if only and only.longest else None,
        tokenizers=tuple(dict.fromkeys(place for place in names if place)),
        facts=(("root", only.root),) if only and only.root else (),
    )


class EchoWire:
    """Asks for a completion that repeats its prompt with log-probs.

    Args:
        served: The model.
        tokenizer: Its tokenizer.
        as_ids: Whether the prompt is sent as ids.
        generate: How many tokens the server has to add: 0 where it may.
    """

    reuses = False

    @property
    def takes_ids(self) -> bool:
        """See `Wire.takes_ids`."""
        return self._as_ids

    def __init__(self, served: Served, tokenizer: PreTrainedTokenizerBase, *, as_ids: bool, generate: int) -> None:
        self._name = served.name
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._generate = generate
        self.strategy = f"/v1/completions with echo, {'token ids' if as_ids else 'text'}"
        how = "" if as_ids else ", as text whose tokens are compared with the ids meant, since it takes no ids"
        self.why = f"every text is computed as a whole{how}; the provider's numbers passed a check of a fixed text"
        self._piece = lru_cache(maxsize=1 << 16)(self._decoded)

    def score(self, send: Send, context: Sequence[int], response: Sequence[int]) -> Logprobs:
        """Log-probs of a response's ids.

        Raises:
            ModelError: The server failed, or its answer is not about these ids.
        """
        ids = [*context, *response]
        body = {
            "model": self._name,
            "prompt": ids if self._as_ids else self._text(ids),
            "max_tokens": self._generate,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        answer = send("/v1/completions", body)
        if not looked_up(answer, "choices", 0).get("logprobs"):
            raise ModelError(f"it gives no log-probs of a given text: {CAN}")
        rows = as_list(looked_up(answer, "choices", 0, "logprobs", "token_logprobs"), "token_logprobs")
        tokens = as_list(looked_up(answer, "choices", 0, "logprobs", "tokens"), "tokens")
        if len(rows) <= max(1, self._generate) < len(ids):
            raise ModelError(f"it gives the log-probs of what it wrote, not of the given text: {CAN}")
        self._compare(tokens, ids)
        if not len(ids) <= len(rows) <= len(ids) + self._generate or len(tokens) != len(rows):
            raise ModelError(f"it answered {len(rows)} log-probs for {len(ids)} tokens")
        return logprobs_of(rows[len(context) : len(ids)], len(response))

    def _text(self, ids: Sequence[int]) -> str:
        decode: Any = self._tokenizer.decode
        text: str = decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _decoded(self, token: int) -> str:
        return _plain(self._text([token]))

    def _compare(self, tokens: Sequence[Any], ids: Sequence[int]) -> None:
        """Whether the tokens that came back are the ids that were meant; parts of characters cannot be compared."""
        for place, (token, own) in enumerate(zip(tokens, ids, strict=False)):
            theirs, ours = _plain(str(token)), self._piece(own)
            unclear = "\ufffd" in theirs + ours or str(token).startswith("bytes:") or not ours or not theirs
            if theirs != ours and not unclear:
                raise ModelError(
                    f"it cuts the text into other tokens ({str(token)!r} instead of {ours!r} at {place}): `tokenizer` "
                    "is not the one that the model was trained with, or the text cannot be sent to it"
                )


def choose_wire(
    sends: Sequence[Send], served: Served, tokenizer: PreTrainedTokenizerBase, probe: Sequence[int]
) -> EchoWire:
    """The first way that all servers take: ids or text, without or with a token of their own.

    Args:
        sends: Ask one server each.
        served: The model.
        tokenizer: Its tokenizer.
        probe: Ids of a short text.

    Raises:
        ModelError: None works: the provider gives no log-probs of a given text.
    """
    half = len(probe) // 2
    last: ModelError | None = None
    for as_ids in (True, False):
        for generate in (0, 1):
            wire = EchoWire(served, tokenizer, as_ids=as_ids, generate=generate)
            try:
                for send in sends:
                    wire.score(send, probe[:half], probe[half:])
            except RefusedError as error:
                if error.status not in (400, 422, 500, 501):
                    raise
                last = last or error
            except ModelError as error:
                last = error
            else:
                return wire
    text = str(last)
    raise ModelError(text if CAN in text else f"{text}; {CAN}")


def _plain(token: str) -> str:
    """A token as text, however a server spells its spaces."""
    return token.replace("\u2581", " ").replace("\u0120", " ").replace("\u010a", "\n").strip(" ")
