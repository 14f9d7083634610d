"""The progress of a window: a prompt that is drawn is not done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gdr_plugin.annotation import windows
from gdr_plugin.annotation.options import AnnotateOptions


class Prompts:
    """Two windows of sixteen rows."""

    def __len__(self) -> int:
        return 32

    def windows(self, size: int, wanted: set[int]) -> Iterator[tuple[int, list[int]]]:
        return ((window, list(range(16))) for window in sorted(wanted))


def test_a_prompt_that_is_drawn_counts_for_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def passes(seconds: float) -> None:
        now[0] += seconds

    def answer(sampler: Any, prompts: list[int], options: Any, *, progress: Callable[[int], None]) -> list[int]:
        for drawn in (8, 16):
            passes(5)
            progress(drawn)
        return prompts

    told: list[tuple[str, int, int | None]] = []
    run = windows.Windows(
        folder=cast("Any", SimpleNamespace(has=lambda kind, window: False)),
        prompts=cast("Any", Prompts()),
        ratio=cast("Any", SimpleNamespace(score=lambda samples: passes(30))),
        sampler=cast("Any", object()),
        options=AnnotateOptions(),
        progress=lambda *step: told.append(step),
        own=(0, 1),
        total=32,
    )
    monkeypatch.setattr(windows, "rows_in", lambda wanted, size, prompts: 16 * len(wanted))
    monkeypatch.setattr(windows.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(windows.PromptRecord, "of", lambda row, sampled: row)
    monkeypatch.setattr(windows, "answer", answer)
    monkeypatch.setattr(windows, "samples_of", lambda prompts: prompts)
    for name in ("write_responses", "keep_scored"):
        monkeypatch.setattr(windows, name, lambda *given: None)
    run.run(sequential=False)
    # In the first window half of the time is expected to go into drawing; it was a quarter.
    assert [done for _, done, _ in told] == [0, 4, 8, 16, 18, 20, 32]
    assert {stage for stage, _, _ in told} == {"sampling and scoring"}
