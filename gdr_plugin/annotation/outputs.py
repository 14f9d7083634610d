"""The end of an annotation: from scored windows to the data set's files, streaming.

Knows in which order records become pairs, tables, figures and the card. How a pair is picked, what a table looks like
and what the card says is decided elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gdr_plugin.annotation.card import card
from gdr_plugin.annotation.filters import Choice, Filters, choose
from gdr_plugin.annotation.run_folder import SUMMARY_FILE, RunFolder
from gdr_plugin.annotation.statistics import Statistics
from gdr_plugin.annotation.tables import Outputs
from gdr_plugin.api.errors import OutputError
from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.api.selectors import Candidate, Selector
from gdr_plugin.arithmetic.noise import RewardNoise
from gdr_plugin.files import atomic

BAD_ROW = "bad row"
NOT_SAMPLED = "not sampled"


@dataclass(frozen=True, slots=True)
class Picking:
    """How pairs are picked from scored candidates."""

    selector: Selector
    filters: Filters
    seed: int
    noise: RewardNoise | None = None
    """Rounding error of the rewards; None where the models' precision is not known."""

    def choose(self, record: Mapping[str, Any]) -> Choice:
        """The pairs of one prompt, as indices into its candidates, or why there are none."""
        if record["reason"] is not None:
            return Choice((), record["reason"])
        scored = [index for index, one in enumerate(record["candidates"]) if one["reward"] is not None]
        offered = [
            Candidate(one["response"], one["reward"], one["strong_tokens"])
            for one in (record["candidates"][index] for index in scored)
        ]
        digest = hashlib.blake2b(f"gdr select\0{self.seed}\0{record['id']}".encode(), digest_size=8).digest()
        choice = choose(offered, self.selector, self.filters, random.Random(int.from_bytes(digest, "little")))
        return Choice(tuple((scored[good], scored[bad]) for good, bad in choice.pairs), choice.reason)

    def within_noise(self, record: Mapping[str, Any], pairs: Sequence[tuple[int, int]]) -> list[bool | None]:
        """Whether each pair's margin may be rounding; None where that is not known."""
        if self.noise is None:
            return [None] * len(pairs)
        found: list[bool | None] = []
        for places in pairs:
            good, bad = (record["candidates"][place] for place in places)
            sizes = [(one["response"], one["strong_tokens"]) for one in (good, bad)]
            found.append(self.noise.hides(good["reward"] - bad["reward"], *sizes))
        return found


def finish(
    folder: RunFolder,
    windows: Sequence[int],
    picking: Picking,
    run: Mapping[str, Any],
    rendered: Mapping[str, RenderedGuidance],
) -> dict[str, Any]:
    """Write all files of a run whose windows are scored; summary.json comes last and says that the run is finished.

    Args:
        folder: The run's folder, held.
        windows: All windows, in order.
        picking: How pairs are picked.
        run: What the card and summary say of configuration, options, input, models and versions.
        rendered: Each domain's guidance.

    Returns:
        What summary.json says.

    Raises:
        OutputError: A file cannot be written, or a window's file is damaged.
    """
    statistics = Statistics()
    seconds = {"sampling": 0.0, "scoring": 0.0}
    try:
        with Outputs(folder.work) as outputs:
            for window in windows:
                header, records = folder.read("candidates", window)
                for stage in seconds:
                    seconds[stage] += header["seconds"][stage]
                for record in records:
                    _add(record, picking, outputs, statistics)
    except OSError as error:
        raise OutputError(f"{folder.root}: cannot be written ({error.strerror}); free space and run again") from error
    rounded = {stage: round(spent, 1) for stage, spent in seconds.items()}
    summary = {**statistics.figures(), "seconds": rounded, "tables": outputs.rows, "run": dict(run)}
    outputs.publish(folder.root)
    with atomic(folder.root / "README.md") as file:
        file.write(card(summary, rendered))
    with atomic(folder.root / SUMMARY_FILE) as file:
        file.write(json.dumps(summary, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    return summary


def _add(record: Mapping[str, Any], picking: Picking, outputs: Outputs, statistics: Statistics) -> None:
    choice = picking.choose(record)
    within_noise = picking.within_noise(record, choice.pairs)
    statistics.add(record, choice, within_noise)
    outputs.scored(record)
    outputs.pairs(record, choice.pairs, within_noise)
    if choice.reason is not None:
        reasons = [one["reason"] for one in record["candidates"] if one["reason"] is not None]
        outputs.reject(record, choice.reason, record["detail"] or "; ".join(dict.fromkeys(reasons)) or None)
