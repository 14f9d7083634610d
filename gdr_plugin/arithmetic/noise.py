"""How far rounding moves a reward, by the precision that the models compute in: which margins mean nothing.

Knows dtypes, token counts and reductions; nothing of models, files or pairs. The figures were measured on one model of
135M parameters, strong = weak + adapter (`python -m benchmarks.precision` gives them as "a root token"): bfloat16
against float32 on 528 pairs of 288 drawn and people's responses, float16 on 56 pairs, float32 against float64 on 28.
For other models they are an order of magnitude, no bound.

Errors of tokens add up like steps of a random walk: the error of a response's sum grows with the square root of its
tokens. Divided by that root it was the same within a fifth from 10 tokens to 250. Strong's and weak's errors hardly
cancel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gdr_plugin.api.types import Reduction
from gdr_plugin.arithmetic.reduction import divisors

__all__ = ["TOKEN_ERROR", "RewardNoise"]

TOKEN_ERROR = {"float32": 1.3e-5, "float16": 0.010, "bfloat16": 0.051}
"""Standard deviation of a reward's rounding error by dtype, in nats for one response token; `n` tokens have
`sqrt(n)` times that. Taken from margins of two responses to one prompt, since what their errors share cancels there.
Where the host program lets float32 products be cut to TF32 or bfloat16, models say so in their dtype (`float32 by
tf32`), and nothing is known of them."""
SURE = 3.0
"""A margin under this many standard deviations of its error may have its sign from rounding."""


@dataclass(frozen=True, slots=True)
class RewardNoise:
    """The rounding error to expect in one run's rewards."""

    token_error: float
    """Standard deviation for one response token, in nats; see `TOKEN_ERROR`."""
    reduction: Reduction
    """How the rewards were reduced; decides the unit."""

    @classmethod
    def of(cls, dtypes: Iterable[str | None], reduction: Reduction) -> RewardNoise | None:
        """The error to expect from two models.

        Args:
            dtypes: What both models compute in; None where a backend does not say.
            reduction: How token log-probs become a reward.

        Returns:
            The error of the coarser of the two; None when one of them is not known.
        """
        errors = [TOKEN_ERROR.get(dtype or "") for dtype in dtypes]
        known = [error for error in errors if error is not None]
        return cls(max(known), reduction) if known and len(known) == len(errors) else None

    def response_sd(self, response: str, tokens: int) -> float:
        """Standard deviation of one reward's error, in the reward's own unit.

        Args:
            response: The response's text.
            tokens: Its length in the strong model's tokens.
        """
        divisor, _ = divisors(response, tokens, tokens, self.reduction)
        return self.token_error * math.sqrt(tokens) / max(1, divisor)

    def hides(self, margin: float, chosen: tuple[str, int], rejected: tuple[str, int]) -> bool:
        """Whether a margin is so small that rounding may have decided its sign.

        Args:
            margin: Chosen minus rejected, in the reward's own unit.
            chosen: Its text, and its length in the strong model's tokens.
            rejected: Its text, and its length in the strong model's tokens.

        Returns:
            True when it is under three standard deviations of its error.
        """
        return abs(margin) < SURE * math.hypot(self.response_sd(*chosen), self.response_sd(*rejected))
