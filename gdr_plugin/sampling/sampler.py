"""What draws responses, whatever it runs on: how it is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.types import Conversation
from gdr_plugin.data.rows import Response

__all__ = ["Sampled", "Sampler", "Sampling"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn."""

    samples: int = 8
    """Responses to each prompt."""
    temperature: float = 1.0
    """Logits are divided by it; above 0."""
    top_p: float = 1.0
    """Tokens are drawn from the smallest set of the likeliest ones that holds this probability; 1 for all."""
    max_new_tokens: int = 512
    """Length limit of a response in the policy's tokens."""
    seed: int = 0
    """Decides the random numbers, together with each row's id."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"--samples must be 1 or more, not {self.samples}")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"--temperature must be above 0, not {self.temperature}: all samples would be the same")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p must be above 0 and at most 1, not {self.top_p}")
        if self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens must be 1 or more, not {self.max_new_tokens}")


@dataclass(frozen=True, slots=True)
class Sampled:
    """The responses to one prompt."""

    responses: tuple[Response, ...] = ()
    reason: str | None = None
    """Why there are none; else None."""


class Sampler(Protocol):
    """A policy that answers prompts."""

    @property
    def name(self) -> str:
        """The policy's name as the user wrote it."""
        ...

    @property
    def identity(self) -> str:
        """What comparable samples have in common: weights, adapter, tokenizer, template, as far as they are known."""
        ...

    def unload(self) -> None:
        """Give memory back; sampling again takes it again."""
        ...

    def sample(
        self,
        prompts: Sequence[Conversation],
        ids: Sequence[str],
        sampling: Sampling,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sampled]:
        """Draw responses.

        Args:
            prompts: What the policy answers, without any guidance.
            ids: An id for each prompt: with the seed it decides the random numbers.
            sampling: How many responses, and how they are drawn.
            progress: Told how many prompts are done, now and then.

        Returns:
            One entry a prompt, in order. A prompt that cannot be asked has a reason instead.

        Raises:
            ModelError: The policy cannot be used at all, or fails.
        """
        ...
