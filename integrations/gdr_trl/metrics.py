"""What a trainer logs about a batch of rewards: numbers for the curves, columns for the table of completions.

Every number is finite. What a batch does not define (the mean of a domain that did not occur, a correlation of equal
lengths) is left out of that batch, never invented: TRL averages over the batches and ranks that have it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from statistics import fmean
from typing import Any

from gdr_trl.completion_reward import CompletionReward

LogMetric = Callable[[str, float], None]
LogExtra = Callable[[str, list[Any]], None]


def log_batch(
    name: str,
    rewards: Sequence[CompletionReward],
    domains: Collection[str],
    seconds: float,
    *,
    log_metric: LogMetric | None,
    log_extra: LogExtra | None,
) -> None:
    """Log a batch through the trainer's functions, where it passes them.

    Args:
        name: The reward's name: all keys and columns begin with it.
        rewards: The batch, in order.
        domains: Every domain that there may be.
        seconds: How long scoring took.
        log_metric: TRL's function for numbers.
        log_extra: TRL's function for columns.
    """
    if log_metric is not None:
        for key, value in metrics(name, rewards, domains, seconds).items():
            log_metric(key, value)
    if log_extra is not None:
        log_extra(f"{name}_domain", [reward.domain for reward in rewards])
        log_extra(f"{name}_strong", [reward.strong for reward in rewards])
        log_extra(f"{name}_weak", [reward.weak for reward in rewards])
        log_extra(f"{name}_reward", [reward.value for reward in rewards])


def metrics(
    name: str, rewards: Sequence[CompletionReward], domains: Collection[str], seconds: float
) -> dict[str, float]:
    """The numbers of a batch.

    Args:
        name: What all keys begin with.
        rewards: The batch; may be empty.
        domains: Every domain that there may be.
        seconds: How long scoring took.

    Returns:
        Key to finite number. `gdr/ratio` is the mean ratio before the length penalty, `gdr/strong_per_token` and
        `gdr/weak_per_token` are log-probs in nats a token, `gdr/truncated` and `gdr/not_scored` are shares of the
        completions, `gdr/tokens_per_s` counts both models' response tokens, `gdr/DOMAIN/share` and
        `gdr/DOMAIN/reward` describe one domain, and `gdr_hack` is the correlation of reward and length.
    """
    if not rewards:
        return {}
    scored = [reward for reward in rewards if reward.value is not None]
    strong_tokens, weak_tokens = (
        sum(reward.strong_tokens for reward in scored),
        sum(reward.weak_tokens for reward in scored),
    )
    found: dict[str, float | None] = {
        f"{name}/ratio": _mean([reward.ratio for reward in scored]),
        f"{name}/strong_per_token": _per_token([reward.strong for reward in scored], strong_tokens),
        f"{name}/weak_per_token": _per_token([reward.weak for reward in scored], weak_tokens),
        f"{name}/truncated": fmean(reward.cut for reward in rewards),
        f"{name}/not_scored": 1 - len(scored) / len(rewards),
        f"{name}/tokens_per_s": (strong_tokens + weak_tokens) / max(seconds, 1e-9),
        f"{name}_hack": correlation([reward.value for reward in scored], [_length(reward) for reward in scored]),
    }
    for domain in domains:
        found[f"{name}/{domain}/share"] = fmean(reward.domain == domain for reward in rewards)
        found[f"{name}/{domain}/reward"] = _mean([reward.value for reward in scored if reward.domain == domain])
    return {key: value for key, value in found.items() if value is not None and math.isfinite(value)}


def correlation(rewards: Sequence[float | None], lengths: Sequence[int]) -> float | None:
    """Pearson's correlation of reward and length.

    Args:
        rewards: The rewards of scored completions.
        lengths: Their lengths in tokens.

    Returns:
        -1..1; None for fewer than three completions, or where one of the two does not vary.
    """
    pairs = [(reward, length) for reward, length in zip(rewards, lengths, strict=True) if reward is not None]
    if len(pairs) < 3:
        return None
    mean_reward, mean_length = fmean(reward for reward, _ in pairs), fmean(length for _, length in pairs)
    together = math.fsum((reward - mean_reward) * (length - mean_length) for reward, length in pairs)
    spread = math.hypot(*(r - mean_reward for r, _ in pairs)) * math.hypot(*(n - mean_length for _, n in pairs))
    return max(-1.0, min(1.0, together / spread)) if spread > 1e-12 else None


def _length(reward: CompletionReward) -> int:
    # The strong model's own tokens would make completions differ that all reached the length limit.
    return reward.strong_tokens if reward.length is None else reward.length


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _per_token(totals: Sequence[float | None], tokens: int) -> float | None:
    known = [value for value in totals if value is not None]
    return math.fsum(known) / tokens if tokens else None
