"""vLLM: two ways to the log-probs of a given text, and what it takes to know which one a server has.

`/inference/v1/generate` computes the response's rows only and reuses cached contexts; it needs vLLM 0.31 with its V2
model runner and `--enable-scale-out`. `/v1/completions` with `prompt_logprobs` is in every vLLM: it computes the whole
prompt each time and returns all of it.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from gdr_plugin.api.errors import ConfigError, ModelError
from gdr_plugin.api.types import Logprobs
from gdr_plugin.models.servers.answers import Served, as_list, logprobs_of, looked_up
from gdr_plugin.models.servers.client import RefusedError
from gdr_plugin.models.servers.names import cards, choose

__all__ = ["CompletionsWire", "GenerateWire", "choose_wire", "look"]

Get = Callable[[str], dict[str, Any]]
Send = Callable[[str, Mapping[str, Any]], dict[str, Any]]

_GENERATE: Final = "/inference/v1/generate"


def look(get: Get, url: str, name: str | None, adapter: str | None) -> Served:
    """What a vLLM server says of a model.

    Args:
        get: Asks the server for a path.
        url: The server, for messages.
        name: What the user calls the model; None: the one that the server has.
        adapter: The LoRA adapter wanted, which vLLM lists as a model.

    Raises:
        ConfigError: The server is of another kind, or has no such model or adapter.
    """
    try:
        version = get("/version").get("version")
    except RefusedError as error:
        if error.status != 404:
            raise
        raise ConfigError(
            f"{url} is no vLLM server (it has no /version): is the port right? `sglang:` asks SGLang, `openai:` a "
            "provider that echoes log-probs"
        ) from error
    listed = cards(get)
    bases = [card for card in listed if card.parent is None]
    base = choose(bases if name is None else listed, url, name)
    card = base
    if adapter is not None:
        card = choose([found for found in listed if found.parent is not None], url, adapter, kind="adapter")
        if card.parent != base.name and name is not None:
            raise ConfigError(f"{url}: the adapter {adapter!r} is put on {card.parent!r} there, not on {name!r}")
    below = next((found for found in bases if found.name in (card.parent, base.name)), base)
    longest = card.longest or below.longest
    if longest is None:
        raise ConfigError(f"{url}: /v1/models does not say max_model_len of {card.name!r}: set limits.max_length")
    told = {"root": card.root, "base": below.root if card.parent else None}
    return Served(
        kind=f"vLLM {version or ''}".strip(),
        name=card.name,
        longest=longest - 1,  # one token is always generated
        tokenizers=tuple(dict.fromkeys(found for found in (card.root, below.root, below.name) if found)),
        facts=tuple((key, value) for key, value in told.items() if value),
        adapter=card.name if card.parent else None,
    )


def choose_wire(sends: Sequence[Send], served: Served, probe: Sequence[int]) -> GenerateWire | CompletionsWire:
    """The faster way, where all servers have it.

    Args:
        sends: Ask one server each.
        served: The model.
        probe: Ids of a short text.

    Raises:
        ModelError: A server fails.
    """
    fast = GenerateWire(served)
    for send in sends:
        why = _lacks(fast, send, probe)
        if why is not None:
            return CompletionsWire(served, why)
    return fast


def _lacks(fast: GenerateWire, send: Send, probe: Sequence[int]) -> str | None:
    """Why a server cannot be asked in the faster way; None where it can."""
    half = len(probe) // 2
    try:
        fast.score(send, probe[:half], probe[half:])
    except RefusedError as error:
        if error.status == 403:
            return "started without --enable-scale-out, which the faster way needs"
        if "V2 model runner" in error.said:
            return "the faster way needs vLLM's V2 model runner (on a GPU: VLLM_USE_V2_MODEL_RUNNER=1)"
        if error.status in (404, 405, 501):
            return "this vLLM has no /inference/v1/generate: 0.31 has it"
        if error.status in (400, 422):
            return f"the faster way was refused: {error.said}"
        raise
    except ModelError as error:
        if isinstance(error, NoLogprobsError):
            return f"the faster way {error}"
        raise
    return None


class NoLogprobsError(ModelError):
    """An answer without log-probs, with status 200."""


class GenerateWire:
    """Asks `/inference/v1/generate`: the head runs on the response's rows only, and contexts come from the cache.

    Args:
        served: The model.
    """

    reuses = True
    takes_ids = True
    strategy = f"vLLM, {_GENERATE}"
    why = "cached contexts are reused, and the head runs on the response's rows only"

    def __init__(self, served: Served) -> None:
        self._name = served.name
        self.again = 0
        """Answers that came without log-probs, since the cache reached beyond the context, and were asked for again."""

    def score(self, send: Send, context: Sequence[int], response: Sequence[int]) -> Logprobs:
        """Log-probs of a response's ids.

        Where the server's cache reaches past the first scored row, it answers null with status 200; it is then asked
        again, once, to leave the cache aside.

        Raises:
            NoLogprobsError: It answers null again.
            ModelError: The server failed, or its answer is not what was asked.
        """
        for skip in (False, True):
            answer = send(_GENERATE, self._body(context, response, skip=skip))
            packed = answer.get("prompt_token_id_logprobs")
            if packed is not None:
                return logprobs_of(_unpacked(packed, len(response)), len(response))
            self.again += not skip
        raise NoLogprobsError("answered without log-probs, also without its cache")

    def _body(self, context: Sequence[int], response: Sequence[int], *, skip: bool) -> dict[str, Any]:
        parameters = {
            "max_tokens": 1,
            "temperature": 0,
            "detokenize": False,
            "skip_reading_prefix_cache": skip,
            "prompt_logprob_token_ids": [[token] for token in response],
            "prompt_logprob_start": len(context) - 1,
        }
        return {"model": self._name, "token_ids": [*context, *response], "sampling_params": parameters}


class CompletionsWire:
    """Asks `/v1/completions` for `prompt_logprobs`: right on every vLLM, without its prefix cache.

    Args:
        served: The model.
        why: Why not in the faster way.
    """

    reuses = False
    takes_ids = True
    strategy = "vLLM, /v1/completions with prompt_logprobs"

    def __init__(self, served: Served, why: str) -> None:
        self._name = served.name
        self.why = f"every text is computed as a whole, without the prefix cache: {why}"

    def score(self, send: Send, context: Sequence[int], response: Sequence[int]) -> Logprobs:
        """Log-probs of a response's ids.

        Raises:
            ModelError: The server failed, or its answer is not what was asked.
        """
        ids = [*context, *response]
        body = {"model": self._name, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        answer = send("/v1/completions", body)
        rows = as_list(looked_up(answer, "choices", 0, "prompt_logprobs"), "prompt_logprobs")
        if len(rows) != len(ids):
            raise ModelError(f"it answered {len(rows)} rows for {len(ids)} tokens: was the text cut?")
        found = []
        for row, token in zip(rows[len(context) :], response, strict=True):
            entry = row.get(str(token)) if isinstance(row, dict) else None
            if entry is None:
                raise ModelError(f"its answer has no log-prob of id {token} where it was asked")
            found.append(looked_up(entry, "logprob"))
        return logprobs_of(found, len(response))


def _unpacked(packed: Any, count: int) -> list[Any]:
    """The values of a base64 .npy of shape `(count, 1)`."""
    try:
        array = np.load(io.BytesIO(base64.b64decode(packed, validate=True)), allow_pickle=False)
    except (ValueError, TypeError, EOFError, binascii.Error) as error:
        raise ModelError("its prompt_token_id_logprobs are no array of numpy") from error
    if array.shape != (count, 1) or array.dtype.kind != "f":
        raise ModelError(f"it answered an array of {array.dtype}{array.shape} for {count} tokens")
    return list(array[:, 0])
