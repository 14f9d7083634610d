"""On-policy responses from servers: vLLM and SGLang are sent ids of our own rendering, others are sent messages.

Knows requests and answers; `models.servers` knows the connection. Each response is a request of its own with a seed of
its own, made from the run's seed, the row's id and the response's number, as the local policy's random numbers are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from gdr_plugin.api.errors import ConfigError, ModelError
from gdr_plugin.api.settings import Limits, ModelSpec, ServerSection
from gdr_plugin.api.types import Conversation, Message
from gdr_plugin.data.rows import Response
from gdr_plugin.models.servers.client import Client, RefusedError
from gdr_plugin.models.servers.flow import flow
from gdr_plugin.models.servers.turns import taking_turns
from gdr_plugin.sampling.sampler import Sampled, Sampling
from gdr_plugin.sampling.server_chat import ChatPolicy
from gdr_plugin.sampling.server_ids import IdsPolicy

__all__ = ["SCHEMES", "ServerSampler", "request_seed"]

SCHEMES: Final = frozenset({"openai", "sglang", "vllm"})
"""Schemes of models that servers compute."""
_PROMPTS_FAULT: Final = frozenset({400, 413, 422})
"""Statuses of what is wrong with one request, rather than with all of them."""
_HELLO: Final = (Message("user", "Hello"),)


def request_seed(seed: int, row: str, sample: int) -> int:
    """The seed of one request, below 2**31: servers disagree about larger ones.

    Args:
        seed: The run's seed.
        row: The row's id.
        sample: The number of the response among those to the row.
    """
    key = f"gdr request\0{seed}\0{sample}\0{row}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "little") >> 1


class Policy(Protocol):
    """A way to ask a server for responses."""

    @property
    def client(self) -> Client:
        """The connection."""
        ...

    @property
    def identity(self) -> str:
        """What comparable samples have in common, as far as server and user tell."""
        ...

    @property
    def turns(self) -> Sequence[str]:
        """Servers at which models take turns."""
        ...

    def prepare(self, prompt: Conversation, room: int) -> Any:
        """What `ask` needs of a prompt; or a text that says why it cannot be asked."""
        ...

    def ask(self, prepared: Any, sampling: Sampling, seed: int) -> Response | str:
        """One response, or why there is none; raises `ModelError`."""
        ...


class ServerSampler:
    """Draws responses from a model on one or several equal servers: a `Sampler`.

    Making one asks the servers what they are, and for one short answer with all that a run asks for.

    Args:
        spec: The policy: `vllm:`, `sglang:` or `openai:` and an address. `openai:` is any server with
            `/v1/chat/completions`; it renders the prompts itself.
        limits: Greatest length, and what happens to longer prompts; not for `openai:`, whose server decides.
        batch: Requests at once; default: `server.concurrency`.

    Raises:
        ConfigError: The address is wrong, there is no such model, or the server refuses what sampling asks for.
        ModelError: A server cannot be reached.
    """

    def __init__(self, spec: ModelSpec, limits: Limits | None = None, *, batch: int | None = None) -> None:
        if batch is not None:
            if batch < 1:
                raise ConfigError(f"--policy-batch must be 1 or more, not {batch}")
            settings = (spec.server or ServerSection()).model_copy(update={"concurrency": batch})
            spec = spec.model_copy(update={"server": settings})
        self.name = f"{spec.model} + {spec.adapter}" if spec.adapter else spec.model
        self._policy: Policy = ChatPolicy(spec) if spec.scheme == "openai" else IdsPolicy(spec, limits)
        self._try()

    @property
    def identity(self) -> str:
        """What comparable samples have in common, as far as it is known: the served model and the template."""
        return self._policy.identity

    def unload(self) -> None:
        """Nothing to give back here: the weights are the server's."""

    def sample(
        self,
        prompts: Sequence[Conversation],
        ids: Sequence[str],
        sampling: Sampling,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sampled]:
        """Draw responses; see `Sampler.sample`.

        The first response to each prompt is asked for before its others, which find the prompt in the server's cache.

        Raises:
            ModelError: No server answers, or one refuses what has nothing to do with a prompt.
        """
        policy = self._policy
        asked = [policy.prepare(prompt, sampling.max_new_tokens) for prompt in prompts]
        usable = [index for index, found in enumerate(asked) if not isinstance(found, str)]
        count = _Count(sampling.samples, progress)

        def draw(item: tuple[int, int]) -> Response | str:
            index, number = item
            try:
                return policy.ask(asked[index], sampling, request_seed(sampling.seed, ids[index], number))
            except RefusedError as error:
                if error.status not in _PROMPTS_FAULT:
                    raise
                return f"policy: the server refused it: {error.said}"

        def then(item: tuple[int, int]) -> list[tuple[int, int]]:
            count.one()
            return [(item[0], number) for number in range(1, sampling.samples)] if item[1] == 0 else []

        with taking_turns(policy.turns):
            drawn, failed = flow(
                draw, [(index, 0) for index in usable], then, at_once=policy.client.settings.concurrency
            )
        if failed:
            raise self._error(failed[min(failed)])
        results = [Sampled(reason=found) if isinstance(found, str) else Sampled() for found in asked]
        for index in usable:
            responses = [drawn[index, number] for number in range(sampling.samples)]
            reason = next((found for found in responses if isinstance(found, str)), None)
            kept = tuple(found for found in responses if not isinstance(found, str))
            results[index] = Sampled(kept) if reason is None else Sampled(reason=reason)
        return results

    def _try(self) -> None:
        """Ask for a short answer, so that what a server refuses always is known before the work begins."""
        asked = self._policy.prepare(_HELLO, 16)
        if isinstance(asked, str):
            raise ConfigError(f"--policy {self.name}: {asked.removeprefix('policy: ')}")
        try:
            with taking_turns(self._policy.turns):
                found = self._policy.ask(asked, Sampling(max_new_tokens=16), 1)
        except RefusedError as error:
            raise ConfigError(f"--policy {self.name}: {error}") from error
        except ModelError as error:
            raise self._error(error) from error
        if isinstance(found, str):
            raise ConfigError(f"--policy {self.name}: {found.removeprefix('policy: ')}")

    def _error(self, error: Exception) -> Exception:
        if not isinstance(error, ModelError) or "://" in str(error):
            return error
        made = ModelError(f"{self.name}: {error}")
        made.__cause__ = error
        return made


class _Count:
    """Tells how many prompts' worth of responses have come; called in one thread."""

    def __init__(self, samples: int, progress: Callable[[int], None] | None) -> None:
        self._samples, self._progress, self._done = samples, progress, 0

    def one(self) -> None:
        self._done += 1
        if self._progress is not None and self._done % self._samples == 0:
            self._progress(self._done // self._samples)
