"""The minute of chaos that CI runs; `make chaos` runs ten of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import chaos

SEED = 18


@pytest.mark.slow
def test_a_minute_of_chaos(tmp_path: Path) -> None:
    figures = chaos(SEED, 1, tmp_path)
    print(figures.table())
    assert figures.broken == []
    counts = figures.counts
    assert counts["annotate: killed"] >= 1
    assert counts["annotate: rows"] == 4 * 320
    assert counts["annotate: entries of the store"] == 2 * 4 * 320
    assert counts["serve: killed"] >= 1
    assert counts["trainers: rewards"] == 720
    assert sum(count for name, count in counts.items() if name.startswith("hostile bodies: answered")) == 1_000
    assert counts["configurations: tried"] == 100
    assert counts["configurations: refused"] > 50
