"""The reward of a trainer's process, from a `gdr serve` or from models in this process, opened once.

Knows where samples are scored and what a trainer is given for each; nothing of any framework's shapes. Environment
variables say which reward where a framework leaves no other way: `GDR_REMOTE` (the address of a `gdr serve`, the usual
way) or `GDR_CONFIG` (a gdr.yaml). `GDR_POLICY_TOKENIZER`, `GDR_SCALE`, `GDR_CLIP`, `GDR_TEMPERATURE`, `GDR_UNSCORED`,
`GDR_PLAIN` do what the options of `gdr serve` with these names do.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.service import ServeSettings
from gdr_plugin.api.types import Sample, Score
from gdr_plugin.api.unscored import Unscored
from gdr_plugin.logs import logger

log = logger("gdr_plugin.adapters")

_NUMBERS: Final = ("scale", "clip", "temperature")
_THREADS: Final = 64
"""The most calls of one process that wait for their scores at once."""
_opening = threading.RLock()
"""A trainer's threads come with their first samples at once: one opens the reward, the others wait for it."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Scores in another process or in this one; safe to use from many threads."""

    settings: ServeSettings
    """What to do with texts and rewards."""
    score: Callable[[Sequence[Sample]], list[Score]]
    """Scores samples; may be called from many threads at once."""
    guidances: Callable[[], Mapping[str, str]]
    """Domain -> the name of its guidance, without the domains that have none."""

    def rewards(self, samples: Sequence[Sample]) -> list[float]:
        """The rewards that a trainer is given, in order and finite.

        Raises:
            GDRError: The server cannot be reached, or a sample cannot be scored and no reward for such samples is set.
        """
        scores = self.score(samples) if samples else []
        return [trainer_reward(score, self.settings, f"item {at}") for at, score in enumerate(scores)]

    async def ask(self, samples: Sequence[Sample]) -> list[float]:
        """`rewards`, on a thread: the event loop goes on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(_pool(), self.rewards, samples)

    async def ask_scores(self, samples: Sequence[Sample]) -> list[Score]:
        """`score`, on a thread: for frameworks that leave out what has no reward."""
        return await asyncio.get_running_loop().run_in_executor(_pool(), self.score, samples)


def trainer_reward(score: Score, settings: ServeSettings, where: str) -> float:
    """What a trainer is given for one score: scaled, then clipped; the number of `unscored` where there is no reward.

    Args:
        score: The score.
        settings: `scale`, `clip` and `unscored`.
        where: Which sample it is, for the message.

    Raises:
        DataError: The sample was not scored, and no reward for such samples is set.
    """
    if score.reward is not None:
        reward, clip = score.reward * settings.scale, settings.clip
        return reward if clip is None else max(-clip, min(clip, reward))
    given = settings.unscored.reward(None, score.reason, where)
    assert given is not None  # `none` is no policy of these settings
    log.warning("a sample was not scored and gets %g: %s", given, score.reason)
    return given


def open_backend(
    remote: str | None = None, config: str | Path | None = None, unscored: float | str | None = None
) -> Backend:
    """The reward that the arguments, and for what they leave out the environment, describe; one for each description.

    Args:
        remote: Address of a `gdr serve`.
        config: Path of a gdr.yaml, whose models load in this process.
        unscored: `raise`, or the number that a sample gets which cannot be scored.

    Raises:
        ConfigError: Both or none of `remote` and `config` are given, or a value is wrong.
    """
    if remote is None and config is None:
        remote, config = os.environ.get("GDR_REMOTE") or None, os.environ.get("GDR_CONFIG") or None
    if (remote is None) == (config is None):
        raise ConfigError(
            "which reward: set GDR_REMOTE to the address of a `gdr serve`, or GDR_CONFIG to a gdr.yaml"
            + (", not both" if remote is not None else "")
        )
    given = os.environ.get("GDR_UNSCORED") or "raise" if unscored is None else str(unscored)
    with _opening:
        return _opened(remote, None if config is None else str(config), given)


@cache
def _opened(remote: str | None, config: str | None, unscored: str) -> Backend:
    settings = read_settings({**os.environ, "GDR_UNSCORED": unscored})
    return _local(settings, str(config)) if remote is None else _remote(settings, remote)


def read_settings(variables: Mapping[str, str]) -> ServeSettings:
    """The settings of `gdr serve` that count in a trainer's process.

    Args:
        variables: The environment; an empty value counts as none.

    Raises:
        ConfigError: A value is not a number, or out of its range.
    """
    values: dict[str, Any] = {"policy_tokenizer": variables.get("GDR_POLICY_TOKENIZER") or None}
    for name in _NUMBERS:
        if text := variables.get(f"GDR_{name.upper()}"):
            try:
                values[name] = float(text)
            except ValueError:
                raise ConfigError(f"GDR_{name.upper()} must be a number, not {text!r}") from None
    values["unscored"] = Unscored.of(variables.get("GDR_UNSCORED") or "raise", name="GDR_UNSCORED")
    plain = variables.get("GDR_PLAIN", "")
    if plain not in ("", "0", "1"):
        raise ConfigError(f"GDR_PLAIN must be 0 or 1, not {plain!r}")
    return ServeSettings(plain=plain == "1", **values)


def _remote(settings: ServeSettings, url: str) -> Backend:
    from gdr_plugin.reward.remote import RemoteRatio

    ratio = RemoteRatio(url)

    def guidances() -> Mapping[str, str]:
        config: Mapping[str, Any] = ratio.info.get("config") or {}
        named: Mapping[str, str] = (config.get("guidance") or {}).get("domains") or {}
        return named

    return Backend(settings, ratio.score, guidances)


def _local(settings: ServeSettings, config: str) -> Backend:
    """The models in this process, behind a service: trainers ask for one sample a call, many calls at a time."""
    from gdr_plugin.reward.reward import GuidedDensityRatio
    from gdr_plugin.serve.service import BatchingService

    if not Path(config).expanduser().is_file():
        raise ConfigError(
            f"GDR_CONFIG: there is no file {config!r} in {Path.cwd()}, where this process runs: write its whole path"
        )
    service = BatchingService(GuidedDensityRatio.from_config(config), settings)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="gdr-reward", daemon=True).start()
    asyncio.run_coroutine_threadsafe(service.start(), loop).result()

    def score(samples: Sequence[Sample]) -> list[Score]:
        return asyncio.run_coroutine_threadsafe(service.score(samples), loop).result()

    def guidances() -> Mapping[str, str]:
        return {domain: guidance.name for domain, guidance in service.ratio.domains.items() if guidance is not None}

    return Backend(settings, score, guidances)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="gdr-ask")
