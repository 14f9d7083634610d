"""A policy on vLLM or SGLang, which takes the ids of a prompt and answers with ids.

System turns, tools and reasoning are those of our own rendering, as for a local policy, and an answer's text is made in
the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gdr_plugin.api.errors import ModelError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Conversation
from gdr_plugin.data.rows import Response
from gdr_plugin.models.digests import combine
from gdr_plugin.models.servers.answers import as_list, looked_up
from gdr_plugin.models.servers.open import find_server
from gdr_plugin.models.servers.order import home_of
from gdr_plugin.sampling.sampler import Sampling
from gdr_plugin.sampling.texts import Context, PolicyTexts

__all__ = ["IdsPolicy"]

Send = Callable[[str, Mapping[str, Any]], dict[str, Any]]

PLAIN = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""What a server must not take from the model's generation config: it would change the distribution unasked."""


class Drawn(NamedTuple):
    """What a server drew."""

    ids: list[int]
    finish: str
    """`stop` or `length`; whatever else ended it is no answer."""
    stop: int | None
    """The id that the server says it stopped at, which may be the last of `ids` or missing there."""


class IdsPolicy:
    """Asks vLLM or SGLang for responses; see `server.Policy`.

    Args:
        spec: The policy.
        limits: Lengths, and what happens to longer prompts.

    Raises:
        ConfigError: See `find_server`.
        ModelError: See `find_server`.
    """

    def __init__(self, spec: ModelSpec, limits: Limits | None) -> None:
        found = find_server(spec, limits)
        self.client = found.client
        self.turns: Sequence[str] = found.client.urls if spec.scheme == "vllm" else ()
        self._texts = PolicyTexts(found.chat, found.tokenizer)
        self._ends = found.chat.stop_ids
        self._served = found.served
        self._draw = self._vllm if spec.scheme == "vllm" else self._sglang
        served = found.served
        self.identity = combine(
            "policy on a server",
            spec.scheme,
            served.name,
            served.adapter,
            served.facts,
            spec.revision,
            found.chat.fingerprint,
        )

    def prepare(self, prompt: Conversation, room: int) -> tuple[Context, str] | str:
        """The prompt's ids and the mark of reasoning that they open, or why it cannot be asked."""
        return self._texts.asked(prompt, room)

    def ask(self, prepared: tuple[Context, str], sampling: Sampling, seed: int) -> Response | str:
        """One response.

        Raises:
            ModelError: No server answers, or an answer is not what was asked.
        """
        context, opened = prepared
        home = home_of(context)
        drawn = self._draw(lambda path, body: self.client.post(path, body, home=home), context, sampling, seed)
        ids = drawn.ids
        if drawn.finish not in ("stop", "length"):
            raise ModelError(f"an answer ended with {drawn.finish!r}")
        ends = set(self._ends)
        if drawn.finish == "stop":
            if drawn.stop is not None:
                ends.add(drawn.stop)
                ids = ids if ids[-1:] == [drawn.stop] else [*ids, drawn.stop]
            elif not ids or ids[-1] not in ends:
                raise ModelError("it says that an answer stopped, but not at which token")
        if not 0 < len(ids) <= sampling.max_new_tokens + 1:
            raise ModelError(f"an answer has {len(ids)} tokens where {sampling.max_new_tokens} were asked for at most")
        return self._texts.response(ids, ends if drawn.finish == "stop" else (), opened)

    def _vllm(self, send: Send, context: Context, sampling: Sampling, seed: int) -> Drawn:
        body = {
            "model": self._served.name,
            "prompt": list(context),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "stop_token_ids": sorted(self._ends),
            "return_token_ids": True,
            "skip_special_tokens": False,
            **PLAIN,
        }
        answer = send("/v1/completions", body)
        choice = looked_up(answer, "choices", 0)
        stop = choice.get("stop_reason")
        return Drawn(
            _ids(looked_up(choice, "token_ids")),
            str(looked_up(choice, "finish_reason")),
            stop if isinstance(stop, int) else None,
        )

    def _sglang(self, send: Send, context: Context, sampling: Sampling, seed: int) -> Drawn:
        body: dict[str, Any] = {
            "input_ids": list(context),
            "sampling_params": {
                "max_new_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "sampling_seed": seed,
                "stop_token_ids": sorted(self._ends),
                "no_stop_trim": True,
                "skip_special_tokens": False,
                **PLAIN,
            },
        }
        if self._served.adapter is not None:
            body["lora_path"] = self._served.adapter
        answer = send("/generate", body)
        reason = looked_up(answer, "meta_info", "finish_reason")
        stop = reason.get("matched") if isinstance(reason, dict) else None
        return Drawn(
            _ids(looked_up(answer, "output_ids")),
            str(looked_up(reason, "type")),
            stop if isinstance(stop, int) else None,
        )


def _ids(found: Any) -> list[int]:
    ids = as_list(found, "drawn ids")
    if not all(isinstance(id, int) and id >= 0 for id in ids):
        raise ModelError("its answer's ids are no numbers")
    return ids
