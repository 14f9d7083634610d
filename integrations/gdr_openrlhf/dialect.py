"""Turns OpenRLHF's requests into samples, and scores into its answers. Knows its shapes; nothing of HTTP or models.

OpenRLHF sends `query` (prompt and response decoded from token ids), `prompts` (templated strings) and `labels` (any
JSON). Contract read from the released packages 0.6.4 to 0.11.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gdr_plugin.adapters.backend import trainer_reward
from gdr_plugin.adapters.rendered import RenderedSamples
from gdr_plugin.api.types import Sample, Score
from gdr_plugin.serve.service import squash

LOGS: Final = (
    "gdr_reward",
    "gdr_strong_logprob",
    "gdr_weak_logprob",
    "gdr_tokens",
    "gdr_finished",
    "gdr_truncated",
    "gdr_default_domain",
    "gdr_clipped",
    "gdr_unscored",
)
"""The keys of `extra_logs`. `gdr_reward` is the reward before scale and clip; the last five are 0 or 1."""


class Dialect(RenderedSamples):
    """Reads OpenRLHF's requests and writes its answers; of the settings it takes `temperature`, too."""

    def answer(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, Any]:
        """What OpenRLHF reads: `rewards`, `scores` and `extra_logs`, lists as long as the samples.

        Args:
            samples: From `samples`.
            scores: Theirs.

        Returns:
            Finite numbers only. `rewards` are scaled, then clipped; `scores` are the logistic function of reward by
            temperature, without scale and clip.

        Raises:
            DataError: A sample was not scored, and no reward for such samples is configured.
        """
        rewards, squashed = [], []
        logs: dict[str, list[float]] = {key: [] for key in LOGS}
        for number, (sample, score) in enumerate(zip(samples, scores, strict=True)):
            reward = trainer_reward(score, self._settings, f"item {number}")
            raw = score.reward if score.reward is not None else reward / self._settings.scale
            rewards.append(reward)
            squashed.append(squash(raw, self._settings.temperature))
            values = (
                raw,
                score.strong_logprob or 0.0,
                score.weak_logprob or 0.0,
                score.strong_tokens,
                sample.finished,
                score.truncated,
                score.router == "default",
                score.reward is not None and reward != score.reward * self._settings.scale,
                score.reward is None,
            )
            for key, value in zip(LOGS, values, strict=True):
                logs[key].append(float(value))
        return {"rewards": rewards, "scores": squashed, "extra_logs": logs}
