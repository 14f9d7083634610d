"""Draws the progress of long jobs on standard error: one bar for each stage, with rate and time left.

The only module that draws. Everything else reports through `gdr_plugin.progress.Progress`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gdr_plugin.progress import Progress


@contextlib.contextmanager
def progress_bars(unit: str) -> Iterator[Progress | None]:
    """Show bars while the block runs, and nothing where standard error is no terminal.

    Args:
        unit: What is counted, as a plural noun.

    Yields:
        A `Progress`, or None where nothing is shown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    stages: dict[str, tuple[TaskID, int, float]] = {}
    with Progress(*columns, console=console) as bars:

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in stages:
                task = bars.add_task(stage, total=total, completed=done, count="", rate="")
                stages[stage] = task, done, time.monotonic()
            task, first, started = stages[stage]
            seconds = time.monotonic() - started
            rate = f"{(done - first) / seconds:,.1f} {unit}/s" if done > first and seconds > 0 else ""
            count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
            bars.update(task, completed=done, count=count, rate=rate)

        yield show
