"""On-policy responses: what a local model answers to the prompts.

Knows the policy's chat template, how prompts are put together into batches and how ids become text; `decode` draws the
tokens. It knows nothing of rewards or files. Each response has its own random numbers, from the seed, the row's id and
the sample's number: it depends neither on the other prompts nor on what ran before (beyond the rounding of a batch).
"""

from __future__ import annotations

from dataclasses import dataclass

from gdr_plugin.config import Limits, ModelSpec
from gdr_plugin.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn."""

    samples: int = 8
    """Responses a prompt."""
    temperature: float = 1.0
    """Logits are divided by it; above 0."""
    top_p: float = 1.0
    """Tokens are drawn from the smallest set of the likeliest ones that holds this probability; 1 for all."""
    max_new_tokens: int = 512
    """Length limit of a response in the policy's tokens."""
    seed: int = 0

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

    responses: tuple[tuple[str, bool], ...] = ()
    """Text, and whether it ended by itself rather than at the length limit."""
    reason: str | None = None
    """Why there are none; else None."""


class PolicySampler:
    """Draws responses from a local model under its own chat template."""

    def __init__(self, spec: ModelSpec, limits: Limits | None = None, *, batch: int | None = None) -> None:
        raise NotImplementedError
