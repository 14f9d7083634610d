"""The end of an annotation: from scored windows to the data set's files, streaming.

Knows in which order records become pairs, tables, figures and the card. How a pair is picked, what a table looks like
and what the card says is decided elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from gdr_plugin.annotation.card import card
from gdr_plugin.annotation.filters import Filters, Picked, choose
from gdr_plugin.annotation.records import ScoredRecord, Seconds, read_scored
from gdr_plugin.annotation.statistics import Statistics
from gdr_plugin.annotation.summary import RunFacts, Summary
from gdr_plugin.annotation.tables import Tables, has_tools, is_structured
from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.api.selectors import Candidate, Selector
from gdr_plugin.arithmetic.noise import RewardNoise
from gdr_plugin.config.schema import Config
from gdr_plugin.files import atomic, not_written
from gdr_plugin.progress import Progress, silent
from gdr_plugin.scoring.run_folder import SUMMARY_FILE, RunFolder


@dataclass(frozen=True, slots=True)
class Picking:
    """How pairs are picked from scored candidates."""

    selector: Selector
    filters: Filters
    seed: int
    noise: RewardNoise | None = None
    """Rounding error of the rewards; None where the models' precision is not known."""

    def pick(self, record: ScoredRecord) -> Picked:
        """The pairs of one prompt, as indices into its candidates, or why there are none."""
        if record.reason is not None:
            return Picked((), record.reason)
        offered: list[Candidate] = []
        places: list[int] = []
        for place, candidate in enumerate(record.candidates):
            if candidate.reward is not None:
                offered.append(Candidate(candidate.response, candidate.reward, candidate.strong_tokens))
                places.append(place)
        digest = hashlib.blake2b(f"gdr select\0{self.seed}\0{record.id}".encode(), digest_size=8).digest()
        picked = choose(offered, self.selector, self.filters, random.Random(int.from_bytes(digest, "little")))
        return Picked(tuple((places[chosen], places[rejected]) for chosen, rejected in picked.pairs), picked.reason)

    def within_noise(self, record: ScoredRecord, pairs: Sequence[tuple[int, int]]) -> list[bool | None]:
        """Whether each pair's margin may be rounding; None where that is not known."""
        if self.noise is None:
            return [None] * len(pairs)
        found: list[bool | None] = []
        for pair in pairs:
            candidates = [record.candidates[place] for place in pair]
            sizes = [(candidate.response, candidate.strong_tokens) for candidate in candidates]
            found.append(self.noise.hides(record.margin(pair), *sizes))
        return found


def write_outputs(
    folder: RunFolder,
    windows: Sequence[int],
    picking: Picking,
    run: RunFacts,
    config: Config,
    rendered: Mapping[str, RenderedGuidance],
    progress: Progress = silent,
) -> Summary:
    """Write all files of a run whose windows are scored; summary.json comes last and says that the run is finished.

    Args:
        folder: The run's folder, held.
        windows: All windows, in order.
        picking: How pairs are picked.
        run: What the card and summary say of configuration, options, input, models and versions.
        config: The configuration.
        rendered: Each domain's guidance.
        progress: Told how many prompts are written.

    Returns:
        What summary.json says.

    Raises:
        OutputError: A file cannot be written, or a window's file is damaged.
    """
    statistics = Statistics()
    seconds = Seconds()
    try:
        structured = tools = False
        for window in windows:
            for record in read_scored(folder, window)[0]:
                structured, tools = structured or is_structured(record), tools or has_tools(record)
        rows = run["input"]["rows"]
        with Tables(folder.work, structured=structured, tools=tools) as tables:
            for window in windows:
                progress("writing", statistics.rows, rows)
                records, spent = read_scored(folder, window)
                seconds += spent
                for record in records:
                    _add(record, picking, tables, statistics)
            progress("writing", statistics.rows, rows)
    except OSError as error:
        raise not_written(folder.root, error) from error
    rounded = {stage: round(spent, 1) for stage, spent in asdict(seconds).items()}
    summary: Summary = {**statistics.figures(), "seconds": rounded, "tables": tables.rows, "run": run}
    tables.publish(folder.root)
    with atomic(folder.root / "README.md") as file:
        file.write(card(summary, config, rendered))
    with atomic(folder.root / SUMMARY_FILE) as file:
        file.write(json.dumps(summary, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    return summary


def _add(record: ScoredRecord, picking: Picking, tables: Tables, statistics: Statistics) -> None:
    """Add one prompt to every table and figure."""
    picked = picking.pick(record)
    within_noise = picking.within_noise(record, picked.pairs)
    statistics.add(record, picked, within_noise)
    tables.add_candidates(record)
    tables.add_pairs(record, picked.pairs, within_noise)
    if picked.reason is not None:
        reasons = [candidate.reason for candidate in record.candidates if candidate.reason is not None]
        tables.add_reject(record, picked.reason, record.detail or "; ".join(dict.fromkeys(reasons)) or None)
