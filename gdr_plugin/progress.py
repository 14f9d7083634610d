"""How a long job reports its progress; `gdr_plugin.cli.progress` draws it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, "int | None"], None]
"""Called as `progress(stage, done, total)`, in items; the total of a stream is None."""


def silent(stage: str, done: int, total: int | None) -> None:
    """Ignore the progress."""
