"""Opens a model on servers: finds out what they are and what they can, before any work starts.

A handful of short requests to each server; no weights are needed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gdr_plugin.api.errors import ConfigError, ModelError
from gdr_plugin.api.models import PROBE_NOISE, Probe
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.models.servers import openai, sglang, vllm
from gdr_plugin.models.servers.address import read_address
from gdr_plugin.models.servers.answers import Served
from gdr_plugin.models.servers.client import Client
from gdr_plugin.models.servers.model import ServerModel, Wire
from gdr_plugin.models.servers.probe import check_tokenizer, probe_ids, probed
from gdr_plugin.models.servers.turns import taking_turns, with_adapters
from gdr_plugin.models.text.opening import generation_stops, open_chat, tokenizer_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gdr_plugin.models.text.chat import Chat

__all__ = ["Found", "find_server", "open_server"]

_NAMES: Final = {"openai": "a provider", "sglang": "an SGLang server", "vllm": "a vLLM server"}
_HUB_ID: Final = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_LOCAL_KEYS: Final = ("dtype", "device", "device_map", "tensor_parallel_size")

Send = Callable[[str, Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Found:
    """A model on servers as they describe it, with its tokenizer and template, which are local."""

    client: Client
    served: Served
    chat: Chat
    tokenizer: PreTrainedTokenizerBase
    origin: str
    """Where the tokenizer is from, and how it was compared, for people."""

    @property
    def sends(self) -> list[Send]:
        """Asks one server each."""
        return [partial(self.client.post_to, replica) for replica in self.client.replicas]


def find_server(spec: ModelSpec, limits: Limits | None = None) -> Found:
    """Find out what a model on servers is, without asking for any number.

    Args:
        spec: The model as the user asked for it: `vllm:`, `sglang:` or `openai:` and an address.
        limits: Lengths, and what happens to what is longer.

    Raises:
        ConfigError: A key does not apply, the address is wrong, the server is of another kind, has no such model, or
            another tokenizer.
        ModelError: A server cannot be reached.
        MissingDependencyError: httpx2 is not installed.
    """
    limits = limits or Limits()
    for key in _LOCAL_KEYS:
        if getattr(spec, key) != ModelSpec.model_fields[key].default:
            raise ConfigError(f"model {spec.model!r}: `{key}` does not apply to a model on a server: leave it out")
    address = read_address(spec.model, spec.target)
    client = Client(address.urls, spec.server, purpose=f"to ask {_NAMES[spec.scheme]}")
    looked = [_look(spec, client, at, address.name) for at in range(len(address.urls))]
    served = _agreed(looked, client)
    if spec.scheme == "vllm" and served.adapter is not None:
        with_adapters(client.urls)
    tokenizer, place = _tokenizer(spec, served)
    if served.longest is None and limits.max_length is None:
        raise ConfigError(f"{client.urls[0]} does not say how long a text may be: set limits.max_length")
    chat = open_chat(tokenizer, spec, limits, longest=served.longest, stops=_stops(place, served))
    own_template = spec.chat_template is None and not spec.chat_template_kwargs
    compared = "not compared: providers do not tell"
    found = Found(client, served, chat, tokenizer, "")
    for send, url in zip(found.sends, client.urls, strict=True):
        if spec.scheme != "openai":
            compared = check_tokenizer(send, tokenizer, served.name, url, template=own_template)
    return replace(found, origin=f"{place} ({compared})")


def open_server(spec: ModelSpec, limits: Limits | None = None) -> ServerModel:
    """Open a model on servers.

    Args:
        spec: As for `find_server`.
        limits: As for `find_server`.

    Returns:
        The model. Its tokenizer and template are local; they were compared with the server's where it tells.

    Raises:
        ConfigError: As for `find_server`, or replicas serve different weights.
        ModelError: A server cannot be reached, or its numbers cannot be used.
        MissingDependencyError: httpx2 is not installed.
    """
    found = find_server(spec, limits)
    client, served, tokenizer = found.client, found.served, found.tokenizer
    with taking_turns(client.urls if spec.scheme == "vllm" else ()):
        wire, probe = _asked(spec, client, served, tokenizer, found.sends)
    chat = found.chat
    if not wire.takes_ids:
        chat = copy(chat)  # a model of this process may have the same one
        chat.sent_as_text = True
    return ServerModel(
        spec,
        client,
        served,
        wire,
        chat,
        vocabulary=len(tokenizer),
        probe=probe,
        tokenizer=found.origin,
    )


def _look(spec: ModelSpec, client: Client, at: int, name: str | None) -> Served:
    replica = client.replicas[at]
    look = {"openai": openai.look, "sglang": sglang.look, "vllm": vllm.look}[spec.scheme]
    return look(partial(client.get, replica), replica.url, name, spec.adapter)


def _agreed(found: Sequence[Served], client: Client) -> Served:
    """What all servers say; the shortest of their lengths."""
    first = found[0]
    for url, other in zip(client.urls, found, strict=True):
        if (other.name, other.adapter, other.facts) != (first.name, first.adapter, first.facts):
            raise ConfigError(
                f"{client.urls[0]} and {url} serve different models ({_about(first)}; {_about(other)}): replicas have "
                "to be equal"
            )
    return min(found, key=lambda served: served.longest or 1 << 30)


def _about(served: Served) -> str:
    return ", ".join([served.name, *(f"{key} {value}" for key, value in served.facts)])


def _tokenizer(spec: ModelSpec, served: Served) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer that the spec names, else one found where the server says that the model is."""
    if spec.tokenizer:
        return tokenizer_at(spec.tokenizer, trust_remote_code=spec.trust_remote_code), spec.tokenizer
    for place in served.tokenizers:
        folder = Path(place)
        if folder.is_absolute():
            if not (folder / "tokenizer.json").is_file():
                continue
        elif not _HUB_ID.fullmatch(place):
            continue
        try:
            return tokenizer_at(place, None, trust_remote_code=spec.trust_remote_code), place
        except ModelError:
            continue
    tried = ", ".join(map(repr, served.tokenizers)) or "nothing"
    raise ConfigError(
        f"model {spec.model!r}: set `tokenizer` to a folder or hub id: texts are rendered and tokenized here, and what "
        f"the server calls the model ({tried}) cannot be opened here"
    )


