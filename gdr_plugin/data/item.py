"""What is measured: a prompt with the responses that should win and those that should lose, and their scores.

Knows values only; nothing of files, formats or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gdr_plugin.api.types import Conversation, Message, Score


@dataclass(frozen=True, slots=True)
class Item:
    """A preference to be reproduced: every chosen response should score higher than every rejected one."""

    id: str
    """Unique in its data set."""
    prompt: Conversation
    """The conversation up to and without the response."""
    chosen: tuple[Message, ...]
    """The preferred responses, as assistant turns; at least one."""
    rejected: tuple[Message, ...]
    """The others; at least one."""
    domain: str | None
    """The domain that the row names (`field` routers read it); None where it names none."""
    subset: str
    """The part of the data set that the item is reported under; `all` where there are no parts."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """All other columns. Routers may read them."""
    contexts: tuple[Conversation, ...] = ()
    """The conversation that each response ends, the chosen ones first, where these differ: `prompt` is then what they
    begin with. Empty where all answer the prompt."""

    @property
    def asked(self) -> tuple[Conversation, ...]:
        """What each response answers, the chosen ones first."""
        return self.contexts or (self.prompt,) * (len(self.chosen) + len(self.rejected))

    @property
    def columns(self) -> Mapping[str, Any]:
        """What routers may read: `fields`, and `domain` where the row names one."""
        return self.fields if self.domain is None else {**self.fields, "domain": self.domain}


@dataclass(frozen=True, slots=True)
class ItemScores:
    """An item with the scores of its responses."""

    item: Item
    chosen: tuple[Score, ...]
    """One score for each of `item.chosen`, in order."""
    rejected: tuple[Score, ...]
    """One score for each of `item.rejected`, in order."""
