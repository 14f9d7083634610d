"""What a trainer is given for a response that was not scored: the one policy that every adapter follows.

0.0 can be the best log-ratio of a group, so no adapter answers it for a failure unless a user asks for that number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gdr_plugin.api.errors import ConfigError, DataError

GivenUnscored: TypeAlias = "Unscored | Literal['raise', 'none'] | float"
"""What users may write: `raise`, `none`, or a number."""


@dataclass(frozen=True, slots=True)
class Unscored:
    """What becomes of a response without a reward; make one with `of`."""

    action: Literal["raise", "none", "number"] = "raise"
    number: float = 0.0
    """The reward that such a response gets; used by the action `number` alone."""

    @classmethod
    def of(cls, given: object, *, masks: bool = False, name: str = "unscored") -> Unscored:
        """Read a policy.

        Args:
            given: `raise`, `none` or a finite number, as itself or as text; or a policy.
            masks: Whether the framework leaves responses without a reward out. Most turn None into 0 or fail on it:
                there `none` is refused.
            name: What messages call the setting.

        Raises:
            ConfigError: It is none of these, or `none` where the framework does not mask.
        """
        choices = f"raise, none or a number{'' if masks else ' (none is not possible here)'}"
        policy = given if isinstance(given, Unscored) else cls._read(given)
        if policy is None:
            raise ConfigError(f"{name} must be {choices}, not {given!r}")
        if policy.action == "none" and not masks:
            raise ConfigError(
                f"{name}: none is not possible here, since this trainer turns a missing reward into 0, which can be "
                "the best of a group: take raise, or a number below what bad responses get"
            )
        return policy

    @classmethod
    def _read(cls, given: object) -> Unscored | None:
        if given in ("raise", "none"):
            return cls("raise" if given == "raise" else "none")
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            return None
        try:
            number = float(given)
        except ValueError:
            return None
        return cls("number", number) if math.isfinite(number) else None

    def reward(self, reward: float | None, reason: str | None, where: str) -> float | None:
        """What the trainer is given.

        Args:
            reward: The reward, where there is one.
            reason: Why there is none.
            where: Which response it is, for the message.

        Returns:
            The reward; the policy's number where there is none, or None where the policy says so.

        Raises:
            DataError: There is no reward and the policy is `raise`.
        """
        if reward is not None:
            return reward
        match self.action:
            case "number":
                return self.number
            case "none":
                return None
            case _:
                raise DataError(
                    f"{where} was not scored: {reason or 'no reason given'} (a number as `unscored` would give such "
                    "responses that reward)"
                )

    def __str__(self) -> str:
        return f"{self.number:g}" if self.action == "number" else self.action


RAISE = Unscored()
"""An error: the default of every framework that does not mask."""
