"""Draws the progress of long jobs on standard error: a bar for each stage on a terminal, elsewhere a line now and then.

The only module that draws. Everything else reports through `gdr_plugin.progress.Progress`.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from gdr_plugin.text import line_of

if TYPE_CHECKING:
    from rich.console import Console

    from gdr_plugin.progress import Progress

EVERY_S: Final = 10.0
"""Seconds between two lines."""


@contextlib.contextmanager
def progress_bars(unit: str, *, quiet: bool = False) -> Iterator[Progress | None]:
    """Show progress while the block runs: bars on a terminal, elsewhere a line every ten seconds.

    Args:
        unit: What is counted, as a plural noun.
        quiet: Whether nothing is shown.

    Yields:
        A `Progress`, or None where nothing is shown.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if quiet:
        yield None
    elif console.is_terminal:
        with _bars(unit, console) as show:
            yield show
    else:
        with Lines(unit) as lines:
            yield lines.show


@contextlib.contextmanager
def _bars(unit: str, console: Console) -> Iterator[Progress]:
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),  # the names of models are in it
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
                task = bars.add_task(line_of(stage), total=total, completed=done, count="", rate="")
                stages[stage] = task, done, time.monotonic()
            task, first, started = stages[stage]
            rate = _rate(done - first, time.monotonic() - started)
            shown = f"{_number(rate)} {unit}/s" if rate else ""
            count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
            bars.update(task, completed=done, count=count, rate=shown)

        yield show


class Lines:
    """Writes how far a job is as a line of text, every ten seconds and not more often; a context manager.

    A thread of its own writes them, so that a long step or the loading of a model does not look like a standstill. A
    job that is done before ten seconds are over writes nothing.

    Args:
        unit: What is counted, as a plural noun.
        every: Seconds between two lines.
    """

    def __init__(self, unit: str, every: float = EVERY_S) -> None:
        self._unit = unit
        self._every = every
        self._began = time.monotonic()
        self._stage: tuple[str, int, int | None] | None = None
        self._starts: dict[str, tuple[int, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="gdr-progress", daemon=True)

    def __enter__(self) -> Lines:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def show(self, stage: str, done: int, total: int | None) -> None:
        """Take a report; see `gdr_plugin.progress.Progress`."""
        self._starts.setdefault(stage, (done, time.monotonic()))
        self._stage = stage, done, total

    def line(self) -> str:
        """What is written now."""
        now = time.monotonic()
        if self._stage is None:
            return f"gdr: getting ready, {_clock(now - self._began)} so far"
        stage, done, total = self._stage
        first, started = self._starts[stage]
        rate = _rate(done - first, now - started)
        parts = [f"gdr: {stage}: {done:,} {self._unit}"]
        if total:
            parts = [f"gdr: {stage}: {done:,}/{total:,} {self._unit} ({done / total:.0%})"]
        if rate:
            parts.append(f"{_number(rate)} {self._unit}/s")
            if total:
                parts.append(f"{_clock((total - done) / rate)} left")
        return line_of(", ".join(parts))

    def _tell(self) -> None:
        while not self._over.wait(self._every):
            print(self.line(), file=sys.stderr, flush=True)


def _rate(done: int, seconds: float) -> float:
    return done / seconds if done > 0 and seconds > 0 else 0.0


def _number(rate: float) -> str:
    return f"{rate:,.1f}" if rate >= 1 else f"{rate:.2g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