def _stops(place: str, served: Served) -> frozenset[int]:
    """The EOS ids of the generation config, beside the tokenizer or where the model is."""
    folders = [other for other in served.tokenizers if Path(other).is_absolute()]
    return next((stops for found in (place, *folders) if (stops := generation_stops(found))), frozenset())


def _asked(
    spec: ModelSpec, client: Client, served: Served, tokenizer: PreTrainedTokenizerBase, sends: Sequence[Send]
) -> tuple[Wire, Probe]:
    """How the servers are asked, and the fixed text's log-probs, on which all of them agree."""
    ids = probe_ids(tokenizer)
    try:
        if spec.scheme == "sglang":
            wire: Wire = sglang.SGLangWire(served, len(tokenizer))
        elif spec.scheme == "vllm":
            wire = vllm.choose_wire(sends, served, ids)
        else:
            wire = openai.choose_wire(sends, served, tokenizer, ids)
        probes = [
            probed(partial(wire.score, send), ids, url, openai.CAN)
            for send, url in zip(sends, client.urls, strict=True)
        ]
    except ModelError as error:
        text = str(error)
        raise error if "://" in text else ModelError(f"{', '.join(client.urls)}: {text}") from error
    for url, probe in zip(client.urls, probes, strict=True):
        if (gap := probe.gap(probes[0].logprobs)) > PROBE_NOISE:
            raise ConfigError(
                f"{client.urls[0]} and {url} serve different weights as {served.name!r}: a fixed text differs by "
                f"{gap:.2f} nats a token; replicas have to be equal"
            )
    return wire, probes[0]
