"""The reward of an OpenRLHF process, as environment variables describe it, opened once.

`GDR_REMOTE` (the address of a `gdr serve`, the usual way) or `GDR_CONFIG` (a gdr.yaml, models in this process).
`GDR_POLICY_TOKENIZER`, `GDR_SCALE`, `GDR_CLIP`, `GDR_TEMPERATURE`, `GDR_UNSCORED`, `GDR_PLAIN` do what the options of
`gdr serve` with these names do.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from gdr_openrlhf.dialect import Dialect, open_prompt_reader
from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.service import ServeSettings
from gdr_plugin.api.types import Sample, Score
from gdr_plugin.api.unscored import Unscored
from gdr_plugin.models.text.rendered_prompt import RenderedPromptReader

_NUMBERS: Final = ("scale", "clip", "temperature")
_opening = threading.RLock()
"""An engine's threads come with their first samples at once: one opens the reward, the others wait for it."""


class Backend:
    """Scores in another process or in this one; safe to use from many threads.

    Args:
        settings: What to do with texts and rewards.
        score: Scores samples; called from many threads at once.
        guidances: As in `Dialect`.
    """

    def __init__(
        self,
        settings: ServeSettings,
        score: Callable[[Sequence[Sample]], list[Score]],
        guidances: Callable[[], Mapping[str, str]],
    ) -> None:
        self.settings = settings
        self._score = score
        self._guidances = guidances

    def dialect(self, reader: RenderedPromptReader | None) -> Dialect:
        """The dialect with these settings.

        Args:
            reader: As in `Dialect`.
        """
        return Dialect(self.settings, reader, self._guidances)

    def rewards(self, dialect: Dialect, samples: Sequence[Sample]) -> dict[str, Any]:
        """Score samples and answer as OpenRLHF wants it.

        Raises:
            GDRError: The server cannot be reached, or a sample cannot be scored and no reward for such samples is set.
        """
        return dialect.answer(samples, self._score(samples)) if samples else dialect.answer([], [])


def from_environment() -> Backend:
    """The backend that the environment's variables describe; the same one on every call.

    Raises:
        ConfigError: Both or none of GDR_REMOTE and GDR_CONFIG are set, or a value is wrong.
    """
    with _opening:
        return _backend()


def dialect_from_environment() -> Dialect:
    """The dialect with the environment's settings and policy tokenizer; the same one on every call.

    Raises:
        ConfigError: As `from_environment`.
        ModelError: The tokenizer cannot be opened.
    """
    with _opening:
        return _dialect()


@cache
def _backend() -> Backend:
    settings = read_settings(os.environ)
    remote, config = os.environ.get("GDR_REMOTE"), os.environ.get("GDR_CONFIG")
    if bool(remote) == bool(config):
        raise ConfigError(
            "set GDR_REMOTE to the address of a `gdr serve`, or GDR_CONFIG to a gdr.yaml"
            + (", not both" if remote else "")
        )
    return _remote(settings, remote) if remote else _local(settings, str(config))


@cache
def _dialect() -> Dialect:
    backend = from_environment()
    return backend.dialect(open_prompt_reader(backend.settings))


def read_settings(variables: Mapping[str, str]) -> ServeSettings:
    """The settings of `gdr serve` that count here.

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
    """The models in this process, behind a service: OpenRLHF asks for one sample a thread, many threads at a time."""
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
