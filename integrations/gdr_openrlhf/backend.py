"""The dialect of an OpenRLHF process, as environment variables describe it, opened once.

The variables are those of `gdr_plugin.adapters.backend`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

from gdr_openrlhf.dialect import Dialect
from gdr_plugin.adapters.backend import Backend, open_backend
from gdr_plugin.adapters.rendered import open_prompt_reader
from gdr_plugin.api.types import Sample
from gdr_plugin.models.text.rendered_prompt import RenderedPromptReader

_opening = threading.RLock()


def dialect_of(backend: Backend, reader: RenderedPromptReader | None) -> Dialect:
    """The dialect with a backend's settings and guidances.

    Args:
        backend: The reward.
        reader: As in `Dialect`.
    """
    return Dialect(backend.settings, reader, backend.guidances)


def answer(backend: Backend, dialect: Dialect, samples: Sequence[Sample]) -> dict[str, Any]:
    """Score samples and answer as OpenRLHF wants it.

    Raises:
        GDRError: The server cannot be reached, or a sample cannot be scored and no reward for such samples is set.
    """
    return dialect.answer(samples, backend.score(samples) if samples else [])


def from_environment() -> Backend:
    """The reward that the environment's variables describe; the same one on every call.

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
    return open_backend()


@cache
def _dialect() -> Dialect:
    backend = from_environment()
    return dialect_of(backend, open_prompt_reader(backend.settings))
