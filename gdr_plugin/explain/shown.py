"""What a page shows: rows with their scores, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gdr_plugin.api.types import Conversation, Sample, Score
from gdr_plugin.config.schema import Config
from gdr_plugin.evaluation.measures.item_rules import Rule


@dataclass(frozen=True, slots=True)
class Shown:
    """A row to show: a prompt with labelled responses."""

    id: str
    responses: tuple[tuple[str, Sample], ...]
    """Label (`response`, `chosen`, `rejected 2` ...) and sample."""
    rule: Rule = "best"
    """What makes the row right, where it has chosen and rejected responses: as in `gdr evaluate`."""

    @property
    def prompt(self) -> Conversation:
        """The prompt that all responses answer; of responses in conversations of their own, what these begin with."""
        first, *others = (sample.prompt for _, sample in self.responses)
        ends = (end for end in range(len(first), 0, -1) if all(other[:end] == first[:end] for other in others))
        return first[: next(ends, 0)]


@dataclass(frozen=True, slots=True)
class Explained:
    """A row with its scores, which carry tokens."""

    row: Shown
    guided: tuple[Score, ...]
    """One score a response, under the configured guidance."""
    unguided: tuple[Score, ...] | None
    """One score a response without guidance; None where no guidance applies to the row anyway."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the page's numbers come from."""

    source: str
    config_name: str
    config: Config
    strong: str
    weak: str
    guidances: Mapping[str, str]
    """The text that each domain's prompts are shown; empty where it is none."""
